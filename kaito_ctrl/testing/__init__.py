"""Simulation: virtual time, processes, faults by plan, and a tape. For our tests, and for those of whoever embeds the
library::

    async def life() -> None:
        server = ApiServer(clock=VirtualClock())
        network = Network(seed, RandomPlan(seed))
        process = Process("a#0")
        transport = FaultyTransport(server.transport(user="a"), network, process.name)
        running = process.start(manager(Cluster(transport)).run())
        ...

    run_virtual(life())

What a run has met with is in ``plan.faults``, prints as text, reads back with :func:`parse_faults` and is replayed by
:class:`FixedPlan`; :func:`single_faults` lists every single one that a run could have met with; :func:`shrink` makes a
list that fails as short as it can.
"""

from kaito_ctrl.testing.faults import FaultyTransport, Network, Witness
from kaito_ctrl.testing.host import Host, Program, Run, strike_in_time
from kaito_ctrl.testing.plan import (
    CALM,
    KINDS,
    STORMY,
    TIMED,
    Fault,
    FixedPlan,
    Plan,
    RandomPlan,
    Recording,
    Spot,
    parse_faults,
    shrink,
    single_faults,
)
from kaito_ctrl.testing.process import Process, current_process
from kaito_ctrl.testing.tape import Tape
from kaito_ctrl.testing.virtualtime import Deadlock, Livelock, VirtualClock, VirtualTimeLoop, run_virtual

__all__ = [
    "CALM",
    "KINDS",
    "STORMY",
    "TIMED",
    "Deadlock",
    "Fault",
    "FaultyTransport",
    "FixedPlan",
    "Host",
    "Livelock",
    "Network",
    "Plan",
    "Process",
    "Program",
    "RandomPlan",
    "Recording",
    "Run",
    "Spot",
    "Tape",
    "VirtualClock",
    "VirtualTimeLoop",
    "Witness",
    "current_process",
    "parse_faults",
    "run_virtual",
    "shrink",
    "single_faults",
    "strike_in_time",
]
