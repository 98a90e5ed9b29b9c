"""Tokens of service accounts: who they stand for, what they are good for, and when they stop being so."""

from __future__ import annotations

import base64

import msgspec

from tests.conformance.objects import pod
from tests.conformance.wire import Api, Obj, fails

REVIEWS = "authentication.k8s.io/v1/tokenreviews"


async def token(api: Api, account: str = "robot", **spec: object) -> str:
    """A fresh token of that account, which is made if it is not there."""
    if await api.missing(api.at("serviceaccounts", account)):
        await api.post(api.at("serviceaccounts"), {"metadata": {"name": account}})
    made = await api.post(api.at("serviceaccounts", account, "token"), {"spec": spec})
    found: str = made["status"]["token"]
    return found


async def review(api: Api, token: str, *audiences: str) -> Obj:
    spec = {"token": token, **({"audiences": list(audiences)} if audiences else {})}
    answer: Obj = (await api.post(api.cluster(REVIEWS), {"spec": spec}))["status"]
    return answer


async def test_a_token_stands_for_its_account(api: Api) -> None:
    status = await review(api, await token(api))
    assert status["authenticated"] is True
    assert status["user"]["username"] == f"system:serviceaccount:{api.namespace}:robot"
    assert status["user"]["groups"] == [
        "system:serviceaccounts",
        f"system:serviceaccounts:{api.namespace}",
        "system:authenticated",
    ]
    account = await api.get(api.at("serviceaccounts", "robot"))
    assert status["user"]["uid"] == account["metadata"]["uid"]


async def test_a_request_says_what_token_it_wants(api: Api) -> None:
    await token(api)
    path = api.at("serviceaccounts", "robot", "token")
    made = await api.post(path, {"spec": {"audiences": ["vault"], "expirationSeconds": 1200}})
    assert api.code == 201
    assert made["kind"] == "TokenRequest"
    assert made["spec"]["audiences"] == ["vault"]
    assert made["spec"]["expirationSeconds"] == 1200
    payload = made["status"]["token"].split(".")[1]
    claims = msgspec.json.decode(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    assert claims["aud"] == ["vault"]
    assert claims["exp"] - claims["iat"] == 1200
    assert claims["iss"] == "https://kubernetes.default.svc"
    assert claims["sub"] == f"system:serviceaccount:{api.namespace}:robot"
    assert claims["kubernetes.io"]["namespace"] == api.namespace
    assert claims["kubernetes.io"]["serviceaccount"]["name"] == "robot"
    default = await api.post(path, {"spec": {}})
    assert default["spec"]["expirationSeconds"] == 3600
    assert default["spec"]["audiences"] == ["https://kubernetes.default.svc"]


async def test_a_token_lives_ten_minutes_at_least(api: Api) -> None:
    await token(api)
    with fails(422, "Invalid") as caught:
        await token(api, expirationSeconds=599)
    assert caught.value.fields == ["spec.expirationSeconds"]
    assert "may not specify a duration less than 10 minutes" in caught.value.message
    with fails(404, "NotFound", 'serviceaccounts "none" not found'):
        await api.post(api.at("serviceaccounts", "none", "token"), {"spec": {}})


async def test_a_token_is_for_its_audience_only(api: Api) -> None:
    vault = await token(api, audiences=["vault", "other"])
    assert (await review(api, vault, "vault", "more"))["audiences"] == ["vault"]
    assert "authenticated" not in await review(api, vault)


async def test_what_is_no_token_is_said_so(api: Api) -> None:
    status = await review(api, "rubbish")
    assert not status.get("authenticated")
    assert status["error"]
    forged = (await token(api)).rpartition(".")[0] + "." + "A" * 43
    assert not (await review(api, forged)).get("authenticated")


async def _until_refused(api: Api, given: str) -> None:
    async def refused() -> bool:
        return not (await review(api, given)).get("authenticated")

    # A real server believes an answer for ten seconds.
    await api.eventually(refused)


async def test_a_token_dies_with_its_account(api: Api) -> None:
    given = await token(api)
    await api.delete(api.at("serviceaccounts", "robot"))
    await api.post(api.at("serviceaccounts"), {"metadata": {"name": "robot"}})
    await _until_refused(api, given)


async def test_a_token_bound_to_a_pod_dies_with_it(api: Api) -> None:
    await token(api)
    await api.post(api.at("pods"), pod(serviceAccountName="robot"))
    given = await token(api, boundObjectRef={"apiVersion": "v1", "kind": "Pod", "name": "p"})
    status = await review(api, given)
    assert status["user"]["extra"]["authentication.kubernetes.io/pod-name"] == ["p"]
    await api.delete(api.at("pods", "p"), gracePeriodSeconds=0)
    await _until_refused(api, given)


async def test_a_token_is_bound_to_what_is_there_only(api: Api) -> None:
    await token(api)
    await token(api, "other")
    await api.post(api.at("pods"), pod(serviceAccountName="other"))
    with fails(400, "BadRequest") as caught:
        await token(api, boundObjectRef={"apiVersion": "v1", "kind": "Pod", "name": "p"})
    assert caught.value.message == (
        'cannot bind token for serviceaccount "robot" to pod running with different serviceaccount name.'
    )
    with fails(404, "NotFound", 'pods "q" not found'):
        await token(api, boundObjectRef={"apiVersion": "v1", "kind": "Pod", "name": "q"})
    with fails(400, "BadRequest") as caught:
        await token(api, boundObjectRef={"apiVersion": "v1", "kind": "ConfigMap", "name": "q"})
    assert caught.value.message.startswith("cannot bind token to object of type /v1, Kind=ConfigMap")
    with fails(409, "Conflict"):
        await token(api, "other", boundObjectRef={"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "x"})
