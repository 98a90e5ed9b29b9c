"""What a manifest would lead to, without any cluster: whether it is valid, and what it would be given.

The JSON form is for pipelines: ``{"valid", "errors", "warnings"}``, each problem as ``{"field", "message", "fix"}``.
Where a file holds several Workspaces, ``workspaces`` says the same of each, and ``valid`` is of all of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from kaito_api.core import Node
from kaito_api.workspace import Workspace
from kaito_ctrl.cli.manifest import ManifestError, load_manifests
from kaito_ctrl.reconcilers.workspace.nodes import plan_nodes
from kaito_ctrl.reconcilers.workspace.validation import Problem, Rules
from kaito_ctrl.reconcilers.workspace.validation.unknown import unknown_fields
from kaito_ctrl.runtime.clock import SystemClock
from kaito_presets.preset import Preset
from kaito_presets.sizing import Sizing, Workload, fitting_skus, size

__all__ = ["Outlook", "Verdict", "judge", "look_ahead", "print_outlooks", "print_verdicts"]

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether one Workspace would be taken."""

    name: str
    errors: tuple[Problem, ...]
    warnings: tuple[Problem, ...]

    @property
    def valid(self) -> bool:
        return not self.errors

    def to_json(self) -> Json:
        return {
            "valid": self.valid,
            "errors": [_problem(each) for each in self.errors],
            "warnings": [_problem(each) for each in self.warnings],
        }


@dataclass(frozen=True, slots=True)
class Outlook:
    """What one Workspace would be given: the model's sizing, and how many nodes are there and how many are not.

    ``fitting`` are the instance types that are large enough, the smallest first. Without a preset, or on an instance
    type that no table has, there is no sizing.
    """

    verdict: Verdict
    instance_type: str = ""
    count: int = 0
    workload: Workload = "inference"
    preset: str | None = None
    disk: str | None = None
    sizing: Sizing | None = None
    fitting: tuple[str, ...] = ()
    existing: tuple[str, ...] = ()
    missing: int = 0

    def to_json(self) -> Json:
        sizing = self.sizing
        return {
            **self.verdict.to_json(),
            "sizing": {
                "workload": self.workload,
                "preset": self.preset,
                "instanceType": self.instance_type,
                "count": self.count,
                "fits": sizing.ok if sizing is not None else None,
                "checks": [
                    {
                        "rule": check.rule,
                        "needed": check.needed,
                        "provided": check.provided,
                        "working": check.working,
                        "ok": check.ok,
                    }
                    for check in (sizing.checks if sizing is not None else ())
                ],
                "notes": list(sizing.notes) if sizing is not None else [],
                "disk": self.disk,
                "instanceTypes": list(self.fitting),
            },
            "nodes": {"existing": list(self.existing), "missing": self.missing},
        }


def _problem(problem: Problem) -> Json:
    return {"field": problem.field, "message": problem.message, "fix": problem.fix}


def judge(
    rules: Rules, path: Path, *, old: Path | None = None, others: Sequence[Path] = ()
) -> tuple[tuple[Json, Verdict], ...]:
    """The verdict on every Workspace of *path*, with the Workspace.

    *old* holds what the cluster has now: a Workspace of the same name in it makes this an update. *others* are what
    else would be there: a ConfigMap among them, or in the file itself, is read where a Workspace names it. With any
    *others*, one that is not among them is missing; without, it is not looked for.
    """
    documents = load_manifests(path)
    wanted = [each for each in documents if _is_workspace(each)]
    if not wanted:
        raise ManifestError(f"{path}: there is no Workspace ({Workspace.api_version()}) in it")
    present = {_key(each): each for each in load_manifests(old) if _is_workspace(each)} if old is not None else {}
    around = [*documents, *(each for other in others for each in load_manifests(other))]
    verdicts = []
    for raw in wanted:
        maps = _config_maps(around, _key(raw)[0])
        known = maps if others or _config_of(raw) in maps else None
        errors = rules.check(raw, present.get(_key(raw)), config_maps=known)
        warnings = rules.warnings(raw)
        if _config_of(raw) and known is None:
            text = f"ConfigMap {_config_of(raw)} was not looked at"
            warnings = (*warnings, Problem("tuning.config", text, "give it with --with FILE"))
        verdicts.append((raw, Verdict(_key(raw)[1], tuple(sorted({*errors, *unknown_fields(raw)})), warnings)))
    return tuple(verdicts)


def look_ahead(rules: Rules, path: Path, *, others: Sequence[Path] = ()) -> tuple[Outlook, ...]:
    """What every Workspace of *path* would be given; Nodes among *others* are used where they match."""
    nodes = tuple(_nodes(each for other in others for each in load_manifests(other)))
    return tuple(_outlook(rules, raw, verdict, nodes) for raw, verdict in judge(rules, path, others=others))


