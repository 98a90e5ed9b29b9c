"""What a pod's containers add up to."""

from __future__ import annotations

from datetime import timedelta

import pytest
from devobjects import NOW, pod

from kaito_ctrl.devcluster.kinds import Container, Pod
from kaito_ctrl.devcluster.podstatus import ContainerRecord, CrashBackoff, pod_status, should_restart


def record(
    state: str, *, code: int = 0, ready: bool = False, crashed: bool = False, name: str = "main"
) -> ContainerRecord:
    made = ContainerRecord(Container(name=name, image="app"), {"waiting": {"reason": "ContainerCreating"}})
    if crashed or state == "ended":
        made.run(42, NOW)
        made.end(code, NOW, NOW)
    if crashed and state == "waiting":
        made.wait("CrashLoopBackOff", "back-off 10s")
    if state == "running":
        made.run(43, NOW)
        made.started = True
        made.ready = ready
    return made


def phase(policy: str, *mains: ContainerRecord, inits: tuple[ContainerRecord, ...] = ()) -> str:
    subject = pod("p", restartPolicy=policy)
    status = pod_status(subject, inits, mains, pod_ip="127.97.0.1", host_ip="127.0.0.1", began=NOW, now=NOW)
    return str(status["phase"])


@pytest.mark.parametrize(
    ("policy", "mains", "expected"),
    [
        ("Always", [record("waiting")], "Pending"),
        ("Always", [record("running")], "Running"),
        ("Always", [record("running"), record("waiting", name="b")], "Running"),
        ("Always", [record("waiting", crashed=True, code=1)], "Running"),
        ("Always", [record("ended", code=0)], "Running"),
        ("Never", [record("ended", code=0)], "Succeeded"),
        ("Never", [record("ended", code=3)], "Failed"),
        ("Never", [record("ended", code=0), record("running", name="b")], "Running"),
        ("OnFailure", [record("ended", code=0)], "Succeeded"),
        ("OnFailure", [record("waiting", crashed=True, code=1)], "Running"),
    ],
)
def test_the_phase_follows_from_containers_and_restart_policy(
    policy: str, mains: list[ContainerRecord], expected: str
) -> None:
    assert phase(policy, *mains) == expected


def test_a_pod_is_pending_until_its_init_containers_are_done_and_fails_with_them() -> None:
    waiting = record("waiting")
    assert phase("Always", waiting, inits=(record("running", name="i"),)) == "Pending"
    assert phase("Never", waiting, inits=(record("ended", code=1, name="i"),)) == "Failed"
    assert phase("Always", record("running"), inits=(record("ended", name="i"),)) == "Running"


def conditions(subject: Pod, *mains: ContainerRecord, later: float = 0) -> dict[str, tuple[str, str, str]]:
    now = NOW + timedelta(seconds=later)
    status = pod_status(subject, (), mains, pod_ip="127.97.0.1", host_ip="127.0.0.1", began=NOW, now=now)
    return {
        each["type"]: (each["status"], each.get("reason", ""), each["lastTransitionTime"])
        for each in status["conditions"]
    }


def test_ready_names_who_is_not_and_its_time_moves_only_with_its_status() -> None:
    subject = pod("p", ready=False, age=60)
    unready = conditions(subject, record("running"))
    assert unready["Ready"] == ("False", "ContainersNotReady", "2026-01-01T11:59:00Z")
    ready = conditions(subject, record("running", ready=True), later=5)
    assert ready["Ready"] == ("True", "", "2026-01-01T12:00:05Z")
    assert conditions(subject, record("ended"))["Initialized"][0] == "True"


def test_the_last_end_of_a_container_stays_visible() -> None:
    wire = record("waiting", crashed=True, code=7).to_wire(init=False)
    assert wire["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    assert wire["lastState"]["terminated"]["exitCode"] == 7
    assert wire["lastState"]["terminated"]["containerID"] == "process://42"


def test_back_off_doubles_to_its_cap_and_starts_over_after_a_long_run() -> None:
    crash = CrashBackoff()
    assert [crash.after(1) for _ in range(8)] == [0, 10, 20, 40, 80, 160, 300, 300]
    assert crash.after(601) == 0
    assert crash.after(1) == 10


@pytest.mark.parametrize(
    ("policy", "status", "expected"),
    [("Always", 0, True), ("OnFailure", 0, False), ("OnFailure", 1, True), ("Never", 1, False)],
)
def test_restart_policies(policy: str, status: int, expected: bool) -> None:
    assert should_restart(policy, status) is expected
