"""One request at a time on the model, a bounded queue in front of it, and a clean end.

A model on one device gains nothing from two requests side by side, and an unbounded queue only makes everybody wait for
answers that nobody reads any more. So: first come, first served; beyond the bound, refuse at once.

Invariant: a turn is handed on only after the thread has left the model, whatever became of the request.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from kaito_presets.inference.engine import Completion, Engine, Generation, RequestError
from kaito_presets.inference.errors import BadRequest, QueueFull, ShuttingDown
from kaito_presets.inference.metrics import Metrics

__all__ = ["Scheduler", "Turn"]


class Scheduler:
    """Gives out turns on *engine*. Belongs to one event loop."""

    def __init__(self, engine: Engine, metrics: Metrics, *, max_waiting: int) -> None:
        self._engine = engine
        self._metrics = metrics
        self._max_waiting = max_waiting
        self._thread = ThreadPoolExecutor(1, "generate")
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._busy = False
        self._closed = False
        self._stop = threading.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def idle(self) -> bool:
        """Whether nobody has a turn."""
        return not self._busy

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[Turn]:
        """Wait for a turn and hold it for the block.

        Raises ``QueueFull`` if too many wait already, and ``ShuttingDown`` once the end has begun.
        """
        await self._acquire()
        self._metrics.running.set(1)
        try:
            yield Turn(self._engine, self._thread, self._stop, self._metrics)
        finally:
            self._metrics.running.set(0)
            self._release()

    async def drain(self, grace: float) -> bool:
        """Refuse who waits, let the running request go on for *grace* seconds, then stop it.

        True if the model is free in the end; it has as long again to notice.
        """
        self._closed = True
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_exception(ShuttingDown("the server is shutting down"))
        self._metrics.waiting.set(0)
        try:
            async with asyncio.timeout(grace):
                await self._idle.wait()
        except TimeoutError:
            self._stop.set()
            try:
                async with asyncio.timeout(max(grace, 1.0)):
                    await self._idle.wait()
            except TimeoutError:
                return False
        self._thread.shutdown(wait=False)
        return True

    async def _acquire(self) -> None:
        if self._closed:
            raise ShuttingDown("the server is shutting down")
        if not self._busy:
            self._busy = True
            self._idle.clear()
            return
        if len(self._waiting) >= self._max_waiting:
            self._metrics.rejected.inc()
            raise QueueFull(f"{len(self._waiting)} requests are waiting already: try again later")
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        self._metrics.waiting.set(len(self._waiting))
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
            elif waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._release()  # the turn came in the same moment as the cancellation
            raise
        finally:
            self._metrics.waiting.set(len(self._waiting))

    def _release(self) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self._busy = False
        self._idle.set()


class Turn:
    """The right to use the model. Not to be kept beyond its block, nor used by two tasks at once."""

    def __init__(self, engine: Engine, thread: ThreadPoolExecutor, stop: threading.Event, metrics: Metrics) -> None:
        self._engine = engine
        self._thread = thread
        self._stop = stop
        self._metrics = metrics

    async def generate(self, request: Generation) -> Completion:
        """Generate to the end. Cancelling this stops the generation.

        Raises ``BadRequest`` if the engine refuses, ``ShuttingDown`` if the server's end came first.
        """
        future, stop = self._start(request, None)
        try:
            return self._outcome(await asyncio.shield(future))
        except RequestError as error:
            raise BadRequest(str(error), code=error.code) from None
        finally:
            await _settle(future, stop)

    async def stream(self, request: Generation) -> AsyncGenerator[str | Completion, None]:
        """The text in pieces, and at last the completion. Raises as :meth:`generate` does; close it to stop early."""
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[str | None] = asyncio.Queue()

        def on_text(text: str) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, text)

        future, stop = self._start(request, on_text)
        future.add_done_callback(lambda _: pieces.put_nowait(None))
        try:
            while (piece := await pieces.get()) is not None:
                yield piece
            yield self._outcome(future.result())
        except RequestError as error:
            raise BadRequest(str(error), code=error.code) from None
        finally:
            await _settle(future, stop)

    def _start(
        self, request: Generation, on_text: Callable[[str], None] | None
    ) -> tuple[asyncio.Future[Completion], threading.Event]:
        mine = threading.Event()

        def run() -> Completion:
            return self._engine.generate(
                request, cancelled=lambda: mine.is_set() or self._stop.is_set(), on_text=on_text
            )

        return asyncio.get_running_loop().run_in_executor(self._thread, run), mine

    def _outcome(self, completion: Completion) -> Completion:
        self._metrics.prompt_tokens.inc(completion.prompt_tokens)
        self._metrics.generated_tokens.inc(completion.completion_tokens)
        if completion.finish_reason == "cancelled":
            raise ShuttingDown("the server is shutting down")
        return completion


async def _settle(future: asyncio.Future[Completion], stop: threading.Event) -> None:
    """Wait until the thread has left the model, at the next token, however often we are cancelled meanwhile."""
    if future.done():
        return
    stop.set()
    cancelled = False
    while not future.done():
        try:
            await asyncio.wait({future})
        except asyncio.CancelledError:
            cancelled = True
    if not future.cancelled():
        future.exception()  # looked at, so that nobody complains that it was not
    if cancelled:
        raise asyncio.CancelledError
