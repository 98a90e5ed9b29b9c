"""Pods: defaults, validation, what may change, binding and eviction; without a kubelet."""

from __future__ import annotations

import pytest

from tests.conformance.objects import pod
from tests.conformance.wire import Api, Obj, fails


def one(**more: object) -> Obj:
    """A spec whose one container has *more*."""
    return {"containers": [{"name": "c", "image": "i", **more}]}


def asking(**resources: Obj) -> Obj:
    return one(resources=resources)


async def test_a_pod_gets_its_defaults(api: Api) -> None:
    made = await api.post(
        api.at("pods"), pod(containers=[{"name": "c", "image": "i:1", "ports": [{"containerPort": 1}]}])
    )
    spec = made["spec"]
    assert {key: spec[key] for key in ("restartPolicy", "dnsPolicy", "schedulerName", "serviceAccountName")} == {
        "restartPolicy": "Always",
        "dnsPolicy": "ClusterFirst",
        "schedulerName": "default-scheduler",
        "serviceAccountName": "default",
    }
    assert (spec["terminationGracePeriodSeconds"], spec["enableServiceLinks"], spec["priority"]) == (30, True, 0)
    assert spec["securityContext"] == {}
    (container,) = spec["containers"]
    assert container["imagePullPolicy"] == "IfNotPresent"
    assert container["terminationMessagePath"] == "/dev/termination-log"
    assert container["terminationMessagePolicy"] == "File"
    assert container["ports"] == [{"containerPort": 1, "protocol": "TCP"}]
    assert container["resources"] == {}
    assert made["status"]["phase"] == "Pending"
    assert [t["key"] for t in spec["tolerations"]] == [
        "node.kubernetes.io/not-ready",
        "node.kubernetes.io/unreachable",
    ]
    if api.version < (1, 33):
        assert "generation" not in made["metadata"]


@pytest.mark.parametrize(
    ("image", "policy"),
    [
        ("i", "Always"),
        ("i:latest", "Always"),
        ("i:1", "IfNotPresent"),
        ("host:5000/i", "Always"),
        ("i@sha256:" + "0" * 64, "IfNotPresent"),
    ],
)
async def test_the_latest_image_is_always_pulled(api: Api, image: str, policy: str) -> None:
    made = await api.post(api.at("pods"), pod(containers=[{"name": "c", "image": image}]))
    assert made["spec"]["containers"][0]["imagePullPolicy"] == policy


@pytest.mark.parametrize(
    ("resources", "quality"),
    [
        ({}, "BestEffort"),
        ({"requests": {"cpu": "1"}}, "Burstable"),
        ({"limits": {"cpu": "1", "memory": "1Gi"}}, "Guaranteed"),
        ({"limits": {"cpu": "2", "memory": "1Gi"}, "requests": {"cpu": "1"}}, "Burstable"),
    ],
    ids=["nothing", "requests", "limits", "both"],
)
async def test_the_quality_of_service_follows_from_resources(api: Api, resources: Obj, quality: str) -> None:
    made = await api.post(api.at("pods"), pod(containers=[{"name": "c", "image": "i", "resources": resources}]))
    assert made["status"]["qosClass"] == quality


