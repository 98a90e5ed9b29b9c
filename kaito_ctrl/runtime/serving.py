"""Health and metrics over HTTP, under the paths and on the terms that Kubernetes tools expect."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from kaito_ctrl.runtime.lifetime import Lifetime

__all__ = ["HealthServer", "MetricsServer"]

_Handler = Callable[[web.Request], Awaitable[web.Response]]

Check = Callable[[], str | None]
"""Returns what is wrong, or ``None``."""


class _HttpServer:
    """An aiohttp application as a runnable."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self.app = web.Application()
        self.address: tuple[str, int] | None = None
        """Where it listens, once it does; a *port* of 0 is replaced by the one that was free."""

    async def run(self, lifetime: Lifetime) -> None:
        runner = web.AppRunner(self.app, access_log=None, handle_signals=False, shutdown_timeout=2.0)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self._port).start()
            host, port = runner.addresses[0][:2]
            self.address = (host, port)
            lifetime.started()
            await lifetime.wait_stopping()
        finally:
            await runner.cleanup()


class HealthServer(_HttpServer):
    """``/healthz`` for the process itself, ``/readyz`` for its readiness to work; each check also by its name, and
    ``?verbose`` lists them all."""

    def __init__(
        self,
        *,
        live: Mapping[str, Check],
        ready: Mapping[str, Check],
        host: str = "0.0.0.0",  # noqa: S104 - the kubelet probes from outside the pod
        port: int = 8081,
    ) -> None:
        super().__init__(host, port)
        for path, checks in (("/healthz", live), ("/readyz", ready)):
            self.app.router.add_get(path, self._all(checks))
            self.app.router.add_get(path + "/{name}", self._one(checks))

    @staticmethod
    def _all(checks: Mapping[str, Check]) -> _Handler:
        async def answer(request: web.Request) -> web.Response:
            outcome = {name: check() for name, check in checks.items()}
            failed = {name: text for name, text in outcome.items() if text}
            if not failed and "verbose" not in request.query:
                return web.Response(text="ok")
            lines = [f"[-]{name} failed: {text}" if text else f"[+]{name} ok" for name, text in outcome.items()]
            verdict = "check failed" if failed else "check passed"
            return web.Response(text="\n".join([*lines, verdict, ""]), status=500 if failed else 200)

        return answer

    @staticmethod
    def _one(checks: Mapping[str, Check]) -> _Handler:
        async def answer(request: web.Request) -> web.Response:
            check = checks.get(request.match_info["name"])
            if check is None:
                raise web.HTTPNotFound(text="no such check")
            problem = check()
            return web.Response(text=problem or "ok", status=500 if problem else 200)

        return answer


class MetricsServer(_HttpServer):
    """``/metrics`` in Prometheus' text format."""

    def __init__(self, registry: CollectorRegistry, *, host: str = "0.0.0.0", port: int = 8080) -> None:  # noqa: S104
        super().__init__(host, port)

        async def metrics(_: web.Request) -> web.Response:
            return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

        self.app.router.add_get("/metrics", metrics)
