"""What the server does to built-in kinds: defaults, allocation, immutability, subresources."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
from apihelpers import DEPLOY, PODS, SVC, Api, deployment, fails, pod

from kaito_ctrl.devcluster.apiserver.scalars import canonical_quantity


def service(name: str = "s", **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": {"ports": [{"port": 80}], "selector": {"app": "x"}, **spec}}


async def test_a_service_gets_an_address_and_its_defaults(api: Api) -> None:
    spec = (await api.post(SVC, service()))["spec"]
    assert spec["clusterIP"].startswith("127.96.")
    assert spec["clusterIPs"] == [spec["clusterIP"]]
    assert spec["ports"] == [{"port": 80, "protocol": "TCP", "targetPort": 80}]
    assert (spec["type"], spec["sessionAffinity"], spec["ipFamilies"]) == ("ClusterIP", "None", ["IPv4"])


async def test_addresses_are_explicit_headless_unique_and_given_back(api: Api) -> None:
    assert (await api.post(SVC, service("a", clusterIP="127.96.1.1")))["spec"]["clusterIP"] == "127.96.1.1"
    assert (await api.post(SVC, service("b", clusterIP="None")))["spec"]["clusterIP"] == "None"
    with fails(422) as caught:
        await api.post(SVC, service("c", clusterIP="127.96.1.1"))
    assert "provided IP is already allocated" in caught.value.message
    with fails(422) as caught:
        await api.post(SVC, service("c", clusterIP="10.0.0.1"))
    assert "not in the valid range" in caught.value.message
    await api.delete(f"{SVC}/a")
    await api.post(SVC, service("c", clusterIP="127.96.1.1"))


async def test_a_services_address_does_not_change(api: Api) -> None:
    made = await api.post(SVC, service())
    with fails(422) as caught:
        await api.merge(f"{SVC}/s", {"spec": {"clusterIP": "127.96.9.9", "clusterIPs": ["127.96.9.9"]}})
    assert "may not change once set" in caught.value.message
    replaced = await api.put(f"{SVC}/s", service())
    assert replaced["spec"]["clusterIP"] == made["spec"]["clusterIP"]


async def test_a_pod_gets_its_defaults(api: Api) -> None:
    made = await api.post(PODS, pod())
    spec = made["spec"]
    assert (spec["restartPolicy"], spec["dnsPolicy"], spec["terminationGracePeriodSeconds"]) == (
        "Always",
        "ClusterFirst",
        30,
    )
    assert spec["serviceAccountName"] == "default"
    assert spec["containers"][0]["imagePullPolicy"] == "IfNotPresent"
    assert made["status"] == {"phase": "Pending", "qosClass": "BestEffort"}
    assert "generation" not in made["metadata"]


@pytest.mark.parametrize(
    ("resources", "quality"),
    [
        ({}, "BestEffort"),
        ({"requests": {"cpu": "1"}}, "Burstable"),
        ({"limits": {"cpu": "1", "memory": "1Gi"}}, "Guaranteed"),
        ({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}, "Burstable"),
    ],
)
async def test_quality_of_service(api: Api, resources: dict[str, Any], quality: str) -> None:
    body = pod()
    body["spec"]["containers"][0]["resources"] = resources
    assert (await api.post(PODS, body))["status"]["qosClass"] == quality


async def test_latest_images_are_always_pulled(api: Api) -> None:
    body = pod()
    images = ["nginx", "nginx:latest", "host:5000/nginx", "nginx:1", "nginx@sha256:abc"]
    body["spec"]["containers"] = [{"name": f"c{i}", "image": image} for i, image in enumerate(images)]
    made = await api.post(PODS, body)
    policies = [c["imagePullPolicy"] for c in made["spec"]["containers"]]
    assert policies == ["Always", "Always", "Always", "IfNotPresent", "IfNotPresent"]


async def test_a_pod_that_cannot_run_is_refused(api: Api) -> None:
    mount = [{"name": "missing", "mountPath": "/x"}]
    body = {"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "volumeMounts": mount}, {"name": "c"}]}}
    with fails(422) as caught:
        await api.post(PODS, body)
    assert 'spec.containers[0].volumeMounts[0].name: Not found: "missing"' in caught.value.message
    assert 'spec.containers[1].name: Duplicate value: "c"' in caught.value.message
    assert "spec.containers[0].image: Required value" in caught.value.message


async def test_only_images_and_tolerations_of_a_pod_may_change(api: Api) -> None:
    await api.post(PODS, pod())
    changed = await api.strategic(f"{PODS}/p", {"spec": {"containers": [{"name": "c", "image": "nginx:2"}]}})
    assert changed["spec"]["containers"][0]["image"] == "nginx:2"
    with fails(422) as caught:
        await api.strategic(f"{PODS}/p", {"spec": {"containers": [{"name": "c", "command": ["x"]}]}})
    assert "pod updates may not change fields other than" in caught.value.message


async def test_a_deployment_gets_its_defaults(api: Api) -> None:
    spec = (await api.post(DEPLOY, deployment()))["spec"]
    assert (spec["replicas"], spec["revisionHistoryLimit"], spec["progressDeadlineSeconds"]) == (1, 10, 600)
    assert spec["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}}
    assert spec["template"]["spec"]["restartPolicy"] == "Always"


async def test_a_selector_never_changes_and_must_match_its_template(api: Api) -> None:
    await api.post(DEPLOY, deployment())
    with fails(422) as caught:
        await api.merge(f"{DEPLOY}/d", {"spec": {"selector": {"matchLabels": {"app": "y"}}}})
    assert "field is immutable" in caught.value.message
    wrong = deployment("e", selector={"matchLabels": {"app": "other"}})
    with fails(422) as caught:
        await api.post(DEPLOY, wrong)
    assert "`selector` does not match template `labels`" in caught.value.message


async def test_a_job_is_selected_by_its_uid(api: Api) -> None:
    template = {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}
    made = await api.post(
        "/apis/batch/v1/namespaces/default/jobs", {"metadata": {"name": "j"}, "spec": {"template": template}}
    )
    uid = made["metadata"]["uid"]
    assert made["spec"]["selector"] == {"matchLabels": {"batch.kubernetes.io/controller-uid": uid}}
    assert made["spec"]["template"]["metadata"]["labels"]["job-name"] == "j"
    assert (made["spec"]["completions"], made["spec"]["backoffLimit"]) == (1, 6)


async def test_scale_reads_and_writes_replicas(api: Api) -> None:
    await api.post(DEPLOY, deployment(replicas=2))
    scale = await api.get(f"{DEPLOY}/d/scale")
    assert (scale["spec"], scale["status"]["selector"]) == ({"replicas": 2}, "app=d")
    scale["spec"]["replicas"] = 5
    await api.put(f"{DEPLOY}/d/scale", scale)
    made = await api.get(f"{DEPLOY}/d")
    assert (made["spec"]["replicas"], made["metadata"]["generation"]) == (5, 2)
    with fails(409, "Conflict"):
        await api.put(f"{DEPLOY}/d/scale", scale)


async def test_a_pod_is_bound_once(api: Api) -> None:
    await api.post(PODS, pod())
    await api.post(f"{PODS}/p/binding", {"target": {"name": "n1"}})
    bound = await api.get(f"{PODS}/p")
    assert bound["spec"]["nodeName"] == "n1"
    assert bound["status"]["conditions"][0]["type"] == "PodScheduled"
    with fails(409) as caught:
        await api.post(f"{PODS}/p/binding", {"target": {"name": "n2"}})
    assert 'already assigned to node "n1"' in caught.value.message


async def test_an_eviction_respects_a_disruption_budget(api: Api) -> None:
    body = pod()
    body["metadata"]["labels"] = {"app": "x"}
    await api.post(PODS, body)
    await api.merge(f"{PODS}/p/status", {"status": {"phase": "Running"}})
    budget = {"metadata": {"name": "b"}, "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "x"}}}}
    path = "/apis/policy/v1/namespaces/default/poddisruptionbudgets"
    await api.post(path, budget)
    with fails(429, "TooManyRequests"):
        await api.post(f"{PODS}/p/eviction", {})
    await api.merge(f"{path}/b/status", {"status": {"disruptionsAllowed": 1}})
    await api.post(f"{PODS}/p/eviction", {})
    assert await api.gone(f"{PODS}/p")


async def test_string_data_of_a_secret_is_encoded(api: Api) -> None:
    path = "/api/v1/namespaces/default/secrets"
    made = await api.post(path, {"metadata": {"name": "s"}, "stringData": {"k": "v"}})
    assert (made["type"], made["data"]) == ("Opaque", {"k": "dg=="})
    assert "stringData" not in made


async def test_logs_come_from_whoever_has_them(api: Api) -> None:
    await api.post(PODS, pod())
    with fails(501):
        await api.get(f"{PODS}/p/log")
    asked: list[Any] = []

    async def source(namespace: str, name: str, container: str, options: Mapping[str, str]) -> AsyncIterator[bytes]:
        asked.append((namespace, name, container, dict(options)))

        async def lines() -> AsyncIterator[bytes]:
            yield b"one\n"
            yield b"two\n"

        return lines()

    api.server.set_log_source(source)
    assert await api.get(f"{PODS}/p/log", tailLines=2) == b"one\ntwo\n"
    assert asked == [("default", "p", "c", {"tailLines": "2"})]
    with fails(400):
        await api.get(f"{PODS}/p/log", container="nobody")


async def test_everybody_may_do_everything(api: Api) -> None:
    attributes = {"resourceAttributes": {"verb": "create", "resource": "pods"}}
    answer = await api.post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", {"spec": attributes})
    assert answer["status"]["allowed"] is True


async def test_empty_and_zero_values_are_left_out_as_go_does(api: Api) -> None:
    made = await api.post(PODS, pod(nodeName="", hostNetwork=False, volumes=[], nodeSelector={}))
    assert not made["spec"].keys() & {"nodeName", "hostNetwork", "volumes", "nodeSelector"}


async def test_a_config_map_may_be_made_immutable(api: Api) -> None:
    path = "/api/v1/namespaces/default/configmaps"
    await api.post(path, {"metadata": {"name": "a"}, "data": {"k": "v"}, "immutable": True})
    with fails(422) as caught:
        await api.merge(f"{path}/a", {"data": {"k": "w"}})
    assert "field is immutable when `immutable` is set" in caught.value.message


async def test_every_built_in_kind_can_be_listed_and_printed(api: Api) -> None:
    accept = "application/json;as=Table;v=v1;g=meta.k8s.io"
    for resource in list(api.server.backend.registry.stored()):
        base = f"/apis/{resource.group}/{resource.version}" if resource.group else f"/api/{resource.version}"
        table = await api.get(f"{base}/{resource.plural}", accept=accept)
        assert table["columnDefinitions"], resource.kind


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("1024Mi", "1Gi"),
        ("1.5Gi", "1536Mi"),
        ("512Ki", "512Ki"),
        ("0.5", "500m"),
        ("1500m", "1500m"),
        ("1000m", "1"),
        ("2000", "2k"),
        ("100", "100"),
        ("0", "0"),
        ("0Gi", "0"),
        ("1e3", "1e3"),
        ("100Ei", "100Ei"),
        ("0.1n", "1n"),
    ],
)
def test_quantities_have_one_form(text: str, canonical: str) -> None:
    assert canonical_quantity(text) == canonical
    assert canonical_quantity(canonical) == canonical


async def test_times_and_quantities_are_kept_in_one_form(api: Api) -> None:
    path = "/apis/coordination.k8s.io/v1/namespaces/default/leases"
    made = await api.post(path, {"metadata": {"name": "l"}, "spec": {"renewTime": "2026-01-01T01:00:00.5+01:00"}})
    assert made["spec"]["renewTime"] == "2026-01-01T00:00:00.500000Z"
    with fails(400) as caught:
        await api.post(path, {"metadata": {"name": "m"}, "spec": {"renewTime": "yesterday"}})
    assert 'parsing time "yesterday"' in caught.value.message
    body = pod()
    body["spec"]["containers"][0]["resources"] = {"limits": {"memory": "2048Mi", "cpu": 0.5}}
    made = await api.post(PODS, body)
    assert made["spec"]["containers"][0]["resources"]["limits"] == {"memory": "2Gi", "cpu": "500m"}
    body["spec"]["containers"][0]["resources"] = {"limits": {"memory": "lots"}}
    with fails(400) as caught:
        await api.post(PODS, body)
    assert "quantities must match the regular expression" in caught.value.message
