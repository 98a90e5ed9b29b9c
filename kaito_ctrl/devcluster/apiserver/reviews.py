"""Reviews: questions about who somebody is and what they may do. They are answered, and stored nowhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kaito_ctrl.devcluster.apiserver.access import Access
from kaito_ctrl.devcluster.apiserver.backend import Backend, read_object
from kaito_ctrl.devcluster.apiserver.decode import parse_body
from kaito_ctrl.devcluster.apiserver.errors import FieldError, bad_request, invalid
from kaito_ctrl.devcluster.apiserver.identity import User
from kaito_ctrl.devcluster.apiserver.kinds import Resource
from kaito_ctrl.devcluster.apiserver.rbac_rules import Attributes, Rule
from kaito_ctrl.devcluster.apiserver.requests import Call
from kaito_ctrl.devcluster.apiserver.store import Obj
from kaito_ctrl.devcluster.apiserver.tokens import ISSUER, TokenError

__all__ = ["review"]


def review(backend: Backend, call: Call, resource: Resource) -> Obj:
    """POST of a review: the same object, with the answer in its status. Raises a 400 or 422 for no question."""
    obj = read_object(call, resource, parse_body(call.body, call.content_type))
    obj["metadata"].setdefault("creationTimestamp", None)
    spec, access = obj.get("spec") or {}, backend.access
    match resource.kind:
        case "TokenReview":
            obj["status"] = _token(access, spec)
        case "SelfSubjectReview":
            obj["metadata"]["creationTimestamp"] = backend.now()
            obj["status"] = {"userInfo": call.user.info()}
        case "SelfSubjectRulesReview":
            obj["status"] = _rules(access, call.user, spec)
        case "SelfSubjectAccessReview":
            obj["status"] = _decision(access, call.user, spec)
        case _:
            obj["status"] = _decision(access, None, spec, call.target.namespace if resource.namespaced else None)
    return obj


def _token(access: Access, spec: Mapping[str, Any]) -> Obj:
    if not spec.get("token"):
        raise bad_request("token is required for TokenReview in authentication")
    try:
        user, audiences = access.tokens.owner(spec["token"], spec.get("audiences") or (ISSUER,))
    except TokenError as error:
        return {"user": {}, "error": str(error)}
    return {"authenticated": True, "user": user.info(), "audiences": audiences}


def _local_errors(namespace: str, spec: Mapping[str, Any]) -> Iterator[FieldError]:
    """What is wrong with a question that may be about *namespace* only."""
    about, path = spec.get("resourceAttributes"), spec.get("nonResourceAttributes")
    if about is not None and (about.get("namespace") or "") != namespace:
        why = "must match metadata.namespace"
        yield FieldError.invalid("spec.resourceAttributes.namespace", about.get("namespace") or "", why)
    if path is not None:
        yield FieldError.invalid("spec.nonResourceAttributes", path, "disallowed on this kind of request")


def _decision(access: Access, user: User | None, spec: Mapping[str, Any], local: str | None = None) -> Obj:
    """What the authorizer says of *user*; of the user in *spec* when that is ``None``. *local*: in that namespace."""
    about, path = spec.get("resourceAttributes"), spec.get("nonResourceAttributes")
    errors = list(_local_errors(local, spec)) if local is not None else []
    if about is not None and path is not None:
        why = "cannot be specified in combination with resourceAttributes"
        errors.append(FieldError.invalid("spec.nonResourceAttributes", path, why))
    if about is None and path is None:
        why = "exactly one of nonResourceAttributes or resourceAttributes must be specified"
        errors.append(FieldError.invalid("spec.resourceAttributes", "null", why))
    if user is None and not spec.get("user") and not spec.get("groups"):
        why = "at least one of user or group must be specified"
        errors.append(FieldError.invalid("spec.user", spec.get("user") or "", why))
    if errors:
        raise invalid("authorization.k8s.io", "", "", errors)
    if user is None:
        extra = {key: tuple(values) for key, values in (spec.get("extra") or {}).items()}
        user = User(spec.get("user") or "", tuple(spec.get("groups") or ()), spec.get("uid") or "", extra)
    decision = access.authorizer.decide(user, _asked(about, path))
    return {"allowed": decision.allowed, **({"reason": decision.reason} if decision.reason else {})}


def _asked(about: Mapping[str, str] | None, path: Mapping[str, str] | None) -> Attributes:
    if about is None:
        assert path is not None
        return Attributes(path.get("verb") or "", path=path.get("path") or "/")
    keys = ("verb", "group", "version", "resource", "subresource", "namespace", "name")
    return Attributes(**{key: about.get(key) or "" for key in keys})


def _rules(access: Access, user: User, spec: Mapping[str, Any]) -> Obj:
    if not spec.get("namespace"):
        raise bad_request("no namespace on request")
    resources: list[Rule] = []
    paths: list[Rule] = []
    for rule in access.authorizer.rules(user, spec["namespace"]):
        if rule.get("resources"):
            keys = ("verbs", "apiGroups", "resources", "resourceNames")
            resources.append({key: rule[key] for key in keys if rule.get(key)})
        if rule.get("nonResourceURLs"):
            paths.append({key: rule[key] for key in ("verbs", "nonResourceURLs")})
    return {"resourceRules": resources, "nonResourceRules": paths, "incomplete": False}
