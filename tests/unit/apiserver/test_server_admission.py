"""Admission webhooks, called over HTTPS as configured."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
from aiohttp import web
from apihelpers import CM, CRDS, PODS, WS, Api, config_map, fails, pod, workspace, workspace_crd

from kaito_ctrl.devcluster.apiserver.certificates import issue_certificates, server_context
from kaito_ctrl.runtime.clock import SystemClock

HOOKS = "/apis/admissionregistration.k8s.io/v1"
Answer = Callable[[dict[str, Any]], dict[str, Any]]


class Webhook:
    """A webhook server: records what it was asked, answers what it is told."""

    def __init__(self, url: str, ca: str) -> None:
        self.url = url
        self.ca_bundle = base64.b64encode(ca.encode()).decode()
        self.asked: list[dict[str, Any]] = []
        self.answer: Answer = lambda request: {"allowed": True}

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        review = msgspec.json.decode(await request.read())
        self.asked.append(review["request"])
        response = {"uid": review["request"]["uid"], **self.answer(review["request"])}
        body = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}
        return web.json_response(body)

    def configuration(self, name: str = "hook", **more: Any) -> dict[str, Any]:
        rule = {"apiGroups": ["*"], "apiVersions": ["*"], "resources": ["configmaps"], "operations": ["*"]}
        hook = {
            "name": f"{name}.kaito.sh",
            "clientConfig": {"url": f"{self.url}/check", "caBundle": self.ca_bundle},
            "rules": [rule],
            "sideEffects": "None",
            "admissionReviewVersions": ["v1"],
            **more,
        }
        return {"metadata": {"name": name}, "webhooks": [hook]}


@pytest.fixture
async def hook() -> AsyncIterator[Webhook]:
    certificates = issue_certificates("127.0.0.1", SystemClock())
    webhook = Webhook("", certificates.ca_pem)
    runner = web.ServerRunner(web.Server(webhook.handle))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=server_context(certificates)).start()
    webhook.url = f"https://127.0.0.1:{runner.addresses[0][1]}"
    yield webhook
    await runner.cleanup()


async def validating(api: Api, hook: Webhook, **more: Any) -> None:
    await api.post(f"{HOOKS}/validatingwebhookconfigurations", hook.configuration(**more))


async def mutating(api: Api, hook: Webhook, **more: Any) -> None:
    await api.post(f"{HOOKS}/mutatingwebhookconfigurations", hook.configuration(**more))


def patch(*operations: dict[str, Any]) -> Answer:
    text = base64.b64encode(msgspec.json.encode(list(operations))).decode()
    return lambda request: {"allowed": True, "patchType": "JSONPatch", "patch": text}


async def test_a_webhook_sees_the_whole_request(api: Api, hook: Webhook) -> None:
    await validating(api, hook)
    await api.post(CM, config_map())
    await api.merge(f"{CM}/a", {"data": {"k": "2"}})
    await api.delete(f"{CM}/a")
    create, update, delete = hook.asked
    assert [r["operation"] for r in hook.asked] == ["CREATE", "UPDATE", "DELETE"]
    assert create["kind"] == {"group": "", "version": "v1", "kind": "ConfigMap"}
    assert create["resource"] == {"group": "", "version": "v1", "resource": "configmaps"}
    assert (create["namespace"], create["name"], create["dryRun"]) == ("default", "a", False)
    assert create["object"]["data"] == {"k": "v"}
    assert create["oldObject"] is None
    assert create["userInfo"]["username"] == "system:admin"
    assert (update["object"]["data"], update["oldObject"]["data"]) == ({"k": "2"}, {"k": "v"})
    assert update["options"]["kind"] == "UpdateOptions"
    assert delete["object"] is None
    assert delete["oldObject"]["data"] == {"k": "2"}


async def test_a_denial_is_worded_as_kubernetes_words_it(api: Api, hook: Webhook) -> None:
    await validating(api, hook)
    hook.answer = lambda request: {"allowed": False, "status": {"message": "not today"}}
    with fails(400) as caught:
        await api.post(CM, config_map())
    assert caught.value.message == 'admission webhook "hook.kaito.sh" denied the request: not today'
    assert await api.gone(f"{CM}/a")
    hook.answer = lambda request: {"allowed": False, "status": {"code": 422, "reason": "Invalid", "message": "bad"}}
    with fails(422, "Invalid"):
        await api.post(CM, config_map())
    hook.answer = lambda request: {"allowed": False}
    with fails(400) as caught:
        await api.post(CM, config_map())
    assert caught.value.message == 'admission webhook "hook.kaito.sh" denied the request without explanation'


async def test_a_patch_of_a_mutating_webhook_is_applied(api: Api, hook: Webhook) -> None:
    await mutating(api, hook)
    hook.answer = patch({"op": "add", "path": "/data/added", "value": "x"})
    assert (await api.post(CM, config_map()))["data"] == {"k": "v", "added": "x"}


async def test_what_a_webhook_adds_gets_its_defaults_and_is_validated(api: Api, hook: Webhook) -> None:
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["CREATE"]}
    await mutating(api, hook, rules=[rule])
    hook.answer = patch({"op": "add", "path": "/spec/containers/-", "value": {"name": "side", "image": "s:1"}})
    made = await api.post(PODS, pod())
    assert made["spec"]["containers"][1]["imagePullPolicy"] == "IfNotPresent"
    hook.answer = patch({"op": "add", "path": "/spec/containers/-", "value": {"name": "c", "image": "s:1"}})
    with fails(422) as caught:
        await api.post(PODS, pod("q"))
    assert 'spec.containers[1].name: Duplicate value: "c"' in caught.value.message


async def test_warnings_reach_the_caller(api: Api, hook: Webhook) -> None:
    await validating(api, hook)
    hook.answer = lambda request: {"allowed": True, "warnings": ["careful", 'a "quote"']}
    await api.post(CM, config_map())
    assert api.warnings == '299 - "careful", 299 - "a \\"quote\\""'


async def test_a_webhook_that_fails_stops_the_write_unless_it_may_be_ignored(api: Api, hook: Webhook) -> None:
    dead = {"clientConfig": {"url": "https://127.0.0.1:1/", "caBundle": hook.ca_bundle}}
    await validating(api, hook, name="strict", **dead)
    with fails(500, "InternalError") as caught:
        await api.post(CM, config_map())
    assert 'failed calling webhook "strict.kaito.sh"' in caught.value.message
    await api.delete(f"{HOOKS}/validatingwebhookconfigurations/strict")
    await validating(api, hook, name="lenient", failurePolicy="Ignore", **dead)
    await api.post(CM, config_map())


async def test_an_untrusted_certificate_is_a_failure(api: Api, hook: Webhook) -> None:
    other = base64.b64encode(issue_certificates("127.0.0.1", SystemClock()).ca_pem.encode()).decode()
    await validating(api, hook, clientConfig={"url": f"{hook.url}/", "caBundle": other})
    with fails(500):
        await api.post(CM, config_map())
    assert hook.asked == []


async def test_only_matching_writes_are_shown(api: Api, hook: Webhook) -> None:
    await validating(api, hook, objectSelector={"matchLabels": {"watch": "me"}})
    await api.post(CM, config_map("a"))
    await api.post(PODS, pod())
    assert hook.asked == []
    await api.post(CM, {"metadata": {"name": "b", "labels": {"watch": "me"}}})
    assert len(hook.asked) == 1


async def test_a_namespace_selector_looks_at_the_namespaces_labels(api: Api, hook: Webhook) -> None:
    selector = {
        "matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": ["default"]}]
    }
    await validating(api, hook, namespaceSelector=selector)
    await api.post(CM, config_map())
    assert hook.asked == []
    await api.post("/api/v1/namespaces/kube-public/configmaps", config_map())
    assert len(hook.asked) == 1


async def test_subresources_are_matched_by_name(api: Api, hook: Webhook) -> None:
    await api.post(CRDS, workspace_crd())
    await api.post(WS, workspace())
    rule = {
        "apiGroups": ["kaito.sh"],
        "apiVersions": ["v1alpha1"],
        "resources": ["workspaces/status"],
        "operations": ["UPDATE"],
    }
    await validating(api, hook, rules=[rule])
    await api.merge(f"{WS}/w", {"resource": {"count": 2}})
    assert hook.asked == []
    await api.merge(f"{WS}/w/status", {"status": {"workerNodes": ["n"]}})
    assert hook.asked[0]["subResource"] == "status"


async def test_a_dry_run_says_so_to_the_webhook(api: Api, hook: Webhook) -> None:
    await validating(api, hook)
    await api.post(CM, config_map(), dryRun="All")
    assert hook.asked[0]["dryRun"] is True
    assert hook.asked[0]["options"]["dryRun"] == ["All"]


async def test_a_service_is_resolved_by_whoever_knows(api: Api, hook: Webhook) -> None:
    service = {"namespace": "kaito", "name": "webhook", "path": "/validate", "port": 443}
    await validating(api, hook, clientConfig={"service": service, "caBundle": hook.ca_bundle})
    with fails(500) as caught:
        await api.post(CM, config_map())
    assert "webhook.kaito.svc" in caught.value.message
    found: list[Any] = []

    def resolve(namespace: str, name: str, port: int) -> str | None:
        found.append((namespace, name, port))
        return hook.url.replace("127.0.0.1", "localhost")

    api.server.resolve_service(resolve)
    with fails(500):  # the certificate is not for webhook.kaito.svc
        await api.post(CM, config_map())
    assert found == [("kaito", "webhook", 443)]


async def test_configurations_are_validated_and_never_reviewed(api: Api, hook: Webhook) -> None:
    with fails(422) as caught:
        await validating(api, hook, sideEffects="Unknown")
    assert "webhooks[0].sideEffects" in caught.value.fields
    everything = {"apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*/*"], "operations": ["*"]}
    await validating(api, hook, rules=[everything])
    hook.answer = lambda request: {"allowed": False}
    await api.delete(f"{HOOKS}/validatingwebhookconfigurations/hook")
