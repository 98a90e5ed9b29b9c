"""Stock kubectl against the server: the verbs of the other days, and those about rights."""

from __future__ import annotations

import os
import re
from typing import Any

import aiohttp
import pytest
import yaml
from apihelpers import DEPLOY, Api, SteppingClock
from kubectlhelpers import DEPLOYMENT, WITH_KUBECTL, Kubectl

pytestmark = WITH_KUBECTL

NODE = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}}


def config_maps(*names: str) -> str:
    metadata = [{"name": name, "labels": {"set": "a"}} for name in names]
    return "\n---\n".join(yaml.safe_dump({"apiVersion": "v1", "kind": "ConfigMap", "metadata": m}) for m in metadata)


async def test_explain_of_everything_below(kubectl: Kubectl) -> None:
    for kind, field in (("deployments", "maxSurge"), ("statefulsets", "serviceName"), ("pods", "ephemeralContainers"),
                        ("crd", "x-kubernetes-validations")):  # fmt: skip
        assert field in await kubectl("explain", kind, "--recursive")


async def test_an_editor_changes_the_live_object(kubectl: Kubectl, monkeypatch: pytest.MonkeyPatch) -> None:
    await kubectl("apply", "-f", "-", stdin=DEPLOYMENT)
    monkeypatch.setitem(os.environ, "KUBE_EDITOR", "sed -i 's/replicas: 2/replicas: 5/'")
    assert "edited" in await kubectl("edit", "deploy", "web")
    assert await kubectl("get", "deploy", "web", "-o", "jsonpath={.spec.replicas}") == "5"


async def test_what_is_left_out_of_a_set_is_pruned(kubectl: Kubectl) -> None:
    # Its own list names kinds that servers from 1.25 on do not have.
    only = ("--prune-whitelist" if await kubectl.minor() < 26 else "--prune-allowlist", "core/v1/ConfigMap")
    args = ("apply", "--prune", "-l", "set=a", *only, "-f", "-")
    await kubectl(*args, stdin=config_maps("a", "b"))
    assert "configmap/b pruned" in await kubectl(*args, stdin=config_maps("a"))
    assert "configmap/b" not in await kubectl("get", "cm", "-o", "name")


async def test_a_rollout_is_waited_for(kubectl: Kubectl) -> None:
    await kubectl("apply", "-f", "-", stdin=DEPLOYMENT)
    api = Api(kubectl.server, SteppingClock())
    counts = {"replicas": 2, "updatedReplicas": 2, "readyReplicas": 2, "availableReplicas": 2, "observedGeneration": 1}
    async with kubectl.running("rollout", "status", "deploy/web", "--timeout=30s") as waiting:
        assert waiting.stdout is not None
        assert b"Waiting for deployment" in await waiting.stdout.readline()
        await api.merge(f"{DEPLOY}/web/status", {"status": counts})
        said = b"".join([line async for line in waiting.stdout])
        assert b"successfully rolled out" in said
        assert await waiting.wait() == 0


async def test_a_watch_prints_what_happens(kubectl: Kubectl) -> None:
    await kubectl("create", "configmap", "a")
    async with kubectl.running("get", "cm", "--watch", "--no-headers") as watching:
        assert watching.stdout is not None
        assert (await watching.stdout.readline()).split()[0] == b"a"
        await kubectl("create", "configmap", "b")
        assert (await watching.stdout.readline()).split()[0] == b"b"


async def test_a_node_is_tainted_cordoned_and_drained(kubectl: Kubectl) -> None:
    await kubectl("create", "-f", "-", stdin=NODE)
    await kubectl("label", "node", "node-1", "a=b")
    await kubectl("taint", "node", "node-1", "k=v:NoSchedule")
    taints = (await kubectl.json("get", "node", "node-1"))["spec"]["taints"]
    assert {"key": "k", "value": "v", "effect": "NoSchedule"} in taints
    await kubectl("taint", "node", "node-1", "k-")
    pod: dict[str, Any] = {"containers": [{"name": "c", "image": "x"}], "nodeName": "node-1"}
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": pod}
    await kubectl("create", "-f", "-", stdin=body)
    await kubectl("cordon", "node-1")
    assert "SchedulingDisabled" in await kubectl("get", "node", "node-1")
    drained = await kubectl("drain", "node-1", "--force", "--ignore-daemonsets", "--grace-period=0", "--timeout=30s")
    assert "evict" in drained + kubectl.err
    assert await kubectl("get", "pods", "-o", "name") == ""
    await kubectl("uncordon", "node-1")
    assert "SchedulingDisabled" not in await kubectl("get", "node", "node-1")


