"""The instrument itself: that the server speaks well enough for a real client, and that the figures add up."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from kaito_api.core import Pod
from kaito_ctrl import Cluster, Context, Controller, Manager, Result
from kaito_ctrl.runtime.client import Client
from kaito_ctrl.runtime.errors import NotFound
from tests.bench import machine, report
from tests.bench.clients.harness import stalls
from tests.bench.objects import pods
from tests.bench.peers import read_pins
from tests.bench.replay import Server, contents
from tests.bench.runner import Outcome, write_kubeconfig
from tests.bench.runner import Result as Runs
from tests.bench.tasks import BUDGETS, FLOOR, OURS, TASKS, Budget, Metric, Row, Task, quick

PODS, EVENTS = 200, 50


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(contents(PODS, EVENTS))
    server.start()
    yield server
    server.close()


@pytest.fixture
def kubeconfig(server: Server, tmp_path: Path) -> str:
    return str(write_kubeconfig(tmp_path, f"http://127.0.0.1:{server.port}"))


@pytest.mark.parametrize("streaming", [False, True], ids=["listing", "streaming"])
async def test_our_own_cache_syncs_from_the_server_and_hears_of_its_events(kubeconfig: str, streaming: bool) -> None:
    reconciled: dict[str, int] = {}
    enough = asyncio.Event()

    class Look(Controller[Pod]):
        name = "look"
        kind = Pod
        wanted = PODS

        async def reconcile(self, obj: Pod, ctx: Context) -> Result:
            reconciled[obj.name] = int(obj.metadata.resource_version)
            if len(reconciled) == self.wanted:
                enough.set()
            return Result.done()

    look = Look()
    async with Cluster.connect(kubeconfig=kubeconfig, streaming=streaming, rng=random.Random(0)) as cluster:
        manager = Manager(cluster)
        manager.add(look)
        running = asyncio.create_task(manager.run())
        await manager.wait_ready()
        async with asyncio.timeout(30):
            await enough.wait()
            before = max(reconciled.values())
            reconciled.clear()
            enough.clear()
            look.wanted = EVENTS
            await cluster.client.request("GET", "/bench/play", query=(("count", str(EVENTS)),))
            await enough.wait()
        manager.stop()
        await running
    assert len(cluster.cache.list(Pod)) == PODS
    assert sorted(reconciled.values()) == [before + 1 + number for number in range(EVENTS)]


async def test_pages_add_up_to_the_whole_list(kubeconfig: str) -> None:
    async with Cluster.connect(kubeconfig=kubeconfig) as cluster:
        whole = json.loads(await cluster.client.request("GET", "/api/v1/pods"))
        paged: list[object] = []
        token: str | None = ""
        while token is not None:
            query = (("limit", "70"), *((("continue", token),) if token else ()))
            page = json.loads(await cluster.client.request("GET", "/api/v1/pods", query=query))
            paged += page["items"]
            token = page["metadata"].get("continue")
    assert len(paged) == PODS
    assert paged == whole["items"]


async def test_the_server_can_be_discovered(kubeconfig: str) -> None:
    async with Cluster.connect(kubeconfig=kubeconfig) as cluster:
        groups = json.loads(await cluster.client.request("GET", "/apis"))["groups"]
        for version in ("/api/v1", *(f"/apis/{group['preferredVersion']['groupVersion']}" for group in groups)):
            document = json.loads(await cluster.client.request("GET", version))
            assert document["resources"], version
        with pytest.raises(NotFound):
            await Client(cluster.transport).request("GET", "/apis/nobody.example.org/v1")


async def test_events_that_are_spaced_are_sent_at_known_times(kubeconfig: str) -> None:
    async with Cluster.connect(kubeconfig=kubeconfig) as cluster:
        store = cluster.cache.declare(Pod)
        manager = Manager(cluster)
        running = asyncio.create_task(manager.run())
        await manager.wait_ready()
        done = asyncio.Event()
        seen = 0

        def count(_: object) -> None:
            nonlocal seen
            seen += 1
            if seen == PODS + 20:  # a listener is first told of what there is
                done.set()

        store.listen(count)
        await cluster.client.request("GET", "/bench/play", query=(("count", "20"), ("spacing", "0.001")))
        async with asyncio.timeout(30):
            await done.wait()
        sent = json.loads(await cluster.client.request("GET", "/bench/sent"))
        manager.stop()
        await running
    assert len(sent) == 20
    assert sent == sorted(sent)


def test_pods_are_the_same_every_time_and_of_the_size_that_is_promised() -> None:
    made = list(pods(400))
    assert made == list(pods(400))
    assert 5_500 < sum(map(len, made)) / len(made) < 6_500
    names = {(pod.metadata.namespace, pod.metadata.name) for pod in map(Pod.model_validate_json, made)}
    assert len(names) == 400


def test_a_late_callback_counts_for_all_that_were_due_meanwhile() -> None:
    seen = stalls([(0.0, 0.0)] * 90 + [(0.010, 0.004)])
    assert seen["stall_max_ms"] == pytest.approx(10)
    assert seen["stall_cpu_ms"] == pytest.approx(4)
    assert seen["stall_p999_ms"] == pytest.approx(10)


METRIC = Metric("wall", "wall", "s", lambda seen, _: seen.get("wall_s"), ratio=True)
RATE = Metric("rate", "rate", "1/s", lambda seen, _: seen.get("rate"), better="more", ratio=True)
ROWS = (Row(OURS), Row("peer", note="a dict"), Row("slow"), Row("idle", equal=False), Row(FLOOR))
TASK = Task("sync", "{pods:,} pods", "sync", ROWS, (METRIC, RATE), pods=100)


def runs(row: Row, *walls: float, status: str = "ok") -> Runs:
    return Runs(TASK, row, [Outcome(status, {"wall_s": wall, "rate": 1 / wall}, count=7) for wall in walls])


RESULTS = [
    runs(ROWS[0], 2.0, 1.0, 4.0),
    runs(ROWS[1], 30.0),
    runs(ROWS[2], 90.0, status="timeout"),
    runs(ROWS[3], 0.1),
    runs(ROWS[4], 0.5),
]


def test_a_figure_is_the_median_and_the_best_of_the_runs_that_ended() -> None:
    assert report.figures(RESULTS[0]) == {"wall": report.Figure(1.0, 2.0), "rate": report.Figure(1.0, 0.5)}
    assert report.figures(RESULTS[2]) == {}


def test_the_table_shows_factors_against_ours_and_says_what_differs() -> None:
    console = Console(width=120)
    with console.capture() as shown:
        console.print(report.table(RESULTS))
    lines = {line.split("│")[1].strip(): line for line in shown.get().splitlines() if "│" in line}
    assert [cell.strip() for cell in lines["peer"].split("│")[2:6]] == ["30.0", "15", "0.03", "15"]
    assert [cell.strip() for cell in lines[OURS].split("│")[2:4]] == ["2.00 (1.00)", "1.0"]
    assert report.notes(RESULTS) == ["peer: a dict", "slow: gave up after 60 s with 7 of 100"]


def test_budgets_are_judged_by_the_median_and_against_the_best_peer_that_does_as_much() -> None:
    found = report.judge(
        [
            Budget("a", "sync", Row(OURS, note="whatever"), "wall", 1.5),
            Budget("b", "sync", Row(OURS), "wall", 2.0),
            Budget("c", "sync", Row(OURS), "wall", 10, against_peers=True),
            Budget("d", "sync", Row(OURS), "rate", 20, against_peers=True),
            Budget("e", "sync", Row("slow"), "wall", 1),
            Budget("f", "nothing", Row(OURS), "wall", 1),
        ],
        RESULTS,
    )
    assert [(verdict.measured, verdict.passed) for verdict in found] == [
        (2.0, False),
        (2.0, True),
        (pytest.approx(15.0), True),
        (pytest.approx(15.0), False),
        (None, None),
        (None, None),
    ]


def test_the_file_holds_every_run() -> None:
    found = report.judge(BUDGETS, RESULTS)
    written = report.as_json(RESULTS, found, date="2025-01-01", machine=machine.describe(), versions={}, options={})
    read = json.loads(json.dumps(written))
    assert [len(each["runs"]) for each in read["results"]] == [3, 1, 1, 1, 1]
    assert read["results"][2]["status"] == "timeout"
    assert len(read["budgets"]) == len(BUDGETS)


def test_every_budget_names_something_that_is_measured() -> None:
    tasks = {task.name: task for task in TASKS}
    for budget in BUDGETS:
        task = tasks[budget.task]
        assert budget.row.label in [row.label for row in task.rows], budget.text
        assert budget.metric in [metric.name for metric in task.metrics], budget.text


def test_a_peer_without_a_pinned_version_is_refused(tmp_path: Path) -> None:
    pins = tmp_path / "peers.txt"
    pins.write_text("# a comment\n\npeer: one==1.2 two==3\n")
    assert read_pins(pins) == {"peer": ("one==1.2", "two==3")}
    pins.write_text("peer: one==1.2 two\n")
    with pytest.raises(ValueError, match=r"peers\.txt: peer must name versions"):
        read_pins(pins)


def test_every_row_has_somebody_who_can_run_it() -> None:
    known = {OURS, FLOOR, *read_pins()}
    for task in (*TASKS, *filter(None, map(quick, TASKS))):
        assert {row.participant for row in task.rows} <= known
        assert task.reference.participant == OURS
