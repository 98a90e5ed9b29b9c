"""What a server says about itself."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conformance.objects import crd, widget_crd
from tests.conformance.wire import Api, Obj, fails


@pytest.mark.parametrize("path", ["/healthz", "/livez", "/readyz", "/readyz/ping"])
async def test_health(api: Api, path: str) -> None:
    assert await api.get(path) == b"ok"


async def test_the_version(api: Api) -> None:
    version = await api.get("/version")
    assert version["major"] == "1"
    assert version["gitVersion"].startswith(f"v1.{version['minor'].rstrip('+')}")
    assert set(version) >= {"gitCommit", "gitTreeState", "buildDate", "goVersion", "compiler", "platform"}


async def test_the_root_lists_paths(api: Api) -> None:
    paths = (await api.get("/"))["paths"]
    assert {"/api", "/api/v1", "/apis", "/apis/apps", "/apis/apps/v1", "/version", "/healthz"} <= set(paths)


async def test_the_core_group(api: Api) -> None:
    found = await api.get("/api")
    assert (found["kind"], found["versions"]) == ("APIVersions", ["v1"])
    assert found["serverAddressByClientCIDRs"][0]["clientCIDR"] == "0.0.0.0/0"


async def test_the_groups(api: Api) -> None:
    found = await api.get("/apis")
    assert (found["kind"], found["apiVersion"]) == ("APIGroupList", "v1")
    groups = {group["name"]: group for group in found["groups"]}
    assert groups["apps"]["preferredVersion"] == {"groupVersion": "apps/v1", "version": "v1"}
    assert {"apps", "batch", "coordination.k8s.io", "rbac.authorization.k8s.io", "apiextensions.k8s.io"} <= set(groups)


async def test_one_group(api: Api) -> None:
    found = await api.get("/apis/apps")
    assert (found["kind"], found["apiVersion"], found["name"]) == ("APIGroup", "v1", "apps")
    assert {"groupVersion": "apps/v1", "version": "v1"} in found["versions"]


def _entries(found: Obj) -> dict[str, Obj]:
    return {entry["name"]: entry for entry in found["resources"]}


CORE: list[tuple[str, str, bool, set[str]]] = [
    ("pods", "Pod", True, {"po"}),
    ("services", "Service", True, {"svc"}),
    ("configmaps", "ConfigMap", True, {"cm"}),
    ("secrets", "Secret", True, set()),
    ("namespaces", "Namespace", False, {"ns"}),
    ("nodes", "Node", False, {"no"}),
    ("serviceaccounts", "ServiceAccount", True, {"sa"}),
    ("events", "Event", True, {"ev"}),
    ("persistentvolumeclaims", "PersistentVolumeClaim", True, {"pvc"}),
    ("persistentvolumes", "PersistentVolume", False, {"pv"}),
    ("endpoints", "Endpoints", True, {"ep"}),
]


@pytest.mark.parametrize(("plural", "kind", "namespaced", "short"), CORE)
async def test_a_core_resource(api: Api, plural: str, kind: str, namespaced: bool, short: set[str]) -> None:
    found = await api.get("/api/v1")
    assert (found["kind"], found["groupVersion"]) == ("APIResourceList", "v1")
    entry = _entries(found)[plural]
    assert (entry["kind"], entry["namespaced"], set(entry.get("shortNames", ()))) == (kind, namespaced, short)
    wanted = {"create", "delete", "get", "list", "patch", "update", "watch"}
    assert wanted <= set(entry["verbs"])
    # Namespaces are deleted one at a time; services were, at first.
    if plural != "services" or api.version >= (1, 23):
        assert ("deletecollection" in entry["verbs"]) is (plural != "namespaces")


@pytest.mark.parametrize(
    ("path", "name", "kind"),
    [
        ("/api/v1", "pods/status", "Pod"),
        ("/api/v1", "pods/log", "Pod"),
        ("/api/v1", "pods/binding", "Binding"),
        ("/api/v1", "pods/eviction", "Eviction"),
        ("/api/v1", "namespaces/finalize", "Namespace"),
        ("/api/v1", "serviceaccounts/token", "TokenRequest"),
        ("/apis/apps/v1", "deployments/scale", "Scale"),
        ("/apis/apps/v1", "deployments/status", "Deployment"),
        ("/apis/batch/v1", "jobs/status", "Job"),
    ],
)
async def test_a_subresource(api: Api, path: str, name: str, kind: str) -> None:
    entry = _entries(await api.get(path))[name]
    assert (entry["kind"], entry["singularName"]) == (kind, "")
    if kind == "Scale":
        assert (entry["group"], entry["version"]) == ("autoscaling", "v1")


async def _custom(api: Api, unique: str) -> tuple[str, Obj]:
    definition = widget_crd()
    group = f"{unique}.kaito.sh"
    definition["metadata"]["name"] = f"widgets.{group}"
    definition["spec"]["group"] = group
    await api.define(definition)
    return group, definition


async def test_a_custom_kind_is_discovered(api: Api, unique: str) -> None:
    group, _ = await _custom(api, unique)
    assert (await api.get(f"/apis/{group}"))["preferredVersion"] == {"groupVersion": f"{group}/v1", "version": "v1"}
    entries = _entries(await api.get(f"/apis/{group}/v1"))
    assert set(entries) == {"widgets", "widgets/status", "widgets/scale"}
    entry = entries["widgets"]
    assert (entry["kind"], entry["singularName"], entry["namespaced"]) == ("Widget", "widget", True)
    assert (entry["shortNames"], entry["categories"]) == (["wd"], ["all", "things"])
    assert sorted(entry["verbs"]) == [
        "create",
        "delete",
        "deletecollection",
        "get",
        "list",
        "patch",
        "update",
        "watch",
    ]
    assert sorted(entries["widgets/status"]["verbs"]) == ["get", "patch", "update"]


async def test_a_custom_kind_of_the_cluster_is_not_namespaced(api: Api, unique: str) -> None:
    kind = await api.define(crd("wholes", "Whole", {}, group=f"{unique}.kaito.sh", scope="Cluster"))
    assert _entries(await api.get(f"/apis/{kind.rpartition('/')[0]}"))["wholes"]["namespaced"] is False
    made = await api.post(
        api.cluster(kind), {"apiVersion": kind.rpartition("/")[0], "kind": "Whole", "metadata": {"name": "x"}}
    )
    assert "namespace" not in made["metadata"]


@pytest.mark.minimum("1.30")
@pytest.mark.parametrize("path", ["/api", "/apis"])
async def test_discovery_in_one_document(api: Api, path: str) -> None:
    accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json"
    found = await api.get(path, accept=accept)
    assert (found["kind"], found["apiVersion"]) == ("APIGroupDiscoveryList", "apidiscovery.k8s.io/v2")
    assert "as=APIGroupDiscoveryList" in api.headers["content-type"]
    groups: dict[str, Any] = {item["metadata"].get("name", ""): item for item in found["items"]}
    wanted, plural = ("", "pods") if path == "/api" else ("apps", "deployments")
    resources = {r["resource"]: r for r in groups[wanted]["versions"][0]["resources"]}
    assert resources[plural]["scope"] == "Namespaced"
    assert "list" in resources[plural]["verbs"]


async def test_openapi_describes_kinds(api: Api) -> None:
    found = await api.get("/openapi/v2")
    assert found["swagger"] == "2.0"
    definition = found["definitions"]["io.k8s.api.core.v1.ConfigMap"]
    assert definition["x-kubernetes-group-version-kind"] == [{"group": "", "kind": "ConfigMap", "version": "v1"}]


async def test_what_the_server_says_of_itself_can_only_be_read(api: Api) -> None:
    for path in ("/api", "/api/v1", "/version"):
        with fails(405, "MethodNotAllowed", "the server does not allow this method on the requested resource"):
            await api.post(path, {})
