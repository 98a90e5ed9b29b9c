"""The shell around the machine's plan."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from datetime import datetime

from kaito_api.core import Node
from kaito_api.karpenter import INSTANCE_TYPE_LABEL, TERMINATION_FINALIZER, Machine, MachineStatus
from kaito_api.meta import find_condition, is_true
from kaito_api.quantity import parse_quantity
from kaito_ctrl.reconcilers.machine.plan import Observed, plan_machine
from kaito_ctrl.reconcilers.machine.termination import Termination, live_nodes
from kaito_ctrl.runtime import (
    Context,
    Controller,
    ObjectKey,
    Reader,
    Result,
    RetryAfter,
    generation_changed,
    key_of,
    watches,
)
from kaito_ctrl.runtime.errors import NotFound
from kaito_provisioner import ClaimRef, CloudError, CloudProvider, Instance, LaunchRequest
from kaito_provisioner import NotFound as InstanceNotFound
from kaito_provisioner.cloud import InstanceState

__all__ = ["MachineController"]

_POLL = 5.0
"""Seconds between two looks at a cloud that is busy for us; nodes and machines wake us by themselves."""
_SILENCE = 60.0
"""Seconds between two looks at the instance of a node that is not ready."""
_REGISTRATION_DEADLINE = 900.0
"""Seconds from a machine's launch to its node's registration (Karpenter's figure); then it is given up."""


def _machines_of(node: Node, cache: Reader) -> Iterable[ObjectKey]:
    if not node.spec.provider_id:
        return ()
    return (key_of(each) for each in cache.list(Machine, index=("providerID", node.spec.provider_id)))


class MachineController(Controller[Machine]):
    """Runs a Machine's life against a cloud."""

    name = "machine"
    kind = Machine
    workers = 32
    # Our own status writes must not wake us: that would void the patience that a refusing cloud is owed.
    when = generation_changed
    finalizer = TERMINATION_FINALIZER
    indexes = {"providerID": lambda machine: (machine.status.provider_id,) if machine.status.provider_id else ()}  # noqa: RUF012
    sources = (
        watches(
            Node,
            _machines_of,
            indexes={"providerID": lambda node: (node.spec.provider_id,) if node.spec.provider_id else ()},
        ),
    )

    def __init__(self, cloud: CloudProvider) -> None:
        self._cloud = cloud
        self._termination = Termination(cloud)

    async def reconcile(self, machine: Machine, ctx: Context) -> Result:
        seen, wait = await self._look(machine, ctx)
        if seen is None:
            return Result.done()
        plan = plan_machine(machine, seen, ctx.now())
        # The status first: it holds the provider id, by which the node that is changed next is found again.
        if plan.status != machine.status:
            await self._write_status(machine, plan.status, ctx)
        if plan.labels != machine.metadata.labels:
            await ctx.client.patch(Machine, ctx.key, {"metadata": {"uid": machine.uid, "labels": dict(plan.labels)}})
        if plan.node_patch is not None:
            await ctx.client.patch(Node, key_of(seen.nodes[0]), plan.node_patch)
        return Result.retry_in(wait) if wait is not None else Result.done()

    async def _look(self, machine: Machine, ctx: Context) -> tuple[Observed | None, float | None]:
        """What there is, and when to look again if nothing wakes us; nothing at all if the machine has to go."""
        if is_true(machine.status.conditions, "MachineRegistered"):
            return await self._look_at_node(machine, ctx)
        if _overdue(machine, ctx.now()):
            await self._end(machine, f"no node has registered within {_REGISTRATION_DEADLINE:.0f} s", ctx)
            return None, None
        try:
            instance = await self._instance(machine, ctx)
        except CloudError as error:
            wait = _patience(machine, error, ctx.now())
            ctx.log.warning("the cloud refused", reason=error.reason, error=error.message, retry_in=wait)
            return Observed(error=error), wait
        nodes = ctx.cache.list(Node, index=("providerID", instance.provider_id)) if instance.provider_id else ()
        wait = _SILENCE if instance.state == "Failed" else _POLL
        return Observed(instance, instance.error, nodes), None if nodes else wait

    async def _look_at_node(self, machine: Machine, ctx: Context) -> tuple[Observed | None, float | None]:
        """From registration on the node speaks for the machine; while it is silent, the cloud is asked."""
        nodes = ctx.cache.list(Node, index=("providerID", machine.status.provider_id))
        seen = Observed(_known(machine), None, nodes)
        if any(node.deleting for node in nodes):
            live = await live_nodes(machine.status.provider_id, ctx)
            if any(node.deleting for node in live):
                await self._end(machine, "its node was deleted", ctx)
                return None, None
        if nodes and is_true(nodes[0].status.conditions, "Ready"):
            return seen, None
        try:
            state: InstanceState | None = (await self._cloud.find(_ref(machine))).state
        except InstanceNotFound:
            state = None
        except CloudError as error:
            ctx.log.warning("the cloud refused", reason=error.reason, error=error.message)
            return seen, error.retry_after or _SILENCE
        if state in (None, "Deleting", "Failed"):
            await self._end(machine, f"its instance is {(state or 'gone').lower()}", ctx)
            return None, None
        return seen, _SILENCE

    async def _end(self, machine: Machine, why: str, ctx: Context) -> None:
        """Delete the machine: it ends in order, and whoever needs another one asks for it."""
        ctx.log.warning("deleting the machine", reason=why)
        with contextlib.suppress(NotFound):
            await ctx.client.delete(Machine, ctx.key, uid=machine.uid)

    async def _instance(self, machine: Machine, ctx: Context) -> Instance:
        """The instance of *machine*, made if there is none. Raises ``CloudError``, and ``NotFound`` of the client."""
        try:
            return await self._cloud.find(_ref(machine))
        except InstanceNotFound:
            # The cache may still show a machine that is gone; an instance made for it would be nobody's.
            live = await ctx.client.get(Machine, machine.name)
            if live.uid != machine.uid or live.deleting:
                raise RetryAfter(_POLL, f"{machine} is going") from None
            ctx.check_leading()
            return await self._cloud.create(_request(machine))

    async def _write_status(self, machine: Machine, status: MachineStatus, ctx: Context) -> None:
        wire = {
            "nodeName": status.node_name,
            "providerID": status.provider_id,
            "capacity": dict(status.capacity),
            "allocatable": dict(status.allocatable),
            "conditions": [each.to_wire() for each in status.conditions],
        }
        await ctx.client.patch(
            Machine, ctx.key, {"metadata": {"uid": machine.uid}, "status": wire}, subresource="status"
        )

    async def cleanup(self, machine: Machine, ctx: Context) -> Result:
        return await self._termination.run(machine, ctx)


def _ref(machine: Machine) -> ClaimRef:
    return ClaimRef(machine.name, machine.uid, machine.status.provider_id)


def _overdue(machine: Machine, now: datetime) -> bool:
    """Whether an instance was granted, or has failed, too long ago for a node still to come of it."""
    launched = find_condition(machine.status.conditions, "MachineLaunched")
    if launched is None or launched.status == "Unknown" or launched.last_transition_time is None:
        return False
    return (now - launched.last_transition_time).total_seconds() > _REGISTRATION_DEADLINE


def _patience(machine: Machine, error: CloudError, now: datetime) -> float | None:
    """Seconds until the cloud is asked again: a quarter of how long it has been refusing, from 5 s to 5 min.

    That doubles as it goes, like any back-off, but is kept in the object: a restart neither forgets nor resets it.
    """
    if not error.retryable:
        return None
    if error.retry_after is not None:
        return error.retry_after
    launched = find_condition(machine.status.conditions, "MachineLaunched")
    since = launched.last_transition_time if launched is not None else None
    waited = (now - since).total_seconds() if since is not None else 0.0
    return min(max(waited / 4.0, _POLL), 300.0)


def _request(machine: Machine) -> LaunchRequest:
    spec = machine.spec
    return LaunchRequest(
        name=machine.name,
        uid=machine.uid,
        instance_types=spec.values(INSTANCE_TYPE_LABEL),
        labels=_node_labels(machine),
        taints=spec.taints,
        startup_taints=spec.startup_taints,
        disk=int(parse_quantity(spec.resources.requests.get("storage", "0"))),
    )


def _node_labels(machine: Machine) -> dict[str, str]:
    """The claim's labels, and what its requirements leave no choice about."""
    single = {
        each.key: each.values[0]
        for each in machine.spec.requirements
        if each.operator == "In" and len(each.values) == 1
    }
    return {**single, **machine.metadata.labels}


def _known(machine: Machine) -> Instance:
    """The instance as the status remembers it: all that the plan needs once the node has registered."""
    return Instance(
        name=machine.name,
        claim_uid=machine.uid,
        state="Running",
        instance_type=machine.metadata.labels.get(INSTANCE_TYPE_LABEL, ""),
        provider_id=machine.status.provider_id,
        capacity=machine.status.capacity,
        allocatable=machine.status.allocatable,
    )
