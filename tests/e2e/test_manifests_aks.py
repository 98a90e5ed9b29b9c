"""`manifests/overlays/aks`: what it renders to, and that the provisioner lives with what it is granted; docs/aks.md."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, get_args

import pytest

from kaito_api.karpenter import NODE_REQUESTS
from kaito_ctrl.cli.daemon import NodeApi
from kaito_ctrl.cli.laptop import KubeletJoiner, local_aks, timings_for
from kaito_ctrl.cli.runcommand import PROVISIONER_LEASE_NAME
from kaito_ctrl.devcluster.cluster import DevCluster
from kaito_ctrl.runtime import Client
from kaito_ctrl.runtime.clock import Clock
from kaito_provisioner import CloudError, CloudProvider, NotFound
from kaito_provisioner.aks.errors import ClusterNotFound, NoRoom
from kaito_provisioner.sim import SimCloud
from kaito_provisioner.testing import Identity, LocalArm
from tests.deployed import ACCOUNT as WORKSPACE_ACCOUNT
from tests.deployed import NAMESPACE, deploy
from tests.e2e.conftest import ROOT
from tests.e2e.test_manifests import Object, embedded
from tests.permissions import ANY, difference, granted
from tests.podprocess import environment, pod_process
from tests.provisioned import ACCOUNT, OVERLAYS, live, remove
from tests.rendered import MANIFESTS, render

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

FIRST_TOKEN = 60.0
"""Seconds that the provisioner waits for it."""
PAGE = (ROOT / "docs/aks.md").read_text()
SETTINGS = "kaito-provisioner-azure"
SUBJECT = f"system:serviceaccount:{NAMESPACE}:{ACCOUNT}"


def one(objects: Sequence[Object], kind: str, name: str = ACCOUNT) -> Object:
    """The object of that *kind* whose name is *name*, or begins with it where kustomize adds a hash."""
    (found,) = (
        each
        for each in objects
        if each["kind"] == kind and re.fullmatch(rf"{name}(-[a-z0-9]{{10}})?", each["metadata"]["name"])
    )
    return found


@pytest.fixture(scope="module")
def overlay() -> list[Object]:
    return render("overlays/aks")


@pytest.fixture
def pod(overlay: list[Object]) -> Object:
    """The provisioner's pod template."""
    template: Object = one(overlay, "Deployment")["spec"]["template"]
    return template


@pytest.fixture
def container(pod: Object) -> Object:
    (found,) = pod["spec"]["containers"]
    return dict(found)


# -- rights ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("node_api", get_args(NodeApi))
async def test_the_provisioner_uses_every_right_that_it_is_granted_and_needs_no_other(
    node_api: NodeApi, tmp_path: Path
) -> None:
    async with embedded(tmp_path, local_aks) as world:
        traffic = await live(world, node_api)
        await remove(world, node_api)
    assert traffic.refusals == []
    unlike = difference(granted(render(OVERLAYS[node_api]), NAMESPACE, ACCOUNT), traffic.used)
    assert not unlike, f"manifests/{OVERLAYS[node_api]} and what the provisioner does are not the same:\n{unlike}"


def test_the_page_about_aks_lists_exactly_what_is_granted(overlay: list[Object]) -> None:
    table = PAGE.rpartition("| verbs | on | for |")[2]
    rows = re.findall(r"^\| ((?:`\w+` ?)+)\| `([^`]+)` \|", table, flags=re.MULTILINE)
    said = [f"{verb} {what}" for verbs, what in rows for verb in re.findall(r"\w+", verbs)]
    assert sorted(said) == sorted(map(str, granted(overlay, NAMESPACE, ACCOUNT)))


def test_the_workspace_controller_has_the_rights_that_it_has_everywhere(overlay: list[Object]) -> None:
    assert granted(overlay, NAMESPACE, WORKSPACE_ACCOUNT) == granted(render("base"), NAMESPACE, WORKSPACE_ACCOUNT)


def test_with_node_claims_both_have_the_same_rights_on_those_and_none_on_machines() -> None:
    for account in (ACCOUNT, WORKSPACE_ACCOUNT):
        rights = {
            node_api: {str(each) for each in granted(render(folder), NAMESPACE, account)}
            for node_api, folder in OVERLAYS.items()
        }
        renamed = {each.replace("machines", "nodeclaims") for each in rights["machine"]}
        assert rights["nodeclaim"] == renamed


def test_no_right_is_a_wildcard_and_none_is_on_what_users_write(overlay: list[Object]) -> None:
    rights = granted(overlay, NAMESPACE, ACCOUNT)
    assert rights
    for each in rights:
        assert ANY not in (each.verb, each.group, each.resource), each
        assert each.resource.partition("/")[0] not in ("secrets", "configmaps", "workspaces", "deployments"), each


def test_the_lease_that_may_be_renewed_is_the_one_that_the_process_takes(overlay: list[Object]) -> None:
    """Kustomize gives a hash to every name that it takes for the ConfigMap's, those in roles among them."""
    named = {each.name for each in granted(overlay, NAMESPACE, ACCOUNT) if each.resource == "leases"}
    assert named == {ANY, PROVISIONER_LEASE_NAME}


