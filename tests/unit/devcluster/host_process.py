"""A host for the test that kills it: runs a cluster with a pod, and prints the pod's process ids."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from devworld import pids, world

from kaito_ctrl.devcluster.kinds import Pod


async def main() -> None:
    async with world(root=Path(sys.argv[1])) as it:
        await it.pod("p", "trap '' TERM; sleep 300 & wait; sleep 300", terminationGracePeriodSeconds=300)
        pod = await it.until(Pod, "p", lambda pod: pod.status.phase == "Running")
        print(*pids(pod), flush=True)
        await asyncio.sleep(300)


asyncio.run(main())
