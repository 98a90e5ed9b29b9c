"""``python -m kaito_provisioner.testing``: a local Azure for a laptop.

It prints, as lines for a shell, the environment in which ``kaito-ctrl run --provisioner aks`` works with it, and serves
until it is told to end. With ``--kubeconfig``, the machines that it makes join that cluster as nodes.
"""

from __future__ import annotations

import argparse
import asyncio
import shlex
import signal
import sys
from contextlib import AsyncExitStack
from pathlib import Path

from kaito_ctrl.runtime import Client
from kaito_ctrl.runtime.clock import SystemClock
from kaito_ctrl.runtime.connect import connect
from kaito_provisioner.testing.arm import LocalArm
from kaito_provisioner.testing.nodes import NodeJoiner
from kaito_provisioner.testing.vms import Timings

_REAL_BOOT = Timings().boot


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m kaito_provisioner.testing", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="of Azure's API; 0 is any that is free")
    parser.add_argument("--identity-port", type=int, default=0, help="of the managed identity's endpoint")
    parser.add_argument("--identity", choices=("workload", "managed"), default="workload", help="how to get tokens")
    parser.add_argument("--kubeconfig", type=Path, help="of the cluster that machines join")
    parser.add_argument(
        "--boot", type=float, default=5.0, metavar="SECONDS", help="that a machine takes; all else goes by it"
    )
    parser.add_argument("--cluster", default="kaito-aks", help="the managed cluster's name")
    parser.add_argument("--resource-group", default="kaito", help="its resource group")
    parser.add_argument("--location", default="eastus", help="its region")
    parser.add_argument(
        "--capacity", action="append", default=[], metavar="SIZE=COUNT", help="there are no more machines of that size"
    )
    parser.add_argument(
        "--quota", action="append", default=[], metavar="FAMILY=CORES", help="the subscription may have no more"
    )
    parser.add_argument("--env-file", type=Path, help="write the environment there too, one NAME=VALUE a line")
    return parser.parse_args()


def _amount(text: str) -> tuple[str, int]:
    name, _, amount = text.rpartition("=")
    if not name or not amount.isdecimal():
        sys.exit(f"{text!r}: write NAME=NUMBER")
    return name, int(amount)


async def _main(arguments: argparse.Namespace) -> None:
    async with AsyncExitStack() as stack:
        joiner = None
        if arguments.kubeconfig is not None:
            transport = await connect(kubeconfig=str(arguments.kubeconfig))
            stack.push_async_callback(transport.aclose)
            joiner = NodeJoiner(Client(transport), SystemClock())
        arm = await stack.enter_async_context(
            LocalArm(
                serve=True,
                port=arguments.port,
                identity_port=arguments.identity_port,
                cluster=arguments.cluster,
                resource_group=arguments.resource_group,
                location=arguments.location,
                timings=Timings().scaled(arguments.boot / _REAL_BOOT),
                joiner=joiner,
            )
        )
        for size, count in map(_amount, arguments.capacity):
            arm.capacity.limit(size, count)
        arm.quota.families.update(map(_amount, arguments.quota))
        environment = arm.environment(arguments.identity)
        if arguments.env_file is not None:
            arguments.env_file.write_text("".join(f"{name}={value}\n" for name, value in environment.items()))
        for name, value in environment.items():
            sys.stdout.write(f"export {name}={shlex.quote(value)}\n")
        sys.stdout.flush()
        ended = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, ended.set)
        await ended.wait()


if __name__ == "__main__":
    asyncio.run(_main(_arguments()))
