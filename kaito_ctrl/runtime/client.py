"""Typed verbs against one API server.

Reads are live. Writes are values: server-side ``apply`` of exactly what the caller owns, a ``patch``, a ``create``,
a ``delete`` with preconditions. There is no full update, because a partial model would lose the fields it does not
name. Whoever wants to read its own writes passes an :class:`Observer` (the cache is one): it hears of every answer,
and of every write whose outcome is unknown.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal, Protocol, TypeVar

from pydantic import ValidationError

from kaito_api.meta import Resource
from kaito_ctrl.runtime.codec import decode_json, decode_list, encode_json
from kaito_ctrl.runtime.errors import ApiError, DecodeError, NotFound, ServerError
from kaito_ctrl.runtime.fence import Fence
from kaito_ctrl.runtime.meta import ObjectKey, address, collection_path, key_of, object_path
from kaito_ctrl.runtime.transport import Request, Response, Transport

__all__ = ["Client", "Observer", "RequestMetrics", "decode_answer", "raise_for_status", "selector_text"]

R = TypeVar("R", bound=Resource)

PatchType = Literal["merge", "json", "strategic"]
Propagation = Literal["Background", "Foreground", "Orphan"]

_PATCH_TYPES: dict[str, str] = {
    "merge": "application/merge-patch+json",
    "json": "application/json-patch+json",
    "strategic": "application/strategic-merge-patch+json",
}
_JSON = {"accept": "application/json"}


class Observer(Protocol):
    """Hears what became of each write, and what live reads of single objects have shown."""

    def reading(self, kind: type[Resource], key: ObjectKey) -> Callable[[bytes | None], None]:
        """A live read begins; what this returns is called with its answer, ``None`` for an object that is not there,
        and may raise ``DecodeError`` for an answer that is no such object."""
        ...

    def wrote(self, kind: type[Resource], key: ObjectKey, raw: bytes) -> None:
        """The server answered with the object as it now is."""
        ...

    def deleted(self, kind: type[Resource], key: ObjectKey, uid: str) -> None:
        """The server says that the object of that uid (empty: whichever it was) is gone."""
        ...

    def uncertain(self, kind: type[Resource], key: ObjectKey) -> None:
        """No usable answer came: the write may or may not have happened."""
        ...


class RequestMetrics(Protocol):
    """Counts requests; see :mod:`kaito_ctrl.runtime.metrics`."""

    def request(self, method: str, code: str, seconds: float) -> None: ...


def selector_text(labels: Mapping[str, str]) -> str:
    """Equality requirements as a label selector: ``a=b,c=d``, in a stable order."""
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items()))


def _status_error(code: int, body: bytes, headers: Mapping[str, str]) -> ApiError:
    try:
        status = decode_json(body)
    except ValueError:
        status = None
    if not isinstance(status, dict) or status.get("kind") != "Status":
        status = {"message": body[:500].decode("utf-8", "replace").strip()}
    # Proxies and webhooks word some of these: none of the fields need be what it should.
    details = status.get("details")
    if not isinstance(details, dict):
        details = {}
    wait = headers.get("retry-after") or details.get("retryAfterSeconds")
    try:
        retry_after = float(wait) if wait is not None else None
    except (ValueError, TypeError, OverflowError):
        retry_after = None
    if retry_after is not None and not 0 <= retry_after < math.inf:
        retry_after = None
    reason, message = (str(status.get(name) or "") for name in ("reason", "message"))
    return ApiError.of(code, reason, message, details=details, retry_after=retry_after)


def decode_answer(raw: bytes) -> dict[str, Any]:
    """The JSON object that a server has answered with. Raises ``DecodeError``."""
    try:
        answer = decode_json(raw)
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"the server's answer is not JSON: {error}", raw) from error
    if not isinstance(answer, dict):
        raise DecodeError("the server's answer is not a JSON object", raw)
    return answer


async def raise_for_status(response: Response) -> None:
    """Raise the :class:`~kaito_ctrl.runtime.errors.ApiError` that a failed response stands for."""
    if response.status >= 400:
        raise _status_error(response.status, await response.read(), response.headers)


@dataclass(frozen=True, slots=True)
class Client:
    """The verbs. Immutable; :meth:`named` makes a variant for another field manager.

    Every verb raises :class:`~kaito_ctrl.runtime.errors.ApiError` (by code) when the server refuses,
    :class:`~kaito_ctrl.runtime.errors.TransportError` when no answer came, and
    :class:`~kaito_ctrl.runtime.errors.DecodeError` when the answer does not fit the model.
    """

    transport: Transport
    field_manager: str = "kaito-ctrl"
    observer: Observer | None = None
    fence: Fence | None = None
    """Every write happens inside it: ``LeaseLost`` is raised instead once somebody else may lead."""
    metrics: RequestMetrics | None = None
    timeout: float = 30.0

    def named(self, field_manager: str) -> Client:
        """The same client writing under another field manager."""
        return replace(self, field_manager=field_manager)

    async def get(self, kind: type[R], name: str, namespace: str | None = None) -> R:
        """The object as it is now (a quorum read). Raises ``NotFound``."""
        return self._decode(kind, await self.get_raw(kind, address(kind, name, namespace)))

    async def get_raw(self, kind: type[Resource], key: ObjectKey) -> bytes:
        """Like :meth:`get`, undecoded."""
        path = object_path(kind, key)
        if self.observer is None:
            return await self._call("GET", path)
        saw = self.observer.reading(kind, key)
        try:
            raw = await self._call("GET", path)
        except NotFound as error:
            if error.of_object:
                saw(None)
            raise
        saw(raw)
        return raw

    async def list(
        self,
        kind: type[R],
        namespace: str | None = None,
        *,
        labels: Mapping[str, str] | str | None = None,
        fields: str | None = None,
        misfits: list[DecodeError] | None = None,
    ) -> Sequence[R]:
        """All matching objects, live, page by page. *labels* is a mapping of equalities or a selector's text.

        An object that does not fit its model fails the whole call, unless there is a list of *misfits* to set it aside
        in: one error for each, with the object's bytes as its ``raw``.
        """
        selector = labels if isinstance(labels, str) else selector_text(labels) if labels else None
        base = [("limit", "500")]
        if selector:
            base.append(("labelSelector", selector))
        if fields:
            base.append(("fieldSelector", fields))
        found: list[R] = []
        token = ""
        while True:
            query = (*base, ("continue", token)) if token else tuple(base)
            raw = await self._call("GET", collection_path(kind, namespace), query=query)
            try:
                head, items = decode_list(raw)
            except ValueError as error:
                raise DecodeError(f"the server's list of {kind.plural} is not readable: {error}", raw) from error
            for item in items:
                try:
                    found.append(self._decode(kind, item))
                except DecodeError as error:
                    if misfits is None:
                        raise
                    misfits.append(error)
            token = head.continue_
            if not token:
                return found

    async def create(self, obj: R) -> R:
        """Create; raises ``AlreadyExists``."""
        kind = type(obj)
        key = key_of(obj)
        raw = await self._write(
            "POST", collection_path(kind, key.namespace), kind, key, obj.to_wire(), query=self._managed()
        )
        return self._decode(kind, raw)

    async def apply(
        self, obj: R, *, owner: Resource | None = None, force: bool = True, subresource: str | None = None
    ) -> R:
        """Server-side apply of exactly the fields that *obj* has set; what this manager applied before and no longer
        sets is removed. *owner* becomes the controlling owner reference.

        Raises ``Conflict`` when another manager owns a field and *force* is off.
        """
        kind, key = type(obj), key_of(obj)
        body = obj.to_wire()
        if owner is not None:
            body["metadata"] = {**body.get("metadata", {}), "ownerReferences": [owner.owner_reference().to_wire()]}
        raw = await self._write(
            "PATCH",
            object_path(kind, key, subresource),
            kind,
            key,
            body,
            query=(*self._managed(), ("force", "true" if force else "false")),
            content_type="application/apply-patch+yaml",
        )
        return self._decode(kind, raw)

    async def patch(
        self,
        kind: type[R],
        key: ObjectKey,
        patch: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        *,
        type: PatchType = "merge",  # noqa: A002
        subresource: str | None = None,
    ) -> R:
        """Change an existing object. For an optimistic lock put ``metadata.resourceVersion`` into a merge patch."""
        return self._decode(kind, await self.patch_raw(kind, key, patch, type=type, subresource=subresource))

    async def patch_raw(
        self,
        kind: type[Resource],
        key: ObjectKey,
        patch: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        *,
        type: PatchType = "merge",  # noqa: A002
        subresource: str | None = None,
    ) -> bytes:
        """Like :meth:`patch`, with an undecoded answer."""
        return await self._write(
            "PATCH",
            object_path(kind, key, subresource),
            kind,
            key,
            patch,
            query=self._managed(),
            content_type=_PATCH_TYPES[type],
        )

    async def delete(
        self,
        kind: type[Resource],
        key: ObjectKey,
        *,
        uid: str | None = None,
        resource_version: str | None = None,
        propagation: Propagation | None = None,
        grace_period: int | None = None,
    ) -> None:
        """Ask for deletion, under preconditions; raises ``NotFound``, or ``Conflict`` when a precondition fails."""
        options: dict[str, Any] = {"apiVersion": "v1", "kind": "DeleteOptions"}
        preconditions = {"uid": uid, "resourceVersion": resource_version}
        if any(preconditions.values()):
            options["preconditions"] = {name: value for name, value in preconditions.items() if value}
        if propagation:
            options["propagationPolicy"] = propagation
        if grace_period is not None:
            options["gracePeriodSeconds"] = grace_period
        await self._write("DELETE", object_path(kind, key), kind, key, options, uid=uid or "")

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: tuple[tuple[str, str], ...] = (),
        body: object = None,
        headers: Mapping[str, str] | None = None,
    ) -> bytes:
        """Any other call, raw: *body* is sent as JSON unless it is bytes."""
        if method == "GET" or self.fence is None:
            return await self._call(method, path, query=query, body=body, headers=headers)
        async with self.fence.guard():
            return await self._call(method, path, query=query, body=body, headers=headers)

    async def server_time(self) -> datetime:
        """What the server's clock says now, in UTC and to the second: the ``Date`` of an answer that it gives for this.

        The ages of objects are to be told by it where something is destroyed for its age: their timestamps are by the
        same clock, and the local one may be off by hours. Raises ``DecodeError`` when the answer does not say.
        """
        headers, raw = await self._exchange("GET", "/version")
        try:
            moment = parsedate_to_datetime(headers.get("date", ""))
        except ValueError as error:
            raise DecodeError("the server's answer does not say when it was given: it has no Date", raw) from error
        return moment.astimezone(UTC) if moment.tzinfo is not None else moment.replace(tzinfo=UTC)

    def _managed(self) -> tuple[tuple[str, str], ...]:
        return (("fieldManager", self.field_manager),)

    async def _write(
        self,
        method: str,
        path: str,
        kind: type[Resource],
        key: ObjectKey,
        body: object,
        *,
        query: tuple[tuple[str, str], ...] = (),
        content_type: str = "application/json",
        uid: str = "",
    ) -> bytes:
        if self.fence is not None:
            self.fence.check()  # so that what is refused here leaves no doubt about its outcome
        try:
            raw = await self.request(method, path, query=query, body=body, headers={"content-type": content_type})
            if self.observer is not None:
                self._observe(method, kind, key, raw, uid)
        except BaseException as error:
            # Refusals are certain; silence, a broken answer, a 5xx or our own cancellation are not.
            if self.observer is not None and (not isinstance(error, ApiError) or isinstance(error, ServerError)):
                self.observer.uncertain(kind, key)
            raise
        return raw

    def _observe(self, method: str, kind: type[Resource], key: ObjectKey, raw: bytes, uid: str) -> None:
        assert self.observer is not None
        answer = decode_answer(raw)
        metadata = answer.get("metadata") or {}
        if answer.get("kind") == "Status":
            self.observer.deleted(kind, key, uid or (answer.get("details") or {}).get("uid") or "")
        elif method == "DELETE" and _is_gone(metadata):
            self.observer.deleted(kind, key, metadata.get("uid") or uid)
        elif answer.get("kind") != kind.kind:
            # Of a subresource: a Scale has the name and the version of its Deployment, and is none.
            self.observer.uncertain(kind, key)
        else:
            self.observer.wrote(kind, ObjectKey(metadata.get("namespace") or "", metadata.get("name") or ""), raw)

    async def _call(
        self,
        method: str,
        path: str,
        *,
        query: tuple[tuple[str, str], ...] = (),
        body: object = None,
        headers: Mapping[str, str] | None = None,
    ) -> bytes:
        return (await self._exchange(method, path, query=query, body=body, headers=headers))[1]

    async def _exchange(
        self,
        method: str,
        path: str,
        *,
        query: tuple[tuple[str, str], ...] = (),
        body: object = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[Mapping[str, str], bytes]:
        """The answer's headers, by lower-case names, and its body."""
        payload = body if isinstance(body, bytes) or body is None else encode_json(body)
        sent = {**_JSON, **(headers or {})}
        if payload is not None:
            sent.setdefault("content-type", "application/json")
        request = Request(method, path, query, sent, payload, self.timeout, self.timeout)
        clock = asyncio.get_running_loop().time
        began = clock()
        code = "<error>"
        try:
            async with await self.transport.send(request) as response:
                code = str(response.status)
                await raise_for_status(response)
                return response.headers, await response.read()
        finally:
            if self.metrics is not None:
                self.metrics.request(method, code, clock() - began)

    @staticmethod
    def _decode(kind: type[R], raw: bytes) -> R:
        try:
            return kind.model_validate_json(raw)
        except ValidationError as error:
            raise DecodeError(f"the server's {kind.kind} does not fit its model: {error}", raw) from error


def _is_gone(metadata: Mapping[str, Any]) -> bool:
    """Whether the object that a deletion was answered with is there no more: of some kinds (pods, services, claims)
    the server returns what it has just deleted. What still waits for something says that it does."""
    if not metadata.get("deletionTimestamp"):
        return True
    return not metadata.get("finalizers") and metadata.get("deletionGracePeriodSeconds") == 0
