"""``kaito-ctrl run``: the controllers against a cluster that is somewhere else."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack

from kaito_ctrl.cli.daemon import DaemonOptions, build_manager
from kaito_ctrl.cli.signals import stop_on_signal
from kaito_ctrl.runtime import Cluster, Manager
from kaito_ctrl.runtime.clock import Clock
from kaito_ctrl.runtime.errors import KubeError, ShutdownTimeout, leaf_errors
from kaito_ctrl.runtime.heap import SettledHeap
from kaito_provisioner import CloudProvider

__all__ = ["OpenCloud", "run_daemon"]

OpenCloud = Callable[[Clock], AbstractAsyncContextManager[CloudProvider]]
"""Opens a cloud for as long as the daemon runs."""


async def run_daemon(
    options: DaemonOptions, *, kubeconfig: str | None, context: str | None, open_cloud: OpenCloud | None = None
) -> None:
    """Run until a signal, then drain. Without *open_cloud* nodes are made by somebody else, or by nobody.

    Raises what ends the manager, and what keeps the cloud from being opened.
    """
    with stop_on_signal() as stop:
        async with AsyncExitStack() as stack:
            cluster = await stack.enter_async_context(Cluster.connect(kubeconfig=kubeconfig, context=context))
            cloud = await stack.enter_async_context(open_cloud(cluster.clock)) if open_cloud is not None else None
            try:
                manager = build_manager(cluster, cloud, options)
            except ValueError as error:
                raise KubeError(str(error)) from error
            # This process is the daemon's own: first its modules settle, then what its caches hold.
            manager.add_server(SettledHeap())
            manager.add_runnable(SettledHeap())
            async with asyncio.TaskGroup() as group:
                running = group.create_task(_until_stopped(manager), name="manager")

                async def on_signal() -> None:
                    await stop.wait()
                    manager.stop()

                watcher = group.create_task(on_signal(), name="signals")
                await asyncio.wait((running,))
                watcher.cancel()


async def _until_stopped(manager: Manager) -> None:
    try:
        await manager.run()
    except BaseException as error:
        # What ignores cancellation would hold up the loop's own end as well, and a pod has 30 s; it may also have led.
        leaves = leaf_errors(error)
        if not any(isinstance(leaf, ShutdownTimeout) for leaf in leaves):
            raise
        for leaf in leaves:
            print(f"kaito-ctrl: {leaf}", file=sys.stderr, flush=True)
        os._exit(1)
