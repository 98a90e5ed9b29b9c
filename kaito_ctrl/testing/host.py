"""A machine on which a program runs: started again whenever it ends, killed, stopped and paused as a plan says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from kaito_ctrl.runtime.transport import Transport
from kaito_ctrl.testing.faults import FaultyTransport, Network
from kaito_ctrl.testing.plan import Fault
from kaito_ctrl.testing.process import Process
from kaito_ctrl.testing.virtualtime import VirtualClock

__all__ = ["Host", "Program", "Run", "strike_in_time"]

Ending = Literal["", "crash", "stop", "itself"]
_RESTART = 2.0
_PATIENCE = 300.0


class Program(Protocol):
    """What a process runs; a :class:`~kaito_ctrl.runtime.manager.Manager` is one."""

    async def run(self) -> None: ...
    def stop(self) -> None: ...


@dataclass(eq=False)
class Run:
    """One run of the program, from its start to its end."""

    process: Process
    transport: FaultyTransport
    program: Program | None = None
    ending: Ending = ""
    """How it ended: killed, asked to, or by itself."""
    asked: float = 0.0
    """When it was asked to stop."""
    seconds: float = 0.0
    """How long it took to stop since then, or since the end of a pause."""
    error: BaseException | None = None
    left: list[str] = field(default_factory=list)
    """Tasks that have outlived it."""

    @property
    def name(self) -> str:
        return self.process.name


class Host:
    """Runs what *make* returns, as ``name#0``, ``name#1`` and so on, until :meth:`run` is told to end.

    *connect* gives the way to the server to a process of that name. *ended* hears of each run's end.
    """

    def __init__(
        self,
        name: str,
        network: Network,
        connect: Callable[[str], Transport],
        make: Callable[[Host, FaultyTransport], Program],
        *,
        ended: Callable[[Run], None] | None = None,
    ) -> None:
        self.name = name
        self.clock = VirtualClock()
        self.current: Run | None = None
        self.runs = 0
        self.crashes = 0
        self._network = network
        self._connect = connect
        self._make = make
        self._ended = ended
        self._order: tuple[Ending, float] = ("", 0.0)
        self._ordered = asyncio.Event()
        self._loops: list[float] = []
        self._windows = {"starved_until": 0.0, "expired_until": 0.0, "down_until": 0.0, "failing_until": 0.0}

    async def run(self, until: asyncio.Event) -> None:
        """Keep the program running until *until* is set, and then stop it."""
        waiting = asyncio.create_task(until.wait())
        try:
            while not until.is_set():
                down = await self._live(waiting)
                if down:
                    await asyncio.wait((waiting,), timeout=down)
        finally:
            waiting.cancel()
            await asyncio.wait((waiting,))

    @property
    def disturbed(self) -> bool:
        """Whether it is down, or something that lasts for a while still keeps it from its work."""
        now = asyncio.get_running_loop().time()
        return self.current is None or any(until > now for until in self._windows.values())

    def strike(self, fault: Fault) -> None:
        """Have a fault at a moment happen now."""
        now, seconds = asyncio.get_running_loop().time(), fault.amount
        self._network.count(fault.kind)
        self._network.note(fault)
        match fault.kind:
            case "crash-at":
                self._command("crash", seconds)
            case "stop-at":
                self._command("stop", seconds)
            case "loop-at":
                self._loops = [seconds] * 3
                self._command("crash", 0.0)
            case "pause-at" if self.current is not None:
                self.current.process.pause_for(seconds)
            case "jump-at":
                self.clock.jump(seconds)
            case "starve-at":
                self._window("starved_until", now + seconds)
            case "expire-at":
                self._window("expired_until", now + seconds)
            case "outage-at":
                self._window("down_until", now + seconds)
            case "failing-at":
                self._window("failing_until", now + seconds)

    # -- inside --------------------------------------------------------------------------------------------------

    def _window(self, which: str, until: float) -> None:
        self._windows[which] = until
        if self.current is not None:
            setattr(self.current.transport, which, until)

    @property
    def _killed(self) -> bool:
        return self._order[0] == "crash"

    def _command(self, ending: Ending, down: float) -> None:
        self._order = (ending, down)
        self._ordered.set()

    async def _live(self, waiting: asyncio.Task[bool]) -> float:
        """One run; the seconds until the next one."""
        name = f"{self.name}#{self.runs}"
        self.runs += 1
        process = Process(name)

        def crashed() -> None:
            process.pause()
            self._command("crash", _RESTART)

        transport = FaultyTransport(self._connect(name), self._network, name, crash=crashed)
        for which, moment in self._windows.items():
            setattr(transport, which, moment)
        run = self.current = Run(process, transport)

        async def main() -> None:
            run.program = self._make(self, transport)
            await run.program.run()

        self._network.note(name, "starts")
        self._ordered.clear()
        running = process.start(main())
        ordered = asyncio.create_task(self._ordered.wait())
        patience = self._loops.pop() if self._loops else None
        await asyncio.wait((running, ordered, waiting), timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        ending, down = self._order if self._ordered.is_set() else ("", 0.0)
        ordered.cancel()
        await asyncio.wait((ordered,))
        if running.done():
            run.ending, down = "itself", _RESTART
        elif waiting.done() or ending == "stop":
            run.ending = "stop"
            await self._stop(run, running)
        if not running.done():
            await self._kill(run, running)
        run.error = None if running.cancelled() else running.exception()
        self._network.note(name, "ends:", run.ending, repr(run.error) if run.error is not None else "")
        run.left = [task.get_name() for task in process.tasks]
        self.current = None
        if self._ended is not None:
            self._ended(run)
        for task in process.tasks:
            task.cancel()
        return down

    async def _stop(self, run: Run, running: asyncio.Task[None]) -> None:
        """Ask it to stop, and wait for as long as anybody would; it may be killed all the same meanwhile."""
        loop = asyncio.get_running_loop()
        run.asked = loop.time()
        self._ordered.clear()
        self._order = ("stop", self._order[1])

        async def ask() -> None:
            if run.program is not None:
                run.program.stop()
            else:
                running.cancel()

        # A signal is handled by the process itself: one that is paused gets to it later.
        asking = run.process.start(ask())
        deadline = loop.time() + _PATIENCE
        while not running.done() and loop.time() < deadline and not self._killed:
            ordered = asyncio.create_task(self._ordered.wait())
            timeout = deadline - loop.time()
            await asyncio.wait((running, ordered), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            ordered.cancel()
            await asyncio.wait((ordered,))
            self._ordered.clear()
        if running.done():
            await asyncio.wait((asking,))
        if self._killed and not running.done():
            run.ending = "crash"
        else:
            run.seconds = loop.time() - max(run.asked, run.process.resumed_at)

    async def _kill(self, run: Run, running: asyncio.Task[None]) -> None:
        """Nothing more gets out or in; what it does in Python on its way out has no effect on anybody."""
        run.ending = run.ending or "crash"
        self.crashes += 1
        run.transport.dead = True
        run.process.resume()
        running.cancel()
        await asyncio.wait((running,), timeout=_PATIENCE)
        # Cancelled a second time, a program may leave the last steps of its tasks to the loop.
        if left := run.process.tasks:
            await asyncio.wait(left, timeout=1.0)


async def strike_in_time(faults: Sequence[Fault], hosts: Sequence[Host]) -> None:
    """Have each of *faults*, which are in order of time, strike at its moment the host that its address names."""
    by_name = {host.name: host for host in hosts}
    loop = asyncio.get_running_loop()
    for fault in faults:
        name, _, moment = fault.where.partition("@")
        await asyncio.sleep(max(float(moment) - loop.time(), 0.0))
        by_name[name].strike(fault)
