"""A faithful local Azure: the agent-pool API that the real SDK talks to, and machines that join a cluster as nodes."""

from kaito_provisioner.testing.arm import LocalArm
from kaito_provisioner.testing.errors import ArmError, Failure
from kaito_provisioner.testing.faults import Fault, Faults, Mishap
from kaito_provisioner.testing.front import Entry, Requests
from kaito_provisioner.testing.nodes import NodeJoiner
from kaito_provisioner.testing.sizes import SIZES, VmSize
from kaito_provisioner.testing.state import Cluster, Pool, Vm
from kaito_provisioner.testing.tokens import Identity
from kaito_provisioner.testing.transport import LocalArmTransport, LocalCredential
from kaito_provisioner.testing.vms import Joiner, Timings

__all__ = [
    "SIZES",
    "ArmError",
    "Cluster",
    "Entry",
    "Failure",
    "Fault",
    "Faults",
    "Identity",
    "Joiner",
    "LocalArm",
    "LocalArmTransport",
    "LocalCredential",
    "Mishap",
    "NodeJoiner",
    "Pool",
    "Requests",
    "Timings",
    "Vm",
    "VmSize",
]
