"""Conversion webhooks: one kind of object, served in several versions.

One version is the hub, and every other one says how to get there and back, so that n versions take n - 1 pairs of
functions::

    def to_hub(obj: Obj) -> Obj:
        spec = obj["spec"]
        spec["size"] = {"width": spec.pop("width"), "height": spec.pop("height")}
        return obj

    webhook = ConversionWebhook("boxes.example.org", hub="v2", spokes={"v1": Spoke(to_hub, from_hub)})

The API server converts on every read and write of a version that is not the one it stores, so the way there and back
must lose nothing: what one version cannot say belongs into an annotation. Of the metadata, only labels and annotations
may change. :class:`~kaito_ctrl.runtime.webhook.WebhookServer` serves it, and has the CustomResourceDefinition name it.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["ConversionError", "ConversionWebhook", "Spoke"]

_SLICE = 0.005
"""Seconds for which a conversion may hold the event loop."""

Obj = dict[str, Any]
Convert = Callable[[Obj], Obj]
"""Gets an object of its own to change, and returns it, or another one. Its ``apiVersion`` is set by the caller."""


class ConversionError(Exception):
    """An object cannot be converted; the message says which, and why."""


@dataclass(frozen=True, slots=True)
class Spoke:
    """A version, by how its objects become the hub's, and the hub's its own. Neither reads anything but the object."""

    to_hub: Convert
    from_hub: Convert


@dataclass(frozen=True, slots=True)
class ConversionWebhook:
    """The versions of the kind that the CustomResourceDefinition *crd* (``<plural>.<group>``) defines."""

    crd: str
    hub: str
    spokes: Mapping[str, Spoke]
    timeout: int = 30  # the API server's own, which cannot be set

    removable = False
    """Without it, objects are unreadable in all versions but one; and with none, wrong."""
    conversion = True

    @property
    def name(self) -> str:
        return self.crd

    @property
    def group(self) -> str:
        return self.crd.partition(".")[2]

    @property
    def path(self) -> str:
        return f"/convert/{self.crd}"

    @property
    def resource_path(self) -> str:
        """Where its definition is."""
        return f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{self.crd}"

    def client_config(self, definition: Mapping[str, Any]) -> Mapping[str, Any]:
        """How *definition*, the object there, has it called."""
        conversion = definition["spec"].get("conversion") or {}
        if conversion.get("strategy") != "Webhook":
            return {}
        return (conversion.get("webhook") or {}).get("clientConfig") or {}

    def registration(self, client_config: Mapping[str, Any]) -> dict[str, Any]:
        """The part of the definition that has the API server call it at *client_config*."""
        webhook = {"clientConfig": dict(client_config), "conversionReviewVersions": ["v1"]}
        return {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": self.crd},
            "spec": {"conversion": {"strategy": "Webhook", "webhook": webhook}},
        }

    async def answer(self, review: Mapping[str, Any]) -> dict[str, Any]:
        """The ConversionReview that answers *review*: all of its objects, in order, or a failure that names the one
        that cannot be converted. Raises what a function raises, and ``KeyError``, ``TypeError`` or ``AttributeError``
        for what is no review."""
        asked = review["request"]
        uid, wanted = asked["uid"], asked["desiredAPIVersion"]
        try:
            group, _, version = wanted.rpartition("/")
            if group != self.group:
                raise ConversionError(f"{self.crd} has no version {wanted}")
            converted = []
            loop = asyncio.get_running_loop()
            began = loop.time()
            for obj in asked["objects"]:
                converted.append(self.convert(obj, version))
                if loop.time() - began > _SLICE:
                    await asyncio.sleep(0)  # a long list must not stall everybody else on this loop
                    began = loop.time()
        except ConversionError as error:
            return _review({"uid": uid, "result": {"status": "Failure", "message": str(error), "reason": "Invalid"}})
        return _review({"uid": uid, "result": {"status": "Success"}, "convertedObjects": converted})

    def failure(self, review: Mapping[str, Any], message: str) -> dict[str, Any]:
        """What answers *review* when a function has failed."""
        result = {"status": "Failure", "message": f"internal error: {message}", "reason": "InternalError"}
        return _review({"uid": review["request"]["uid"], "result": result})

    def convert(self, obj: Mapping[str, Any], version: str) -> Obj:
        """*obj* (plain JSON, left as it is) in *version*.

        Raises :class:`ConversionError` for a version that nobody declared, for another kind of object, and for a
        function that changes what must stay; and what the functions raise.
        """
        before = obj["apiVersion"]
        group, _, present = before.rpartition("/")
        for each in (present, version):
            if group != self.group or (each != self.hub and each not in self.spokes):
                known = ", ".join(sorted({self.hub, *self.spokes}))
                raise ConversionError(
                    f"cannot convert {_name(obj)} from {before} to {version}: the versions of {self.crd} are {known}"
                )
        made = copy.deepcopy(dict(obj))
        if present == version:
            return made
        if present != self.hub:
            made = self.spokes[present].to_hub(made)
        if version != self.hub:
            made["apiVersion"] = f"{self.group}/{self.hub}"
            made = self.spokes[version].from_hub(made)
        _refuse_change(obj, made, version)
        return {**made, "apiVersion": f"{self.group}/{version}"}


def _refuse_change(before: Mapping[str, Any], after: Mapping[str, Any], version: str) -> None:
    kept = {**before.get("metadata", {}), "kind": before.get("kind")}
    have = {**after.get("metadata", {}), "kind": after.get("kind")}
    for field in sorted({*kept, *have} - {"labels", "annotations"}):
        if kept.get(field) != have.get(field):
            where = field if field == "kind" else f"metadata.{field}"
            raise ConversionError(f"the conversion of {_name(before)} to {version} changes {where}, which must stay")


def _name(obj: Mapping[str, Any]) -> str:
    metadata = obj.get("metadata") or {}
    where = f"{metadata['namespace']}/" if metadata.get("namespace") else ""
    return f"{obj.get('kind')} {where}{metadata.get('name', '')}"


def _review(response: Mapping[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "apiextensions.k8s.io/v1", "kind": "ConversionReview", "response": dict(response)}
