"""Deployment: ReplicaSets, one per pod template, and the way from one to the next.

Names, labels, annotations, revisions, the arithmetic of a rolling update and the conditions are those of
kube-controller-manager, so that ``kubectl rollout status|history|undo|restart|pause`` and
``kubectl wait --for=condition=Available`` work. One simplification: while a paused Deployment is scaled, the
difference goes to its newest ReplicaSet instead of being spread in proportion.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from kaito_api.meta import LabelSelector, ObjectMeta, owned_by
from kaito_ctrl.devcluster.deploymentstatus import deployment_status, is_complete, resolve_bounds
from kaito_ctrl.devcluster.events import record
from kaito_ctrl.devcluster.kinds import (
    Deployment,
    DeploymentStatus,
    Pod,
    ReplicaSet,
    ReplicaSetSpec,
    Template,
    safe_hash,
)
from kaito_ctrl.devcluster.pods import is_finished
from kaito_ctrl.devcluster.writes import patch_status
from kaito_ctrl.runtime import Context, Controller, ObjectKey, Reader, Result, key_of, owns, watches
from kaito_ctrl.runtime.errors import AlreadyExists, NotFound

__all__ = ["DeploymentController", "DeploymentPlan", "plan_deployment", "resolve_bounds", "template_hash"]

HASH = "pod-template-hash"
REVISION = "deployment.kubernetes.io/revision"
DESIRED = "deployment.kubernetes.io/desired-replicas"
MAXIMUM = "deployment.kubernetes.io/max-replicas"
_OWN_ANNOTATIONS = frozenset(
    {
        REVISION,
        DESIRED,
        MAXIMUM,
        "deployment.kubernetes.io/revision-history",
        "kubectl.kubernetes.io/last-applied-configuration",
    }
)


@dataclass(frozen=True, slots=True)
class DeploymentPlan:
    """What to do for one Deployment: at most one ReplicaSet to create, merge patches by ReplicaSet, what to delete."""

    status: DeploymentStatus
    create: ReplicaSet | None = None
    patch: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Merge patches by the name of the ReplicaSet."""
    delete: tuple[ReplicaSet, ...] = ()
    revision: str | None = None
    """The revision to note on the Deployment, if it has to change."""
    after: float | None = None
    """Seconds until the progress deadline."""


def template_hash(template: Template) -> str:
    """The value of the ``pod-template-hash`` label."""
    return safe_hash(_bare(template))


def _bare(template: Template) -> dict[str, Any]:
    """The template without the label that we add ourselves, and without empty metadata."""
    metadata = dict(template.get("metadata") or {})
    metadata["labels"] = {key: value for key, value in (metadata.get("labels") or {}).items() if key != HASH}
    metadata = {key: value for key, value in metadata.items() if value}
    return {"metadata": metadata, "spec": template.get("spec") or {}}


def _revision(replica_set: ReplicaSet) -> int:
    text = replica_set.metadata.annotations.get(REVISION, "0")
    return int(text) if text.isdigit() else 0


def plan_deployment(
    deployment: Deployment, owned: Collection[ReplicaSet], pods_of: Mapping[str, Collection[Pod]], now: datetime
) -> DeploymentPlan:
    """*owned* are its ReplicaSets, *pods_of* the pods of each by the ReplicaSet's name. Pure."""
    now = now.replace(microsecond=0)
    # The oldest equal one wins: after a race there may be two, and everybody must choose the same.
    sets = sorted((each for each in owned if not each.deleting), key=_age)
    bare = _bare(deployment.spec.template)
    new = next((each for each in sets if _bare(each.spec.template) == bare), None)
    old = [each for each in sets if each is not new]
    scales: dict[str, int] = {}
    create = None
    revision = max((_revision(each) for each in old), default=0) + 1
    if new is not None:
        revision = max(revision, _revision(new))
    recreating = deployment.spec.strategy.type == "Recreate"
    draining = any(not is_finished(pod) for each in old for pod in pods_of.get(each.name, ()))

    if deployment.spec.paused:
        scales = _scale_paused(deployment, new, old)
    elif recreating and (draining or any(each.spec.replicas for each in old)):
        scales = {each.name: 0 for each in old if each.spec.replicas}
    elif new is None:
        replicas = deployment.spec.replicas if recreating else _room(deployment, None, old)
        create = _make(deployment, bare, replicas, revision)
    elif recreating:
        scales = {new.name: deployment.spec.replicas}
    else:
        scales = _roll(deployment, new, old)

    patches = {}
    for each in sets:
        patch = _annotate(deployment, each, revision if each is new else None)
        wanted = scales.get(each.name, each.spec.replicas)
        if wanted != each.spec.replicas:
            patch["spec"] = {"replicas": wanted}
        if patch:
            patches[each.name] = patch
    status, after = deployment_status(deployment, new, sets, create, now)
    done = new is not None and is_complete(deployment, status)
    known = deployment.metadata.annotations.get(REVISION)
    active = new is not None or create is not None
    return DeploymentPlan(
        status=status,
        create=create,
        patch=patches,
        delete=_history(deployment, old) if done and not deployment.spec.paused else (),
        revision=str(revision) if active and known != str(revision) else None,
        after=after,
    )


