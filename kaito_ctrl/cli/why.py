"""``kaito-ctrl why`` and ``kaito-ctrl timeline``: read what there is around a workspace, and tell its story."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.text import Text

from kaito_api.apps import Deployment, StatefulSet
from kaito_api.core import Node, Pod
from kaito_api.events import Event
from kaito_api.karpenter import NODE_REQUESTS
from kaito_api.meta import Resource
from kaito_api.workspace import Workspace
from kaito_ctrl.reconcilers.names import WORKSPACE_LABEL, WORKSPACE_NAMESPACE_LABEL
from kaito_ctrl.reconcilers.workspace.findings import Finding
from kaito_ctrl.reconcilers.workspace.story import Explanation, Moment, World, explain, timeline
from kaito_ctrl.reconcilers.workspace.validation import Rules
from kaito_ctrl.runtime import Client, Cluster, ObjectKey
from kaito_ctrl.runtime.codec import decode_json
from kaito_ctrl.runtime.errors import Forbidden, KubeError, NotFound

__all__ = ["ago", "print_explanation", "print_timeline", "read_world", "tell_timeline", "tell_why"]

_MARKS = {"ok": ("✓", "green"), "busy": ("…", "cyan"), "wrong": ("✗", "red"), "missing": ("·", "dim")}


async def tell_why(
    rules: Rules, key: ObjectKey, console: Console, *, kubeconfig: str | None, context: str | None, as_json: bool
) -> int:
    """Read, explain, print. Raises ``KubeError``; a workspace that is not there is one too."""
    async with Cluster.connect(kubeconfig=kubeconfig, context=context) as cluster:
        world = await read_world(cluster.client, key, rules)
        print_explanation(world, explain(world, cluster.clock.now()), cluster.clock.now(), console, as_json=as_json)
    return 0


async def tell_timeline(
    rules: Rules, key: ObjectKey, console: Console, *, kubeconfig: str | None, context: str | None, as_json: bool
) -> int:
    """Read, sort, print. Raises ``KubeError``."""
    async with Cluster.connect(kubeconfig=kubeconfig, context=context) as cluster:
        world = await read_world(cluster.client, key, rules)
        print_timeline(timeline(world), console, as_json=as_json)
    return 0


async def read_world(client: Client, key: ObjectKey, rules: Rules) -> World:
    """Everything around the workspace of that key, live. What may not be read, or whose kind the cluster does not
    have, is left out. Raises ``KubeError``."""
    try:
        raw = await client.get_raw(Workspace, key)
    except NotFound as error:
        if error.of_object:
            there = ", ".join(sorted(str(ObjectKey(each.namespace or "", each.name)) for each in await _all(client)))
            raise KubeError(f"there is no workspace {key}; there are: {there or 'none'}") from error
        raise KubeError("this cluster has no Workspaces: kaito-ctrl crds | kubectl apply -f -") from error
    ws = Workspace.model_validate_json(raw)
    problems = rules.check(decode_json(raw))
    text = "; ".join(map(str, problems))
    fix = next((each.fix for each in problems if each.fix), "correct the workspace")
    labels = {WORKSPACE_LABEL: key.name}
    ours = {**labels, WORKSPACE_NAMESPACE_LABEL: key.namespace}
    deployment = await _one(client, Deployment, key)
    events = [*await _some(client, Event, key.namespace)]
    if key.namespace != "default":
        events += await _some(client, Event, "default")  # events about cluster-scoped objects are kept there
    return World(
        ws,
        [claim for kind in NODE_REQUESTS.values() for claim in await _some(client, kind, None, ours)],
        await _some(client, Node, None),
        deployment or await _one(client, StatefulSet, key),
        await _some(client, Pod, key.namespace, labels),
        events,
        Finding("Planned", "InvalidWorkspace", str(ws), text, fix) if problems else None,
    )


async def _all(client: Client) -> Sequence[Workspace]:
    return await client.list(Workspace)


async def _some(
    client: Client, kind: type[Any], namespace: str | None, labels: dict[str, str] | None = None
) -> Sequence[Any]:
    try:
        return await client.list(kind, namespace, labels=labels)
    except (NotFound, Forbidden):
        return ()


async def _one(client: Client, kind: type[Any], key: ObjectKey) -> Any:
    try:
        found: Resource = await client.get(kind, key.name, key.namespace)
    except (NotFound, Forbidden):
        return None
    return found


def ago(now: datetime, then: datetime | None) -> str:
    """How long ago, as kubectl says it: 12s, 3m4s, 2h5m, 4d."""
    if then is None:
        return ""
    seconds = max(int((now - then).total_seconds()), 0)
    if seconds < 120:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60}m" if seconds < 2 * 86400 else f"{seconds // 86400}d"


def print_explanation(world: World, said: Explanation, now: datetime, console: Console, *, as_json: bool) -> None:
    """The chain, the cause, the next step."""
    if as_json:
        console.file.write(json.dumps(_explanation_json(world, said), indent=2) + "\n")
        return
    for link in said.chain:
        mark, style = _MARKS[link.state]
        line = Text("   " * link.depth).append(f"{mark} ", style).append(link.what, "bold" if not link.depth else "")
        if link.detail:
            line.append(f"  {link.detail}", "red" if link.state == "wrong" else "dim")
        console.print(line, soft_wrap=True)
    console.print()
    if said.ready:
        console.print("[green]Ready[/]: it is served; nothing is wrong.")
        return
    if said.stage is not None:
        since = ago(now, said.stage.started_at)
        console.print(
            Text.assemble(("Stage  ", "bold"), f"{said.stage.name}, for {since}" if since else said.stage.name)
        )
    if said.cause is not None:
        _say(said.cause, console)
    elif said.stage is not None:
        due = said.stage.deadline
        late = f", and should have been done {ago(now, due)} ago" if due is not None and due < now else ""
        console.print(Text.assemble(("Waits  ", "bold"), f"for {said.stage.message}{late}"), soft_wrap=True)
        console.print(Text.assemble(("Next   ", "bold"), "wait" if not late else "see the events below"))
    for each in said.others:
        console.print(Text(f"Also: {each.source}: {each.message} ({each.fix})", "dim"), soft_wrap=True)
    if said.warnings:
        console.print(Text("Warnings of late:", "dim"))
    for event in said.warnings:
        about = event.regarding
        told = f"  {event.reason} {about.kind} {about.name}: {event.note}"
        console.print(Text(told, "dim"), soft_wrap=True)


def _say(cause: Finding, console: Console) -> None:
    console.print(
        Text.assemble(("Cause  ", "bold"), (cause.code, "red"), f"  {cause.source}: {cause.message}"), soft_wrap=True
    )
    if cause.fix:
        console.print(Text.assemble(("Next   ", "bold"), cause.fix), soft_wrap=True)


def _finding(found: Finding | None) -> dict[str, str] | None:
    if found is None:
        return None
    return {
        "stage": found.stage,
        "code": found.code,
        "source": found.source,
        "message": found.message,
        "fix": found.fix,
    }


def _explanation_json(world: World, said: Explanation) -> dict[str, Any]:
    return {
        "workspace": f"{world.workspace.namespace}/{world.workspace.name}",
        "ready": said.ready,
        "stage": said.stage.to_wire() if said.stage is not None else None,
        "cause": _finding(said.cause),
        "others": [_finding(each) for each in said.others],
        "chain": [
            {"depth": each.depth, "object": each.what, "state": each.state, "detail": each.detail}
            for each in said.chain
        ],
        "warnings": [
            {"object": f"{each.regarding.kind} {each.regarding.name}", "reason": each.reason, "note": each.note}
            for each in said.warnings
        ],
    }


def print_timeline(moments: Sequence[Moment], console: Console, *, as_json: bool) -> None:
    """One line for each moment: the time, the seconds since the first, whose it is, and what it is."""
    if as_json:
        rows = [
            {"at": each.at.isoformat(), "object": each.what, "text": each.text, "wrong": each.wrong} for each in moments
        ]
        console.file.write(json.dumps(rows, indent=2) + "\n")
        return
    width = max((len(each.what) for each in moments), default=0)
    console.print(Text(f"{'TIME':8} {'AFTER':>6}  {'OBJECT':{width}}  WHAT", "bold"), soft_wrap=True)
    for each in moments:
        clock = each.at.astimezone().strftime("%H:%M:%S")
        after = ago(each.at, moments[0].at)
        line = Text(f"{clock} {after:>6}  {each.what:{width}}  ")
        console.print(line.append(each.text, "red" if each.wrong else ""), soft_wrap=True)
