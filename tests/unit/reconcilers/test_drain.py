"""Which pods leave a node that is going, when, and what is made of the API server's answers."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kaito_api.core import Node, Pod
from kaito_api.karpenter import Machine
from kaito_ctrl.devcluster.apiserver import ApiServer
from kaito_ctrl.reconcilers.machine.drain import GIVEN_UP_AFTER, Occupant, occupants, plan_drain, silence
from kaito_ctrl.reconcilers.machine.eviction import Evictions
from kaito_ctrl.reconcilers.machine.goduration import seconds_of
from kaito_ctrl.reconcilers.machine.metrics import ClaimMetrics
from kaito_ctrl.reconcilers.machine.volumes import attached
from kaito_ctrl.runtime import Client, Context, ObjectKey, Reader
from kaito_ctrl.runtime.clock import SystemClock
from kaito_ctrl.runtime.codec import encode_json
from kaito_ctrl.runtime.errors import ApiError, NotFound, TransportError
from kaito_ctrl.runtime.logs import logger
from kaito_ctrl.runtime.transport import Request, Response, Transport

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


def pod(name: str = "p", *, spec: Any = None, status: Any = None, **metadata: Any) -> Occupant:
    meta = {"name": name, "namespace": "default", "uid": name, **metadata}
    return Occupant.model_validate({"metadata": meta, "spec": spec or {}, "status": status or {}})


def deleted(seconds_ago: float) -> dict[str, str]:
    return {"deletionTimestamp": (NOW - timedelta(seconds=seconds_ago)).isoformat()}


def names(pods: tuple[Occupant, ...]) -> list[str]:
    return [each.name for each in pods]


# -- whom a drain waits for --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stays",
    [
        pod(status={"phase": "Succeeded"}),
        pod(status={"phase": "Failed"}),
        pod(spec={"tolerations": [{"operator": "Exists"}]}),
        pod(spec={"tolerations": [{"key": "karpenter.sh/disrupted", "operator": "Equal", "effect": "NoSchedule"}]}),
        pod(ownerReferences=[{"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "n"}]),
        pod(annotations={"kubernetes.io/config.mirror": "hash"}),
        pod(**deleted(61)),
    ],
)
def test_nobody_waits_for_a_pod_that_is_done_or_stays_to_the_end(stays: Occupant) -> None:
    assert plan_drain([stays], NOW).waiting == ()


@pytest.mark.parametrize(
    "leaves",
    [
        pod(),
        pod(status={"phase": "Pending"}),
        pod(spec={"tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}]}),
        pod(spec={"tolerations": [{"operator": "Exists", "effect": "NoExecute"}]}),
        pod(annotations={"karpenter.sh/do-not-disrupt": "false"}),
    ],
)
def test_every_other_pod_is_evicted(leaves: Occupant) -> None:
    assert plan_drain([leaves], NOW).evict == (leaves,)


@pytest.mark.parametrize(
    "odd",
    [
        {"tolerations": [{"key": "n", "operator": "Lt", "value": "950"}]},
        {"tolerations": "all of them"},
        {"tolerations": [None, 7]},
        {"volumes": [None, {"name": "v", "persistentVolumeClaim": 3}]},
        {"terminationGracePeriodSeconds": "thirty"},
        {"priorityClassName": ["system-node-critical"]},
        [],
        "spec",
    ],
)
def test_a_field_that_nobody_expects_is_no_reason_to_stay(odd: Any) -> None:
    found = Occupant.model_validate({"metadata": {"name": "odd", "uid": "u"}, "spec": odd, "status": {"phase": "New"}})
    assert plan_drain([found], NOW, deadline=NOW + timedelta(hours=1)).evict == (found,)
    assert found.volume_claims == ()


def test_a_pod_that_is_ending_is_waited_for_and_not_asked_again() -> None:
    plan = plan_drain([pod(**deleted(-20))], NOW)
    assert (len(plan.waiting), plan.evict) == (1, ())


@pytest.mark.parametrize("key", ["karpenter.sh/do-not-disrupt", "karpenter.sh/do-not-evict"])
def test_a_protected_pod_is_waited_for_and_never_evicted(key: str) -> None:
    plan = plan_drain([pod(annotations={key: "true"})], NOW)
    assert (len(plan.waiting), plan.evict, len(plan.protected)) == (1, (), 1)


GROUPS = [
    pod("plain"),
    pod("daemon", ownerReferences=[{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "d", "uid": "d"}]),
    pod("critical", spec={"priorityClassName": "system-cluster-critical"}),
    pod(
        "critical-daemon",
        spec={"priorityClassName": "system-node-critical"},
        ownerReferences=[{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "d", "uid": "d"}],
    ),
]


@pytest.mark.parametrize("gone", range(4))
def test_only_the_first_group_that_is_left_is_asked(gone: int) -> None:
    plan = plan_drain(reversed(GROUPS[gone:]), NOW)
    assert names(plan.evict) == [GROUPS[gone].name]
    assert len(plan.waiting) == 4 - gone


def test_a_group_is_not_over_while_one_of_it_is_ending_or_protected() -> None:
    for first in (pod("a", **deleted(-5)), pod("a", annotations={"karpenter.sh/do-not-disrupt": "true"})):
        assert plan_drain([first, GROUPS[2]], NOW).evict == ()


# -- the deadline ------------------------------------------------------------------------------------------------------


def test_before_the_deadline_only_those_are_deleted_that_would_not_be_done_by_then() -> None:
    short, long = (
        pod(name, spec={"terminationGracePeriodSeconds": grace}) for name, grace in (("short", 30), ("long", 600))
    )
    plan = plan_drain([short, long], NOW, deadline=NOW + timedelta(seconds=300))
    assert [(each.name, grace) for each, grace in plan.delete] == [("long", 300)]
    assert plan.evict == (short,)


def test_past_the_deadline_all_are_deleted_whatever_protects_them_and_in_whatever_group() -> None:
    protected = pod("protected", annotations={"karpenter.sh/do-not-disrupt": "true"})
    plan = plan_drain([protected, *GROUPS], NOW, deadline=NOW - timedelta(seconds=5))
    assert {grace for _, grace in plan.delete} == {1}
    assert len(plan.delete) == 5
    assert (plan.evict, plan.protected) == ((), ())


def test_a_pod_that_is_ending_is_hurried_once_and_not_at_each_look() -> None:
    ending = pod(**deleted(-600))
    deadline = NOW + timedelta(seconds=60)
    assert [grace for _, grace in plan_drain([ending], NOW, deadline=deadline).delete] == [60]
    hurried = pod(**deleted(-60))
    assert plan_drain([hurried], NOW, deadline=deadline).delete == ()
    late = pod(**deleted(-1))
    assert plan_drain([late], NOW, deadline=NOW - timedelta(hours=1)).delete == ()


# -- a silent node -----------------------------------------------------------------------------------------------------


def node(**ready: Any) -> Node:
    conditions = [{"type": "Ready", **ready}] if ready else []
    metadata = {"name": "n", "creationTimestamp": (NOW - timedelta(seconds=50)).isoformat()}
    return Node.model_validate({"metadata": metadata, "status": {"conditions": conditions}})


def test_how_long_a_node_has_been_silent() -> None:
    since = (NOW - timedelta(seconds=20)).isoformat()
    assert silence(node(status="True", lastTransitionTime=since), NOW) is None
    assert silence(node(status="Unknown", lastTransitionTime=since), NOW) == 20
    assert silence(node(), NOW) == 50, "one that never said anything has been silent since it is there"
    assert silence(node(status="False", lastTransitionTime=since), NOW - timedelta(hours=1)) == 0, "clocks differ"


def test_on_a_silent_node_nobody_is_waited_for_longer_than_the_grace_period() -> None:
    assert plan_drain([pod(**deleted(1))], NOW, silent=10).waiting == ()
    assert len(plan_drain([pod(**deleted(-1))], NOW, silent=10).waiting) == 1
    assert len(plan_drain([pod()], NOW, silent=10).evict) == 1


def test_the_pods_of_a_node_that_stays_silent_are_given_up() -> None:
    protected = pod(annotations={"karpenter.sh/do-not-disrupt": "true"})
    assert len(plan_drain([protected], NOW, silent=GIVEN_UP_AFTER - 1).waiting) == 1
    assert plan_drain([protected], NOW, silent=GIVEN_UP_AFTER).waiting == ()


# -- whatever there is -------------------------------------------------------------------------------------------------


@st.composite
def anything(draw: st.DrawFn) -> list[Occupant]:
    pods = []
    for number in range(draw(st.integers(0, 6))):
        base = draw(st.sampled_from([*GROUPS, pod(spec={"tolerations": [{"operator": "Exists"}]})]))
        ago = draw(st.none() | st.integers(-900, 300))
        meta: dict[str, Any] = {"name": f"p{number}", "uid": f"p{number}"}
        if ago is not None:
            meta["deletion_timestamp"] = NOW - timedelta(seconds=ago)
        if draw(st.booleans()):
            meta["annotations"] = {"karpenter.sh/do-not-disrupt": "true"}
        pods.append(base.evolve(metadata=base.metadata.evolve(**meta)))
    return pods


@given(anything(), st.none() | st.integers(-600, 600), st.none() | st.integers(0, 600))
def test_of_any_pods(pods: list[Occupant], left: int | None, silent: int | None) -> None:
    deadline = NOW + timedelta(seconds=left) if left is not None else None
    plan = plan_drain(pods, NOW, deadline=deadline, silent=silent)
    asked = [*plan.evict, *(each for each, _ in plan.delete)]
    assert {each.uid for each in asked} <= {each.uid for each in plan.waiting}
    assert len({each.uid for each in asked}) == len(asked), "nobody is asked twice"
    assert not any(each.protected or each.deleting for each in plan.evict)
    assert not any(each.tolerating for each in asked)
    assert len({each.turn for each in plan.evict}) <= 1
    assert all(grace >= 1 for _, grace in plan.delete)
    other = plan_drain(list(reversed(pods)), NOW, deadline=deadline, silent=silent)
    assert (plan.waiting, plan.evict, plan.delete) == (other.waiting, other.evict, other.delete)


# -- asking one pod to leave -------------------------------------------------------------------------------------------


class Answering:
    """A transport that answers some requests in the server's place."""

    def __init__(self, inner: Transport) -> None:
        self.inner = inner
        self.answers: dict[str, Response | Exception | dict[str, Any]] = {}
        """By the end of the path, and for evictions by the version of the body."""
        self.seen: list[str] = []

    async def send(self, request: Request) -> Response:
        self.seen.append(f"{request.method} {request.path}")
        for mark, answer in self.answers.items():
            end, _, version = mark.partition("@")
            if request.path.endswith(end) and version.encode() in (request.body or b""):
                if isinstance(answer, Exception):
                    raise answer
                if isinstance(answer, dict):
                    return Response.of(int(answer.get("code", 200)), encode_json(answer))
        return await self.inner.send(request)

    async def aclose(self) -> None:
        await self.inner.aclose()


