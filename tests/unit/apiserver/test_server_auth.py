"""Who is let in, for how long, and as whom: what the conformance cases cannot turn a clock for."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import msgspec
import pytest
from apihelpers import CM, Obj, SteppingClock, config_map
from multidict import CIMultiDict
from test_server_tcp import trusting

from kaito_ctrl.devcluster.apiserver import ApiServer, User, serve
from kaito_ctrl.runtime.transport import Request

RBAC = "/apis/rbac.authorization.k8s.io/v1"
GROUP = "rbac.authorization.k8s.io"


@pytest.fixture
async def guarded(clock: SteppingClock) -> AsyncIterator[ApiServer]:
    server = ApiServer(clock=clock, rng=random.Random(7), rbac=True)
    yield server
    await server.aclose()


async def ask(
    server: ApiServer, method: str, path: str, body: Obj | None = None, *, user: User | None = None, token: str = ""
) -> tuple[int, Obj]:
    """Status and body of one request that says who it is from, or does not."""
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {token}"} if token else {})
    raw = msgspec.json.encode(body) if body is not None else None
    response = await server.handle(Request(method, path, (), headers, raw), user=user)
    answer = await response.read()
    return response.status, msgspec.json.decode(answer) if answer.startswith(b"{") else {"text": answer.decode()}


ADMIN = User.administrator("admin")


async def issued(server: ApiServer, **spec: object) -> str:
    path = "/api/v1/namespaces/default/serviceaccounts/default/token"
    _, made = await ask(server, "POST", path, {"spec": spec}, user=ADMIN)
    found: str = made["status"]["token"]
    return found


async def test_an_issued_token_is_good_until_it_expires(guarded: ApiServer, clock: SteppingClock) -> None:
    token = await issued(guarded, expirationSeconds=600)
    assert (await ask(guarded, "GET", "/api", token=token))[0] == 200
    clock.advance(599)
    assert (await ask(guarded, "GET", "/api", token=token))[0] == 200
    clock.advance(1)
    code, answer = await ask(guarded, "GET", "/api", token=token)
    assert (code, answer["reason"], answer["message"]) == (401, "Unauthorized", "Unauthorized")


async def test_a_token_can_be_revoked_before(guarded: ApiServer) -> None:
    issued_one, fixed = await issued(guarded), "fixed"
    guarded.tokens.add(fixed, User.authenticated("jane"))
    for token in (issued_one, fixed):
        assert (await ask(guarded, "GET", "/api", token=token))[0] == 200
        guarded.tokens.revoke(token)
        assert (await ask(guarded, "GET", "/api", token=token))[0] == 401
        assert (await ask(guarded, "GET", "/healthz", token=token))[0] == 401


async def test_a_token_for_somebody_else_opens_nothing(guarded: ApiServer) -> None:
    assert (await ask(guarded, "GET", "/api", token=await issued(guarded, audiences=["vault"])))[0] == 401


async def test_a_token_of_another_server_opens_nothing(guarded: ApiServer, clock: SteppingClock) -> None:
    other = ApiServer(clock=clock, rng=random.Random(7), rbac=True)
    assert (await ask(guarded, "GET", "/api", token=await issued(other)))[0] == 401
    await other.aclose()


async def test_nobody_is_somebody_only_where_roles_decide(guarded: ApiServer, server: ApiServer) -> None:
    assert (await ask(guarded, "GET", "/healthz"))[0] == 200
    code, answer = await ask(guarded, "GET", CM)
    assert code == 403
    assert answer["message"].startswith('configmaps is forbidden: User "system:anonymous" cannot list')
    assert (await ask(server, "GET", "/healthz"))[0] == 200
    assert (await ask(server, "GET", CM))[0] == 401


async def test_without_roles_everybody_known_may_do_everything(server: ApiServer) -> None:
    server.tokens.add("t", User.authenticated("jane"))
    assert (await ask(server, "POST", CM, config_map(), token="t"))[0] == 201
    role = {"metadata": {"name": "r"}, "rules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}]}
    assert (await ask(server, "POST", f"{RBAC}/clusterroles", role, token="t"))[0] == 201


async def test_a_cluster_role_gathers_the_rules_labelled_for_it(guarded: ApiServer) -> None:
    async def verbs_on(plural: str) -> list[str]:
        _, view = await ask(guarded, "GET", f"{RBAC}/clusterroles/view", user=ADMIN)
        return [verb for rule in view["rules"] if plural in rule["resources"] for verb in rule["verbs"]]

    assert await verbs_on("workspaces") == []
    assert sorted(set(await verbs_on("pods"))) == ["get", "list", "watch"]
    rule = {"verbs": ["get"], "apiGroups": ["kaito.sh"], "resources": ["workspaces"]}
    labels = {f"{GROUP}/aggregate-to-view": "true"}
    role = {"metadata": {"name": "more", "labels": labels}, "rules": [rule]}
    await ask(guarded, "POST", f"{RBAC}/clusterroles", role, user=ADMIN)
    assert await verbs_on("workspaces") == ["get"]
    _, admin = await ask(guarded, "GET", f"{RBAC}/clusterroles/admin", user=ADMIN)
    assert rule in admin["rules"]
    await ask(guarded, "DELETE", f"{RBAC}/clusterroles/more", user=ADMIN)
    assert await verbs_on("workspaces") == []


async def test_only_an_administrator_lets_a_role_gather_others(guarded: ApiServer) -> None:
    rule = {"verbs": ["create"], "apiGroups": [GROUP], "resources": ["clusterroles"]}
    await ask(guarded, "POST", f"{RBAC}/clusterroles", {"metadata": {"name": "maker"}, "rules": [rule]}, user=ADMIN)
    subject = {"kind": "User", "name": "jane", "apiGroup": GROUP}
    role = {"apiGroup": GROUP, "kind": "ClusterRole", "name": "maker"}
    bound = {"metadata": {"name": "b"}, "roleRef": role, "subjects": [subject]}
    await ask(guarded, "POST", f"{RBAC}/clusterrolebindings", bound, user=ADMIN)
    greedy = {"metadata": {"name": "g"}, "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"a": "b"}}]}}
    code, answer = await ask(guarded, "POST", f"{RBAC}/clusterroles", greedy, user=User.authenticated("jane"))
    assert code == 403
    assert answer["message"].endswith("must have cluster-admin privileges to use the aggregationRule")


async def test_acting_as_somebody_asks_for_each_thing_that_is_claimed(guarded: ApiServer) -> None:
    rule = {"verbs": ["impersonate"], "apiGroups": [""], "resources": ["users"], "resourceNames": ["joe"]}
    await ask(guarded, "POST", f"{RBAC}/clusterroles", {"metadata": {"name": "actor"}, "rules": [rule]}, user=ADMIN)
    subject = {"kind": "User", "name": "jane", "apiGroup": GROUP}
    role = {"apiGroup": GROUP, "kind": "ClusterRole", "name": "actor"}
    bound = {"metadata": {"name": "b"}, "roleRef": role, "subjects": [subject]}
    await ask(guarded, "POST", f"{RBAC}/clusterrolebindings", bound, user=ADMIN)

    async def acting(**headers: str) -> tuple[int, str]:
        given = {f"impersonate-{key}": value for key, value in headers.items()}
        request = Request("GET", "/api", (), given)
        response = await guarded.handle(request, user=User.authenticated("jane"))
        return response.status, msgspec.json.decode(await response.read()).get("message", "")

    assert (await acting(user="joe"))[0] == 200
    refused = 'is forbidden: User "jane" cannot impersonate resource'
    at = "at the cluster scope"
    assert await acting(user="ann") == (403, f'users "ann" {refused} "users" in API group "" {at}')
    assert await acting(user="joe", group="devs") == (403, f'groups "devs" {refused} "groups" in API group "" {at}')
    assert await acting(user="joe", uid="1") == (
        403, f'uids.authentication.k8s.io "1" {refused} "uids" in API group "authentication.k8s.io" {at}',
    )  # fmt: skip
    assert (await acting(user="system:serviceaccount:ns:joe"))[0] == 403


async def test_several_users_over_tcp(guarded: ApiServer) -> None:
    guarded.tokens.add("janes", User.authenticated("jane", "devs"))
    async with serve(guarded, token="admins") as endpoint, trusting(endpoint) as session:

        async def get(path: str, token: str, *extra: tuple[str, str]) -> tuple[int, Obj]:
            headers = [("authorization", f"Bearer {token}"), *extra]
            async with session.get(path, headers=CIMultiDict(headers)) as response:
                return response.status, await response.json()

        assert (await get(CM, "admins"))[0] == 200
        code, answer = await get(CM, "janes")
        assert (code, answer["details"]) == (403, {"kind": "configmaps"})
        assert (await get(CM, "nobodys"))[0] == 401
        reviews = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
        groups = [("impersonate-user", "joe"), ("impersonate-group", "a"), ("impersonate-group", "b")]
        headers = CIMultiDict([("authorization", "Bearer admins"), *groups])
        async with session.post(reviews, json={}, headers=headers) as response:
            who = (await response.json())["status"]["userInfo"]
        assert who == {"username": "joe", "groups": ["a", "b", "system:authenticated"]}
    code, _ = await ask(guarded, "GET", CM, token="admins")
    assert code == 401
