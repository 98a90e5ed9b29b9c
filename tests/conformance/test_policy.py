"""Roles, bindings, taints, volumes' claims and network policies: defaults, and what is refused."""

from __future__ import annotations

import pytest

from tests.conformance.wire import Api, Obj, fails

RBAC = "rbac.authorization.k8s.io/v1"


@pytest.mark.parametrize("missing", ["verbs", "apiGroups", "resources"])
async def test_a_rule_of_a_role_is_complete(api: Api, missing: str) -> None:
    rule: Obj = {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}
    await api.post(api.at(f"{RBAC}/roles"), {"metadata": {"name": "good"}, "rules": [rule]})
    del rule[missing]
    with fails(422, "Invalid") as caught:
        await api.post(api.at(f"{RBAC}/roles"), {"metadata": {"name": "bad"}, "rules": [rule]})
    assert caught.value.fields == [f"rules[0].{missing}"]


async def test_a_binding_names_a_role(api: Api) -> None:
    with fails(422, "Invalid") as caught:
        await api.post(api.at(f"{RBAC}/rolebindings"), {"metadata": {"name": "b"}})
    assert caught.value.fields == ["roleRef.kind", "roleRef.name"]


@pytest.mark.parametrize(
    ("taint", "field"),
    [({"key": "a"}, "effect"), ({"key": "a", "effect": "Shrug"}, "effect"), ({"effect": "NoSchedule"}, "key")],
    ids=["no effect", "unknown effect", "no key"],
)
async def test_taints_of_a_node_are_complete(api: Api, unique: str, taint: Obj, field: str) -> None:
    with fails(422, "Invalid") as caught:
        await api.post(api.cluster("nodes"), {"metadata": {"name": unique}, "spec": {"taints": [taint]}})
    assert set(caught.value.fields) == {f"metadata.taints[0].{field}"}


async def test_what_is_bound_never_changes(api: Api) -> None:
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"}
    body = {"metadata": {"name": "b"}, "roleRef": role, "subjects": [{"kind": "User", "name": "u"}]}
    made = await api.post(api.at(f"{RBAC}/rolebindings"), body)
    assert made["subjects"][0]["apiGroup"] == "rbac.authorization.k8s.io"
    with fails(422, "Invalid") as caught:
        await api.merge(api.at(f"{RBAC}/rolebindings", "b"), {"roleRef": {"name": "other"}})
    assert caught.value.fields == ["roleRef"]


async def test_a_claim_says_how_much_and_how(api: Api) -> None:
    with fails(422, "Invalid") as caught:
        await api.post(api.at("persistentvolumeclaims"), {"metadata": {"name": "c"}, "spec": {}})
    assert caught.value.fields == ["spec.accessModes", "spec.resources[storage]"]
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1024Mi"}}}
    made = await api.post(api.at("persistentvolumeclaims"), {"metadata": {"name": "c"}, "spec": spec})
    assert made["spec"]["volumeMode"] == "Filesystem"
    assert made["spec"]["resources"]["requests"] == {"storage": "1Gi"}
    assert made["status"] == {"phase": "Pending"}


@pytest.mark.parametrize(("egress", "types"), [([], ["Ingress"]), ([{}], ["Ingress", "Egress"])])
async def test_a_network_policy_has_types(api: Api, egress: list[Obj], types: list[str]) -> None:
    body = {"metadata": {"name": "n"}, "spec": {"podSelector": {}, "egress": egress}}
    made = await api.post(api.at("networking.k8s.io/v1/networkpolicies"), body)
    assert made["spec"]["policyTypes"] == types


async def test_an_ingress_has_no_balancer_at_first(api: Api) -> None:
    backend = {"service": {"name": "s", "port": {"number": 80}}}
    body = {"metadata": {"name": "i"}, "spec": {"defaultBackend": backend}}
    made = await api.post(api.at("networking.k8s.io/v1/ingresses"), body)
    assert made["status"] == {"loadBalancer": {}}


READ: Obj = {"verbs": ["get"]}