class Cluster:
    """An API server with one pod on one node, and the way to it."""

    def __init__(self) -> None:
        self.server = ApiServer(clock=SystemClock(), rng=random.Random(1))
        self.user = Client(self.server.transport())
        self.transport = Answering(self.server.transport())
        self.figures = ClaimMetrics(Machine)
        self.evictions = Evictions(self.figures)
        client = Client(self.transport)
        self.ctx = Context(ObjectKey("", "c"), 0, client, Reader(_no_cache), SystemClock(), logger())

    async def pod(self, name: str = "web", **spec: Any) -> Occupant:
        full = {"nodeName": "n", "containers": [{"name": "c", "image": "i"}], **spec}
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": full}
        await self.user.request("POST", "/api/v1/namespaces/default/pods", body=body)
        return await self.user.get(Occupant, name, "default")

    async def ending(self, name: str = "web") -> bool:
        try:
            return (await self.user.get(Pod, name, "default")).deleting
        except NotFound:
            return True

    def counted(self, code: str) -> float:
        value = self.figures.registry.get_sample_value("karpenter_nodes_eviction_requests_total", {"code": code})
        return value or 0.0


def _no_cache(_: Any) -> Any:
    raise AssertionError("an eviction needs no cache")


def refusal(code: int, reason: str, message: str, **details: Any) -> dict[str, Any]:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "code": code,
        "reason": reason,
        "message": message,
        "details": details,
    }


