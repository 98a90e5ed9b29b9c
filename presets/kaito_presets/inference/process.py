"""The server's life: listen, load, serve, drain.

The port opens first and the model is loaded on a thread, so that health and metrics can be asked from the first moment.
SIGTERM closes the port, refuses who waits, gives the running request its grace, and ends the process.
"""

from __future__ import annotations

import asyncio
import random
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import structlog
import uvicorn

from kaito_ctrl.runtime.clock import Clock, uid_source
from kaito_presets.inference.app import build_app
from kaito_presets.inference.config import Config
from kaito_presets.inference.engine import Engine, LoadError, ModelInfo
from kaito_presets.inference.metrics import Metrics
from kaito_presets.inference.service import ROUTES, Service

__all__ = ["EXIT_FAILED", "EXIT_OK", "Outcome", "serve"]

log: Final = structlog.get_logger(__name__)

EXIT_OK, EXIT_FAILED = 0, 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it ended: the exit status, whether a thread is still inside the model and cannot be waited for, and why it
    failed."""

    status: int
    stuck: bool = False
    reason: str = ""


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # signals are ours: uvicorn would raise them again at the end and so hide our exit status


async def serve(config: Config, make_engine: Callable[[], Engine], *, clock: Clock, rng: random.Random) -> Outcome:
    """Run until SIGTERM or SIGINT, or until the model cannot be loaded. *make_engine* is called on the loading thread.

    Raises ``OSError`` if the address cannot be had.
    """
    service = Service(config, Metrics(ROUTES), clock, uid_source(rng), started=int(clock.now().timestamp()))
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    with _listen(config) as listener:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        server = _Server(
            uvicorn.Config(
                build_app(service),
                log_config=None,
                access_log=False,
                lifespan="off",
                timeout_graceful_shutdown=int(2 * config.shutdown_grace) + 2,
            )
        )
        log.info("listening", host=config.host, port=listener.getsockname()[1], model=config.served_model_name)
        async with asyncio.TaskGroup() as group:
            group.create_task(server.serve(sockets=[listener]))
            try:
                outcome = await _live(service, make_engine, stop)
            finally:
                server.should_exit = True
            if service.scheduler is not None:
                log.info("shutting down", grace_seconds=config.shutdown_grace)
                outcome = Outcome(outcome.status, stuck=not await service.scheduler.drain(config.shutdown_grace))
    log.info("stopped", status=outcome.status)
    return outcome


async def _live(service: Service, make_engine: Callable[[], Engine], stop: asyncio.Event) -> Outcome:
    """Load, then wait for *stop*."""
    began = service.clock.monotonic()
    loading = _load(make_engine)
    async with asyncio.TaskGroup() as group:
        waiters: set[asyncio.Future[object]] = {group.create_task(_quietly(loading)), group.create_task(stop.wait())}
        await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
        for waiter in waiters:
            waiter.cancel()
    if not loading.done():
        log.info("stopped while the model was being loaded")
        loading.cancel()
        return Outcome(EXIT_OK, stuck=True)
    try:
        engine, info = loading.result()
    except LoadError as error:
        log.error(str(error))
        return Outcome(EXIT_FAILED, reason=str(error))
    except Exception as error:
        log.error("the model cannot be loaded", exc_info=error)
        return Outcome(EXIT_FAILED, reason=f"the model cannot be loaded: {type(error).__name__}: {error}")
    took = service.clock.monotonic() - began
    service.loaded(engine, info, took)
    said = {"model": info.name, "architecture": info.architecture, "parameters": info.parameters, "dtype": info.dtype}
    log.info("model loaded", **said, device=info.device, context=info.context, seconds=round(took, 3))
    if info.weights == "random":
        log.warning("THE WEIGHTS ARE RANDOM: every answer is meaningless. For tests and demonstrations only")
    await stop.wait()
    return Outcome(EXIT_OK)


async def _quietly(future: asyncio.Future[tuple[Engine, ModelInfo]]) -> None:
    """Wait for *future* without cancelling it, and whatever became of it."""
    await asyncio.wait({future})


def _load(make_engine: Callable[[], Engine]) -> asyncio.Future[tuple[Engine, ModelInfo]]:
    """Load on a daemon thread: loading cannot be interrupted, and the process must be able to end without it."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[tuple[Engine, ModelInfo]] = loop.create_future()

    def finish(result: tuple[Engine, ModelInfo] | None, error: Exception | None) -> None:
        if future.done():
            return
        if result is not None:
            future.set_result(result)
        else:
            future.set_exception(error or LoadError("the model cannot be loaded"))

    def work() -> None:
        result, failure = None, None
        try:
            engine = make_engine()
            result = engine, engine.load()
        except Exception as error:  # noqa: BLE001  # carried to the event loop, which reports it
            failure = error
        try:
            loop.call_soon_threadsafe(finish, result, failure)
        except RuntimeError:
            return  # the loop has ended meanwhile: nobody waits for this any more

    threading.Thread(target=work, name="load", daemon=True).start()
    return future


def _listen(config: Config) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    return socket.create_server((config.host, config.port), family=family, backlog=512)
