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
