"""From one version of a custom kind to another.

Objects are stored in their definition's storage version of the moment, and stay in it until they are written again.
Whatever is asked for in another version is converted on its way out, and on its way in: by renaming the version
(strategy None), or by the definition's webhook. What the target's schema does not know is dropped, as everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from kaito_ctrl.devcluster.apiserver.decode import copy_json
from kaito_ctrl.devcluster.apiserver.errors import StatusError
from kaito_ctrl.devcluster.apiserver.meta import validate_annotations, validate_labels
from kaito_ctrl.devcluster.apiserver.store import Obj
from kaito_ctrl.devcluster.apiserver.webhook_client import WebhookCaller, WebhookError
from kaito_ctrl.runtime.clock import UidSource

__all__ = ["Conversion"]

_SECONDS = 30
_REVIEWS = ("v1", "v1beta1")


class _Version(Protocol):
    def prune(self, obj: Obj) -> list[str]: ...


class Conversion:
    """How the objects of one definition change their version."""

    def __init__(
        self, spec: Mapping[str, Any], versions: Mapping[str, _Version], webhooks: WebhookCaller, uids: UidSource
    ) -> None:
        self._group: str = spec["group"]
        self._versions = versions
        conversion = spec.get("conversion") or {}
        self._webhook = conversion.get("webhook") if conversion.get("strategy") == "Webhook" else None
        self._webhooks = webhooks
        self._uids = uids

    async def convert(self, objects: Sequence[Obj], version: str) -> list[Obj]:
        """Each of *objects* in *version*; new objects, but for those that are in it. Raises a 500 saying why not."""
        wanted = f"{self._group}/{version}"
        others = [obj for obj in objects if obj["apiVersion"] != wanted]
        if self._webhook is None:
            found = [{**copy_json(obj), "apiVersion": wanted} for obj in others]
        else:
            found = await self._ask(self._webhook, others, wanted) if others else []
        for obj in found:
            self._versions[version].prune(obj)
        converted = iter(found)
        return [obj if obj["apiVersion"] == wanted else next(converted) for obj in objects]

    async def _ask(self, webhook: Mapping[str, Any], objects: Sequence[Obj], wanted: str) -> list[Obj]:
        first = objects[0]
        group, _, version = first["apiVersion"].rpartition("/")
        who = f"conversion webhook for {group}/{version}, Kind={first['kind']}"
        review = next((known for known in webhook["conversionReviewVersions"] if known in _REVIEWS), _REVIEWS[0])
        uid = self._uids()
        request = {"uid": uid, "desiredAPIVersion": wanted, "objects": list(objects)}
        api_version = f"apiextensions.k8s.io/{review}"
        body = {"kind": "ConversionReview", "apiVersion": api_version, "request": request}
        try:
            answer = await self._webhooks.call(webhook.get("clientConfig") or {}, body, timeout=_SECONDS)
            found = _converted(answer, uid, api_version)
        except WebhookError as error:
            raise _failure(f"{who} failed: {error}") from error
        if len(found) != len(objects):
            raise _failure(f"{who} returned {len(found)} objects, expected {len(objects)}")
        return [
            _checked(who, index, before, after, wanted)
            for index, (before, after) in enumerate(zip(objects, found, strict=True))
        ]


def _failure(message: str) -> StatusError:
    return StatusError(500, "", message)


def _converted(answer: Mapping[str, Any], uid: str, api_version: str) -> list[Any]:
    """The objects of a webhook's answer. Raises :class:`WebhookError` for one that is no success."""
    have = f"{answer.get('apiVersion')}, Kind={answer.get('kind')}"
    if have != (expected := f"{api_version}, Kind=ConversionReview"):
        raise WebhookError(f"expected webhook response of {expected}, got {have}")
    response = answer.get("response")
    if not isinstance(response, dict):
        raise WebhookError("no response provided")
    if response.get("uid") != uid:
        raise WebhookError(f'expected response.uid="{uid}", got "{response.get("uid") or ""}"')
    result = response.get("result") or {}
    if result.get("status") != "Success":
        why = f"response.result.status was '{result.get('status') or ''}', not 'Success'"
        raise WebhookError(result.get("message") or why)
    objects = response.get("convertedObjects") or []
    return objects if isinstance(objects, list) else []


def _checked(who: str, index: int, before: Obj, after: Any, wanted: str) -> Obj:
    """*after* with the metadata of *before*, of which a webhook may change labels and annotations only."""
    bad = f"{who} returned invalid converted object at index {index}"
    if not isinstance(after, dict):
        raise _failure(f"{bad}: it is no object")
    for key, name, expected in (("apiVersion", "groupVersion", wanted), ("kind", "kind", before["kind"])):
        if after.get(key) != expected:
            raise _failure(f"{bad}: invalid {name} (expected {expected}, received {after.get(key) or ''})")
    metadata = after.get("metadata")
    if not isinstance(metadata, dict):
        raise _failure(
            f"{who} returned invalid metadata in object at index {index}: missing metadata in converted object"
        )
    for key, name in (("name", "name"), ("namespace", "namespace"), ("uid", "UID")):
        old, new = before["metadata"].get(key) or "", metadata.get(key) or ""
        if old != new:
            raise _failure(f"{bad}: must have the same {name}: {old} != {new}")
    kept = {key: value for key, value in before["metadata"].items() if key not in {"labels", "annotations"}}
    problems = []
    for key, validate in (("labels", validate_labels), ("annotations", validate_annotations)):
        value = metadata.get(key)
        if value is None:
            continue
        if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
            raise _failure(f"{who} returned invalid metadata in object at index {index}: invalid metadata.{key}")
        problems += [str(error) for error in validate(value, f"metadata.{key}")]
        if value:
            kept[key] = value
    if problems:
        raise _failure(f"{who} returned invalid metadata in object at index {index}: {'; '.join(problems)}")
    rest = {key: value for key, value in after.items() if key not in {"apiVersion", "kind", "metadata"}}
    return {"apiVersion": wanted, "kind": after["kind"], "metadata": kept, **rest}
