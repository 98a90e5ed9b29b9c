"""A cloud in memory, for the embedded cluster, for simulations and for tests."""

from kaito_provisioner.sim.catalogue import SimInstanceType
from kaito_provisioner.sim.cloud import Joiner, SimCloud
from kaito_provisioner.sim.scarcity import Limit, Scarcity

__all__ = ["Joiner", "Limit", "Scarcity", "SimCloud", "SimInstanceType"]
