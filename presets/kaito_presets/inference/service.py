"""What all routes share: the loaded model, the scheduler in front of it, metrics, time and names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from kaito_ctrl.runtime.clock import Clock, UidSource
from kaito_presets.inference.config import Config
from kaito_presets.inference.engine import Engine, ModelInfo
from kaito_presets.inference.errors import NotReady
from kaito_presets.inference.metrics import Metrics
from kaito_presets.inference.scheduler import Scheduler

__all__ = ["GENERATION_ROUTES", "ROUTES", "Service"]

GENERATION_ROUTES: Final = ("/chat", "/v1/chat/completions", "/v1/completions")
ROUTES: Final = ("/", "/health", "/healthz", "/metrics", "/v1/models", *GENERATION_ROUTES)


@dataclass(slots=True)
class Service:
    """Born before the model is there: ``info``, ``engine`` and ``scheduler`` are set once, together, when it is.

    ``started`` is in seconds since the epoch.
    """

    config: Config
    metrics: Metrics
    clock: Clock
    uid: UidSource
    started: int
    info: ModelInfo | None = None
    engine: Engine | None = None
    scheduler: Scheduler | None = None

    def loaded(self, engine: Engine, info: ModelInfo, seconds: float) -> None:
        """From now on the server is ready. Call it on the event loop."""
        self.scheduler = Scheduler(engine, self.metrics, max_waiting=self.config.max_waiting)
        self.engine, self.info = engine, info
        self.metrics.loaded(info, seconds)

    def ready(self) -> tuple[Engine, Scheduler, ModelInfo]:
        """The model and the way to it. Raises ``NotReady`` while it is being loaded."""
        if self.engine is None or self.scheduler is None or self.info is None:
            raise NotReady("Model not initialized")
        return self.engine, self.scheduler, self.info
