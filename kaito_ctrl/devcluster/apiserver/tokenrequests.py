"""``serviceaccounts/token``: what ``kubectl create token`` and kubelets ask for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

from kaito_api.meta import rfc3339
from kaito_ctrl.devcluster.apiserver.backend import Backend
from kaito_ctrl.devcluster.apiserver.errors import FieldError, bad_request, conflict, invalid
from kaito_ctrl.devcluster.apiserver.kinds import Resource
from kaito_ctrl.devcluster.apiserver.requests import Call
from kaito_ctrl.devcluster.apiserver.store import Obj
from kaito_ctrl.devcluster.apiserver.tokens import ISSUER

__all__ = ["issue_token"]

_HOUR = 3600
_LEAST, _MOST = 600, 1 << 32
_BINDABLE = {"Pod": "pods", "Secret": "secrets", "Node": "nodes"}


def issue_token(backend: Backend, call: Call, accounts: Resource, name: str, spec: Mapping[str, Any]) -> Obj:
    """A token of the account *name*, as *spec* wants it. Raises a 422 for a life outside of what is allowed."""
    account = backend.require(accounts, call.target.namespace, name)
    wanted = spec.get("expirationSeconds")
    seconds = _HOUR if wanted is None else int(wanted)
    errors = list(_seconds_errors(seconds))
    if errors:
        raise invalid("authentication.k8s.io", "TokenRequest", "", errors)
    audiences = list(spec.get("audiences") or (ISSUER,))
    bound = _bound(backend, account.key, spec.get("boundObjectRef"))
    token = backend.access.tokens.issue(account.obj, audiences, seconds, bound)
    expires = backend.clock.now() + timedelta(seconds=seconds)
    return {
        "kind": "TokenRequest",
        "apiVersion": "authentication.k8s.io/v1",
        "metadata": {"name": name, "namespace": account.key[0], "creationTimestamp": backend.now()},
        "spec": {
            "audiences": audiences,
            "expirationSeconds": seconds,
            "boundObjectRef": spec.get("boundObjectRef"),
        },
        "status": {"token": token, "expirationTimestamp": rfc3339(expires)},
    }


def _seconds_errors(seconds: int) -> Iterator[FieldError]:
    path = "spec.expirationSeconds"
    if seconds < _LEAST:
        yield FieldError.invalid(path, seconds, "may not specify a duration less than 10 minutes")
    if seconds > _MOST:
        yield FieldError.invalid(path, seconds, "may not specify a duration larger than 2^32 seconds")


def _bound(backend: Backend, account: tuple[str, str], wanted: Mapping[str, str] | None) -> dict[str, Obj]:
    """What the token is to die with. Raises a 404 or 409 when that is not there or another one, a 400 for no such."""
    if wanted is None:
        return {}
    kind, name = wanted.get("kind") or "", wanted.get("name") or ""
    plural = _BINDABLE.get(kind)
    if plural is None or wanted.get("apiVersion") != "v1":
        group, _, version = (wanted.get("apiVersion") or "").rpartition("/")
        raise bad_request(f"cannot bind token to object of type {group}/{version}, Kind={kind}")
    resource = backend.registry.find("", "v1", plural)
    assert resource is not None
    found = backend.require(resource, account[0], name)
    if kind == "Pod":
        own = (found.obj.get("spec") or {}).get("serviceAccountName") or ""
        if own != account[1]:
            text = f'cannot bind token for serviceaccount "{account[1]}" to pod running with different serviceaccount'
            raise bad_request(f"{text} name.")
    uid = wanted.get("uid") or ""
    if uid and uid != found.uid:
        why = f"the UID in the bound object reference ({uid}) does not match the UID in record"
        raise conflict("", kind, name, f"{why}. The object might have been deleted and then recreated")
    return {kind.lower(): {"name": name, "uid": found.uid}}