# -- rendering ---------------------------------------------------------------------------------------------------------


def written_by_the_page() -> str:
    """The overlay that docs/aks.md has its reader write, as a shell leaves it."""
    found = re.search(
        r"cat > manifests/overlays/mine/kustomization.yaml <<EOF\n(.*?)^EOF\n", PAGE, re.DOTALL | re.MULTILINE
    )
    assert found is not None
    text = re.sub(r"\$\(az identity show[^)]*\)", "client", found[1])
    return re.sub(r"\$([A-Z_]+)", lambda match: match[1].lower().replace("_", "-"), text)


def test_the_overlay_that_the_page_writes_fills_in_what_differs(tmp_path: Path) -> None:
    shutil.copytree(MANIFESTS, tmp_path / "manifests")
    folder = tmp_path / "manifests/overlays/mine"
    folder.mkdir()
    (folder / "kustomization.yaml").write_text(written_by_the_page())
    objects = render(folder)
    settings = one(objects, "ConfigMap", SETTINGS)
    assert settings["data"] == {
        "ARM_SUBSCRIPTION_ID": "subscription",
        "ARM_RESOURCE_GROUP": "resource-group",
        "AZURE_CLUSTER_NAME": "cluster",
        "LOCATION": "location",
        "AZURE_CLIENT_ID": "client",
    }
    for name in (ACCOUNT, WORKSPACE_ACCOUNT):
        (container,) = one(objects, "Deployment", name)["spec"]["template"]["spec"]["containers"]
        assert container["image"] == "registry.azurecr.io/kaito-ctrl:0.1.0"
    (container,) = one(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    named = [
        each["valueFrom"]["configMapKeyRef"] for each in container["env"] if "configMapKeyRef" in each["valueFrom"]
    ]
    # A new name with each new content: a change rolls the pods.
    assert {each["name"] for each in named} == {settings["metadata"]["name"]} != {SETTINGS}
    assert set(settings["data"]) <= {each["key"] for each in named}


def test_only_the_provisioner_gets_a_token_that_azure_believes(overlay: list[Object], pod: Object) -> None:
    marked = [
        each["metadata"]["name"]
        for each in overlay
        if each["kind"] in ("Deployment", "DaemonSet")
        and "azure.workload.identity/use" in each["spec"]["template"]["metadata"]["labels"]
    ]
    assert marked == [ACCOUNT]
    assert pod["spec"]["serviceAccountName"] == one(overlay, "ServiceAccount")["metadata"]["name"] == ACCOUNT
    assert f"--subject {SUBJECT} " in PAGE
    assert one(overlay, "Deployment", WORKSPACE_ACCOUNT)["spec"]["template"]["spec"]["serviceAccountName"] != ACCOUNT


def test_the_provisioner_is_found_by_nobody_who_looks_for_the_webhook(overlay: list[Object], pod: Object) -> None:
    for each in overlay:
        selector = each["spec"]["selector"] if each["kind"] == "Service" else None
        if selector is not None:
            assert not selector.items() <= pod["metadata"]["labels"].items()


def test_the_monitor_scrapes_the_provisioner_as_well(pod: Object, container: Object) -> None:
    (monitor,) = render("optional/pod-monitor")
    (watched,) = monitor["spec"]["selector"]["matchExpressions"]
    assert pod["metadata"]["labels"][watched["key"]] in watched["values"]
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] in {each["name"] for each in container["ports"]}


def test_both_can_run_where_a_cluster_has_system_nodes_alone(overlay: list[Object]) -> None:
    for name in (ACCOUNT, WORKSPACE_ACCOUNT):
        tolerations = one(overlay, "Deployment", name)["spec"]["template"]["spec"]["tolerations"]
        assert {"key": "CriticalAddonsOnly", "operator": "Exists"} in tolerations


def test_the_provisioner_runs_on_no_node_that_it_makes(pod: Object) -> None:
    required = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    (term,) = required["nodeSelectorTerms"]
    avoided = {each["key"] for each in term["matchExpressions"] if each["operator"] == "DoesNotExist"}
    assert avoided == {kind.pool_label for kind in NODE_REQUESTS.values()}


def test_each_deployment_has_a_budget_of_its_own(overlay: list[Object]) -> None:
    for name in (ACCOUNT, WORKSPACE_ACCOUNT):
        labels = one(overlay, "Deployment", name)["spec"]["template"]["metadata"]["labels"]
        budgets = [
            each["metadata"]["name"]
            for each in overlay
            if each["kind"] == "PodDisruptionBudget"
            and each["spec"]["selector"]["matchLabels"].items() <= labels.items()
        ]
        assert budgets == [name]


def test_the_provisioners_pod_is_as_restricted_and_as_small_as_the_other(overlay: list[Object], pod: Object) -> None:
    other = one(overlay, "Deployment", WORKSPACE_ACCOUNT)["spec"]["template"]["spec"]
    (mine,), (theirs,) = pod["spec"]["containers"], other["containers"]
    assert pod["spec"]["securityContext"] == other["securityContext"]
    for field in ("image", "securityContext", "resources", "livenessProbe", "readinessProbe"):
        assert mine[field] == theirs[field], field


