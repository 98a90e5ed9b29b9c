"""One API server: how to reach it, a live client, and a shared cache."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Self

from kaito_ctrl.runtime.cache import Cache
from kaito_ctrl.runtime.client import Client
from kaito_ctrl.runtime.clock import Clock, SystemClock, system_random
from kaito_ctrl.runtime.leader import Dial
from kaito_ctrl.runtime.metrics import Metrics
from kaito_ctrl.runtime.transport import Transport

__all__ = ["Cluster"]


class Cluster:
    """See the module's docstring.

    *dial* makes another transport to the same server, for what must not wait behind everything else; *streaming* says
    whether servers that can are asked for lists as streams, *sync_timeout* in how many seconds a kind has to be
    listed, *name* what the metrics of its cache call it, where several clusters share them.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        metrics: Metrics | None = None,
        streaming: bool = True,
        sync_timeout: float = 120.0,
        dial: Dial | None = None,
        name: str = "",
    ) -> None:
        self.transport = transport
        self.clock = clock or SystemClock()
        self.rng = rng or system_random()
        self.metrics = metrics or Metrics()
        self.dial = dial
        self.client = Client(transport, metrics=self.metrics)
        self.cache = Cache(
            self.client,
            rng=self.rng,
            streaming=streaming,
            sync_timeout=sync_timeout,
            metrics=self.metrics,
            cluster=name,
        )

    @classmethod
    @asynccontextmanager
    async def connect(
        cls, *, kubeconfig: str | None = None, context: str | None = None, **options: Any
    ) -> AsyncIterator[Self]:
        """The cluster that ``kubectl`` would talk to, or the one that this pod runs in. *options* as for the class.

        Raises :class:`~kaito_ctrl.runtime.errors.KubeError` when no configuration is found.
        """
        from kaito_ctrl.runtime.connect import connect  # the Kubernetes client takes a second to import

        dial = partial(connect, kubeconfig=kubeconfig, context=context, clock=options.get("clock"))
        transport = await dial()
        try:
            yield cls(transport, **{"dial": dial, **options})
        finally:
            await transport.aclose()
