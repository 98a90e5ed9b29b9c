"""What may not change once a Workspace exists."""

from __future__ import annotations

from collections.abc import Iterator

from kaito_api.workspace import DataSource, Workspace
from kaito_ctrl.reconcilers.workspace.nodes import required_labels
from kaito_ctrl.reconcilers.workspace.validation.problem import Problem

__all__ = ["changes"]


def changes(old: Workspace, new: Workspace) -> Iterator[Problem]:
    """What *new* may not change of *old*. What means the same counts as unchanged: lists of names in another order, a
    label as an expression, a method in capitals."""
    for section in ("inference", "tuning"):
        if (getattr(old, section) is None) != (getattr(new, section) is None):
            yield Problem(section, "cannot be added or removed once the workspace exists", "create a new workspace")
    frozen: list[tuple[str, object, object]] = [
        ("resource.count", old.resource.count, new.resource.count),
        ("resource.instanceType", old.resource.instance_type, new.resource.instance_type),
        ("resource.labelSelector", required_labels(old.resource), required_labels(new.resource)),
    ]
    if old.inference is not None and new.inference is not None:
        frozen.append(("inference.preset", old.inference.preset, new.inference.preset))
        if (old.inference.template is None) != (new.inference.template is None):
            yield Problem(
                "inference.template", "cannot be set or unset once the workspace exists", "create a new workspace"
            )
    if old.tuning is not None and new.tuning is not None:
        before, after = old.tuning, new.tuning
        frozen += [
            ("tuning.preset", before.preset, after.preset),
            ("tuning.method", (before.method or "").lower(), (after.method or "").lower()),
            ("tuning.input", _unordered(before.input), _unordered(after.input)),
            ("tuning.output", before.output, after.output),
        ]
    for field, was, becomes in frozen:
        if was != becomes:
            yield Problem(field, "field is immutable", "create a new workspace")


def _unordered(source: DataSource) -> DataSource:
    return source.evolve(
        urls=tuple(sorted(source.urls or ())), image_pull_secrets=tuple(sorted(source.image_pull_secrets or ()))
    )
