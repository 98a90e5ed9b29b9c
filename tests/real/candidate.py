"""One of two managers that contend for a lease, as a process: ``python -m tests.real.candidate KUBECONFIG IDENTITY``.

Its controller writes its identity into a ConfigMap, again and again, as fast as somebody might who must not be two.
"""

from __future__ import annotations

import asyncio
import signal
import sys

from kaito_api.core import ConfigMap
from kaito_ctrl import Cluster, Context, Controller, Manager, Result
from kaito_ctrl.runtime.leader import Lease

__all__ = ["DURATION", "LEASE", "NAMESPACE", "RENEW_DEADLINE", "RETRY_PERIOD", "WORK"]

NAMESPACE, WORK, LEASE = "default", "work", "failover"
DURATION, RENEW_DEADLINE, RETRY_PERIOD = 4, 3.0, 1.0
PAUSE = 0.02


class Writer(Controller[ConfigMap]):
    """Writes who it is; that it did wakes it again."""

    name = "writer"
    kind = ConfigMap

    def __init__(self, identity: str) -> None:
        self._identity = identity

    async def reconcile(self, obj: ConfigMap, ctx: Context) -> Result:
        if obj.name == WORK:
            await asyncio.sleep(PAUSE)
            number = str(int(obj.data.get("n", "0")) + 1)
            await ctx.client.patch(ConfigMap, ctx.key, {"data": {"n": number, "by": self._identity}})
        return Result.done()


async def main(kubeconfig: str, identity: str) -> None:
    lease = Lease(LEASE, NAMESPACE, DURATION, RENEW_DEADLINE, RETRY_PERIOD, identity)
    async with Cluster.connect(kubeconfig=kubeconfig) as cluster:
        manager = Manager(cluster, leader=lease, drain=1.0, grace=1.0)
        manager.add(Writer(identity))
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, manager.stop)
        async with asyncio.TaskGroup() as group:
            running = group.create_task(manager.run())
            await manager.wait_ready()
            print("ready", flush=True)
            await running


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