async def test_an_eviction_ends_the_pod() -> None:
    cluster = Cluster()
    found = await cluster.pod()
    assert await cluster.evictions.evict(found, cluster.ctx) == ""
    assert await cluster.ending()
    assert cluster.counted("201") == 1


async def test_a_pod_that_has_taken_the_others_name_stays() -> None:
    cluster = Cluster()
    found = await cluster.pod()
    other = found.evolve(metadata=found.metadata.evolve(uid="another"))
    assert await cluster.evictions.evict(other, cluster.ctx) == "", "the one that was meant is gone"
    assert await cluster.evictions.delete(other, 1, cluster.ctx) == ""
    assert not await cluster.ending()


async def test_one_that_is_gone_needs_no_eviction() -> None:
    cluster = Cluster()
    assert await cluster.evictions.evict(pod("away"), cluster.ctx) == ""
    assert cluster.counted("404") == 1


async def test_a_disruption_budget_is_told_in_the_servers_own_words() -> None:
    cluster = Cluster()
    found = await cluster.pod()
    await cluster.user.patch(Pod, ObjectKey("default", "web"), {"status": {"phase": "Running"}}, subresource="status")
    budget = {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": "web"},
        "spec": {"minAvailable": "100%", "selector": {"matchLabels": {"app": "web"}}},
    }
    await cluster.user.request("POST", "/apis/policy/v1/namespaces/default/poddisruptionbudgets", body=budget)
    held = await cluster.evictions.evict(found, cluster.ctx)
    assert held.startswith("evicting pod default/web violates a PDB: Cannot evict pod")
    assert "The disruption budget web" in held
    assert not await cluster.ending()
    assert cluster.counted("429") == 1


