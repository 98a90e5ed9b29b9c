"""Health and metrics over HTTP, under the paths and on the terms that Kubernetes tools expect."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from kaito_ctrl.runtime.lifetime import Lifetime
from kaito_ctrl.runtime.logs import logger

__all__ = ["Check", "HealthServer", "HttpServer", "MetricsServer", "Page"]

Page = Callable[[web.Request], Awaitable[web.Response]]

Check = Callable[[], str | None]
"""Returns what is wrong, or ``None``."""


class HttpServer:
    """An aiohttp application as a runnable."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._app = web.Application()
        self.address: tuple[str, int] | None = None
        """Where it listens, once it does; a *port* of 0 is replaced by the one that was free."""

    def add_page(self, path: str, page: Page) -> None:
        """Have *page* answer GET requests at *path*; before it runs."""
        self._app.router.add_get(path, page)

    async def run(self, lifetime: Lifetime) -> None:
        """Until asked to stop; started when it listens."""
        runner = web.AppRunner(self._app, access_log=None, handle_signals=False, shutdown_timeout=2.0)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self._port).start()
            host, port = runner.addresses[0][:2]
            self.address = (host, port)
            lifetime.started()
            await lifetime.wait_stopping()
        finally:
            await runner.cleanup()


class HealthServer(HttpServer):
    """``/healthz`` for the process itself, ``/readyz`` for its readiness to work; each check also by its name.

    ``?verbose`` lists all checks, ``?exclude=`` (repeated, or with commas) leaves some out, as with every Kubernetes
    component. What is wrong is said to the caller too, where controller-runtime says ``reason withheld``: no tool reads
    it, people do, and a check of this runtime names kinds and lengths of time. A check that raises has failed, and its
    error is for the log alone.
    """

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
            self.add_page(path, _all(checks))
            self.add_page(path + "/{name}", _one(checks))


class MetricsServer(HttpServer):
    """``/metrics`` in Prometheus' text format."""

    def __init__(self, registry: CollectorRegistry, *, host: str = "0.0.0.0", port: int = 8080) -> None:  # noqa: S104
        super().__init__(host, port)

        async def metrics(_: web.Request) -> web.Response:
            return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

        self.add_page("/metrics", metrics)


def _all(checks: Mapping[str, Check]) -> Page:
    async def answer(request: web.Request) -> web.Response:
        named = ",".join(request.query.getall("exclude", ())).split(",")
        excluded = dict.fromkeys(name.strip() for name in named if name.strip())
        outcome = {name: _outcome(name, check) for name, check in checks.items() if name not in excluded}
        failed = any(outcome.values())
        unknown = [name for name in excluded if name not in checks]
        if not failed and "verbose" not in request.query:
            return web.Response(text="ok")
        lines = [
            f"[+]{name} excluded: ok" if name in excluded
            else f"[-]{name} failed: {outcome[name]}" if outcome[name]
            else f"[+]{name} ok"
            for name in checks
        ]  # fmt: skip
        if unknown:
            lines.append(f"warn: some health checks cannot be excluded: no matches for {', '.join(unknown)}")
        verdict = f"{request.path.strip('/')} check {'failed' if failed else 'passed'}"
        return web.Response(text="\n".join([*lines, verdict, ""]), status=500 if failed else 200)

    return answer


def _one(checks: Mapping[str, Check]) -> Page:
    async def answer(request: web.Request) -> web.Response:
        name = request.match_info["name"]
        check = checks.get(name)
        if check is None:
            raise web.HTTPNotFound(text="no such check")
        problem = _outcome(name, check)
        return web.Response(text=problem or "ok", status=500 if problem else 200)

    return answer


def _outcome(name: str, check: Check) -> str | None:
    try:
        return check()
    except Exception:  # noqa: BLE001 - a check that cannot tell is no reason to tell that all is well
        logger().exception("health check failed to run", check=name)
        return "internal error, see the log"
