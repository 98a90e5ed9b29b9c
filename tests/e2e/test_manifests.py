"""`manifests/`: what they render to, and that the controllers live with what they are granted; see docs/deploy.md."""

from __future__ import annotations

import inspect
import json
import random
import re
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from kaito_ctrl.cli import runcommand as cli
from kaito_ctrl.cli.daemon import DaemonOptions
from kaito_ctrl.cli.local import LocalKaito, OpenProvider
from kaito_ctrl.runtime import Manager
from tests.deployed import ACCOUNT, NAMESPACE, SERVICE, World, deploy, live, remove
from tests.e2e.conftest import ROOT, Kubectl, until
from tests.permissions import ANY, Permission, difference, granted
from tests.podprocess import environment, pod_process
from tests.rendered import MANIFESTS, render

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

Object = dict[str, Any]


def named(objects: Sequence[Object], kind: str) -> Object:
    (found,) = (each for each in objects if each["kind"] == kind)
    return found


@pytest.fixture(scope="module")
def base() -> list[Object]:
    return render("base")


@pytest.fixture
def pod(base: list[Object]) -> Object:
    """The Deployment's pod template."""
    template: Object = named(base, "Deployment")["spec"]["template"]
    return template


@pytest.fixture
def container(pod: Object) -> Object:
    (found,) = pod["spec"]["containers"]
    return dict(found)


@asynccontextmanager
async def embedded(folder: Path, provider: OpenProvider | None = None) -> AsyncIterator[World]:
    starting = LocalKaito.start(
        root=folder / "pods", boot=0.3, rng=random.Random(7), controllers=False, rbac=True, provider=provider
    )
    async with starting as kaito:
        endpoint = kaito.dev.endpoint
        assert endpoint is not None
        await kaito.dev.write_kubeconfig(folder / "kubeconfig")
        ports: list[int] = []

        def resolve(*service: object) -> str | None:
            assert service == SERVICE
            ports.append(ports.pop(0))  # one after the other
            return f"https://127.0.0.1:{ports[-1]}"

        async def lead_webhook_to(wanted: Sequence[int]) -> None:
            ports[:] = wanted

        kaito.dev.server.resolve_service(resolve)
        yield World(
            kaito.client,
            Kubectl(folder / "kubeconfig"),
            kaito.provider,
            lambda token: replace(endpoint, token=token).kubeconfig(),
            lead_webhook_to,
            folder,
            (1, 32),
        )


# -- rights ------------------------------------------------------------------------------------------------------------


async def test_the_controllers_use_every_right_that_they_are_granted_and_need_no_other(
    base: list[Object], tmp_path: Path
) -> None:
    async with embedded(tmp_path) as world:
        traffic = await live(world)
        await remove(world)
    assert traffic.refusals == []
    unlike = difference(granted(base, NAMESPACE, ACCOUNT), traffic.used)
    assert not unlike, f"manifests/base and what the controllers do are not the same:\n{unlike}"


def test_a_right_too_many_is_told_as_well_as_one_too_few() -> None:
    role = {"kind": "Role", "metadata": {"name": "it", "namespace": "here"}}
    rules = [{"apiGroups": ["apps"], "resources": ["deployments"], "resourceNames": ["a"], "verbs": ["get", "patch"]}]
    subject = {"kind": "ServiceAccount", "namespace": "here", "name": "me"}
    binding = {"kind": "RoleBinding", "metadata": role["metadata"], "roleRef": {"kind": "Role", "name": "it"}}
    objects = [{**role, "rules": rules}, {**binding, "subjects": [subject]}]
    used = {Permission("get", "apps", "deployments", "here", "a"), Permission("get", "", "secrets")}
    assert difference(granted(objects, "here", "me"), used).splitlines() == [
        "used, but not granted: get secrets",
        "granted, but never used: patch deployments.apps a in here",
    ]
    assert granted(objects, "here", "somebody else") == set()


def test_no_right_is_a_wildcard_and_none_is_on_secrets(base: list[Object]) -> None:
    rights = granted(base, NAMESPACE, ACCOUNT)
    assert rights
    for each in rights:
        assert ANY not in (each.verb, each.group, each.resource), each
        assert not each.resource.startswith("secrets"), each


def test_the_page_about_deployment_lists_exactly_what_is_granted(base: list[Object]) -> None:
    text = (ROOT / "docs/deploy.md").read_text()
    table = text.partition("| verbs | on | for |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| ((?:`\w+` ?)+)\| `([^`]+)` \|", table, flags=re.MULTILINE)
    said = [f"{verb} {what}" for verbs, what in rows for verb in re.findall(r"\w+", verbs)]
    assert sorted(said) == sorted(map(str, granted(base, NAMESPACE, ACCOUNT)))


# -- rendering ---------------------------------------------------------------------------------------------------------


def test_they_use_nothing_of_kustomize_that_kubectl_1_20_does_not_know() -> None:
    known = {"apiVersion", "kind", "bases", "resources", "images", "patchesJson6902"}
    known |= {"configMapGenerator", "generatorOptions"}
    files = [each for each in MANIFESTS.rglob("*") if each.name.lower() in ("kustomization", "kustomization.yaml")]
    assert len(files) >= 5
    for file in files:
        content = yaml.safe_load(file.read_text())
        assert set(content) <= known, file
        for each in content.get("resources", ()):
            assert (file.parent / each).is_file(), f"{file}: {each} is a folder, which older ones take in bases alone"