@pytest.mark.parametrize(
    "answer",
    [
        refusal(500, "InternalError", "This pod has more than one PodDisruptionBudget, which is not supported."),
        refusal(500, "InternalError", "failed calling webhook: context deadline exceeded"),
        refusal(403, "Forbidden", "admission webhook denied the request"),
        refusal(422, "Invalid", "that cannot be"),
        refusal(429, "TooManyRequests", "too many requests, please try again later"),
        refusal(400, "BadRequest", "admission webhook denied the request"),
        refusal(503, "ServiceUnavailable", "apiserver is shutting down"),
        refusal(418, "Teapot", "what?", causes="none"),
        TransportError("connection reset"),
        refusal(404, "NotFound", "the server could not find the requested resource"),
    ],
)
async def test_whatever_else_the_server_says_the_pod_stays_and_the_reason_is_known(
    answer: dict[str, Any] | Exception,
) -> None:
    cluster = Cluster()
    found = await cluster.pod()
    cluster.transport.answers["/eviction"] = answer
    held = await cluster.evictions.evict(found, cluster.ctx)
    assert held.startswith("pod default/web cannot be evicted: ")
    assert (answer["message"] if isinstance(answer, dict) else "connection reset") in held
    assert not await cluster.ending(), "with evictions on offer, nothing is deleted past the disruption budgets"


async def test_a_server_that_knows_the_older_version_alone_is_asked_in_it() -> None:
    cluster = Cluster()
    found = await cluster.pod()
    text = 'no kind "Eviction" is registered for version "policy/v1" in scheme'
    cluster.transport.answers['/eviction@policy/v1"'] = refusal(400, "BadRequest", text)
    cluster.transport.answers["/eviction@policy/v1beta1"] = {"kind": "Status", "status": "Success", "code": 201}
    assert await cluster.evictions.evict(found, cluster.ctx) == ""
    assert len([each for each in cluster.transport.seen if each.endswith("/eviction")]) == 2


async def test_on_a_server_without_evictions_the_pod_is_deleted_with_its_own_grace() -> None:
    cluster = Cluster()
    found = await cluster.pod(terminationGracePeriodSeconds=77)
    cluster.transport.answers["/eviction"] = refusal(
        404, "NotFound", "the server could not find the requested resource"
    )
    cluster.transport.answers["/api/v1"] = {"kind": "APIResourceList", "resources": [{"name": "pods"}]}
    assert await cluster.evictions.evict(found, cluster.ctx) == ""
    assert (await cluster.user.get(Pod, "web", "default")).metadata.deletion_grace_period_seconds == 77


# -- what is on a node -------------------------------------------------------------------------------------------------


async def test_pods_that_fit_no_model_are_on_the_node_all_the_same() -> None:
    cluster = Cluster()
    await cluster.pod("plain")
    await cluster.pod("odd", tolerations=[{"key": "a", "operator": "Exists"}])
    status = {"status": {"phase": "Undecided"}}
    await cluster.user.patch_raw(Pod, ObjectKey("default", "odd"), status, subresource="status")
    assert names(tuple(await occupants(node(), cluster.ctx))) == ["odd", "plain"]


async def test_of_metadata_that_is_not_what_it_should_be_the_rest_counts() -> None:
    cluster = Cluster()
    protected = {"annotations": {"karpenter.sh/do-not-disrupt": "true"}, "labels": {"a": 7}, "generation": "many"}
    items = [
        {"metadata": {"name": "odd", "namespace": "default", "uid": "o", **protected}, "spec": {"volumes": 3}},
        {"metadata": {"name": ["nobody"]}},
        {"metadata": {"name": "fine", "namespace": "default", "uid": "f"}},
    ]
    cluster.transport.answers["/api/v1/pods"] = {"kind": "PodList", "metadata": {}, "items": items}
    found = await occupants(node(), cluster.ctx)
    assert [(each.uid, bool(each.protected)) for each in found] == [("f", False), ("o", True)]


@pytest.mark.parametrize("code", [403, 404])
async def test_a_cluster_that_shows_no_volume_attachments_has_none_to_wait_for(code: int) -> None:
    cluster = Cluster()
    reason = {403: "Forbidden", 404: "NotFound"}[code]
    cluster.transport.answers["/volumeattachments"] = refusal(code, reason, "no")
    assert await attached(node(), (), cluster.ctx) == ()


async def test_a_server_that_cannot_say_what_is_attached_is_asked_again() -> None:
    cluster = Cluster()
    cluster.transport.answers["/volumeattachments"] = refusal(500, "InternalError", "etcd")
    with pytest.raises(ApiError):
        await attached(node(), (), cluster.ctx)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("1h30m", 5400), ("0s", 0), ("1.5h", None), ("Never", None), ("", None), ("5", None)],
)
def test_durations(text: str, seconds: int | None) -> None:
    assert seconds_of(text) == seconds
