"""Admission webhooks, called over HTTPS as configured."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.conformance.hooks import PROBE, Hook, patching, serve_hook
from tests.conformance.objects import config_map
from tests.conformance.wire import Api, Obj, Status, fails

HOOKS = "admissionregistration.k8s.io/v1"


@pytest.fixture
async def hook() -> AsyncIterator[Hook]:
    async with serve_hook() as found:
        yield found


async def configure(api: Api, hook: Hook, kind: str, **more: Any) -> None:
    """Returns once the server calls the webhook, of which a real one learns a moment later."""
    patch = {"metadata": {"labels": {"hooked": api.namespace}}}
    await api.merge(api.cluster("namespaces", api.namespace), patch)
    configuration = hook.configuration(api.namespace, api.namespace, **more)
    await api.post(api.cluster(f"{HOOKS}/{kind}webhookconfigurations"), configuration)
    if "url" in more.get("clientConfig", {}):
        return
    labels = more.get("objectSelector", {}).get("matchLabels", {})
    async with asyncio.timeout(20):
        while not hook.probed:
            await api.post(api.at("configmaps"), config_map(PROBE, labels=labels), dryRun="All")
            await asyncio.sleep(0.02)


async def test_a_webhook_sees_the_whole_request(api: Api, hook: Hook) -> None:
    await configure(api, hook, "validating")
    await api.post(api.at("configmaps"), config_map())
    await api.merge(api.at("configmaps", "a"), {"data": {"k": "2"}})
    await api.delete(api.at("configmaps", "a"))
    create, update, delete = hook.asked
    assert [r["operation"] for r in hook.asked] == ["CREATE", "UPDATE", "DELETE"]
    assert create["kind"] == {"group": "", "version": "v1", "kind": "ConfigMap"}
    assert create["resource"] == {"group": "", "version": "v1", "resource": "configmaps"}
    assert (create["namespace"], create["name"], create["dryRun"]) == (api.namespace, "a", False)
    assert (create["object"]["data"], create["oldObject"]) == ({"k": "v"}, None)
    assert create["object"]["kind"] == "ConfigMap"
    assert create["userInfo"]["groups"][0] == "system:masters"
    assert create["options"]["kind"] == "CreateOptions"
    assert (update["object"]["data"], update["oldObject"]["data"]) == ({"k": "2"}, {"k": "v"})
    assert update["options"]["kind"] == "UpdateOptions"
    assert (delete["object"], delete["oldObject"]["data"]) == (None, {"k": "2"})
    assert delete["options"]["kind"] == "DeleteOptions"


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (
            {"message": "not today"},
            400,
            'admission webhook "hook.conformance.kaito.sh" denied the request: not today',
        ),
        (
            {"code": 422, "reason": "Invalid", "message": "bad"},
            422,
            'admission webhook "hook.conformance.kaito.sh" denied the request: bad',
        ),
        (
            {"reason": "Because"},
            400,
            'admission webhook "hook.conformance.kaito.sh" denied the request: Because',
        ),
        (None, 400, 'admission webhook "hook.conformance.kaito.sh" denied the request without explanation'),
    ],
    ids=["message", "everything", "reason", "nothing"],
)
async def test_a_denial_is_worded_as_kubectl_shows_it(
    api: Api, hook: Hook, status: Obj | None, code: int, message: str
) -> None:
    await configure(api, hook, "validating")
    hook.answer = lambda request: {"allowed": False, **({"status": status} if status is not None else {})}
    with fails(code, (status or {}).get("reason", ""), message):
        await api.post(api.at("configmaps"), config_map())
    assert await api.missing(api.at("configmaps", "a"))


async def test_a_denial_leaves_the_object_as_it_was(api: Api, hook: Hook) -> None:
    made = await api.post(api.at("configmaps"), config_map())
    await configure(api, hook, "validating")
    hook.answer = lambda request: {"allowed": False}
    for attempt in (
        api.merge(api.at("configmaps", "a"), {"data": {"k": "2"}}),
        api.put(api.at("configmaps", "a"), config_map(data={})),
        api.delete(api.at("configmaps", "a")),
    ):
        with pytest.raises(Status):
            await attempt
    assert await api.get(api.at("configmaps", "a")) == made


async def test_a_mutating_webhook_patches(api: Api, hook: Hook) -> None:
    await configure(api, hook, "mutating")
    hook.answer = patching({"op": "add", "path": "/data/added", "value": "x"})
    assert (await api.post(api.at("configmaps"), config_map()))["data"] == {"k": "v", "added": "x"}
    assert (await api.get(api.at("configmaps", "a")))["data"] == {"k": "v", "added": "x"}


async def test_a_patch_without_its_type_is_an_error(api: Api, hook: Hook) -> None:
    await configure(api, hook, "mutating")
    hook.answer = lambda request: {"allowed": True, "patch": "W10="}
    with fails(500, "InternalError"):
        await api.post(api.at("configmaps"), config_map())


async def test_a_patched_object_is_validated(api: Api, hook: Hook) -> None:
    await configure(api, hook, "mutating")
    hook.answer = patching({"op": "add", "path": "/metadata/labels", "value": {"a b": "c"}})
    with fails(422, "Invalid") as caught:
        await api.post(api.at("configmaps"), config_map())
    assert set(caught.value.fields) == {"metadata.labels"}


async def test_a_warning_reaches_the_caller(api: Api, hook: Hook) -> None:
    await configure(api, hook, "validating")
    hook.answer = lambda request: {"allowed": True, "warnings": ["mind the gap"]}
    await api.post(api.at("configmaps"), config_map())
    assert api.headers["warning"] == '299 - "mind the gap"'


async def test_a_dry_run_is_announced(api: Api, hook: Hook) -> None:
    await configure(api, hook, "validating")
    await api.post(api.at("configmaps"), config_map(), dryRun="All")
    assert hook.asked[0]["dryRun"] is True
    assert hook.asked[0]["options"]["dryRun"] == ["All"]


@pytest.mark.parametrize("name", ["hooked", "other"])
async def test_an_object_selector_chooses(api: Api, hook: Hook, name: str) -> None:
    await configure(api, hook, "validating", objectSelector={"matchLabels": {"hook": "yes"}})
    hook.answer = lambda request: {"allowed": False}
    labels = {"hook": "yes"} if name == "hooked" else {"hook": "no"}
    if name == "hooked":
        with pytest.raises(Status):
            await api.post(api.at("configmaps"), config_map(labels=labels))
    else:
        await api.post(api.at("configmaps"), config_map(labels=labels))
        assert hook.asked == []


async def test_rules_choose_operations(api: Api, hook: Hook) -> None:
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"], "operations": ["CREATE"]}
    await configure(api, hook, "validating", rules=[rule])
    await api.post(api.at("configmaps"), config_map())
    await api.merge(api.at("configmaps", "a"), {"data": {"k": "2"}})
    await api.delete(api.at("configmaps", "a"))
    assert [r["operation"] for r in hook.asked] == ["CREATE"]


NOWHERE = "https://127.0.0.1:1/check"


async def test_a_webhook_that_cannot_be_reached_fails_the_request(api: Api, hook: Hook) -> None:
    client = {"url": NOWHERE, "caBundle": hook.ca_bundle}
    await configure(api, hook, "validating", clientConfig=client, failurePolicy="Fail", timeoutSeconds=2)
    async with asyncio.timeout(20):
        while True:
            try:
                await api.post(api.at("configmaps"), config_map(PROBE), dryRun="All")
            except Status as error:
                found = error
                break
            await asyncio.sleep(0.02)
    assert (found.code, found.reason) == (500, "InternalError")
    assert found.message.startswith('Internal error occurred: failed calling webhook "hook.conformance.kaito.sh": ')


async def test_a_webhook_that_may_fail_is_passed_over(api: Api, hook: Hook) -> None:
    await configure(api, hook, "validating", failurePolicy="Ignore")
    hook.answer = lambda request: {"uid": "of another review", "allowed": False}
    await api.post(api.at("configmaps"), config_map())
    assert len(hook.asked) == 1


async def test_a_configuration_gets_its_defaults(api: Api, hook: Hook) -> None:
    await configure(api, hook, "mutating")
    found = await api.get(api.cluster(f"{HOOKS}/mutatingwebhookconfigurations", api.namespace))
    (webhook,) = found["webhooks"]
    defaults = {"failurePolicy": "Fail", "matchPolicy": "Equivalent", "timeoutSeconds": 10}
    assert {key: webhook[key] for key in defaults} == defaults
    assert (webhook["objectSelector"], webhook["reinvocationPolicy"]) == ({}, "Never")
    assert webhook["rules"][0]["scope"] == "*"
    assert found["metadata"]["generation"] == 1


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"name": "short"}, "webhooks[0].name"),
        ({"sideEffects": "Some"}, "webhooks[0].sideEffects"),
        ({"admissionReviewVersions": []}, "webhooks[0].admissionReviewVersions"),
        ({"admissionReviewVersions": ["v9"]}, "webhooks[0].admissionReviewVersions"),
        ({"timeoutSeconds": 31}, "webhooks[0].timeoutSeconds"),
        ({"failurePolicy": "Shrug"}, "webhooks[0].failurePolicy"),
        ({"clientConfig": {"url": "http://example.com/"}}, "webhooks[0].clientConfig.url"),
        ({"clientConfig": {}}, "webhooks[0].clientConfig"),
    ],
    ids=["name", "sideEffects", "no versions", "unknown versions", "timeout", "policy", "url", "client"],
)
async def test_configurations_are_validated(api: Api, hook: Hook, more: Obj, field: str) -> None:
    body = hook.configuration(api.namespace, api.namespace, **more)
    with fails(422, "Invalid") as caught:
        await api.post(api.cluster(f"{HOOKS}/validatingwebhookconfigurations"), body)
    assert any(found.startswith(field) for found in caught.value.fields), caught.value.fields
