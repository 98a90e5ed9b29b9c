"""Reviews: questions about who somebody is and what they may do. Everybody authenticated may do everything here."""

from __future__ import annotations

from typing import Any

from kaito_ctrl.devcluster.apiserver.backend import Backend, read_object
from kaito_ctrl.devcluster.apiserver.decode import parse_body
from kaito_ctrl.devcluster.apiserver.kinds import Resource
from kaito_ctrl.devcluster.apiserver.requests import Call
from kaito_ctrl.devcluster.apiserver.store import Obj

__all__ = ["review"]

_EVERYTHING = ["system:masters", "system:authenticated"]


def review(backend: Backend, call: Call, resource: Resource) -> Obj:
    """POST of a review: the same object, with the answer in its status."""
    obj = read_object(call, resource, parse_body(call.body, call.content_type))
    obj["metadata"].setdefault("creationTimestamp", None)
    status: Any
    match resource.kind:
        case "TokenReview":
            known = bool((obj.get("spec") or {}).get("token"))
            status = {"authenticated": known}
            if known:
                status["user"] = {"username": call.user, "groups": _EVERYTHING}
        case "SelfSubjectReview":
            obj["metadata"]["creationTimestamp"] = backend.now()
            status = {"userInfo": {"username": call.user, "groups": _EVERYTHING}}
        case "SelfSubjectRulesReview":
            everything = {"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}
            status = {
                "resourceRules": [everything],
                "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
                "incomplete": False,
            }
        case _:
            status = {"allowed": True, "reason": "the embedded API server allows everything"}
    obj["status"] = status
    return obj
