"""Who may do what: roles, bindings, refusals word for word, impersonation, and reviews that ask about it."""

from __future__ import annotations

import msgspec
import pytest

from tests.conformance.objects import config_map
from tests.conformance.wire import Api, Obj, fails

RBAC = "rbac.authorization.k8s.io/v1"
AUTHORIZATION = "authorization.k8s.io/v1"
GROUP = "rbac.authorization.k8s.io"


def rule(verbs: str, resources: str, group: str = "", **more: list[str]) -> Obj:
    return {"apiGroups": [group], "resources": resources.split(), "verbs": verbs.split(), **more}


def role(name: str, *rules: Obj, **metadata: object) -> Obj:
    return {"metadata": {"name": name, **metadata}, "rules": list(rules)}


def binding(name: str, role: str, user: str, kind: str = "Role") -> Obj:
    return {
        "metadata": {"name": name},
        "roleRef": {"apiGroup": GROUP, "kind": kind, "name": role},
        "subjects": [{"apiGroup": GROUP, "kind": "User", "name": user}],
    }


class As:
    """Requests on behalf of somebody else."""

    def __init__(self, api: Api, user: str, group: str = "") -> None:
        self.api = api
        self.headers = {"impersonate-user": user} | ({"impersonate-group": group} if group else {})

    async def __call__(self, method: str, path: str, body: object = None, **options: object) -> Obj:
        found: Obj = await self.api(method, path, body, headers=self.headers, **options)
        return found

    async def allowed(self, verb: str, resource: str, namespace: str = "", **more: str) -> bool:
        about = {"verb": verb, "resource": resource, "namespace": namespace, **more}
        path = self.api.cluster(f"{AUTHORIZATION}/selfsubjectaccessreviews")
        answer = await self("POST", path, {"spec": {"resourceAttributes": about}})
        return bool(answer["status"]["allowed"])


async def grant(api: Api, user: str, *rules: Obj, name: str = "granted") -> None:
    """Give *user* those rules in the case's namespace, and wait until the authorizer has heard of it."""
    await api.post(api.at(f"{RBAC}/roles"), role(name, *rules))
    await api.post(api.at(f"{RBAC}/rolebindings"), binding(name, name, user))
    await heard(api, user, rules[-1], api.namespace)


async def heard(api: Api, user: str, granted: Obj, namespace: str = "") -> None:
    """A real authorizer reads roles from a cache, which is a moment late."""
    resource, _, sub = granted["resources"][0].partition("/")
    name = (granted.get("resourceNames") or [""])[0]
    about = {"group": granted["apiGroups"][0], "subresource": sub, "name": name}
    asked = As(api, user)
    await api.eventually(lambda: asked.allowed(granted["verbs"][0], resource, namespace, **about))


async def test_who_has_no_rights_is_told_word_for_word(api: Api) -> None:
    jane = As(api, "jane")
    where = f'in API group "" in the namespace "{api.namespace}"'
    who = 'is forbidden: User "jane" cannot'
    with fails(403, "Forbidden", f'configmaps {who} list resource "configmaps" {where}') as caught:
        await jane("GET", api.at("configmaps"))
    assert caught.value.details == {"kind": "configmaps"}
    with fails(403, "Forbidden", f'configmaps "a" {who} get resource "configmaps" {where}') as caught:
        await jane("GET", api.at("configmaps", "a"))
    assert caught.value.details == {"name": "a", "kind": "configmaps"}
    with fails(403, "Forbidden", f'configmaps {who} create resource "configmaps" {where}'):
        await jane("POST", api.at("configmaps"), config_map())
    with fails(403, "Forbidden", f'configmaps {who} deletecollection resource "configmaps" {where}'):
        await jane("DELETE", api.at("configmaps"))
    with fails(403, "Forbidden", f'configmaps {who} watch resource "configmaps" {where}'):
        await jane("GET", api.at("configmaps"), watch=True)
    with fails(403, "Forbidden", f'pods "p" {who} get resource "pods/log" {where}'):
        await jane("GET", api.at("pods", "p", "log"))
    with fails(403, "Forbidden", f'nodes {who} list resource "nodes" in API group "" at the cluster scope'):
        await jane("GET", api.cluster("nodes"))
    with fails(403, "Forbidden") as caught:
        await jane("GET", api.at("apps/v1/deployments"))
    assert caught.value.message.startswith("deployments.apps is forbidden: ")
    assert caught.value.details == {"group": "apps", "kind": "deployments"}