async def test_limits_are_requests_by_default(api: Api) -> None:
    limits = {"limits": {"cpu": "1", "nvidia.com/gpu": "1"}}
    made = await api.post(api.at("pods"), pod(containers=[{"name": "c", "image": "i", "resources": limits}]))
    assert made["spec"]["containers"][0]["resources"]["requests"] == {"cpu": "1", "nvidia.com/gpu": "1"}


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"containers": []}, "spec.containers"),
        ({"containers": [{"image": "i"}]}, "spec.containers[0].name"),
        ({"containers": [{"name": "c"}]}, "spec.containers[0].image"),
        ({"containers": [{"name": "C", "image": "i"}]}, "spec.containers[0].name"),
        ({"containers": [{"name": "c", "image": "i"}, {"name": "c", "image": "i"}]}, "spec.containers[1].name"),
        ({"restartPolicy": "Sometimes"}, "spec.restartPolicy"),
        ({"dnsPolicy": "Guess"}, "spec.dnsPolicy"),
        (one(imagePullPolicy="Perhaps"), "spec.containers[0].imagePullPolicy"),
        (one(ports=[{"containerPort": 0}]), "spec.containers[0].ports[0].containerPort"),
        (one(env=[{"name": "", "value": "x"}]), "spec.containers[0].env[0].name"),
        (one(volumeMounts=[{"name": "v", "mountPath": "/v"}]), "spec.containers[0].volumeMounts[0].name"),
        ({"volumes": [{"name": "v"}, {"name": "v"}]}, "spec.volumes[1].name"),
        ({"volumes": [{"name": "v", "emptyDir": {}, "hostPath": {"path": "/"}}]}, "spec.volumes[0].hostPath"),
        (asking(requests={"cpu": "2"}, limits={"cpu": "1"}), "spec.containers[0].resources.requests"),
        (asking(limits={"cpu": "-1"}), "spec.containers[0].resources.limits[cpu]"),
        (one(livenessProbe={}), "spec.containers[0].livenessProbe"),
        (one(readinessProbe={"httpGet": {"port": 0}}), "spec.containers[0].readinessProbe.httpGet.port"),
        (asking(limits={"nvidia.com/gpu": "1500m"}), "spec.containers[0].resources.limits[nvidia.com/gpu]"),
        (asking(requests={"nvidia.com/gpu": "1"}), "spec.containers[0].resources.limits"),
        (asking(limits={"gpu": "1"}), "spec.containers[0].resources.limits[gpu]"),
        ({"tolerations": [{"key": "a", "operator": "Exists", "value": "x"}]}, "spec.tolerations[0].operator"),
        ({"tolerations": [{"key": "a", "operator": "Likes"}]}, "spec.tolerations[0].operator"),
        ({"tolerations": [{"key": "a", "effect": "Shrug"}]}, "spec.tolerations[0].effect"),
        ({"terminationGracePeriodSeconds": -1, "activeDeadlineSeconds": 0}, "spec.activeDeadlineSeconds"),
        ({"tolerations": [{"operator": "Equal", "value": "x"}]}, "spec.tolerations[0].operator"),
    ],
)  # fmt: skip
async def test_pods_are_validated(api: Api, spec: Obj, field: str) -> None:
    with fails(422, "Invalid") as caught:
        await api.post(api.at("pods"), pod(**spec))
    assert field in caught.value.fields


@pytest.mark.parametrize(
    "change",
    [
        {"nodeSelector": {"a": "b"}},
        {"containers": [{"name": "c", "command": ["x"]}]},
        {"hostNetwork": True},
        {"terminationGracePeriodSeconds": 5},
    ],
    ids=["nodeSelector", "command", "hostNetwork", "grace"],
)
async def test_the_spec_of_a_pod_is_fixed(api: Api, change: Obj) -> None:
    await api.post(api.at("pods"), pod())
    with fails(422, "Invalid") as caught:
        await api.strategic(api.at("pods", "p"), {"spec": change})
    assert "spec" in caught.value.fields
    assert "pod updates may not change fields other than `spec.containers[*].image`" in caught.value.message


async def test_the_image_and_the_labels_of_a_pod_may_change(api: Api) -> None:
    await api.post(api.at("pods"), pod())
    patch = {"spec": {"containers": [{"name": "c", "image": "i:2"}]}, "metadata": {"labels": {"a": "b"}}}
    changed = await api.strategic(api.at("pods", "p"), patch)
    assert changed["spec"]["containers"][0]["image"] == "i:2"


async def test_a_toleration_may_be_added(api: Api) -> None:
    made = await api.post(api.at("pods"), pod())
    more = [*made["spec"]["tolerations"], {"key": "k", "operator": "Exists"}]
    assert len((await api.merge(api.at("pods", "p"), {"spec": {"tolerations": more}}))["spec"]["tolerations"]) == 3
    with fails(422, "Invalid"):
        await api.merge(api.at("pods", "p"), {"spec": {"tolerations": []}})


