"""Discovery, OpenAPI, tables: what clients read before they do anything."""

from __future__ import annotations

from typing import Any

import pytest
from apihelpers import CM, CRDS, DEPLOY, PODS, WS, Api, config_map, deployment, fails, pod, workspace, workspace_crd

from kaito_ctrl.devcluster.apiserver.jsonpath import JSONPathError, compile_path, find
from kaito_ctrl.devcluster.apiserver.table import human_duration

TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"


async def test_health_and_version(api: Api) -> None:
    for path in ("/healthz", "/livez", "/readyz"):
        assert await api.get(path) == b"ok"
    assert (await api.get("/version"))["gitVersion"] == "v1.32.0"


async def test_groups_and_resources(api: Api) -> None:
    assert (await api.get("/api"))["versions"] == ["v1"]
    groups = {g["name"]: g for g in (await api.get("/apis"))["groups"]}
    assert groups["apps"]["preferredVersion"] == {"groupVersion": "apps/v1", "version": "v1"}
    listed = {r["name"]: r for r in (await api.get("/apis/apps/v1"))["resources"]}
    assert listed["deployments"]["shortNames"] == ["deploy"]
    assert listed["deployments"]["categories"] == ["all"]
    assert (listed["deployments/scale"]["group"], listed["deployments/scale"]["kind"]) == ("autoscaling", "Scale")
    assert {"deployments/status", "replicasets"} <= listed.keys()
    assert (await api.get("/apis/apps"))["kind"] == "APIGroup"
    with fails(404):
        await api.get("/apis/apps/v2")


@pytest.mark.parametrize("version", ["v2", "v2beta1"])
async def test_aggregated_discovery(api: Api, version: str) -> None:
    accept = f"application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList,application/json"
    found = await api.get("/apis", accept=accept)
    assert (found["kind"], found["apiVersion"]) == ("APIGroupDiscoveryList", f"apidiscovery.k8s.io/{version}")
    apps = next(i for i in found["items"] if i["metadata"]["name"] == "apps")
    deployments = next(r for r in apps["versions"][0]["resources"] if r["resource"] == "deployments")
    assert deployments["responseKind"] == {"group": "apps", "version": "v1", "kind": "Deployment"}
    assert [s["subresource"] for s in deployments["subresources"]] == ["scale", "status"]
    core = await api.get("/api", accept=accept)
    assert core["items"][0]["versions"][0]["version"] == "v1"


async def test_a_new_kind_appears_and_disappears_everywhere(api: Api) -> None:
    async def known() -> list[bool]:
        groups = [g["name"] for g in (await api.get("/apis"))["groups"]]
        index = (await api.get("/openapi/v3"))["paths"]
        definitions = (await api.get("/openapi/v2"))["definitions"]
        return ["kaito.sh" in groups, "apis/kaito.sh/v1alpha1" in index, "sh.kaito.v1alpha1.Workspace" in definitions]

    assert await known() == [False] * 3
    await api.post(CRDS, workspace_crd())
    assert await known() == [True] * 3
    await api.delete(f"{CRDS}/workspaces.kaito.sh")
    assert await known() == [False] * 3


async def test_openapi_v3_says_how_to_patch(api: Api) -> None:
    document = await api.get("/openapi/v3/apis/apps/v1")
    patch = document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"]
    assert patch["x-kubernetes-group-version-kind"] == {"group": "apps", "kind": "Deployment", "version": "v1"}
    assert {"dryRun", "fieldManager", "fieldValidation", "force"} == {p["name"] for p in patch["parameters"]}
    schemas = document["components"]["schemas"]
    containers = schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"]
    assert containers["x-kubernetes-patch-merge-key"] == "name"


async def test_every_reference_of_a_document_resolves(api: Api) -> None:
    def references(node: Any) -> Any:
        if isinstance(node, dict):
            if isinstance(node.get("$ref"), str):
                yield node["$ref"]
            for child in node.values():
                yield from references(child)
        elif isinstance(node, list):
            for child in node:
                yield from references(child)

    await api.post(CRDS, workspace_crd())
    v2 = await api.get("/openapi/v2")
    assert {r.removeprefix("#/definitions/") for r in references(v2)} <= v2["definitions"].keys()
    for name in (await api.get("/openapi/v3"))["paths"]:
        document = await api.get(f"/openapi/v3/{name}")
        schemas = document["components"]["schemas"]
        assert {r.removeprefix("#/components/schemas/") for r in references(document)} <= schemas.keys()


async def test_the_protobuf_form_is_what_old_clients_ask_for(api: Api) -> None:
    accept = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"
    async with await api.send("GET", "/openapi/v2", accept=accept) as response:
        body = await response.read()
    assert response.headers["content-type"] == "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
    assert body.startswith(b"\x0a\x032.0")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (119, "119s"), (120, "2m"), (150, "2m30s"), (600, "10m"), (3600 * 4, "4h"), (3600 * 5 + 120, "5h2m"),
     (3600 * 47, "47h"), (86400 * 3, "3d"), (86400 * 3 + 3600, "3d1h"), (86400 * 400, "400d"), (86400 * 800, "2y70d")],
)  # fmt: skip
def test_durations_are_shown_short(seconds: int, text: str) -> None:
    assert human_duration(seconds) == text