async def test_a_proxy_lends_its_credentials(kubectl: Kubectl) -> None:
    async with kubectl.running("proxy", "--port=0") as proxy:
        assert proxy.stdout is not None
        found = re.search(rb"serve on (\S+)", await proxy.stdout.readline())
        assert found is not None
        url = f"http://{found[1].decode()}/api/v1/namespaces/default"
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            assert (await response.json())["metadata"]["name"] == "default"


async def test_what_may_i_do(guarded_kubectl: Kubectl) -> None:
    kubectl = guarded_kubectl
    assert (await kubectl("auth", "can-i", "delete", "nodes")).strip() == "yes"
    assert (await kubectl("auth", "can-i", "delete", "nodes", "--as", "jane", code=1)).strip() == "no"
    await kubectl("create", "role", "r", "--verb=get,list", "--resource=pods,deployments.apps/scale")
    await kubectl("create", "rolebinding", "b", "--role=r", "--user=jane", "--group=devs")
    assert (await kubectl("auth", "can-i", "list", "pods", "--as", "jane")).strip() == "yes"
    assert (await kubectl("auth", "can-i", "get", "deployments.apps", "--subresource=scale", "--as", "x",
                          "--as-group", "devs", "--as-group", "ops")).strip() == "yes"  # fmt: skip
    table = await kubectl("auth", "can-i", "--list", "--as", "jane")
    assert re.search(r"^pods +\[\] +\[\] +\[get list\]$", table, re.M)
    assert re.search(r"^deployments\.apps/scale +\[\] +\[\] +\[get list\]$", table, re.M)
    await kubectl("get", "pods", "--as", "jane")
    await kubectl("get", "secrets", "--as", "jane", code=1)
    assert kubectl.err == (
        'Error from server (Forbidden): secrets is forbidden: User "jane" cannot list resource "secrets" in API group '
        '"" in the namespace "default"\n'
    )


async def test_the_roles_that_come_with_it_do_what_their_names_say(guarded_kubectl: Kubectl) -> None:
    kubectl = guarded_kubectl
    for role in ("view", "edit", "admin"):
        await kubectl("create", "rolebinding", role, f"--clusterrole={role}", f"--user={role}")

    async def may(who: str, *what: str) -> bool:
        code = int(not (expected := (who, *what) in allowed))
        assert (await kubectl("auth", "can-i", *what, "--as", who, code=code)).strip() == ("yes" if expected else "no")
        return expected

    allowed = {
        ("view", "list", "pods"), ("edit", "list", "pods"), ("admin", "list", "pods"),
        ("edit", "create", "deployments.apps"), ("admin", "create", "deployments.apps"),
        ("edit", "get", "secrets"), ("admin", "get", "secrets"),
        ("admin", "create", "rolebindings"),
    }  # fmt: skip
    for what in (("list", "pods"), ("create", "deployments.apps"), ("get", "secrets"), ("create", "rolebindings"),
                 ("delete", "nodes")):  # fmt: skip
        for who in ("view", "edit", "admin"):
            await may(who, *what)


async def test_a_service_account_gets_in_with_its_token(guarded_kubectl: Kubectl) -> None:
    kubectl = guarded_kubectl
    if await kubectl.minor() < 24:
        pytest.skip("kubectl create token came with 1.24")
    await kubectl("create", "serviceaccount", "robot")
    token = (await kubectl("create", "token", "robot", "--duration=10m")).strip()
    me = ("--token", token, "--kubeconfig", os.devnull, "--server", await _server(kubectl),
          "--insecure-skip-tls-verify")  # fmt: skip
    assert "system:serviceaccount:default:robot" in await kubectl("auth", "whoami", *me)
    await kubectl("get", "pods", *me, code=1)
    assert 'User "system:serviceaccount:default:robot" cannot list resource "pods"' in kubectl.err
    await kubectl("create", "rolebinding", "b", "--clusterrole=view", "--serviceaccount=default:robot")
    await kubectl("get", "pods", *me)
    kubectl.server.tokens.revoke(token)
    await kubectl("get", "pods", *me, code=1)
    assert "Unauthorized" in kubectl.err or "You must be logged in" in kubectl.err


async def _server(kubectl: Kubectl) -> str:
    return await kubectl("config", "view", "-o", "jsonpath={.clusters[0].cluster.server}")


async def test_it_waits_for_what_does_not_come_only_so_long(kubectl: Kubectl) -> None:
    await kubectl("apply", "-f", "-", stdin=DEPLOYMENT)
    await kubectl("wait", "--for=condition=Available", "deploy/web", "--timeout=1s", code=1)
    assert "timed out waiting for the condition" in kubectl.err
