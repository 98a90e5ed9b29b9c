"""Every error that the runtime raises, and when.

::

    KubeError
    ├── ApiError                the server answered with a failure Status
    │   ├── BadRequest          400
    │   ├── Unauthorized        401
    │   ├── Forbidden           403
    │   ├── NotFound            404
    │   ├── AlreadyExists       409, reason AlreadyExists
    │   ├── Conflict            409, any other reason: a stale resourceVersion or a failed precondition; and the 422
    │   │                       for a patch that names another uid, which is a failed precondition too
    │   ├── Gone                410: the resourceVersion or continue token has expired
    │   ├── Invalid             422
    │   ├── TooManyRequests     429; ``retry_after`` says when to come back
    │   └── ServerError         5xx
    ├── TransportError          no answer, or a broken one; a write may or may not have happened
    ├── DecodeError             an object does not fit its model; its header and raw bytes are still there
    ├── NotCached               the cache was asked for a kind, or an index, that nobody declared
    ├── CacheSyncTimeout        a declared kind could not be listed in time
    ├── ClusterUnavailable      an extra cluster cannot be read reliably for now
    ├── LeaseLost               leadership may have passed to somebody else
    ├── ShutdownTimeout         work ignored cancellation until the deadline
    ├── RetryAfter              raised by a reconciler: not now, but in that many seconds
    └── TerminalError           raised by a reconciler: do not retry until the object changes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = [
    "AlreadyExists",
    "ApiError",
    "BadRequest",
    "CacheSyncTimeout",
    "ClusterUnavailable",
    "Conflict",
    "DecodeError",
    "Forbidden",
    "Gone",
    "Invalid",
    "KubeError",
    "LeaseLost",
    "NotCached",
    "NotFound",
    "RetryAfter",
    "ServerError",
    "ShutdownTimeout",
    "TerminalError",
    "TooManyRequests",
    "TransportError",
    "Unauthorized",
    "leaf_errors",
]


class KubeError(Exception):
    """The root of the tree."""


class ApiError(KubeError):
    """The server answered with a failure.

    ``code`` is the HTTP status, ``reason`` the machine-readable word of the Status object (``AlreadyExists``),
    ``details`` its details (kind, name, causes), ``retry_after`` the seconds that the server asked for, if it did.
    """

    def __init__(
        self,
        code: int,
        reason: str = "",
        message: str = "",
        *,
        details: Mapping[str, Any] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message or reason or f"HTTP {code}")
        self.code = code
        self.reason = reason
        self.message = message
        self.details: Mapping[str, Any] = details or {}
        self.retry_after = retry_after

    @staticmethod
    def of(
        code: int,
        reason: str = "",
        message: str = "",
        *,
        details: Mapping[str, Any] | None = None,
        retry_after: float | None = None,
    ) -> ApiError:
        """The subclass that fits *code* and *reason*."""
        kind: type[ApiError]
        if code == 409 or (code == 422 and _is_of_another_object(details)):
            kind = AlreadyExists if reason == "AlreadyExists" else Conflict
        elif code >= 500:
            kind = ServerError
        else:
            kind = _BY_CODE.get(code, ApiError)
        return kind(code, reason, message, details=details, retry_after=retry_after)


def _is_of_another_object(details: Mapping[str, Any] | None) -> bool:
    """Whether all that is wrong is the uid: to a patch that names one, the server says that it may not be changed."""
    causes = (details or {}).get("causes")
    if not isinstance(causes, list) or not causes:
        return False
    return all(isinstance(cause, Mapping) and cause.get("field") == "metadata.uid" for cause in causes)


class BadRequest(ApiError):
    """400: the request itself is malformed; retrying will not help."""


class Unauthorized(ApiError):
    """401: the credentials are missing, wrong or expired."""


class Forbidden(ApiError):
    """403: authenticated, but not allowed; or an admission plug-in refused."""


class NotFound(ApiError):
    """404: no such object, or no such kind; :attr:`of_object` tells them apart."""

    @property
    def of_object(self) -> bool:
        """Whether the server says that the object is not there: it answered for the kind, and names the object.

        Any other 404 (its CustomResourceDefinition is being replaced, a proxy has lost its way) says nothing of it.
        """
        return self.reason == "NotFound" and bool(self.details.get("name"))


class AlreadyExists(ApiError):
    """409 on create: an object of that name is there."""


class Conflict(ApiError):
    """409 on a write: it was based on an old resourceVersion, a precondition failed, or field managers disagree."""


class Gone(ApiError):
    """410: that resourceVersion or continue token is no longer served; list again."""


class Invalid(ApiError):
    """422: the object breaks its schema or a validation rule; ``details["causes"]`` names the fields."""


class TooManyRequests(ApiError):
    """429: the server sheds load; ``retry_after`` says for how long."""


class ServerError(ApiError):
    """5xx. After a write it is ambiguous: the write may have been carried out."""


_BY_CODE: dict[int, type[ApiError]] = {
    400: BadRequest,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    410: Gone,
    422: Invalid,
    429: TooManyRequests,
}


class TransportError(KubeError):
    """No complete answer arrived. A write may or may not have happened."""


class DecodeError(KubeError):
    """An object from the server does not fit its model. ``raw`` holds its bytes."""

    def __init__(self, message: str, raw: bytes = b"") -> None:
        super().__init__(message)
        self.raw = raw


class NotCached(KubeError):
    """A cache read for a kind or index that no controller declared; declare it as a source, or read live."""


class CacheSyncTimeout(KubeError):
    """A declared kind could not be listed within the time allowed at start."""


class ClusterUnavailable(KubeError):
    """An extra cluster is down, or has not been listed yet: what is not in its cache may be there all the same."""


class LeaseLost(KubeError):
    """The lease was lost, or may have been by the local clock; whoever acted under it must stop."""


class ShutdownTimeout(KubeError):
    """Tasks were still running at the end of the shutdown deadline; ``tasks`` names them."""

    def __init__(self, tasks: Sequence[str]) -> None:
        super().__init__("still running at the shutdown deadline: " + ", ".join(tasks))
        self.tasks = tuple(tasks)


class RetryAfter(KubeError):
    """Raised by a reconciler that cannot go on for now. ``seconds`` from now it is called again, without back-off."""

    def __init__(self, seconds: float, message: str = "") -> None:
        super().__init__(message or f"retry after {seconds:g} s")
        self.seconds = seconds


class TerminalError(KubeError):
    """Raised by a reconciler when retrying is pointless until the object changes."""


def leaf_errors(error: BaseException) -> list[BaseException]:
    """The errors inside an exception group, however deep, in order; of any other error, itself."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in leaf_errors(inner)]
    return [error]
