"""How the process itself is: whether its event loop keeps up, and for how long the garbage collector stops it."""

from __future__ import annotations

import asyncio
import gc
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress

from kaito_ctrl.runtime.lifetime import Lifetime
from kaito_ctrl.runtime.metrics import Metrics

__all__ = ["Vitals"]


class Vitals:
    """Measures both for as long as it runs, waking up every *every* seconds: a runnable, to be run around all others.

    *timer* is read at each end of a garbage collection, on whatever thread that happens.
    """

    def __init__(self, metrics: Metrics, *, every: float = 0.5, timer: Callable[[], float] = time.perf_counter) -> None:
        self._metrics = metrics
        self._every = every
        self._timer = timer
        self._began = 0.0
        self._pauses: deque[tuple[int, float]] = deque(maxlen=10_000)

    async def run(self, lifetime: Lifetime) -> None:
        """Until asked to stop."""
        loop = asyncio.get_running_loop()
        gc.callbacks.append(self._collected)
        try:
            lifetime.started()
            while not lifetime.is_stopping:
                due = loop.time() + self._every
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(due):
                        await lifetime.wait_stopping()
                if not lifetime.is_stopping:
                    self._metrics.lag.observe(max(loop.time() - due, 0.0))
                self._report()
        finally:
            gc.callbacks.remove(self._collected)

    def _collected(self, phase: str, info: Mapping[str, int]) -> None:
        # A collection may begin anywhere, also while a metric is locked: it is only noted here, and told later.
        if phase == "start":
            self._began = self._timer()
        else:
            self._pauses.append((info["generation"], self._timer() - self._began))

    def _report(self) -> None:
        while self._pauses:
            generation, seconds = self._pauses.popleft()
            self._metrics.gc_pause.labels(str(generation)).observe(seconds)
