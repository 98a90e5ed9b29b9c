"""Stock kubectl against the server: the verbs of every day."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping

from apihelpers import CM, WS, Api, SteppingClock, workspace, workspace_crd
from kubectlhelpers import DEPLOYMENT, WITH_KUBECTL, Kubectl

pytestmark = WITH_KUBECTL


async def test_apply_get_scale_delete(kubectl: Kubectl) -> None:
    assert await kubectl("apply", "-f", "-", stdin=DEPLOYMENT) == "deployment.apps/web created\n"
    assert await kubectl("apply", "-f", "-", stdin=DEPLOYMENT) == "deployment.apps/web unchanged\n"
    changed = {**DEPLOYMENT, "spec": {**DEPLOYMENT["spec"], "replicas": 4}}  # type: ignore[dict-item]
    assert await kubectl("apply", "-f", "-", stdin=changed) == "deployment.apps/web configured\n"
    header, row = (await kubectl("get", "deploy", "-o", "wide")).splitlines()
    assert header.split() == ["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE", "CONTAINERS", "IMAGES", "SELECTOR"]
    assert row.split()[:2] == ["web", "0/4"]
    await kubectl("scale", "deploy/web", "--replicas=7")
    assert await kubectl("get", "deploy", "web", "-o", "jsonpath={.spec.replicas}") == "7"
    assert "web" in await kubectl("get", "all", "-l", "app=web", "-o", "name")
    assert 'deployment.apps "web" deleted' in await kubectl("delete", "deploy", "web")


async def test_server_side_apply_and_its_conflicts(kubectl: Kubectl) -> None:
    await kubectl("apply", "--server-side", "-f", "-", stdin=DEPLOYMENT)
    changed = {**DEPLOYMENT, "spec": {**DEPLOYMENT["spec"], "replicas": 4}}  # type: ignore[dict-item]
    await kubectl("apply", "--server-side", "--field-manager=other", "-f", "-", stdin=changed, code=1)
    assert 'conflict with "kubectl": .spec.replicas' in kubectl.err
    await kubectl("apply", "--server-side", "--field-manager=other", "--force-conflicts", "-f", "-", stdin=changed)


async def test_a_custom_resource_feels_built_in(kubectl: Kubectl) -> None:
    columns = [
        {"name": "Instance", "type": "string", "jsonPath": ".resource.instanceType"},
        {"name": "Ready", "type": "string", "jsonPath": '.status.conditions[?(@.type=="Ready")].status'},
    ]
    crd = workspace_crd(additionalPrinterColumns=columns)
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["resource"]["description"] = "What to run on."
    crd = {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", **crd}
    await kubectl("apply", "-f", "-", stdin=crd)
    await kubectl("wait", "--for=condition=established", "crd/workspaces.kaito.sh", "--timeout=10s")
    assert await kubectl("apply", "-f", "-", stdin=workspace()) == "workspace.kaito.sh/w created\n"
    assert [line.split() for line in (await kubectl("get", "ws")).splitlines()] == [
        ["NAME", "INSTANCE", "READY"],
        ["w", "gpu"],
    ]
    assert "What to run on." in await kubectl("explain", "workspaces.resource")
    assert "workspaces" in await kubectl("api-resources", "--api-group=kaito.sh")
    wait = asyncio.create_task(kubectl("wait", "--for=condition=Ready", "ws/w", "--timeout=20s"))
    ready = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
    await Api(kubectl.server, SteppingClock()).merge(f"{WS}/w/status", ready)
    assert "condition met" in await wait
    bad = workspace("bad", resource={"count": 0})
    await kubectl("apply", "-f", "-", "--validate=false", stdin=bad, code=1)
    assert "resource.instanceType: Required value" in kubectl.err
    assert "should be greater than or equal to 1" in kubectl.err
    await kubectl("apply", "-f", "-", stdin=workspace("typo", resourze={}), code=1)
    assert "resourze" in kubectl.err
    assert 'workspace.kaito.sh "w" deleted' in await kubectl("delete", "ws", "w")


async def test_describe_shows_events(kubectl: Kubectl) -> None:
    await kubectl("run", "p", "--image=nginx:1", "--restart=Never")
    pod = await kubectl.json("get", "pod", "p")
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": "p.1", "namespace": "default"},
        "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default", "uid": pod["metadata"]["uid"]},
        "reason": "Scheduled",
        "message": "found a place",
        "type": "Normal",
    }
    await kubectl("create", "-f", "-", stdin=event)
    described = await kubectl("describe", "pod", "p")
    assert "found a place" in described
    assert "QoS Class:" in described
    assert "Scheduled" in await kubectl("get", "events")


async def test_edit_patch_replace_label_annotate_diff(kubectl: Kubectl) -> None:
    await kubectl("apply", "-f", "-", stdin=DEPLOYMENT)
    await kubectl("label", "deploy", "web", "a=b")
    await kubectl("annotate", "deploy", "web", "note=x")
    await kubectl("patch", "deploy", "web", "-p", '{"spec":{"paused":true}}')
    await kubectl("patch", "deploy", "web", "--type=json", "-p", '[{"op":"remove","path":"/spec/paused"}]')
    await kubectl("set", "image", "deploy/web", "c=nginx:2")
    found = await kubectl.json("get", "deploy", "web")
    assert found["metadata"]["labels"]["a"] == "b"
    assert found["spec"]["template"]["spec"]["containers"][0]["image"] == "nginx:2"
    changed = {**DEPLOYMENT, "spec": {**DEPLOYMENT["spec"], "replicas": 4}}  # type: ignore[dict-item]
    assert "+  replicas: 4" in await kubectl("diff", "-f", "-", stdin=changed, code=1)
    await kubectl("replace", "-f", "-", stdin=DEPLOYMENT)
    await kubectl("rollout", "restart", "deploy/web")
    assert "restartedAt" in await kubectl("get", "deploy", "web", "-o", "yaml")


async def test_create_commands_of_every_encoding(kubectl: Kubectl) -> None:
    await kubectl("create", "namespace", "team")
    await kubectl("-n", "team", "create", "configmap", "c", "--from-literal=k=v")
    await kubectl("-n", "team", "create", "secret", "generic", "s", "--from-literal=k=v")
    await kubectl("-n", "team", "create", "deployment", "d", "--image=nginx")
    await kubectl("-n", "team", "create", "service", "clusterip", "svc", "--tcp=80:8080")
    await kubectl("-n", "team", "create", "job", "j", "--image=busybox")
    service = await kubectl.json("-n", "team", "get", "svc", "svc")
    assert service["spec"]["ports"][0]["targetPort"] == 8080
    secret = await kubectl.json("-n", "team", "get", "secret", "s")
    assert secret["data"] == {"k": "dg=="}
    assert 'namespace "team" deleted' in await kubectl("delete", "namespace", "team")
    assert "team" not in await kubectl("get", "ns", "-o", "name")


async def test_what_it_says_about_the_cluster(kubectl: Kubectl) -> None:
    assert "v1.32.0" in await kubectl("version")
    assert "apps/v1" in (await kubectl("api-versions")).splitlines()
    assert "is running at" in await kubectl("cluster-info")
    assert (await kubectl("auth", "can-i", "create", "pods")).strip() == "yes"
    assert "containers" in await kubectl("explain", "pods.spec")


async def test_watching_and_logs(kubectl: Kubectl) -> None:
    async def lines(namespace: str, name: str, container: str, options: Mapping[str, str]) -> AsyncIterator[bytes]:
        async def stream() -> AsyncIterator[bytes]:
            yield f"{namespace}/{name}/{container}\n".encode()

        return stream()

    kubectl.server.set_log_source(lines)
    await kubectl("run", "p", "--image=nginx:1", "--restart=Never")
    assert await kubectl("logs", "p") == "default/p/p\n"
    assert await kubectl("logs", "-f", "p") == "default/p/p\n"


async def test_waiting_for_a_deletion(kubectl: Kubectl) -> None:
    held = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "finalizers": ["x/hold"]}}
    await kubectl("create", "-f", "-", stdin=held)
    await kubectl("delete", "cm", "c", "--wait=false")
    before = kubectl.server.backend.watches
    wait = asyncio.create_task(kubectl("wait", "--for=delete", "cm/c", "--timeout=20s"))
    while kubectl.server.backend.watches == before:
        await asyncio.sleep(0.01)
    await Api(kubectl.server, SteppingClock()).merge(f"{CM}/c", {"metadata": {"finalizers": None}})
    assert "condition met" in await wait


async def test_errors_read_as_they_always_do(kubectl: Kubectl) -> None:
    await kubectl("get", "deploy", "nope", code=1)
    assert kubectl.err == 'Error from server (NotFound): deployments.apps "nope" not found\n'
    broken = {**DEPLOYMENT, "metadata": {"name": "Bad_Name"}}
    await kubectl("create", "-f", "-", stdin=broken, code=1)
    assert 'The Deployment "Bad_Name" is invalid: metadata.name' in kubectl.err
    await kubectl("apply", "-f", "-", stdin={**DEPLOYMENT, "spec": {**DEPLOYMENT["spec"], "replicaz": 1}}, code=1)  # type: ignore[dict-item]
    assert "replicaz" in kubectl.err
