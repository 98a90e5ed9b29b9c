"""What a client can be told: every refusal, its HTTP status, and its two spellings.

``/chat`` and the health routes answer ``{"detail": ...}``, the OpenAI routes ``{"error": {...}}``. Messages are written
for clients: no paths, no stack traces, no echo of what they sent.
"""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse

__all__ = [
    "BadRequest",
    "ModelNotFound",
    "NotReady",
    "QueueFull",
    "ServeError",
    "ShuttingDown",
    "error_body",
    "error_response",
    "is_openai",
]


class ServeError(Exception):
    """The root. ``kind``, ``param`` and ``code`` are OpenAI's; ``retry_after`` is in seconds."""

    status = 500
    kind = "server_error"
    retry_after: int | None = None

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


class BadRequest(ServeError):
    """The request cannot be served as it is."""

    status = 400
    kind = "invalid_request_error"


class ModelNotFound(ServeError):
    """The request names a model that this server does not serve."""

    status = 404
    kind = "invalid_request_error"


class NotReady(ServeError):
    """The model is still being loaded."""

    status = 503
    kind = "service_unavailable_error"
    retry_after = 5


class QueueFull(ServeError):
    """As many requests wait as may wait."""

    status = 429
    kind = "rate_limit_error"
    retry_after = 1


class ShuttingDown(ServeError):
    """The server is about to stop; another replica may serve the request."""

    status = 503
    kind = "service_unavailable_error"
    retry_after = 1


def is_openai(path: str) -> bool:
    """Whether clients of *path* expect OpenAI's spelling."""
    return path == "/v1" or path.startswith("/v1/")


def error_response(error: ServeError, path: str) -> JSONResponse:
    """*error* as clients of *path* expect it."""
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    return JSONResponse(error_body(error, path), status_code=error.status, headers=headers)


def error_body(error: ServeError, path: str) -> dict[str, Any]:
    """The JSON of *error*, without its status: for streams that have begun."""
    if is_openai(path):
        fields = {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}
        return {"error": fields}
    return {"detail": error.message}
