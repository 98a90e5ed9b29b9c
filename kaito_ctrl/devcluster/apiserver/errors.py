"""Failures as Kubernetes reports them: ``Status`` objects, and field errors with the wording of ``kubectl``.

Every handler raises :class:`StatusError`; the one place that turns it into bytes is the server. The constructors fix
code, reason and wording, because clients match on all three.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

__all__ = [
    "FieldError",
    "GoValue",
    "StatusError",
    "already_exists",
    "bad_request",
    "conflict",
    "expired",
    "forbidden",
    "internal",
    "invalid",
    "method_not_allowed",
    "not_acceptable",
    "not_found",
    "page_not_found",
    "success",
    "too_large_resource_version",
    "unauthorized",
    "unprocessable",
    "unsupported_media_type",
]

_NO_VALUE = object()


@dataclass(frozen=True, slots=True)
class GoValue:
    """A value whose Go spelling is not that of JSON; shown as it is."""

    text: str


_TYPES = {
    "FieldValueNotFound": "Not found",
    "FieldValueRequired": "Required value",
    "FieldValueDuplicate": "Duplicate value",
    "FieldValueInvalid": "Invalid value",
    "FieldValueTypeInvalid": "Invalid value",
    "FieldValueNotSupported": "Unsupported value",
    "FieldValueForbidden": "Forbidden",
    "FieldValueTooLong": "Too long",
    "FieldValueTooMany": "Too many",
}
_WITHOUT_VALUE = frozenset({"FieldValueRequired", "FieldValueForbidden", "FieldValueTooLong"})


def _show(value: Any) -> str:
    """*value* the way Go's field errors print it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, GoValue):
        return value.text
    return msgspec.json.encode(value).decode()


@dataclass(frozen=True, slots=True)
class FieldError:
    """One thing wrong with one field. ``path`` is dotted, as in ``spec.containers[0].image``."""

    reason: str
    path: str
    value: Any = field(default=_NO_VALUE)
    detail: str = ""

    @classmethod
    def required(cls, path: str, detail: str = "") -> FieldError:
        return cls("FieldValueRequired", path, _NO_VALUE, detail)

    @classmethod
    def invalid(cls, path: str, value: Any, detail: str = "") -> FieldError:
        return cls("FieldValueInvalid", path, value, detail)

    @classmethod
    def type_invalid(cls, path: str, value: Any, detail: str = "") -> FieldError:
        return cls("FieldValueTypeInvalid", path, value, detail)

    @classmethod
    def duplicate(cls, path: str, value: Any) -> FieldError:
        return cls("FieldValueDuplicate", path, value)

    @classmethod
    def forbidden(cls, path: str, detail: str) -> FieldError:
        return cls("FieldValueForbidden", path, _NO_VALUE, detail)

    @classmethod
    def too_long(cls, path: str, limit: int) -> FieldError:
        return cls("FieldValueTooLong", path, _NO_VALUE, f"may not be more than {limit} bytes")

    @classmethod
    def unsupported(cls, path: str, value: Any, allowed: Sequence[Any]) -> FieldError:
        shown = ", ".join(_show(item) for item in allowed)
        return cls("FieldValueNotSupported", path, value, f"supported values: {shown}" if allowed else "")

    @property
    def body(self) -> str:
        text = _TYPES.get(self.reason, "Invalid value")
        if self.reason not in _WITHOUT_VALUE and self.value is not _NO_VALUE:
            text += ": " + _show(self.value)
        return f"{text}: {self.detail}" if self.detail else text

    def __str__(self) -> str:
        return f"{self.path}: {self.body}"

    def cause(self) -> dict[str, str]:
        return {"reason": self.reason, "message": self.body, "field": self.path}


class StatusError(Exception):
    """A failure ``Status``: HTTP code, machine-readable reason, message and details."""

    def __init__(
        self,
        code: int,
        reason: str,
        message: str,
        *,
        details: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.details = dict(details) if details else {}
        self.shows_details = bool(self.details)
        self.metadata: dict[str, Any] = {}
        self.headers = dict(headers) if headers else {}

    def status(self) -> dict[str, Any]:
        """The ``Status`` object."""
        body: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": self.metadata,
            "status": "Failure",
            "message": self.message,
        }
        if self.reason:
            body["reason"] = self.reason
        if self.shows_details:
            body["details"] = self.details
        body["code"] = self.code
        return body


