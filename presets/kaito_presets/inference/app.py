"""The ASGI application: the plain routes, the routers, and how every error becomes an answer."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final

import structlog
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp

from kaito_presets.inference import chat, openai
from kaito_presets.inference.engine import RequestError
from kaito_presets.inference.errors import BadRequest, ServeError, error_body, error_response, is_openai
from kaito_presets.inference.observe import Observe
from kaito_presets.inference.responses import CLIENT_CLOSED, ClientGone
from kaito_presets.inference.service import Service

__all__ = ["build_app"]

log: Final = structlog.get_logger(__name__)


def build_app(service: Service) -> ASGIApp:
    """The application for *service*, ready to be served before the model is."""
    app = FastAPI(title="kaito-ctrl inference server", docs_url=None, redoc_url=None)

    @app.get("/")
    async def home() -> dict[str, str]:
        return {"message": "Server is running"}

    @app.get("/health")
    @app.get("/healthz")
    async def health() -> dict[str, str]:
        if service.info is None:
            # KAITO's probes expect 500 here, and this text.
            raise HTTPException(500, "Model not initialized")
        return {"status": "Healthy"}

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.exposition(), media_type=CONTENT_TYPE_LATEST)

    app.include_router(chat.router(service))
    app.include_router(openai.router(service))
    _handle_errors(app)
    return Observe(app, service)


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(ServeError)
    async def refused(request: Request, error: ServeError) -> Response:
        return error_response(error, request.url.path)

    @app.exception_handler(RequestError)
    async def unservable(request: Request, error: RequestError) -> Response:
        return error_response(BadRequest(str(error), code=error.code), request.url.path)

    @app.exception_handler(ClientGone)
    async def gone(request: Request, error: ClientGone) -> Response:
        return Response(status_code=CLIENT_CLOSED)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> Response:
        # Without the input: it may be a prompt, and it may be something that JSON cannot say.
        problems: list[dict[str, Any]] = [
            {"type": problem["type"], "loc": list(problem["loc"]), "msg": problem["msg"]} for problem in error.errors()
        ]
        if not is_openai(request.url.path):
            return JSONResponse({"detail": problems}, status_code=422)
        first = problems[0]
        param = ".".join(str(part) for part in first["loc"] if part != "body" and not isinstance(part, int))
        message = f"{param}: {first['msg']}" if param else first["msg"]
        return error_response(BadRequest(message, param=param or None), request.url.path)

    @app.exception_handler(StarletteHTTPException)
    async def http_error(request: Request, error: StarletteHTTPException) -> Response:
        wrapped = ServeError(str(error.detail))
        if error.status_code < 500:
            wrapped.kind = "invalid_request_error"
        body = error_body(wrapped, request.url.path)
        return JSONResponse(body, status_code=error.status_code, headers=dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        log.error("request failed", path=request.url.path, exc_info=error)
        return error_response(ServeError(HTTPStatus.INTERNAL_SERVER_ERROR.phrase), request.url.path)