def _age(replica_set: ReplicaSet) -> tuple[float, str]:
    created = replica_set.metadata.creation_timestamp
    return (created.timestamp() if created is not None else 0.0, replica_set.name)


def _room(deployment: Deployment, new: ReplicaSet | None, old: Sequence[ReplicaSet]) -> int:
    """How many replicas the new ReplicaSet may have now: as many as the surge leaves room for."""
    surge, _ = resolve_bounds(deployment)
    present = new.spec.replicas if new is not None else 0
    wanted = deployment.spec.replicas
    if present >= wanted:
        return wanted
    total = present + sum(each.spec.replicas for each in old)
    return present + max(min(wanted + surge - total, wanted - present), 0)


def _roll(deployment: Deployment, new: ReplicaSet, old: Sequence[ReplicaSet]) -> dict[str, int]:
    """One step of a rolling update. Up comes before down, and never both in one step: what goes down is decided on
    the numbers that the step up has led to."""
    up = _room(deployment, new, old)
    if up != new.spec.replicas:
        return {new.name: up}
    _, unavailable = resolve_bounds(deployment)
    floor = deployment.spec.replicas - unavailable
    total = sum(each.spec.replicas for each in (new, *old))
    new_unavailable = max(new.spec.replicas - new.status.available_replicas, 0)
    budget = total - floor - new_unavailable
    if budget <= 0:
        return {}
    scales = {each.name: each.spec.replicas for each in old if each.spec.replicas}
    # Replicas that serve nobody go first: they do not count against availability.
    for each in old:
        idle = min(budget, max(each.spec.replicas - each.status.available_replicas, 0))
        if idle:
            scales[each.name] -= idle
            budget -= idle
    available = sum(each.status.available_replicas for each in (new, *old))
    budget = min(budget, available - floor)
    for each in old:
        drop = min(max(budget, 0), scales.get(each.name, 0))
        if drop:
            scales[each.name] -= drop
            budget -= drop
    return scales


def _scale_paused(deployment: Deployment, new: ReplicaSet | None, old: Sequence[ReplicaSet]) -> dict[str, int]:
    """A paused Deployment keeps its template mix but follows its replica count."""
    active = [each for each in (*old, *((new,) if new is not None else ())) if each.spec.replicas]
    target = active[-1] if active else new
    if target is None:
        return {}
    # Mid-rollout the total may exceed the count by the surge; only a change of the count itself is followed.
    desired = target.metadata.annotations.get(DESIRED)
    if len(active) > 1 and desired == str(deployment.spec.replicas):
        return {}
    others = sum(each.spec.replicas for each in active if each is not target)
    return {target.name: max(deployment.spec.replicas - others, 0)}


def _inherited(deployment: Deployment) -> dict[str, str]:
    return {k: v for k, v in deployment.metadata.annotations.items() if k not in _OWN_ANNOTATIONS}


def _counts(deployment: Deployment) -> dict[str, str]:
    surge = resolve_bounds(deployment)[0] if deployment.spec.strategy.type != "Recreate" else 0
    replicas = deployment.spec.replicas
    return {DESIRED: str(replicas), MAXIMUM: str(replicas + surge)}


def _annotate(deployment: Deployment, replica_set: ReplicaSet, revision: int | None) -> dict[str, Any]:
    """The merge patch for a ReplicaSet's annotations; only the new one (*revision* given) follows the Deployment's."""
    known = replica_set.metadata.annotations
    wanted = _counts(deployment) if revision is not None or replica_set.spec.replicas else {}
    if revision is not None:
        wanted |= {**_inherited(deployment), REVISION: str(revision)}
    changes = {key: value for key, value in wanted.items() if known.get(key) != value}
    return {"metadata": {"annotations": changes}} if changes else {}


