"""Simulated controllers do not log."""

from tests.sim.conftest import _silent

__all__ = ["_silent"]