async def test_a_kind_that_is_not_served_is_refused_before_it_is_missed(api: Api) -> None:
    with fails(403, "Forbidden", 'x.no.such is forbidden: User "jane" cannot list resource "x" in API group "no.such" '
               "at the cluster scope"):  # fmt: skip
        await As(api, "jane")("GET", "/apis/no.such/v1/x")


async def test_paths_that_are_no_resources_have_rules_of_their_own(api: Api) -> None:
    jane = As(api, "jane")
    assert await jane("GET", "/version")
    assert (await jane("GET", "/api"))["versions"] == ["v1"]
    with fails(403, "Forbidden", 'forbidden: User "jane" cannot get path "/metrics"'):
        await jane("GET", "/metrics")


async def test_a_role_allows_what_it_says_where_it_is_bound(api: Api) -> None:
    await grant(api, "jane", rule("create get list", "configmaps"))
    jane = As(api, "jane")
    await jane("POST", api.at("configmaps"), config_map())
    assert (await jane("GET", api.at("configmaps", "a")))["data"] == {"k": "v"}
    await jane("GET", api.at("configmaps"))
    with fails(403):
        await jane("DELETE", api.at("configmaps", "a"))
    with fails(403):
        await jane("GET", "/api/v1/namespaces/default/configmaps")
    with fails(403):
        await jane("GET", api.cluster("configmaps"))
    with fails(403):
        await As(api, "joe")("GET", api.at("configmaps"))


async def test_resource_names_narrow_a_rule(api: Api) -> None:
    await grant(api, "jane", rule("get list delete", "configmaps", resourceNames=["a"]))
    jane = As(api, "jane")
    await api.post(api.at("configmaps"), config_map())
    await api.post(api.at("configmaps"), config_map("b"))
    await jane("GET", api.at("configmaps", "a"))
    with fails(403):
        await jane("GET", api.at("configmaps", "b"))
    with fails(403):
        await jane("GET", api.at("configmaps"))
    only = await jane("GET", api.at("configmaps"), fieldSelector="metadata.name=a")
    assert [item["metadata"]["name"] for item in only["items"]] == ["a"]


async def test_a_subresource_is_a_resource_of_its_own(api: Api) -> None:
    await grant(api, "jane", rule("get", "deployments", "apps"), rule("get", "*/scale", "*"))
    jane = As(api, "jane")
    assert await jane.allowed("get", "deployments", api.namespace, group="apps")
    assert await jane.allowed("get", "deployments", api.namespace, group="apps", subresource="scale")
    assert await jane.allowed("get", "replicasets", api.namespace, group="apps", subresource="scale")
    assert not await jane.allowed("get", "deployments", api.namespace, group="apps", subresource="status")
    assert not await jane.allowed("get", "replicasets", api.namespace, group="apps")


async def test_a_namespace_can_be_read_by_rights_in_it(api: Api) -> None:
    await grant(api, "jane", rule("get", "namespaces"))
    found = await As(api, "jane")("GET", api.cluster("namespaces", api.namespace))
    assert found["metadata"]["name"] == api.namespace
    with fails(403, "Forbidden", 'namespaces "default" is forbidden: User "jane" cannot get resource "namespaces" in '
               'API group "" in the namespace "default"'):  # fmt: skip
        await As(api, "jane")("GET", api.cluster("namespaces", "default"))


async def test_groups_and_service_accounts_are_subjects_too(api: Api) -> None:
    await api.post(api.at(f"{RBAC}/roles"), role("reader", rule("list", "configmaps")))
    bound = binding("b", "reader", "nobody")
    account = {"kind": "ServiceAccount", "name": "robot", "namespace": api.namespace}
    bound["subjects"] += [{"apiGroup": GROUP, "kind": "Group", "name": "devs"}, account]
    await api.post(api.at(f"{RBAC}/rolebindings"), bound)
    await heard(api, "nobody", rule("list", "configmaps"), api.namespace)
    await As(api, "jane", "devs")("GET", api.at("configmaps"))
    await As(api, f"system:serviceaccount:{api.namespace}:robot")("GET", api.at("configmaps"))
    with fails(403):
        await As(api, "system:serviceaccount:default:robot")("GET", api.at("configmaps"))
    with fails(403):
        await As(api, "jane", "ops")("GET", api.at("configmaps"))