def test_the_first_token_has_its_time_before_the_pod_is_taken_for_dead(container: Object) -> None:
    probe = container["startupProbe"]
    assert probe["failureThreshold"] * probe["periodSeconds"] >= FIRST_TOKEN + 30.0


def test_the_page_explains_every_reason_that_a_claim_can_have() -> None:
    """Those of what the cloud says; the rest are the stages' own."""
    explained = set(re.findall(r"^\| `(\w+)` \|", PAGE.partition("| reason on the claim |")[2], flags=re.MULTILINE))
    errors = [CloudError, ClusterNotFound, NoRoom]
    for each in errors:
        errors += [more for more in each.__subclasses__() if more not in errors]
    # Of no claim: it is taken for what it says, that there is none.
    assert {each.reason for each in errors if each is not NotFound} <= explained


def test_everything_carries_the_label_by_which_the_page_has_it_removed(overlay: list[Object]) -> None:
    (names,) = re.findall(r"-l 'app.kubernetes.io/name in \(([^)]*)\)'", PAGE)
    for each in overlay:
        if each["kind"] != "CustomResourceDefinition":
            assert each["metadata"]["labels"]["app.kubernetes.io/name"] in names.split(", "), each


def test_the_roles_on_the_page_allow_agent_pools_and_asking_after_operations_and_no_more() -> None:
    texts = re.findall(r"^cat > \S+\.json <<EOF\n(.*?)^EOF\n", PAGE, re.DOTALL | re.MULTILINE)
    pools, operations = (json.loads(re.sub(r"\$[A-Z_]+", "x", text)) for text in texts)
    service = "Microsoft.ContainerService"
    cluster = f"{service}/managedClusters/agentPools"
    assert pools["Actions"] == [f"{cluster}/{verb}" for verb in ("read", "write", "delete", "abort/action")]
    assert operations["Actions"] == [f"{service}/locations/{each}/read" for each in ("operations", "operationresults")]
    for role in (pools, operations):
        assert f'--role "{role["Name"].removesuffix(" x")} $CLUSTER"' in PAGE


# -- the process -------------------------------------------------------------------------------------------------------


async def test_the_process_that_the_pod_runs_makes_nodes_and_ends_in_good_order(
    pod: Object, container: Object, overlay: list[Object], tmp_path: Path
) -> None:
    arms: list[LocalArm] = []

    @asynccontextmanager
    async def azure(dev: DevCluster, clock: Clock, rng: random.Random, boot: float) -> AsyncIterator[CloudProvider]:
        joiner = KubeletJoiner(dev.kubelet, Client(dev.transport(user="cloud-controller-manager")), clock)
        identity = Identity(subject=SUBJECT)
        async with LocalArm(
            identity=identity, joiner=joiner, clock=clock, rng=rng, timings=timings_for(boot), serve=True
        ) as arm:
            arms.append(arm)
            yield SimCloud([], now=clock.now)  # nobody's: the process has its own way to Azure

    async with embedded(tmp_path, azure) as world:
        await deploy(world, f"manifests/{OVERLAYS['machine']}")
        fields = [each for each in container["env"] if "fieldRef" in each["valueFrom"]]
        env = {**await environment(world, ACCOUNT, fields), **told(container, overlay, arms[0])}
        async with pod_process(container, env) as process:
            await process.passes_its_probes()
            path, name = "examples/provisioner/kaito_machine.yaml", "ws5c1a0e9f2"
            applied = await world.kubectl("apply", "-f", path)
            assert applied.status == 0, applied.err
            waited = await world.kubectl("wait", "--for=condition=Ready", f"machine/{name}", "--timeout=50s")
            assert waited.status == 0, waited.err + (await world.kubectl("get", "machine", "-o", "yaml")).out
            assert set(arms[0].pools()) == {name}
            deleted = await world.kubectl("delete", "-f", path)
            assert deleted.status == 0, deleted.err
            assert not arms[0].pools()
            lines = await process.ends(within=pod["spec"]["terminationGracePeriodSeconds"])
        assert {"leads", "lease released"} <= {line["event"] for line in lines}


def told(container: Mapping[str, Any], overlay: list[Object], arm: LocalArm) -> dict[str, str]:
    """What the kubelet would set from the ConfigMap once a user has filled it in; what the workload identity webhook
    adds; and where the local Azure is, which the real one's users need not say."""
    azure = arm.environment()
    keys = set(one(overlay, "ConfigMap", SETTINGS)["data"])
    refs = {each["name"]: each["valueFrom"].get("configMapKeyRef", {}).get("key") for each in container["env"]}
    webhook = ("AZURE_TENANT_ID", "AZURE_FEDERATED_TOKEN_FILE", "AZURE_AUTHORITY_HOST")
    local = ("AZURE_RESOURCE_MANAGER_ENDPOINT", "AZURE_CA_BUNDLE")
    filled = {name: azure[key] for name, key in refs.items() if key in keys}
    return {**filled, **{name: azure[name] for name in (*webhook, *local)}}
