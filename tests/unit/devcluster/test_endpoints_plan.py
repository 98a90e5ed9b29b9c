"""Which addresses a Service has."""

from __future__ import annotations

from typing import Any

from devobjects import pod

from kaito_api.core import Endpoints, Service
from kaito_ctrl.devcluster.endpoints import plan_endpoints, plan_slice
from kaito_ctrl.devcluster.kinds import Pod
from kaito_ctrl.devcluster.proxy import backends


def service(**spec: Any) -> Service:
    given = {"selector": {"app": "web"}, "clusterIP": "127.96.0.9", "ports": [{"port": 80, "targetPort": 5000}], **spec}
    return Service.model_validate({"metadata": {"name": "web", "namespace": "default", "uid": "v-1"}, "spec": given})


def at(ip: str, name: str = "p", **state: Any) -> Pod:
    made = pod(name, **state)
    return made.evolve(status=made.status.evolve(pod_ip=ip))


def addresses(endpoints: Endpoints) -> list[tuple[list[str], list[str], list[int]]]:
    return [
        ([a.ip for a in s.addresses], [a.ip for a in s.not_ready_addresses], [p.port for p in s.ports])
        for s in endpoints.subsets
    ]


def test_ready_and_unready_pods_are_told_apart_and_others_left_out() -> None:
    pods = [
        at("127.97.0.2", "b"),
        at("127.97.0.1", "a"),
        at("127.97.0.3", "c", ready=False),
        at("127.97.0.4", "d", deleting=True),
        at("127.97.0.5", "e", phase="Succeeded"),
        at("127.97.0.6", "f", labels={"app": "db"}),
        at("", "g"),
    ]
    assert addresses(plan_endpoints(service(), pods)) == [(["127.97.0.1", "127.97.0.2"], ["127.97.0.3"], [5000])]


def test_unready_pods_can_be_published() -> None:
    found = plan_endpoints(service(publishNotReadyAddresses=True), [at("127.97.0.3", ready=False)])
    assert addresses(found) == [(["127.97.0.3"], [], [5000])]


def test_a_named_port_may_be_another_one_on_each_pod() -> None:
    named = service(ports=[{"name": "http", "port": 80, "targetPort": "web"}])
    one = at("127.97.0.1", "a", containers=[{"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}])
    two = at("127.97.0.2", "b", containers=[{"name": "c", "ports": [{"name": "web", "containerPort": 9090}]}])
    none = at("127.97.0.3", "c")
    found = plan_endpoints(named, [one, two, none])
    assert addresses(found) == [(["127.97.0.1"], [], [8080]), (["127.97.0.2"], [], [9090])]
    assert backends(named, named.spec.ports[0], found) == (("127.97.0.1", 8080), ("127.97.0.2", 9090))


def test_a_headless_service_without_ports_still_has_addresses() -> None:
    found = plan_endpoints(service(clusterIP="None", ports=[]), [at("127.97.0.1")])
    assert addresses(found) == [(["127.97.0.1"], [], [])]


def test_the_slice_says_the_same_and_belongs_to_its_service() -> None:
    made = plan_slice(service(), [at("127.97.0.1", "a"), at("127.97.0.2", "b", ready=False)])
    assert [(e["addresses"], e["conditions"]["ready"]) for e in made.endpoints] == [
        (["127.97.0.1"], True),
        (["127.97.0.2"], False),
    ]
    assert made.metadata.labels["kubernetes.io/service-name"] == "web"
    assert made.metadata.owner_references[0].uid == "v-1"
