"""Admission webhooks: mutating ones may patch what is written, validating ones may refuse it.

Both are called over HTTPS, as configured by the objects in the store. Without any configuration a write passes straight
through.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from kaito_ctrl.devcluster.apiserver.decode import copy_json
from kaito_ctrl.devcluster.apiserver.errors import StatusError, internal
from kaito_ctrl.devcluster.apiserver.kinds import Resource
from kaito_ctrl.devcluster.apiserver.patch import PatchError, json_patch
from kaito_ctrl.devcluster.apiserver.requests import Call
from kaito_ctrl.devcluster.apiserver.selectors import match_label_selector
from kaito_ctrl.devcluster.apiserver.store import Key, Obj, Store
from kaito_ctrl.devcluster.apiserver.webhook_client import WebhookCaller, WebhookError
from kaito_ctrl.runtime.clock import UidSource

__all__ = ["Admission", "Review"]

Operation = Literal["CREATE", "UPDATE", "DELETE", "CONNECT"]


@dataclass(slots=True)
class Review:
    """One write under review."""

    operation: Operation
    resource: Resource
    key: Key
    call: Call
    new: Obj | None = None
    old: Obj | None = None
    subresource: str = ""


class Admission:
    """Runs the configured webhooks over a write."""

    def __init__(self, store: Store, uids: UidSource, webhooks: WebhookCaller) -> None:
        group = "admissionregistration.k8s.io"
        self._mutating = store.bucket(group, "mutatingwebhookconfigurations")
        self._validating = store.bucket(group, "validatingwebhookconfigurations")
        self._namespaces = store.bucket("", "namespaces")
        self._uids = uids
        self._webhooks = webhooks

    async def mutate(self, review: Review) -> Obj:
        """The object after every mutating webhook that wants to see it. Raises what a webhook refuses with."""
        assert review.new is not None
        obj = review.new
        if not self._mutating.items:
            return obj
        for webhook in self._matching(self._mutating.items, review):
            answer = await self._call(webhook, review, obj)
            if answer is None or not answer.get("patch"):
                continue
            name = webhook["name"]
            if answer.get("patchType") != "JSONPatch":
                raise internal(f'failed calling webhook "{name}": invalid patch type {answer.get("patchType")!r}')
            try:
                operations = msgspec.json.decode(base64.b64decode(answer["patch"], validate=True))
                obj = copy_json(json_patch(obj, operations))
            except (binascii.Error, msgspec.DecodeError, PatchError) as error:
                raise internal(f'failed calling webhook "{name}": {error}') from error
        if obj is not review.new:
            review.resource.strategy.default(obj)
        return obj

    async def validate(self, review: Review) -> None:
        """Ask every validating webhook that wants to see it, all at once. Raises the first refusal in their order."""
        if not self._validating.items:
            return
        webhooks = list(self._matching(self._validating.items, review))
        if not webhooks:
            return
        answers = await asyncio.gather(
            *(self._call(webhook, review, review.new) for webhook in webhooks), return_exceptions=True
        )
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer

    def _matching(self, configurations: Mapping[Key, Any], review: Review) -> Iterable[Obj]:
        # Their own configurations are never shown to webhooks: a broken one could not be repaired.
        if review.resource.group == "admissionregistration.k8s.io" or review.resource.virtual:
            return
        for key in sorted(configurations):
            for webhook in configurations[key].obj.get("webhooks") or ():
                if self._wants(webhook, review):
                    yield webhook

    def _wants(self, webhook: Mapping[str, Any], review: Review) -> bool:
        if not any(_rule_matches(rule, review) for rule in webhook.get("rules") or ()):
            return False
        selector = webhook.get("namespaceSelector") or {}
        if selector:
            labels = self._namespace_labels(review)
            if labels is not None and not match_label_selector(selector, labels):
                return False
        selector = webhook.get("objectSelector") or {}
        if selector:
            shown = [obj for obj in (review.new, review.old) if obj is not None]
            if not any(match_label_selector(selector, obj["metadata"].get("labels") or {}) for obj in shown):
                return False
        return True

    def _namespace_labels(self, review: Review) -> Mapping[str, str] | None:
        if review.resource.storage == ("", "namespaces"):
            obj = review.new or review.old or {}
            labels: Mapping[str, str] = (obj.get("metadata") or {}).get("labels") or {}
            return labels
        if not review.key[0]:
            return None
        found = self._namespaces.items.get(("", review.key[0]))
        return found.labels if found is not None else {}

    async def _call(self, webhook: Mapping[str, Any], review: Review, obj: Obj | None) -> Obj | None:
        """The response, or ``None`` when the webhook failed and may be ignored. Raises a refusal."""
        name, timeout = webhook["name"], webhook.get("timeoutSeconds") or 10
        dry = review.call.dry_run
        if dry and webhook.get("sideEffects") not in {"None", "NoneOnDryRun"}:
            raise StatusError(400, "BadRequest", f'admission webhook "{name}" does not support dry run')
        request = self._request(review, obj, dry=dry)
        try:
            body = {"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": request}
            answer = await self._webhooks.call(webhook.get("clientConfig") or {}, body, timeout=timeout)
            response = answer.get("response")
            if not isinstance(response, dict):
                raise WebhookError("expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got none")
            if response.get("uid") != request["uid"]:
                raise WebhookError(f'expected response.uid="{request["uid"]}", got "{response.get("uid")}"')
        except WebhookError as error:
            if webhook.get("failurePolicy") == "Ignore":
                return None
            raise internal(f'failed calling webhook "{name}": failed to call webhook: {error}') from error
        review.call.warnings.extend(response.get("warnings") or ())
        if not response.get("allowed"):
            raise _refusal(name, response.get("status") or response.get("result") or {})
        return response

    def _request(self, review: Review, obj: Obj | None, *, dry: bool) -> Obj:
        resource = review.resource
        kind = {"group": resource.group, "version": resource.version, "kind": resource.kind}
        place = {"group": resource.group, "version": resource.version, "resource": resource.plural}
        request: Obj = {
            "uid": self._uids(),
            "kind": kind,
            "resource": place,
            "requestKind": kind,
            "requestResource": place,
            "name": review.key[1],
            "operation": review.operation,
            "userInfo": review.call.user.info(),
            "object": obj,
            "oldObject": review.old,
            "dryRun": dry,
            "options": _options(review),
        }
        if review.subresource:
            request["subResource"] = request["requestSubResource"] = review.subresource
        if review.key[0]:
            request["namespace"] = review.key[0]
        return request


def _options(review: Review) -> Obj:
    kinds = {"CREATE": "CreateOptions", "UPDATE": "UpdateOptions", "DELETE": "DeleteOptions", "CONNECT": ""}
    # A patch is an update, or a create, by the time it is reviewed.
    kind = kinds[review.operation]
    return {"kind": kind, "apiVersion": "meta.k8s.io/v1", **review.call.option_list()}


def _rule_matches(rule: Mapping[str, Any], review: Review) -> bool:
    resource = review.resource
    operations = rule.get("operations") or ()
    if "*" not in operations and review.operation not in operations:
        return False
    for key, value in (("apiGroups", resource.group), ("apiVersions", resource.version)):
        allowed = rule.get(key) or ()
        if "*" not in allowed and value not in allowed:
            return False
    scope = rule.get("scope") or "*"
    if scope != "*" and (scope == "Namespaced") != (resource.namespaced):
        return False
    for pattern in rule.get("resources") or ():
        plural, _, subresource = pattern.partition("/")
        if plural in {"*", resource.plural} and subresource in {review.subresource, *({"*"} if "/" in pattern else ())}:
            return True
    return False


def _refusal(name: str, status: Mapping[str, Any]) -> StatusError:
    prefix = f'admission webhook "{name}" denied the request'
    message = status.get("message") or ""
    reason = status.get("reason") or ""
    why = message or reason
    text = f"{prefix}: {why}" if why else f"{prefix} without explanation"
    # A refusal that names no code of its own is a bad request without a reason.
    return StatusError(max(400, status.get("code") or 0), reason, text, details=status.get("details"))