def _make(deployment: Deployment, bare: Template, replicas: int, revision: int) -> ReplicaSet:
    digest = template_hash(bare)
    metadata = dict(bare["metadata"])
    labels = {**metadata.get("labels", {}), HASH: digest}
    selector = deployment.spec.selector
    return ReplicaSet(
        metadata=ObjectMeta(
            name=f"{deployment.name}-{digest}",
            namespace=deployment.namespace,
            labels=labels,
            annotations={**_inherited(deployment), **_counts(deployment), REVISION: str(revision)},
            owner_references=(deployment.owner_reference(),),
        ),
        spec=ReplicaSetSpec(
            replicas=replicas,
            min_ready_seconds=deployment.spec.min_ready_seconds,
            selector=LabelSelector(
                match_labels={**selector.match_labels, HASH: digest}, match_expressions=selector.match_expressions
            ),
            template={"metadata": {**metadata, "labels": labels}, "spec": bare["spec"]},
        ),
    )


def _history(deployment: Deployment, old: Sequence[ReplicaSet]) -> tuple[ReplicaSet, ...]:
    """Old ReplicaSets beyond the history limit that have no pods and whose controller has seen that."""
    idle = [
        each
        for each in old
        if not each.spec.replicas
        and not each.status.replicas
        and each.status.observed_generation >= each.metadata.generation
    ]
    surplus = len(idle) - deployment.spec.revision_history_limit
    return tuple(sorted(idle, key=_revision)[:surplus]) if surplus > 0 else ()


def _owner_of(pod: Pod, cache: Reader) -> list[ObjectKey]:
    """The Deployment behind a pod's ReplicaSet: a Recreate waits for the last old pod to be gone."""
    keys = []
    for ref in pod.metadata.owner_references:
        replica_set = cache.get(ReplicaSet, ref.name, pod.namespace) if ref.kind == "ReplicaSet" else None
        for owner in replica_set.metadata.owner_references if replica_set is not None else ():
            if owner.controller and owner.kind == "Deployment":
                keys.append(ObjectKey(pod.namespace or "", owner.name))
    return keys


class DeploymentController(Controller[Deployment]):
    """The shell around :func:`plan_deployment`."""

    name = "deployment"
    kind = Deployment
    sources = (
        owns(ReplicaSet),
        # Only a pod's end matters here; everything else about it arrives through the ReplicaSet's status.
        watches(Pod, _owner_of, when=lambda change: change.new is None),
    )

    async def reconcile(self, obj: Deployment, ctx: Context) -> Result:
        mine = ctx.cache.list(ReplicaSet, obj.namespace, owner=obj)
        sets = [each for each in mine if owned_by(each, obj)]
        pods = {each.name: ctx.cache.list(Pod, obj.namespace, owner=each) for each in sets}
        plan = plan_deployment(obj, sets, pods, ctx.now())
        if plan.create is not None:
            try:
                await ctx.client.create(plan.create)
            except AlreadyExists:
                return Result.soon()  # the cache has yet to see it, or somebody else's is in the way
            await self._scaled(obj, plan.create.name, 0, plan.create.spec.replicas, ctx)
        by_name = {each.name: each for each in sets}
        for name, patch in plan.patch.items():
            metadata = {**patch.get("metadata", {}), "uid": by_name[name].uid}
            await ctx.client.patch(ReplicaSet, key_of(by_name[name]), {**patch, "metadata": metadata})
            if "spec" in patch:
                await self._scaled(obj, name, by_name[name].spec.replicas, patch["spec"]["replicas"], ctx)
        for each in plan.delete:
            with contextlib.suppress(NotFound):
                await ctx.client.delete(
                    ReplicaSet, key_of(each), uid=each.uid, resource_version=each.metadata.resource_version
                )
        if plan.revision is not None:
            note = {"metadata": {"uid": obj.uid, "annotations": {REVISION: plan.revision}}}
            obj = obj.evolve(metadata=(await ctx.client.patch(Deployment, ctx.key, note)).metadata)
        await patch_status(ctx.client, obj, plan.status)
        return Result(after=plan.after)

    async def _scaled(self, deployment: Deployment, name: str, before: int, after: int, ctx: Context) -> None:
        direction = "up" if after >= before else "down"
        message = f"Scaled {direction} replica set {name} from {before} to {after}"
        await record(ctx.client, ctx.clock, deployment, "ScalingReplicaSet", message)
