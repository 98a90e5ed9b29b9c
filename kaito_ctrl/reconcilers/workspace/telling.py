"""What is told of a workspace beside its status: an Event for each step that is done or fails, and metrics."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from kaito_api.karpenter import Machine, NodeRequest
from kaito_api.workspace import StageStatus, Workspace
from kaito_ctrl.reconcilers.names import WORKSPACE_LABEL, WORKSPACE_NAMESPACE_LABEL
from kaito_ctrl.reconcilers.workspace.stages import STAGES
from kaito_ctrl.runtime import ObjectKey, Reader
from kaito_ctrl.runtime.events import EventSink

__all__ = ["WorkspaceMetrics", "tell"]

_SECONDS = (1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 900.0, 1800.0, 3600.0, 7200.0)


class WorkspaceMetrics:
    """The domain's figures, in a registry of the caller's; those about claims, which are called machines whatever
    their kind, are read off *cache*."""

    def __init__(self, registry: CollectorRegistry, cache: Reader, node_api: type[NodeRequest] = Machine) -> None:
        self._seconds = Histogram(
            "kaito_stage_seconds",
            "How long a workspace took for a stage",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._failures = Counter(
            "kaito_stage_failures", "How often a stage came to fail, by cause", ["stage", "reason"], registry=registry
        )
        claims = f"{node_api.kind}s"
        for name, text, read in (
            ("desired", "Nodes that all workspaces together ask for", _desired),
            ("live", f"{claims} of workspaces that are there", partial(_live, node_api)),
            ("orphaned", f"{claims} whose workspace is not there: it should be none", partial(_orphaned, node_api)),
        ):
            # Read when scraped: counting at every reconcile would cost the square of the number of workspaces.
            Gauge(f"kaito_machines_{name}", text, registry=registry).set_function(partial(read, cache))
        for stage in STAGES:
            self._seconds.labels(stage)

    def stage_done(self, stage: StageStatus) -> None:
        if stage.started_at is not None and stage.finished_at is not None:
            self._seconds.labels(stage.name).observe((stage.finished_at - stage.started_at).total_seconds())

    def stage_failed(self, stage: StageStatus, code: str) -> None:
        self._failures.labels(stage.name, code).inc()


def _desired(cache: Reader) -> float:
    return sum(ws.resource.count for ws in cache.list(Workspace) if not ws.deleting)


def _live(kind: type[NodeRequest], cache: Reader) -> float:
    return len(_ours(kind, cache))


def _orphaned(kind: type[NodeRequest], cache: Reader) -> float:
    return sum(cache.store(Workspace).entry(key) is None for key in _ours(kind, cache))


def _ours(kind: type[NodeRequest], cache: Reader) -> list[ObjectKey]:
    """For each claim of a workspace, whose it is."""
    labels = (claim.metadata.labels for claim in cache.list(kind))
    return [
        ObjectKey(each.get(WORKSPACE_NAMESPACE_LABEL, ""), each[WORKSPACE_LABEL])
        for each in labels
        if WORKSPACE_LABEL in each
    ]


def tell(ws: Workspace, now: Sequence[StageStatus], events: EventSink, metrics: WorkspaceMetrics | None = None) -> None:
    """What has changed from the stages that *ws* shows to those that it has *now*: one Event for all that was done
    meanwhile, one for what fails."""
    before = {each.name: each for each in ws.status.stages}
    done: list[StageStatus] = []
    for stage in now:
        old = before.get(stage.name)
        if stage.state == "Done" and (old is None or old.state != "Done") and stage.name != "Admitted":
            done.append(stage)
            if metrics is not None:
                metrics.stage_done(stage)
        error = stage.last_error
        if stage.state == "Failed" and error is not None and (old is None or old.last_error != error):
            fix = f" ({stage.next_action})" if stage.next_action else ""
            events.warning(ws, error.code, f"{error.source}: {error.message}{fix}", action=stage.name)
            if metrics is not None:
                metrics.stage_failed(stage, error.code)
    if done:
        events.normal(ws, done[-1].name, f"done: {', '.join(map(_note, done))}")


def _note(stage: StageStatus) -> str:
    if stage.started_at is None or stage.finished_at is None:
        return stage.name
    seconds = (stage.finished_at - stage.started_at).total_seconds()
    return f"{stage.name} after {seconds:.0f} s" if seconds >= 1 else stage.name
