"""Services: addresses, ports, and what is refused."""

from __future__ import annotations

import pytest

from tests.conformance.objects import service
from tests.conformance.wire import Api, Obj, fails


async def test_a_service_gets_an_address_and_defaults(api: Api) -> None:
    made = await api.post(api.at("services"), service())
    spec = made["spec"]
    assert spec["clusterIP"].count(".") == 3
    assert spec["clusterIPs"] == [spec["clusterIP"]]
    assert (spec["type"], spec["sessionAffinity"]) == ("ClusterIP", "None")
    assert spec["ports"] == [{"protocol": "TCP", "port": 80, "targetPort": 80}]
    assert made["status"] == {"loadBalancer": {}}


async def test_every_service_has_its_own_address(api: Api) -> None:
    made = [await api.post(api.at("services"), service(name)) for name in ("one", "two", "three")]
    assert len({one["spec"]["clusterIP"] for one in made}) == 3


async def test_an_address_may_be_asked_for_once(api: Api) -> None:
    free = await api.post(api.at("services"), service())
    address = free["spec"]["clusterIP"]
    with fails(422, "Invalid") as caught:
        await api.post(api.at("services"), service("t", clusterIP=address))
    assert "provided IP is already allocated" in caught.value.message
    assert caught.value.fields[0].startswith("spec.clusterIP")
    await api.delete(api.at("services", "s"))
    assert (await api.post(api.at("services"), service("t", clusterIP=address)))["spec"]["clusterIP"] == address


async def test_an_address_outside_of_the_range_is_refused(api: Api) -> None:
    with fails(422, "Invalid") as caught:
        await api.post(api.at("services"), service(clusterIP="192.0.2.1"))
    assert caught.value.fields[0].startswith("spec.clusterIP")
    # The second is what servers say that allocate by ServiceCIDR objects, from 1.33 on.
    words = ("not in the valid range", "does not match the current range")
    assert any(word in caught.value.message for word in words), caught.value


async def test_an_address_never_changes(api: Api) -> None:
    made = await api.post(api.at("services"), service())
    with fails(422, "Invalid") as caught:
        await api.put(
            api.at("services", "s"),
            {**made, "spec": {**made["spec"], "clusterIP": "192.0.2.1", "clusterIPs": ["192.0.2.1"]}},
        )
    assert any("clusterIP" in field for field in caught.value.fields)
    assert "may not change once set" in caught.value.message or "field is immutable" in caught.value.message


@pytest.mark.minimum("1.22")
async def test_replacing_a_service_keeps_its_address(api: Api) -> None:
    made = await api.post(api.at("services"), service())
    body = service()
    body["metadata"]["resourceVersion"] = made["metadata"]["resourceVersion"]
    assert (await api.put(api.at("services", "s"), body))["spec"]["clusterIP"] == made["spec"]["clusterIP"]


async def test_a_headless_service_has_no_address(api: Api) -> None:
    made = await api.post(api.at("services"), service(clusterIP="None"))
    assert (made["spec"]["clusterIP"], made["spec"]["clusterIPs"]) == ("None", ["None"])


async def test_an_external_name_needs_no_address(api: Api) -> None:
    made = await api.post(
        api.at("services"), {"metadata": {"name": "s"}, "spec": {"type": "ExternalName", "externalName": "example.com"}}
    )
    assert "clusterIP" not in made["spec"]


async def test_a_node_port_is_allocated(api: Api) -> None:
    made = await api.post(api.at("services"), service(type="NodePort"))
    assert 30000 <= made["spec"]["ports"][0]["nodePort"] <= 32767
    assert made["spec"]["externalTrafficPolicy"] == "Cluster"


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"ports": []}, "spec.ports"),
        ({"ports": [{"port": 0}]}, "spec.ports[0].port"),
        ({"ports": [{"port": 70000}]}, "spec.ports[0].port"),
        ({"ports": [{"port": 80}, {"port": 81}]}, "spec.ports[0].name"),
        ({"ports": [{"name": "a", "port": 80}, {"name": "a", "port": 81}]}, "spec.ports[1].name"),
        ({"ports": [{"name": "a", "port": 80}, {"name": "b", "port": 80}]}, "spec.ports[1]"),
        ({"ports": [{"port": 80, "protocol": "ICMP"}]}, "spec.ports[0].protocol"),
        ({"type": "Magic"}, "spec.type"),
        ({"sessionAffinity": "Sometimes"}, "spec.sessionAffinity"),
        ({"selector": {"a b": "c"}}, "spec.selector"),
    ],
)
async def test_services_are_validated(api: Api, spec: Obj, field: str) -> None:
    with fails(422, "Invalid") as caught:
        await api.post(api.at("services"), service(**spec))
    assert field in caught.value.fields