@pytest.mark.parametrize(
    ("rule", "field"),
    [
        ({**READ, "nonResourceURLs": ["/x"], "apiGroups": [""], "resources": ["pods"]}, "rules[0].nonResourceURLs"),
        ({"nonResourceURLs": ["/x"]}, "rules[0].verbs"),
    ],
    ids=["both", "no verbs"],
)
async def test_a_rule_is_about_resources_or_about_urls(api: Api, unique: str, rule: Obj, field: str) -> None:
    with fails(422, "Invalid") as caught:
        await api.post(api.cluster(f"{RBAC}/clusterroles"), {"metadata": {"name": unique}, "rules": [rule]})
    assert caught.value.fields == [field]


async def test_a_role_of_a_namespace_knows_no_urls(api: Api) -> None:
    body = {"metadata": {"name": "r"}, "rules": [{**READ, "nonResourceURLs": ["/x"]}]}
    with fails(422, "Invalid") as caught:
        await api.post(api.at(f"{RBAC}/roles"), body)
    assert "namespaced rules cannot apply to non-resource URLs" in caught.value.message


async def test_a_role_that_gathers_others_says_which(api: Api, unique: str) -> None:
    body = {"metadata": {"name": unique}, "aggregationRule": {"clusterRoleSelectors": []}}
    with fails(422, "Invalid") as caught:
        await api.post(api.cluster(f"{RBAC}/clusterroles"), body)
    assert caught.value.fields == ["aggregationRule.clusterRoleSelectors"]


@pytest.mark.parametrize(
    ("subject", "field"),
    [
        ({"kind": "Robot", "name": "x"}, "subjects[0].kind"),
        ({"kind": "User", "name": ""}, "subjects[0].name"),
        ({"kind": "User", "name": "x", "apiGroup": "y"}, "subjects[0].apiGroup"),
        ({"kind": "ServiceAccount", "name": "x"}, "subjects[0].namespace"),
        ({"kind": "ServiceAccount", "name": "X", "namespace": "n"}, "subjects[0].name"),
    ],
    ids=["kind", "name", "group", "namespace", "name of an account"],
)
async def test_subjects_are_complete(api: Api, unique: str, subject: Obj, field: str) -> None:
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"}
    body = {"metadata": {"name": unique}, "roleRef": role, "subjects": [subject]}
    with fails(422, "Invalid") as caught:
        await api.post(api.cluster(f"{RBAC}/clusterrolebindings"), body)
    assert caught.value.fields == [field]


async def test_a_local_review_is_about_its_namespace(api: Api) -> None:
    path = api.at("authorization.k8s.io/v1/localsubjectaccessreviews")
    about = {"verb": "get", "resource": "pods", "namespace": "elsewhere"}
    body = {"metadata": {"namespace": api.namespace}, "spec": {"user": "u", "resourceAttributes": about}}
    with fails(422, "Invalid") as caught:
        await api.post(path, body)
    assert caught.value.fields == ["spec.resourceAttributes.namespace"]
    body["spec"] = {"user": "u", "nonResourceAttributes": {"verb": "get", "path": "/x"}}
    with fails(422, "Invalid") as caught:
        await api.post(path, body)
    assert caught.value.fields == ["spec.nonResourceAttributes"]


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("storage.k8s.io/v1/storageclasses", {}, "provisioner"),
        ("networking.k8s.io/v1/ingresses", {"spec": {}}, "spec"),
        ("endpoints", {"subsets": [{"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 0}]}]}, "port"),
        ("apps/v1/deployments", {"spec": {"template": {}}}, "spec.template.metadata.labels"),
    ],
)
async def test_what_is_missing_is_named(api: Api, unique: str, path: str, body: Obj, field: str) -> None:
    place = api.cluster(path) if "storageclasses" in path else api.at(path)
    with fails(422, "Invalid") as caught:
        await api.post(place, {"metadata": {"name": unique}, **body})
    assert any(found.endswith(field) for found in caught.value.fields), caught.value.fields