def success(*, name: str = "", group: str = "", kind: str = "", uid: str = "") -> dict[str, Any]:
    """The ``Status`` of a deletion that left nothing to return."""
    details = {k: v for k, v in (("name", name), ("group", group), ("kind", kind), ("uid", uid)) if v}
    body: dict[str, Any] = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}
    if details:
        body["details"] = details
    return body


def _qualified(group: str, plural: str) -> str:
    return f"{plural}.{group}" if group else plural


def _details(name: str, group: str, kind: str) -> dict[str, Any]:
    return {k: v for k, v in (("name", name), ("group", group), ("kind", kind)) if v}


def not_found(group: str, plural: str, name: str) -> StatusError:
    return StatusError(
        404,
        "NotFound",
        f'{_qualified(group, plural)} "{name}" not found',
        details=_details(name, group, plural),
    )


def _generic(code: int, reason: str, message: str) -> StatusError:
    """An answer from before any resource is known: its details are there, and empty."""
    error = StatusError(code, reason, message)
    error.shows_details = True
    return error


def page_not_found() -> StatusError:
    return _generic(404, "NotFound", "the server could not find the requested resource")


def already_exists(group: str, plural: str, name: str) -> StatusError:
    return StatusError(
        409,
        "AlreadyExists",
        f'{_qualified(group, plural)} "{name}" already exists',
        details=_details(name, group, plural),
    )


MODIFIED = "the object has been modified; please apply your changes to the latest version and try again"


def conflict(group: str, plural: str, name: str, why: str = MODIFIED) -> StatusError:
    return StatusError(
        409,
        "Conflict",
        f'Operation cannot be fulfilled on {_qualified(group, plural)} "{name}": {why}',
        details=_details(name, group, plural),
    )


def invalid(group: str, kind: str, name: str, errors: Iterable[FieldError]) -> StatusError:
    found = list({str(error): error for error in errors}.values())
    texts = [str(error) for error in found]
    joined = texts[0] if len(texts) == 1 else "[" + ", ".join(texts) + "]"
    return StatusError(
        422,
        "Invalid",
        f'{_qualified(group, kind)} "{name}" is invalid: {joined}',
        details={**_details(name, group, kind), "causes": [e.cause() for e in found]},
    )


def unprocessable() -> StatusError:
    """A patch that makes sense, but not for this object."""
    return _generic(422, "Invalid", "the server rejected our request due to an error in our request")


def bad_request(message: str) -> StatusError:
    return StatusError(400, "BadRequest", message)


def unauthorized() -> StatusError:
    return StatusError(401, "Unauthorized", "Unauthorized")


def forbidden(group: str, plural: str, name: str, why: str, causes: Sequence[Mapping[str, str]] = ()) -> StatusError:
    subject = f'{_qualified(group, plural)} "{name}"' if name else _qualified(group, plural)
    details = _details(name, group, plural)
    if causes:
        details["causes"] = [dict(cause) for cause in causes]
    return StatusError(403, "Forbidden", f"{subject} is forbidden: {why}", details=details)


def method_not_allowed() -> StatusError:
    return _generic(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")


def not_acceptable(offers: str = "") -> StatusError:
    """*offers* are named by the handlers of custom kinds; the routes of built-in ones refuse before."""
    if not offers:
        return _generic(406, "NotAcceptable", "406: Not Acceptable")
    return StatusError(406, "NotAcceptable", f"only the following media types are accepted: {offers}")


def unsupported_media_type(offers: str = "") -> StatusError:
    """*offers* as for :func:`not_acceptable`."""
    if not offers:
        return _generic(415, "UnsupportedMediaType", "415: Unsupported Media Type")
    return StatusError(
        415,
        "UnsupportedMediaType",
        f"the body of the request was in an unknown format - accepted media types include: {offers}",
    )


def expired(message: str, *, token: str = "") -> StatusError:
    """*token*: where a list may go on nevertheless, at the state of now."""
    error = StatusError(410, "Expired", message)
    if token:
        error.metadata["continue"] = token
    return error


def too_large_resource_version(wanted: int, current: int) -> StatusError:
    message = f"Timeout: Too large resource version: {wanted}, current: {current}"
    return StatusError(
        504,
        "Timeout",
        message,
        details={
            "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
            "retryAfterSeconds": 1,
        },
        headers={"retry-after": "1"},
    )


def internal(message: str) -> StatusError:
    return StatusError(500, "InternalError", f"Internal error occurred: {message}")