def test_the_overlay_that_the_page_about_deployment_writes_renders(tmp_path: Path) -> None:
    shutil.copytree(MANIFESTS, tmp_path / "manifests")
    text = (ROOT / "docs/deploy.md").read_text()
    written = re.search(r"cat > manifests/(\S+)/kustomization.yaml <<'EOF'\n(.*?)EOF\n", text, flags=re.DOTALL)
    assert written is not None
    folder = tmp_path / "manifests" / written[1]
    folder.mkdir(parents=True)
    (folder / "kustomization.yaml").write_text(written[2])
    objects = render(folder)
    assert named(objects, "PodDisruptionBudget")
    (made,) = named(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert made["image"] == "registry.example/kaito-ctrl:0.1.0"


def test_every_definition_is_rendered(base: list[Object]) -> None:
    files = {yaml.safe_load(each.read_text())["metadata"]["name"] for each in (MANIFESTS / "crds").glob("*.yaml")}
    assert {each["metadata"]["name"] for each in base if each["kind"] == "CustomResourceDefinition"} == files


def test_all_but_definitions_carry_the_label_by_which_they_are_removed(base: list[Object]) -> None:
    for each in base:
        labels = each["metadata"].get("labels") or {}
        assert (labels.get("app.kubernetes.io/name") == "kaito-ctrl") == (each["kind"] != "CustomResourceDefinition")


def test_the_overlay_for_development_differs_in_image_replicas_and_logs_alone(base: list[Object]) -> None:
    dev = named(render("overlays/dev"), "Deployment")
    spec = dev["spec"]["template"]["spec"]["containers"][0]
    assert (spec.pop("image"), spec.pop("imagePullPolicy"), dev["spec"].pop("replicas")) == (
        "kaito-ctrl:dev",
        "IfNotPresent",
        1,
    )
    assert spec["args"].pop() == "--log-level=debug"
    plain = json.loads(json.dumps(named(base, "Deployment")))
    del plain["spec"]["replicas"], plain["spec"]["template"]["spec"]["containers"][0]["image"]
    assert dev == plain


# -- the pod -----------------------------------------------------------------------------------------------------------


def test_the_pod_is_as_restricted_as_its_namespace_demands(base: list[Object], pod: Object, container: Object) -> None:
    """The fields that https://kubernetes.io/docs/concepts/security/pod-security-standards/ has under *restricted*."""
    assert named(base, "Namespace")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    spec, security = pod["spec"], container["securityContext"]
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & set(spec)
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert security == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert all("hostPort" not in port for port in container["ports"])
    assert [set(volume) - {"name"} for volume in spec["volumes"]] == [{"emptyDir"}]
    for amount in ("cpu", "memory", "ephemeral-storage"):
        assert amount in container["resources"]["requests"]
        assert amount in container["resources"]["limits"]


def test_the_image_runs_as_the_user_that_the_pod_asks_for(pod: Object) -> None:
    security = pod["spec"]["securityContext"]
    assert f"\nUSER {security['runAsUser']}:{security['runAsGroup']}\n" in (ROOT / "Dockerfile").read_text()


def test_a_stop_is_given_the_time_that_it_takes(pod: Object, container: Object) -> None:
    grace = inspect.signature(Manager).parameters["grace"].default
    (command, before) = container["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep"
    assert pod["spec"]["terminationGracePeriodSeconds"] >= float(before) + DaemonOptions().drain + grace


def test_whoever_calls_the_pod_finds_the_right_port(base: list[Object], pod: Object, container: Object) -> None:
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    defaults = inspect.signature(cli.run).parameters
    assert ports["metrics"] == defaults["metrics_port"].default
    assert ports["health"] == defaults["health_port"].default
    assert f"--webhook-port={ports['webhook']}" in container["args"]
    assert pod["metadata"]["annotations"]["prometheus.io/port"] == str(ports["metrics"])
    service = named(base, "Service")
    (port,) = service["spec"]["ports"]
    assert port["targetPort"] in ports
    where = (service["metadata"]["namespace"], service["metadata"]["name"], port["port"])
    assert where == SERVICE
    assert "--webhook-service={}/{}:{}".format(*where) in container["args"]
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()


def test_what_is_optional_selects_the_pods(pod: Object, container: Object) -> None:
    (monitor,), (budget,) = render("optional/pod-monitor"), render("optional/disruption-budget")
    labels = pod["metadata"]["labels"]
    assert monitor["metadata"]["namespace"] == budget["metadata"]["namespace"] == NAMESPACE
    assert budget["spec"]["selector"]["matchLabels"].items() <= labels.items()
    (watched,) = monitor["spec"]["selector"]["matchExpressions"]
    assert watched["operator"] == "In"
    assert labels[watched["key"]] in watched["values"]
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] in {each["name"] for each in container["ports"]}


# -- the process -------------------------------------------------------------------------------------------------------


async def test_the_process_that_the_pod_runs_gets_ready_and_ends_in_good_order(
    pod: Object, container: Object, tmp_path: Path
) -> None:
    async with embedded(tmp_path) as world:
        await deploy(world)
        env = await environment(world, ACCOUNT, container["env"])
        async with pod_process(container, env) as process:
            await process.passes_its_probes()

            async def leads() -> bool:
                # A standby is ready before it leads.
                text = await process.get("metrics", pod["metadata"]["annotations"]["prometheus.io/path"])
                return re.search(r"^leader_election_master_status{[^}]*} 1\.0$", text or "", re.MULTILINE) is not None

            await until(leads)
            lines = await process.ends(within=pod["spec"]["terminationGracePeriodSeconds"])
        assert {"leads", "lease released"} <= {line["event"] for line in lines}