def _outlook(rules: Rules, raw: Json, verdict: Verdict, nodes: Sequence[Node]) -> Outlook:
    try:
        ws = Workspace.model_validate(raw)
    except ValidationError:
        return Outlook(verdict)
    workload: Workload = "tuning" if ws.inference is None and ws.tuning is not None else "inference"
    section = ws.tuning if workload == "tuning" else ws.inference
    spec = section.preset if section is not None else None
    preset: Preset | None = rules.catalogue.get(spec.name) if spec is not None else None
    sku = rules.skus.get(ws.resource.instance_type)
    count = ws.resource.count
    # The claims' names follow from a uid that the object does not have yet, and nothing here is in use.
    seen = plan_nodes(ws, nodes, (), SystemClock().now())
    sizable = preset is not None and (workload == "inference" or preset.tuning is not None)
    return Outlook(
        verdict,
        ws.resource.instance_type,
        count,
        workload,
        spec.name if spec is not None else None,
        preset.disk if preset is not None else None,
        size(preset, sku, count, workload=workload) if sizable and preset is not None and sku is not None else None,
        tuple(each.name for each in fitting_skus(preset, rules.skus, count, workload=workload))
        if sizable and preset is not None
        else (),
        tuple(node.name for node in seen.selected),
        len(seen.missing),
    )


def _is_workspace(raw: Mapping[str, Any]) -> bool:
    return raw.get("kind") == Workspace.kind and str(raw.get("apiVersion", "")).startswith(f"{Workspace.group}/")


def _key(raw: Mapping[str, Any]) -> tuple[str, str]:
    metadata = raw.get("metadata")
    known = metadata if isinstance(metadata, Mapping) else {}
    return str(known.get("namespace") or "default"), str(known.get("name") or "")


def _config_maps(objects: Iterable[Mapping[str, Any]], namespace: str) -> dict[str, Mapping[str, Any]]:
    return {
        _key(each)[1]: each.get("data") or {}
        for each in objects
        if each.get("kind") == "ConfigMap" and _key(each)[0] == namespace
    }


def _config_of(raw: Mapping[str, Any]) -> str:
    tuning = raw.get("tuning")
    return str(tuning.get("config") or "") if isinstance(tuning, Mapping) else ""


def _nodes(objects: Iterable[Mapping[str, Any]]) -> Iterable[Node]:
    for each in objects:
        if each.get("kind") == Node.kind:
            try:
                yield Node.model_validate(each)
            except ValidationError as error:
                raise ManifestError(f"Node {_key(each)[1]}: {error}") from error


def print_verdicts(verdicts: Sequence[Verdict], console: Console, *, as_json: bool) -> int:
    """For people or for programs; the exit status: 1 if anything is invalid."""
    if as_json:
        _print_json([(each.name, each.to_json()) for each in verdicts], console)
    else:
        for verdict in verdicts:
            _say_verdict(verdict, console)
    return 0 if all(each.valid for each in verdicts) else 1


def print_outlooks(outlooks: Sequence[Outlook], console: Console, *, as_json: bool) -> int:
    """For people or for programs; the exit status: 1 if anything is invalid."""
    if as_json:
        _print_json([(each.verdict.name, each.to_json()) for each in outlooks], console)
    else:
        for outlook in outlooks:
            _say_verdict(outlook.verdict, console)
            _say_outlook(outlook, console)
    return 0 if all(each.verdict.valid for each in outlooks) else 1


def _print_json(answers: Sequence[tuple[str, Json]], console: Console) -> None:
    if len(answers) == 1:
        whole = answers[0][1]
    else:
        whole = {
            "valid": all(answer["valid"] for _, answer in answers),
            "errors": [problem for _, answer in answers for problem in answer["errors"]],
            "warnings": [problem for _, answer in answers for problem in answer["warnings"]],
            "workspaces": [{"name": name, **answer} for name, answer in answers],
        }
    console.file.write(json.dumps(whole, indent=2) + "\n")


def _say_verdict(verdict: Verdict, console: Console) -> None:
    name = escape(verdict.name or "(no name)")
    console.print(f"[bold]{name}[/]: " + ("[green]valid[/]" if verdict.valid else "[red]invalid[/]"))
    for label, style, problems in (("error", "red", verdict.errors), ("warning", "yellow", verdict.warnings)):
        for problem in problems:
            console.print(f"  [{style}]{label}[/] {escape(f'{problem.field}: {problem.message}')}", soft_wrap=True)
            if problem.fix:
                console.print(f"        {escape(problem.fix)}", soft_wrap=True, style="dim")


def _say_outlook(outlook: Outlook, console: Console) -> None:
    if not outlook.instance_type:
        return
    if outlook.sizing is not None:
        console.print(f"  {outlook.preset} on {outlook.count} x {outlook.instance_type}, {outlook.workload}:")
        for line in outlook.sizing.lines():
            console.print(f"    {escape(line)}", soft_wrap=True, highlight=False)
    elif outlook.preset is None:
        console.print("  a pod template of your own: what it needs is not known here")
    if outlook.disk is not None:
        console.print(f"    disk: {outlook.disk} on each node", highlight=False)
    if outlook.fitting:
        few = ", ".join(outlook.fitting[:6]) + (", ..." if len(outlook.fitting) > 6 else "")
        console.print(f"    {outlook.count} of these would do: {few}", soft_wrap=True, highlight=False)
    if outlook.existing:
        console.print(f"  nodes to use: {', '.join(outlook.existing)}", soft_wrap=True, highlight=False)
    if outlook.missing and outlook.verdict.valid:
        console.print(f"  nodes to create: {outlook.missing} x {outlook.instance_type}", highlight=False)
