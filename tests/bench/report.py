"""What came out, for people (tables with factors) and for programs (JSON). Pure: figures in, text out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from rich.table import Table

from tests.bench.runner import Result
from tests.bench.tasks import FLOOR, OURS, Budget, Metric

__all__ = ["Figure", "Verdict", "as_json", "figures", "judge", "notes", "table", "verdicts"]


@dataclass(frozen=True, slots=True)
class Figure:
    """One metric over all runs of a row that came to their end."""

    best: float
    median: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """A budget and what came of it; ``measured`` is ``None`` when nothing did."""

    budget: Budget
    measured: float | None
    passed: bool | None


def figures(result: Result) -> dict[str, Figure]:
    """The row's figures by metric; empty when no run came to its end."""
    found = {}
    for metric in result.task.metrics:
        seen = [metric.of(run.metrics, result.task) for run in result.outcomes if run.status == "ok"]
        values = [value for value in seen if value is not None]
        if values:
            found[metric.name] = Figure(min(values) if metric.better == "less" else max(values), median(values))
    return found


def table(results: Sequence[Result]) -> Table:
    """One task's results: the median of the runs, the best of them in parentheses, and the factor by which the row is
    worse than our first one (below 1: better)."""
    task = results[0].task
    title = task.title.format(pods=task.pods, events=task.events, rounds=task.rounds, quiet=task.quiet)
    shown = Table(title=f"{task.name}: {title}", title_justify="left", title_style="bold", pad_edge=False)
    shown.add_column("")
    for metric in task.metrics:
        shown.add_column(f"{metric.title}\n{metric.unit}", justify="right")
        if metric.ratio:
            shown.add_column("x ours", justify="right", style="dim")
    reference = next((figures(each) for each in results if each.row == task.reference), {})
    for result in results:
        found = figures(result)
        cells = [result.row.label]
        for metric in task.metrics:
            figure = found.get(metric.name)
            cells.append(_number(figure.median) if figure else "-")
            if metric.ratio:
                if figure and len(result.outcomes) > 1:
                    cells[-1] += f" ({_number(figure.best)})"
                cells.append(_factor(metric, figure, reference.get(metric.name)))
        shown.add_row(*cells, style="bold" if result.row.participant == OURS else None)
    return shown


def notes(results: Iterable[Result]) -> list[str]:
    """What has to be known of one task's rows: what is not equal about them, and what went wrong."""
    return [
        f"{result.row.label}: {'; '.join(said)}"
        for result in results
        if (said := [text for text in (result.row.note, _trouble(result)) if text])
    ]


def verdicts(found: Iterable[Verdict]) -> Table:
    """The budgets, a line each."""
    shown = Table(title="Budgets", title_justify="left", title_style="bold", pad_edge=False)
    for column in ("budget", "limit", "measured (median)", ""):
        shown.add_column(column, justify="left" if column == "budget" else "right")
    for verdict in found:
        budget = verdict.budget
        least = budget.against_peers or budget.metric == "rate"
        word = {True: "[green]ok[/]", False: "[red]missed[/]", None: "not measured"}[verdict.passed]
        measured = _number(verdict.measured) if verdict.measured is not None else "-"
        shown.add_row(budget.text, f"{'>=' if least else '<='} {_number(budget.limit)}", measured, word)
    return shown


def judge(budgets: Iterable[Budget], results: Iterable[Result]) -> list[Verdict]:
    """Each budget against the medians."""
    all_results = list(results)
    return [_judge(budget, [each for each in all_results if each.task.name == budget.task]) for budget in budgets]


def as_json(
    results: Sequence[Result],
    found: Iterable[Verdict],
    *,
    date: str,
    machine: Mapping[str, Any],
    versions: Mapping[str, Mapping[str, str]],
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything, every run's raw metrics included; seconds and bytes unless a name says otherwise."""
    return {
        "date": date,
        "machine": dict(machine),
        "versions": {name: dict(each) for name, each in versions.items()},
        "options": dict(options),
        "results": [
            {
                "task": result.task.name,
                "pods": result.task.pods,
                "events": result.task.events,
                "participant": result.row.participant,
                "variant": result.row.variant,
                "note": result.row.note,
                "status": result.status,
                "figures": {
                    name: {"median": figure.median, "best": figure.best} for name, figure in figures(result).items()
                },
                "runs": [
                    {"status": run.status, "count": run.count, "message": run.message, "metrics": dict(run.metrics)}
                    for run in result.outcomes
                ],
            }
            for result in results
        ],
        "budgets": [
            {
                "text": verdict.budget.text,
                "limit": verdict.budget.limit,
                "measured": verdict.measured,
                "passed": verdict.passed,
            }
            for verdict in found
        ],
    }


def _judge(budget: Budget, results: Sequence[Result]) -> Verdict:
    ours = next((figures(each).get(budget.metric) for each in results if each.row.label == budget.row.label), None)
    if ours is None:
        return Verdict(budget, None, None)
    metric = next(each for each in results[0].task.metrics if each.name == budget.metric)
    measured = ours.median
    if budget.against_peers:
        # A peer that holds nothing does not do the same work.
        peers = [
            figure.median
            for each in results
            if each.row.participant not in (OURS, FLOOR) and each.row.equal
            if (figure := figures(each).get(budget.metric)) is not None
        ]
        if not peers:
            return Verdict(budget, None, None)
        measured = ours.median / max(peers) if metric.better == "more" else min(peers) / ours.median
    least = budget.against_peers or metric.better == "more"
    return Verdict(budget, measured, measured >= budget.limit if least else measured <= budget.limit)


def _factor(metric: Metric, figure: Figure | None, reference: Figure | None) -> str:
    if figure is None or reference is None or not figure.median or not reference.median:
        return ""
    factor = reference.median / figure.median if metric.better == "more" else figure.median / reference.median
    return f"{factor:.1f}" if factor < 10 else f"{factor:,.0f}"


def _trouble(result: Result) -> str:
    if not result.outcomes or result.status == "ok":
        return ""
    last = result.outcomes[-1]
    match last.status:
        case "timeout":
            whole = result.task.pods + (result.task.events if result.task.program != "sync" else 0)
            return f"gave up after {result.task.limit:g} s with {last.count:,} of {whole:,}{last.message}"
        case "memory":
            return f"out of memory at {last.count:,} of {result.task.pods:,}"
        case _:
            return f"failed: {last.message}"


def _number(value: float) -> str:
    size = abs(value)
    return f"{value:,.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}"
