"""The CRDs of Machine and NodeClaim: what Karpenter's let in and keep, ours do; what they refuse, ours refuse."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

from kaito_api.crd import all_crds, crd
from kaito_api.karpenter import NODE_REQUESTS, Machine, NodeClaim, NodeRequest
from kaito_ctrl.devcluster.apiserver import ApiServer
from kaito_ctrl.runtime import Client
from kaito_ctrl.runtime.clock import SystemClock
from kaito_ctrl.runtime.errors import Invalid
from kaito_ctrl.runtime.meta import collection_path
from tests.claims import KAITO_MACHINE, KAITO_NODECLAIM, KARPENTER_NODECLAIM, WHOLE_MACHINE, requirement

CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
MERGE = {"content-type": "application/merge-patch+json"}
Json = dict[str, Any]


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    server = ApiServer(clock=SystemClock(), rng=random.Random(5))
    client = Client(server.transport())
    for each in all_crds():
        await client.request("POST", CRDS, body=each)
    yield client
    await server.aclose()


async def create(client: Client, raw: Json) -> Json:
    kind: type[NodeRequest] = Machine if raw["kind"] == "Machine" else NodeClaim
    made: Json = json.loads(await client.request("POST", collection_path(kind, None), body=raw))
    return made


@pytest.mark.parametrize(
    "raw",
    [KAITO_MACHINE, WHOLE_MACHINE, KAITO_NODECLAIM, KARPENTER_NODECLAIM],
    ids=["kaito's machine", "every field of a machine", "kaito's claim", "karpenter's claim"],
)
async def test_what_others_write_is_taken_kept_whole_and_readable(client: Client, raw: Json) -> None:
    stored = await create(client, copy.deepcopy(raw))
    added = {"expireAfter": "720h"} if raw["kind"] == "NodeClaim" else {}
    assert stored["spec"] == {**added, **raw["spec"]}
    kind = NODE_REQUESTS[raw["kind"].lower()]
    read = await client.get(kind, raw["metadata"]["name"])
    types = [each["values"] for each in raw["spec"]["requirements"] if each["key"].endswith("instance-type")]
    assert [list(read.spec.values("node.kubernetes.io/instance-type"))] == (types or [[]])


NODECLAIM_STATUS: Json = {
    "nodeName": "n1",
    "providerID": "azure:///a",
    "imageID": "img",
    "lastPodEventTime": "2026-01-01T00:00:00Z",
    "capacity": {"nvidia.com/gpu": "1", "cpu": 6},
    "allocatable": {"cpu": "5800m"},
    "conditions": [
        {
            "type": "Launched",
            "status": "Unknown",
            "reason": "AwaitingReconciliation",
            "message": "object is awaiting reconciliation",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
            "observedGeneration": 1,
        },
        {"type": "Ready", "status": "False", "reason": "", "lastTransitionTime": "2026-01-01T00:00:00Z"},
    ],
}
MACHINE_STATUS: Json = {
    "nodeName": "n1",
    "providerID": "azure:///a",
    "capacity": {"nvidia.com/gpu": "1"},
    "allocatable": {"cpu": "5800m"},
    "conditions": [
        {"type": "MachineLaunched", "status": "False", "reason": "LaunchFailed", "severity": "Warning"},
        {"type": "Ready", "status": "False", "lastTransitionTime": "2026-01-01T00:00:00Z", "message": "m"},
    ],
}


@pytest.mark.parametrize(
    ("raw", "status"), [(KAITO_MACHINE, MACHINE_STATUS), (KAITO_NODECLAIM, NODECLAIM_STATUS)], ids=NODE_REQUESTS
)
async def test_what_a_provisioner_writes_into_the_status_is_kept_whole(client: Client, raw: Json, status: Json) -> None:
    await create(client, copy.deepcopy(raw))
    kind = NODE_REQUESTS[raw["kind"].lower()]
    path = f"{collection_path(kind, None)}/{raw['metadata']['name']}"
    stored = json.loads(await client.request("PATCH", f"{path}/status", body={"status": status}, headers=MERGE))
    assert stored["status"] == status
    assert len((await client.get(kind, raw["metadata"]["name"])).status.conditions) == 2


def claim(*requirements: Json, **spec: Any) -> Json:
    wanted = list(requirements) or KAITO_NODECLAIM["spec"]["requirements"]
    fields = {**KAITO_NODECLAIM["spec"], "requirements": wanted, **spec}
    kept = {name: value for name, value in fields.items() if value is not None}
    return {**copy.deepcopy(KAITO_NODECLAIM), "spec": kept}


def class_ref(**changes: str) -> Json:
    return {"group": "kaito.sh", "kind": "KaitoNodeClass", "name": "default", **changes}


WRONG: list[tuple[str, Json]] = [
    ("spec: Required value", {name: value for name, value in claim().items() if name != "spec"}),
    ("nodeClassRef: Required value", claim(nodeClassRef=None)),
    ("group may not be empty", claim(nodeClassRef=class_ref(group=""))),
    ("kind may not be empty", claim(nodeClassRef=class_ref(kind=""))),
    ("name may not be empty", claim(nodeClassRef=class_ref(name=""))),
    ("nodeClassRef.group", claim(nodeClassRef=class_ref(group="kaito.sh/v1"))),
    ("requirements: Required value", {**claim(), "spec": {"nodeClassRef": class_ref()}}),
    ("at most 100 items", claim(*(requirement(f"example.com/k{n}", "v") for n in range(101)))),
    ("must have a value defined", claim(requirement("example.com/a", operator="In"))),
    ("must have a value defined", claim({**requirement("example.com/a"), "values": []})),
    ("single positive integer", claim(requirement("example.com/a", "1", "2", operator="Gt"))),
    ("single positive integer", claim(requirement("example.com/a", "x", operator="Lt"))),
    ("single positive integer", claim(requirement("example.com/a", operator="Gte"))),
    ("at least that many values", claim(requirement("example.com/a", "v", minValues=2))),
    ("minValues", claim(requirement("example.com/a", "v", minValues=0))),
    ("minValues", claim(requirement("example.com/a", "v", minValues=51))),
    ("Unsupported value", claim(requirement("example.com/a", "v", operator="Near"))),
    ('"kubernetes.io" is restricted', claim(requirement("kubernetes.io/cluster", "v"))),
    ('"kubernetes.io" is restricted', claim(requirement("app.kubernetes.io/name", "v"))),
    ('"k8s.io" is restricted', claim(requirement("topology.ebs.csi.k8s.io/zone", "v"))),
    ('"karpenter.sh" is restricted', claim(requirement("karpenter.sh/initialized", "true"))),
    ("hostname", claim(requirement("kubernetes.io/hostname", "n1"))),
    ("key", claim(requirement("-a", "v"))),
    ("values", claim(requirement("example.com/a", "v" * 64))),
    ("values", claim(requirement("example.com/a", "-v"))),
    ("effect", claim(taints=[{"key": "a", "effect": "Never"}])),
    ("taints", claim(taints=[{"key": "", "effect": "NoSchedule"}])),
    ("startupTaints", claim(startupTaints=[{"key": "a b", "effect": "NoSchedule"}])),
    ("expireAfter", claim(expireAfter="forever")),
    ("expireAfter", claim(expireAfter="Never1h")),
    ("terminationGracePeriod", claim(terminationGracePeriod="Never")),
    ("requests", claim(resources={"requests": {"storage": "much"}})),
    ("requirements", {**KAITO_MACHINE, "spec": {"requirements": [{"operator": "In"}]}}),
    ("maxPods", {**KAITO_MACHINE, "spec": {"kubelet": {"maxPods": -1}}}),
    ("imageGCHighThresholdPercent", {**KAITO_MACHINE, "spec": {"kubelet": {"imageGCHighThresholdPercent": 101}}}),
]


@pytest.mark.parametrize(("text", "raw"), WRONG, ids=[f"{number}: {row[0]}" for number, row in enumerate(WRONG)])
async def test_what_makes_no_sense_is_refused(client: Client, text: str, raw: Json) -> None:
    with pytest.raises(Invalid, match=text):
        await create(client, raw)


@pytest.mark.parametrize(
    "key",
    [
        "node.kubernetes.io/instance-type",
        "topology.kubernetes.io/zone",
        "kubernetes.io/arch",
        "a.node.kubernetes.io/b",
        "karpenter.sh/capacity-type",
        "karpenter.azure.com/sku-name",
        "gpu-provisioner.sh/machine-type",
        "kaito.sh/machine-type",
        "plain",
        "example.com/kubernetes.io",
    ],
)
async def test_labels_that_a_claim_may_require(client: Client, key: str) -> None:
    await create(client, claim(requirement(key, "v")))


@pytest.mark.parametrize(
    "change",
    [
        {"expireAfter": "1h"},
        {"terminationGracePeriod": "1h"},
        {"requirements": []},
        {"resources": {"requests": {"storage": "1Gi"}}},
    ],
    ids=lambda each: next(iter(each)),
)
async def test_a_claim_that_is_there_is_not_changed(client: Client, change: Json) -> None:
    await create(client, claim())
    path = f"{collection_path(NodeClaim, None)}/{KAITO_NODECLAIM['metadata']['name']}"
    with pytest.raises(Invalid, match="spec is immutable"):
        await client.request("PATCH", path, body={"spec": change}, headers=MERGE)
    await client.request("PATCH", path, body={"metadata": {"labels": {"a": "b"}}}, headers=MERGE)


async def test_a_machine_may_be_changed_as_it_always_could(client: Client) -> None:
    await create(client, copy.deepcopy(KAITO_MACHINE))
    path = f"{collection_path(Machine, None)}/{KAITO_MACHINE['metadata']['name']}"
    await client.request("PATCH", path, body={"spec": {"taints": []}}, headers=MERGE)


@pytest.mark.parametrize(
    ("kind", "shown", "wide"),
    [
        (Machine, "Type Zone Node Ready Age", "Capacity Provisioner Template"),
        (NodeClaim, "Type Capacity Zone Node Ready Age", "ImageID ID NodePool NodeClass Drifted"),
    ],
)
def test_the_columns_are_karpenters(kind: type[NodeRequest], shown: str, wide: str) -> None:
    columns = crd(kind)["spec"]["versions"][0]["additionalPrinterColumns"]
    assert [each["name"] for each in columns if not each.get("priority")] == shown.split()
    assert [each["name"] for each in columns if each.get("priority") == 1] == wide.split()