async def cells(api: Api, path: str) -> dict[str, Any]:
    table = await api.get(path, accept=TABLE)
    return dict(zip([c["name"] for c in table["columnDefinitions"]], table["rows"][0]["cells"], strict=True))


async def test_the_table_of_a_pod(api: Api) -> None:
    await api.post(PODS, pod(nodeName="n1"))
    shown = await cells(api, f"{PODS}/p")
    assert (shown["Ready"], shown["Status"], shown["Restarts"], shown["IP"]) == ("0/1", "Pending", "0", "<none>")
    status = {
        "phase": "Running",
        "podIP": "10.0.0.1",
        "containerStatuses": [
            {
                "name": "c",
                "image": "i",
                "imageID": "",
                "ready": False,
                "restartCount": 3,
                "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                "lastState": {"terminated": {"exitCode": 1, "finishedAt": "2025-12-31T23:59:00Z"}},
            }
        ],
    }
    await api.merge(f"{PODS}/p/status", {"status": status})
    shown = await cells(api, f"{PODS}/p")
    assert (shown["Status"], shown["Restarts"], shown["IP"]) == ("CrashLoopBackOff", "3 (60s ago)", "10.0.0.1")
    await api.delete(f"{PODS}/p")
    assert (await cells(api, f"{PODS}/p"))["Status"] == "Terminating"


async def test_the_tables_of_a_node_and_a_deployment(api: Api) -> None:
    node = {"metadata": {"name": "n", "labels": {"node-role.kubernetes.io/worker": ""}}}
    await api.post("/api/v1/nodes", node)
    shown = await cells(api, "/api/v1/nodes")
    assert (shown["Status"], shown["Roles"]) == ("Unknown", "worker")
    ready = {"conditions": [{"type": "Ready", "status": "True"}], "nodeInfo": {"kubeletVersion": "v1"}}
    await api.merge("/api/v1/nodes/n/status", {"status": ready})
    await api.merge("/api/v1/nodes/n", {"spec": {"unschedulable": True}})
    assert (await cells(api, "/api/v1/nodes"))["Status"] == "Ready,SchedulingDisabled"
    await api.post(DEPLOY, deployment(replicas=3))
    await api.merge(f"{DEPLOY}/d/status", {"status": {"readyReplicas": 2, "updatedReplicas": 3}})
    shown = await cells(api, DEPLOY)
    assert (shown["Ready"], shown["Up-to-date"], shown["Available"], shown["Images"]) == ("2/3", 3, 0, "nginx:1")


@pytest.mark.parametrize(("include", "kind"), [("Metadata", "PartialObjectMetadata"), ("Object", "ConfigMap")])
async def test_rows_carry_what_is_asked_for(api: Api, include: str, kind: str) -> None:
    await api.post(CM, config_map())
    table = await api.get(CM, accept=TABLE, includeObject=include)
    assert table["rows"][0]["object"]["kind"] == kind
    assert (await api.get(CM, accept=TABLE, includeObject="None"))["rows"][0]["object"] is None
    beta = await api.get(CM, accept="application/json;as=Table;v=v1beta1;g=meta.k8s.io")
    assert beta["apiVersion"] == "meta.k8s.io/v1beta1"


async def test_an_unknown_form_is_not_acceptable(api: Api) -> None:
    with fails(406):
        await api.get(CM, accept="application/vnd.example")


async def test_custom_resources_show_name_and_age_by_default(api: Api) -> None:
    await api.post(CRDS, workspace_crd())
    await api.post(WS, workspace())
    assert await cells(api, WS) == {"Name": "w", "Age": "0s"}


DOC = {
    "a": {"b": [1, 2, 3]},
    "x.y": {"z/w": "dotted"},
    "conditions": [{"type": "Ready", "status": "True", "n": 3}, {"type": "Other", "status": "False", "n": 7}],
}


@pytest.mark.parametrize(
    ("path", "found"),
    [
        (".a.b", [[1, 2, 3]]),
        ("{.a.b[0]}", [1]),
        (".a.b[-1]", [3]),
        (".a.b[0:2]", [1, 2]),
        (".a.b[*]", [1, 2, 3]),
        (".x\\.y.z/w", ["dotted"]),
        ("['x.y']['z/w']", ["dotted"]),
        ('.conditions[?(@.type=="Ready")].status', ["True"]),
        (".conditions[?(@.type=='Nope')].status", []),
        (".conditions[?(@.n>5)].type", ["Other"]),
        (".conditions[*].type", ["Ready", "Other"]),
        ("..type", ["Ready", "Other"]),
        ("$.a.b[5]", []),
        (".missing.more", []),
    ],
)
def test_json_paths(path: str, found: list[Any]) -> None:
    assert find(path, DOC) == found


@pytest.mark.parametrize("path", [".a[", ".a[x]", ".a[?(b)]", ".a..", "."])
def test_text_that_is_no_json_path(path: str) -> None:
    if path in {".a..", "."}:
        assert compile_path(path)
        return
    with pytest.raises(JSONPathError):
        compile_path(path)
