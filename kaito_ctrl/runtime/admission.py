"""Admission webhooks: who says yes or no to writes of a kind, or changes them on their way in.

A handler is a function from an :class:`AdmissionRequest` to an :class:`AdmissionResponse`, or a coroutine function; it
gets raw objects, as admission comes before the schema has had its say. One that changes an object answers with the
object as it should be, and the patch is worked out here. :class:`~kaito_ctrl.runtime.webhook.WebhookServer` serves
them.
"""

from __future__ import annotations

import base64
import copy
import inspect
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from kaito_api.meta import Resource
from kaito_ctrl.runtime.codec import encode_json

__all__ = ["AdmissionRequest", "AdmissionResponse", "AdmissionWebhook", "chain", "json_patch"]


@dataclass(frozen=True, slots=True)
class AdmissionRequest:
    """A write that is being asked about. ``object`` and ``old`` are plain JSON; one of them may be ``None``."""

    operation: Literal["CREATE", "UPDATE", "DELETE", "CONNECT"]
    namespace: str
    name: str
    object: dict[str, Any] | None
    old: dict[str, Any] | None
    user: str
    dry_run: bool
    groups: tuple[str, ...] = ()
    subresource: str = ""


@dataclass(frozen=True, slots=True)
class AdmissionResponse:
    """The answer: allowed or not, and why; warnings are shown to the user either way."""

    allowed: bool
    message: str = ""
    code: int = 403
    reason: str = "Forbidden"
    warnings: tuple[str, ...] = ()
    object: Mapping[str, Any] | None = None
    """What the object should be instead; from a mutating webhook only."""


Handler = Callable[[AdmissionRequest], AdmissionResponse | Awaitable[AdmissionResponse]]


def chain(*handlers: Handler) -> Handler:
    """One handler of several: each sees the object as the one before has left it, the first refusal is the answer, and
    every warning up to there is shown."""

    async def handle(request: AdmissionRequest) -> AdmissionResponse:
        warnings: tuple[str, ...] = ()
        changed: Mapping[str, Any] | None = None
        for handler in handlers:
            response = await _asked(handler, request)
            warnings += response.warnings
            if not response.allowed:
                return replace(response, warnings=warnings, object=None)
            if response.object is not None:
                changed = response.object
                request = replace(request, object=copy.deepcopy(dict(changed)))
        return AdmissionResponse(True, warnings=warnings, object=changed)

    return handle


@dataclass(frozen=True, slots=True)
class AdmissionWebhook:
    """One webhook: what it is called, which writes it sees, and who answers."""

    name: str
    kind: type[Resource]
    handler: Handler
    path: str
    mutating: bool = False
    operations: tuple[str, ...] = ("CREATE", "UPDATE")
    failure_policy: Literal["Fail", "Ignore"] = "Fail"
    timeout: int = 10
    namespace_selector: Mapping[str, Any] = field(default_factory=dict)

    removable = True
    """Without it, writes are let through."""
    conversion = False

    @property
    def _configuration_kind(self) -> str:
        return "MutatingWebhookConfiguration" if self.mutating else "ValidatingWebhookConfiguration"

    @property
    def resource_path(self) -> str:
        """Where its configuration object is."""
        return f"/apis/admissionregistration.k8s.io/v1/{self._configuration_kind.lower()}s/{self.name}"

    def client_config(self, configuration: Mapping[str, Any]) -> Mapping[str, Any]:
        """How *configuration*, the object there, has it called."""
        webhooks = configuration.get("webhooks") or [{}]
        return webhooks[0].get("clientConfig") or {}

    def registration(self, client_config: Mapping[str, Any]) -> dict[str, Any]:
        """The object that has the API server call it at *client_config*."""
        return {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": self._configuration_kind,
            "metadata": {"name": self.name},
            "webhooks": [
                {
                    "name": self.name,
                    "clientConfig": dict(client_config),
                    "rules": [
                        {
                            "apiGroups": [self.kind.group],
                            "apiVersions": [self.kind.version],
                            "operations": list(self.operations),
                            "resources": [self.kind.plural],
                            "scope": "Namespaced" if self.kind.namespaced else "Cluster",
                        }
                    ],
                    "failurePolicy": self.failure_policy,
                    "sideEffects": "None",
                    "admissionReviewVersions": ["v1"],
                    "timeoutSeconds": self.timeout,
                    "namespaceSelector": dict(self.namespace_selector),
                }
            ],
        }

    async def answer(self, review: Mapping[str, Any]) -> dict[str, Any]:
        """The AdmissionReview that answers *review*. Raises what the handler raises, and ``KeyError``, ``TypeError`` or
        ``AttributeError`` for what is no review."""
        asked = review["request"]
        uid, request = asked["uid"], _request(asked)
        original = copy.deepcopy(request.object) if self.mutating else None
        response = await _asked(self.handler, request)
        patch: list[dict[str, Any]] = []
        if response.allowed and response.object is not None:
            if not self.mutating:
                raise ValueError(f"webhook {self.name} only validates, and cannot change what it is asked about")
            patch = list(json_patch(original, response.object))
        return _review(uid, response, patch)

    def failure(self, review: Mapping[str, Any], message: str) -> dict[str, Any]:
        """What answers *review* when the handler has failed."""
        response = AdmissionResponse(False, f"internal error: {message}", 500, "InternalError")
        return _review(review["request"]["uid"], response, [])


def json_patch(old: Any, new: Any, path: str = "") -> Iterator[dict[str, Any]]:
    """The RFC 6902 operations that make *old* into *new*; a list that differs is replaced as a whole."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key, value in old.items():
            where = f"{path}/{key.replace('~', '~0').replace('/', '~1')}"
            if key not in new:
                yield {"op": "remove", "path": where}
            else:
                yield from json_patch(value, new[key], where)
        for key, value in new.items():
            if key not in old:
                yield {"op": "add", "path": f"{path}/{key.replace('~', '~0').replace('/', '~1')}", "value": value}
    elif old != new or encode_json(old) != encode_json(new):  # to Python, True is 1
        yield {"op": "replace", "path": path, "value": new}


async def _asked(handler: Handler, request: AdmissionRequest) -> AdmissionResponse:
    response = handler(request)
    return await response if inspect.isawaitable(response) else response


def _request(asked: Mapping[str, Any]) -> AdmissionRequest:
    user = asked.get("userInfo") or {}
    return AdmissionRequest(
        operation=asked["operation"],
        namespace=asked.get("namespace") or "",
        name=asked.get("name") or "",
        object=asked.get("object"),
        old=asked.get("oldObject"),
        user=user.get("username") or "",
        dry_run=bool(asked.get("dryRun")),
        groups=tuple(user.get("groups") or ()),
        subresource=asked.get("subResource") or "",
    )


def _review(uid: str, response: AdmissionResponse, patch: list[dict[str, Any]]) -> dict[str, Any]:
    wire: dict[str, Any] = {"uid": uid, "allowed": response.allowed}
    if not response.allowed:
        wire["status"] = {"code": response.code, "reason": response.reason, "message": response.message}
    if response.warnings:
        wire["warnings"] = list(response.warnings)
    if patch:
        wire["patchType"] = "JSONPatch"
        wire["patch"] = base64.b64encode(encode_json(patch)).decode()
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": wire}
