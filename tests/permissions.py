"""What an identity is allowed to do by RBAC, and what it does: two sets to be compared."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from kaito_ctrl.devcluster.apiserver.access import attributes_of
from kaito_ctrl.devcluster.apiserver.requests import Query, parse_path
from kaito_ctrl.runtime.codec import decode_json
from kaito_ctrl.runtime.errors import TransportError
from kaito_ctrl.runtime.transport import Request, Response, Transport

__all__ = ["Forgetful", "Permission", "Recorder", "difference", "granted"]

ANY = "*"
Object = Mapping[str, Any]


class Permission(NamedTuple):
    """One verb on one resource; ``*`` stands for every namespace, and for every name."""

    verb: str
    group: str
    resource: str
    namespace: str = ANY
    name: str = ANY

    def __str__(self) -> str:
        where = "" if self.namespace == ANY else f" in {self.namespace}"
        which = "" if self.name == ANY else f" {self.name}"
        return f"{self.verb} {self.resource}{'.' if self.group else ''}{self.group}{which}{where}"


def granted(objects: Iterable[Object], namespace: str, account: str) -> set[Permission]:
    """What the roles and bindings among *objects* allow that service account."""
    objects = tuple(objects)
    roles = {(role["kind"], role["metadata"].get("namespace"), role["metadata"]["name"]): role for role in objects}
    found: set[Permission] = set()
    for binding in objects:
        if binding["kind"] not in ("RoleBinding", "ClusterRoleBinding"):
            continue
        wanted = {"kind": "ServiceAccount", "namespace": namespace, "name": account}
        if wanted not in binding["subjects"]:
            continue
        place, reference = binding["metadata"].get("namespace"), binding["roleRef"]
        role = roles[reference["kind"], place if reference["kind"] == "Role" else None, reference["name"]]
        for rule in role["rules"]:
            found.update(_expanded(rule, place or ANY))
    return found


def _expanded(rule: Object, place: str) -> Iterator[Permission]:
    for group in rule["apiGroups"]:
        for resource in rule["resources"]:
            for verb in rule["verbs"]:
                for name in rule.get("resourceNames") or (ANY,):
                    yield Permission(verb, group, resource, place, name)


def difference(allowed: set[Permission], used: set[Permission]) -> str:
    """What one set has and the other has not, in words; empty when they are equal."""
    lines = [f"used, but not granted: {each}" for each in sorted(used - allowed)]
    return "\n".join([*lines, *(f"granted, but never used: {each}" for each in sorted(allowed - used))])


class Recorder:
    """A transport that notes what each request needs, and what is refused."""

    def __init__(
        self,
        inner: Transport,
        used: set[Permission],
        refusals: list[str],
        *,
        named: Iterable[str] = (),
        placed: Iterable[str] = (),
    ) -> None:
        """*named* and *placed*: groups whose objects have names, or namespaces, that are known beforehand, so that a
        role may be held to them."""
        self._inner = inner
        self._used = used
        self._refusals = refusals
        self._named = frozenset(named)
        self._placed = frozenset(placed)

    async def send(self, request: Request) -> Response:
        response = await self._inner.send(request)
        if response.status in (401, 403):
            body = await response.read()
            self._refusals.append(f"{request.method} {request.path}: {response.status} {body.decode()}")
            return Response.of(response.status, body, response.headers)
        self._used.update(self._needed(request, created=response.status == 201))
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()

    def _needed(self, request: Request, *, created: bool) -> Iterator[Permission]:
        target = parse_path(request.path)
        asked = attributes_of(request.method, request.path, Query(request.query), target)
        if asked.path:
            return  # discovery, which is everybody's
        resource = f"{asked.resource}/{asked.subresource}" if asked.subresource else asked.resource
        name = asked.name if asked.name and asked.group in self._named else ANY
        place = asked.namespace if asked.group in self._placed else ANY
        yield Permission(asked.verb, asked.group, resource, place, name)
        # What an apply finds missing it creates, and the server asks for both rights.
        if created and asked.verb == "patch":
            yield Permission("create", asked.group, resource, place, name)
        yield from _of_owners(request)


def _of_owners(request: Request) -> Iterator[Permission]:
    """The admission plugin OwnerReferencesPermissionEnforcement (which OpenShift has on) lets only those hold up an
    owner's end who may write its finalizers."""
    if request.method not in ("POST", "PUT", "PATCH") or b'"blockOwnerDeletion":true' not in (request.body or b""):
        return
    for owner in decode_json(request.body or b"")["metadata"]["ownerReferences"]:
        group, plural = owner["apiVersion"].rpartition("/")[0], f"{owner['kind'].lower()}s"
        yield Permission("update", group, f"{plural}/finalizers")


class Forgetful:
    """A transport that loses the answer when the first one of each of *resources* is made: nobody knows whether it
    was."""

    def __init__(self, inner: Transport, resources: Iterable[str]) -> None:
        self._inner = inner
        self._left = set(resources)

    async def send(self, request: Request) -> Response:
        response = await self._inner.send(request)
        target = parse_path(request.path)
        if response.status == 201 and target is not None and target.plural in self._left:
            self._left.remove(target.plural)
            await response.aclose()
            raise TransportError("the connection was reset")
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()
