"""How far a workspace is, as a live table: stage, since when, what it waits for."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from kaito_api.workspace import StageStatus
from kaito_ctrl.reconcilers.workspace.stages import current_stage

__all__ = ["Progress", "stage_table", "waits_for"]


def _ago(now: datetime, since: datetime | None) -> str:
    if since is None:
        return ""
    seconds = max(0, round((now - since).total_seconds()))
    return f"{seconds}s" if seconds < 120 else f"{seconds // 60}m{seconds % 60:02d}s"


def stage_table(stages: Sequence[StageStatus], now: datetime, title: str) -> Table:
    """The stages as a table."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("STAGE", no_wrap=True)
    table.add_column("", width=2)
    table.add_column("SINCE", justify="right", min_width=5)
    table.add_column("WAITS FOR", overflow="fold")
    for stage in stages:
        mark: RenderableType
        match stage.state:
            case "Done":
                mark, style = Text("✓", style="green"), ""
            case "Active":
                mark, style = Spinner("dots", style="cyan"), "bold"
            case "Failed":
                mark, style = Text("✗", style="red"), "bold red"
            case _:
                mark, style = Text("·", style="dim"), "dim"
        since = stage.finished_at if stage.state == "Done" else stage.started_at
        table.add_row(Text(stage.name, style=style), mark, _ago(now, since), Text(waits_for(stage)))
    return table


def waits_for(stage: StageStatus) -> str:
    """What *stage* waits for, or what is wrong and what to do about it."""
    return "; ".join(each for each in (stage.message, stage.next_action) if each)


class Progress:
    """Shows stages: redrawn in place on a terminal, a line for each step elsewhere."""

    def __init__(self, console: Console, title: str) -> None:
        self._console = console
        self._title = title
        self._live = Live(console=console, refresh_per_second=8, transient=False) if console.is_terminal else None
        self._said: set[str] = set()
        self._waiting = ""

    def __enter__(self) -> Progress:
        if self._live is not None:
            self._live.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.__exit__(None, None, None)

    def show(self, stages: Sequence[StageStatus], now: datetime, *notes: str) -> None:
        """The present state."""
        if self._live is not None:
            parts: list[RenderableType] = [stage_table(stages, now, self._title), *(Text(each) for each in notes)]
            self._live.update(Group(*parts))
            return
        for stage in stages:
            if stage.state == "Done" and stage.name not in self._said:
                self._said.add(stage.name)
                self._console.print(f"  {stage.name}: done", highlight=False)
        current = current_stage(stages)
        waiting = f"{current.name}: waits for {waits_for(current)}" if current is not None and current.message else ""
        if current is not None and current.state == "Failed":
            waiting = f"{current.name}: {waits_for(current)}"
        if waiting and waiting != self._waiting:
            self._waiting = waiting
            self._console.print(f"  {waiting}", highlight=False, soft_wrap=True)