def binding(node: str = "n") -> Obj:
    return {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"}, "target": {"kind": "Node", "name": node}}


async def test_a_binding_gives_a_pod_its_node_once(api: Api) -> None:
    await api.post(api.at("pods"), pod())
    answer = await api.post(api.at("pods", "p", "binding"), binding())
    assert api.code == 201
    assert (answer["kind"], answer["status"]) == ("Status", "Success")
    bound = await api.get(api.at("pods", "p"))
    assert bound["spec"]["nodeName"] == "n"
    (condition,) = bound["status"]["conditions"]
    assert (condition["type"], condition["status"]) == ("PodScheduled", "True")
    with fails(409, "Conflict") as caught:
        await api.post(api.at("pods", "p", "binding"), binding("m"))
    assert caught.value.message == (
        'Operation cannot be fulfilled on pods/binding "p": pod p is already assigned to node "n"'
    )


async def test_a_binding_needs_a_target_and_a_pod(api: Api) -> None:
    with fails(404, "NotFound"):
        await api.post(api.at("pods", "p", "binding"), binding())
    await api.post(api.at("pods"), pod())
    with fails(500, "", "target.name: Required value"):
        await api.post(api.at("pods", "p", "binding"), {**binding(), "target": {"kind": "Node"}})


@pytest.mark.minimum("1.22")
async def test_an_eviction_deletes_a_pod(api: Api) -> None:
    await api.post(api.at("pods"), pod())
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"}}
    answer = await api.post(api.at("pods", "p", "eviction"), body)
    assert (api.code, answer["status"]) == (201, "Success")
    assert await api.missing(api.at("pods", "p"))


async def test_an_eviction_of_the_older_version_deletes_a_pod_too(api: Api) -> None:
    if api.version >= (1, 25):
        pytest.skip("policy/v1beta1 was removed in Kubernetes 1.25")
    await api.post(api.at("pods"), pod())
    body = {"apiVersion": "policy/v1beta1", "kind": "Eviction", "metadata": {"name": "p"}}
    assert (await api.post(api.at("pods", "p", "eviction"), body))["status"] == "Success"
    assert await api.missing(api.at("pods", "p"))


async def test_a_pod_of_an_unknown_account_is_refused(api: Api) -> None:
    with fails(403, "Forbidden") as caught:
        await api.post(api.at("pods"), pod(serviceAccountName="ghost"))
    why = f'error looking up service account {api.namespace}/ghost: serviceaccount "ghost" not found'
    assert caught.value.message == f'pods "p" is forbidden: {why}'


async def test_a_pod_of_an_unknown_priority_class_is_refused(api: Api) -> None:
    with fails(403, "Forbidden") as caught:
        await api.post(api.at("pods"), pod(priorityClassName="ghost"))
    assert caught.value.message == 'pods "p" is forbidden: no PriorityClass with name ghost was found'


async def test_a_priority_class_gives_its_value(api: Api) -> None:
    made = await api.post(api.at("pods"), pod(priorityClassName="system-node-critical"))
    assert made["spec"]["priority"] == 2000001000


async def test_a_pod_has_the_pull_secrets_of_its_account(api: Api) -> None:
    account = {"metadata": {"name": "puller"}, "imagePullSecrets": [{"name": "a"}, {"name": "b"}]}
    await api.post(api.at("serviceaccounts"), account)
    made = await api.post(api.at("pods"), pod(serviceAccountName="puller"))
    assert made["spec"]["imagePullSecrets"] == [{"name": "a"}, {"name": "b"}]
    own = await api.post(api.at("pods"), pod("q", serviceAccountName="puller", imagePullSecrets=[{"name": "c"}]))
    assert own["spec"]["imagePullSecrets"] == [{"name": "c"}]


async def test_a_new_node_is_tainted_until_it_was_seen_ready(api: Api, unique: str) -> None:
    made = await api.post(api.cluster("nodes"), {"metadata": {"name": unique}})
    assert made["spec"]["taints"] == [{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}]
    own = {"key": "mine", "value": "x", "effect": "NoExecute"}
    other = await api.post(api.cluster("nodes"), {"metadata": {"name": f"{unique}2"}, "spec": {"taints": [own]}})
    assert [taint["key"] for taint in other["spec"]["taints"]] == ["mine", "node.kubernetes.io/not-ready"]
    cleared = await api.merge(api.cluster("nodes", unique), {"spec": {"taints": None}})
    assert "taints" not in cleared["spec"]