async def test_a_cluster_role_is_bound_everywhere_or_in_one_namespace(api: Api, unique: str) -> None:
    await api.post(api.cluster(f"{RBAC}/clusterroles"), role(unique, rule("list", "configmaps nodes")))
    await api.post(api.at(f"{RBAC}/rolebindings"), binding("b", unique, f"{unique}-local", "ClusterRole"))
    everywhere = binding(unique, unique, f"{unique}-global", "ClusterRole")
    await api.post(api.cluster(f"{RBAC}/clusterrolebindings"), everywhere)
    await heard(api, f"{unique}-local", rule("list", "configmaps"), api.namespace)
    await heard(api, f"{unique}-global", rule("list", "nodes"))
    local, wide = As(api, f"{unique}-local"), As(api, f"{unique}-global")
    await local("GET", api.at("configmaps"))
    with fails(403):
        await local("GET", api.cluster("nodes"))
    await wide("GET", api.cluster("nodes"))
    await wide("GET", api.cluster("configmaps"))


async def test_a_binding_of_a_missing_role_is_named_in_the_refusal(api: Api) -> None:
    await api.post(api.at(f"{RBAC}/rolebindings"), binding("b", "nowhere", "jane"))
    await grant(api, "jane", rule("get", "configmaps"))
    with fails(403) as caught:
        await As(api, "jane")("GET", api.at("secrets"))
    assert caught.value.message.endswith(': RBAC: role.rbac.authorization.k8s.io "nowhere" not found')


async def test_nobody_grants_what_they_do_not_have(api: Api) -> None:
    await grant(api, "jane", rule("create update", "roles rolebindings", GROUP), rule("get list", "configmaps"))
    jane = As(api, "jane")
    roles, bindings = api.at(f"{RBAC}/roles"), api.at(f"{RBAC}/rolebindings")
    await jane("POST", roles, role("less", rule("get", "configmaps")))
    with fails(403, "Forbidden") as caught:
        await jane("POST", roles, role("more", rule("get", "configmaps secrets"), rule("list", "secrets")))
    assert caught.value.message == (
        'roles.rbac.authorization.k8s.io "more" is forbidden: user "jane" (groups=["system:authenticated"]) is '
        "attempting to grant RBAC permissions not currently held:\n"
        '{APIGroups:[""], Resources:["secrets"], Verbs:["get" "list"]}'
    )
    with fails(403, "Forbidden"):
        await jane("PUT", f"{roles}/less", role("less", rule("*", "configmaps")))
    await jane("PUT", f"{roles}/less", role("less", rule("list", "configmaps")))
    await jane("POST", bindings, binding("ok", "less", "joe"))
    await api.post(roles, role("more", rule("get", "secrets")))
    await api.eventually(lambda: _has(api, f"{roles}/more"))
    with fails(403, "Forbidden") as caught:
        await jane("POST", bindings, binding("bad", "more", "jane"))
    assert caught.value.message.startswith('rolebindings.rbac.authorization.k8s.io "bad" is forbidden: user "jane"')
    with fails(404, "NotFound", 'roles.rbac.authorization.k8s.io "none" not found'):
        await jane("POST", bindings, binding("bad", "none", "jane"))


async def _has(api: Api, path: str) -> bool:
    return not await api.missing(path)


async def test_bind_and_escalate_are_rights_of_their_own(api: Api) -> None:
    roles, bindings = api.at(f"{RBAC}/roles"), api.at(f"{RBAC}/rolebindings")
    await api.post(roles, role("strong", rule("*", "secrets")))
    await grant(api, "binder", rule("create", "rolebindings", GROUP), rule("bind", "roles", GROUP), name="b")
    await As(api, "binder")("POST", bindings, binding("strong", "strong", "binder"))
    await grant(api, "climber", rule("create", "roles", GROUP), rule("escalate", "roles", GROUP), name="c")
    await As(api, "climber")("POST", roles, role("any", rule("*", "*", "*")))


async def test_acting_as_somebody_must_be_allowed(api: Api) -> None:
    # Somebody who acts as another cannot be told to in one request: the review knows the same rules.
    await grant(api, "jane", rule("impersonate", "serviceaccounts", resourceNames=["robot"]))
    jane = As(api, "jane")
    assert await jane.allowed("impersonate", "serviceaccounts", api.namespace, name="robot")
    assert not await jane.allowed("impersonate", "users", name="joe")
    with fails(500) as caught:
        await api.get(api.at("configmaps"), headers={"impersonate-group": "devs"})
    assert "without impersonating a user" in caught.value.message


