"""Simulation: virtual time, seeded faults, and a tape. For our tests, and for those of whoever embeds the library."""

from kaito_ctrl.testing.faults import FaultPlan, FaultyTransport, Tape
from kaito_ctrl.testing.virtualtime import Deadlock, VirtualClock, VirtualTimeLoop, run_virtual

__all__ = ["Deadlock", "FaultPlan", "FaultyTransport", "Tape", "VirtualClock", "VirtualTimeLoop", "run_virtual"]