@pytest.mark.minimum("1.28")
async def test_who_one_is_can_be_asked(api: Api) -> None:
    path = api.cluster("authentication.k8s.io/v1/selfsubjectreviews")
    jane = await As(api, "jane", "devs")("POST", path, {})
    assert jane["status"]["userInfo"] == {"username": "jane", "groups": ["devs", "system:authenticated"]}
    robot = await As(api, "system:serviceaccount:ns:robot")("POST", path, {})
    assert robot["status"]["userInfo"] == {
        "username": "system:serviceaccount:ns:robot",
        "groups": ["system:serviceaccounts", "system:serviceaccounts:ns", "system:authenticated"],
    }


async def test_access_reviews_answer_for_others(api: Api) -> None:
    await grant(api, "jane", rule("list", "configmaps"))
    everywhere = api.cluster(f"{AUTHORIZATION}/subjectaccessreviews")
    about = {"verb": "list", "resource": "configmaps", "namespace": api.namespace}
    yes = await api.post(everywhere, {"spec": {"user": "jane", "resourceAttributes": about}})
    assert yes["status"] == {
        "allowed": True,
        "reason": f'RBAC: allowed by RoleBinding "granted/{api.namespace}" of Role "granted" to User "jane"',
    }
    no = await api.post(everywhere, {"spec": {"user": "joe", "resourceAttributes": about}})
    assert no["status"] == {"allowed": False}
    path = {"verb": "get", "path": "/version"}
    body = {"spec": {"user": "joe", "groups": ["system:authenticated"], "nonResourceAttributes": path}}
    assert (await api.post(everywhere, body))["status"]["allowed"] is True
    local = api.at(f"{AUTHORIZATION}/localsubjectaccessreviews")
    body = {"metadata": {"namespace": api.namespace}, "spec": {"user": "jane", "resourceAttributes": about}}
    assert (await api.post(local, body))["status"]["allowed"] is True
    with fails(422) as caught:
        await api.post(everywhere, {"spec": {}})
    assert caught.value.fields == ["spec.resourceAttributes", "spec.user"]
    with fails(422) as caught:
        await api.post(everywhere, {"spec": {"user": "a", "resourceAttributes": about, "nonResourceAttributes": path}})
    assert caught.value.fields == ["spec.nonResourceAttributes"]


async def test_the_rules_of_ones_own_can_be_listed(api: Api) -> None:
    await grant(api, "jane", rule("get list", "configmaps", resourceNames=["a"]))
    path = api.cluster(f"{AUTHORIZATION}/selfsubjectrulesreviews")
    status = (await As(api, "jane")("POST", path, {"spec": {"namespace": api.namespace}}))["status"]
    assert status["incomplete"] is False
    assert rule("get list", "configmaps", resourceNames=["a"]) in status["resourceRules"]
    assert any("/version" in found["nonResourceURLs"] for found in status["nonResourceRules"])
    with fails(400, "BadRequest", "no namespace on request"):
        await As(api, "jane")("POST", path, {"spec": {}})


async def test_the_roles_that_users_expect_are_there(api: Api) -> None:
    roles = {item["metadata"]["name"] for item in (await api.get(api.cluster(f"{RBAC}/clusterroles")))["items"]}
    assert roles >= {"admin", "cluster-admin", "edit", "view", "system:discovery", "system:basic-user",
                     "system:public-info-viewer", "system:auth-delegator", "system:node",
                     "system:aggregate-to-admin", "system:aggregate-to-edit", "system:aggregate-to-view"}  # fmt: skip
    bound = await api.get(api.cluster(f"{RBAC}/clusterrolebindings", "system:public-info-viewer"))
    assert bound["subjects"] == [
        {"apiGroup": GROUP, "kind": "Group", "name": "system:authenticated"},
        {"apiGroup": GROUP, "kind": "Group", "name": "system:unauthenticated"},
    ]
    viewer = await api.get(api.cluster(f"{RBAC}/clusterroles", "view"))
    assert viewer["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-edit"] == "true"


async def test_somebody_unknown_may_see_health_and_version_only(api: Api) -> None:
    nobody = As(api, "system:anonymous")
    assert (await nobody("GET", "/version"))["major"] == "1"
    answer = msgspec.json.encode(str(await nobody("GET", "/healthz")))
    assert b"ok" in answer
    with fails(403, "Forbidden", 'forbidden: User "system:anonymous" cannot get path "/api"'):
        await nobody("GET", "/api")
    with fails(403) as caught:
        await nobody("GET", api.cluster("nodes"))
    assert 'User "system:anonymous" cannot list resource "nodes"' in caught.value.message
