"""Which offerings a claim is tried on, in which order."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kaito_api.karpenter import CAPACITY_TYPE_LABEL, INSTANCE_TYPE_LABEL, ZONE_LABEL, Requirement
from kaito_provisioner.cloud import CapacityType, InstanceType, InvalidRequest, Offering
from kaito_provisioner.requirements import Requirements
from kaito_provisioner.selection import choose


def types(*values: str) -> Requirement:
    return Requirement(key=INSTANCE_TYPE_LABEL, operator="In", values=values)


def capacity(*values: str) -> Requirement:
    return Requirement(key=CAPACITY_TYPE_LABEL, operator="In", values=values)


def zones(*values: str) -> Requirement:
    return Requirement(key=ZONE_LABEL, operator="In", values=values)


def offered(name: str, *offerings: Offering, **labels: str) -> InstanceType:
    gpus = {"nvidia.com/gpu": name[-1], "cpu": "6"} if name[-1].isdigit() else {"cpu": "6"}
    return InstanceType(
        name, labels={key.replace("_", "/"): value for key, value in labels.items()}, capacity=gpus, offerings=offerings
    )


def names(offerings: tuple[Offering, ...]) -> list[str]:
    return [each.instance_type for each in offerings]


def test_the_order_of_the_claim_decides_where_no_price_is_known() -> None:
    cloud = [offered("a", Offering("a")), offered("b", Offering("b"))]
    assert names(choose([types("b", "a")], cloud)) == ["b", "a"]


def test_the_cheapest_comes_first_and_what_has_no_price_last() -> None:
    cloud = [offered("a", Offering("a", price=3.0)), offered("b", Offering("b", price=1.0)), offered("c")]
    assert names(choose([types("c", "a", "b")], cloud)) == ["b", "a", "c"]


def test_all_types_are_tried_as_one_capacity_type_before_the_next() -> None:
    cloud = [
        offered(name, Offering(name, "on-demand", price=4.0), Offering(name, "spot", price=price))
        for name, price in (("a", 2.0), ("b", 1.0))
    ]
    chosen = choose([types("a", "b"), capacity("spot", "on-demand")], cloud)
    assert [(each.instance_type, each.capacity_type) for each in chosen] == [
        ("b", "spot"),
        ("a", "spot"),
        ("a", "on-demand"),
        ("b", "on-demand"),
    ]


def test_nobody_gets_spot_unasked() -> None:
    cloud = [offered("a", Offering("a", "spot", price=1.0), Offering("a", price=4.0))]
    assert [each.capacity_type for each in choose([types("a", "unlisted")], cloud)] == ["on-demand", "on-demand"]


def test_a_type_that_the_cloud_does_not_list_is_kept_if_the_claim_names_it() -> None:
    assert choose([types("new"), capacity("spot"), zones("r-2")], [offered("a", Offering("a"))]) == (
        Offering("new", "spot", ("r-2",)),
    )


def test_a_type_that_the_claim_forbids_is_never_chosen() -> None:
    cloud = [offered("a", Offering("a", price=1.0)), offered("b", Offering("b"))]
    assert names(choose([Requirement(key=INSTANCE_TYPE_LABEL, operator="NotIn", values=("a",))], cloud)) == ["b"]


def test_a_claim_that_names_no_type_gets_what_fulfils_the_rest() -> None:
    cloud = [
        offered("none", Offering("none", price=0.1), example_com="x"),
        offered("gpu1", Offering("gpu1", price=2.0), kubernetes_io="amd64"),
        offered("gpu4", Offering("gpu4", price=9.0)),
    ]
    assert names(choose([], cloud, resources={"nvidia.com/gpu": "1", "storage": "500Gi"})) == ["gpu1", "gpu4"]
    assert names(choose([], cloud, resources={"nvidia.com/gpu": "2"})) == ["gpu4"]


def test_what_the_cloud_cannot_know_of_is_not_asked_of_its_types() -> None:
    cloud = [offered("gpu1", Offering("gpu1"))]
    assert names(choose([], cloud, resources={"smarter-devices/fuse": "1", "ephemeral-storage": "2Ti"})) == ["gpu1"]


def test_labels_of_a_type_have_to_fulfil_the_requirements() -> None:
    cloud = [
        InstanceType("arm", labels={"kubernetes.io/arch": "arm64"}),
        InstanceType("x86", labels={"kubernetes.io/arch": "amd64"}),
    ]
    arch = Requirement(key="beta.kubernetes.io/arch", operator="In", values=("amd64",))
    assert names(choose([arch], cloud)) == ["x86"]


def test_zones_are_narrowed_to_those_allowed() -> None:
    cloud = [offered("a", Offering("a", zones=("r-1", "r-2", "r-3"))), offered("b", Offering("b", zones=("r-1",)))]
    not_first = Requirement(key=ZONE_LABEL, operator="NotIn", values=("r-1",))
    assert choose([types("a", "b"), not_first], cloud) == (Offering("a", zones=("r-2", "r-3")),)
    assert choose([types("a"), zones("r-3", "r-9")], cloud) == (Offering("a", zones=("r-3",)),)


def test_a_type_of_unknown_zones_is_asked_for_where_it_may_be() -> None:
    cloud = [offered("a", Offering("a", zones=("r-1", "r-2"))), offered("b", Offering("b"))]
    not_first = Requirement(key=ZONE_LABEL, operator="NotIn", values=("r-1",))
    nowhere = Requirement(key=ZONE_LABEL, operator="NotIn", values=("r-1", "r-2"))
    assert choose([types("b")], cloud) == (Offering("b"),)
    assert choose([types("b"), not_first], cloud) == (Offering("b", zones=("r-2",)),)
    with pytest.raises(InvalidRequest):
        choose([types("b"), nowhere], cloud)


def test_what_the_cloud_is_known_not_to_have_is_tried_last() -> None:
    cloud = [offered("a", Offering("a", price=1.0, available=False)), offered("b", Offering("b", price=2.0))]
    assert names(choose([types("a", "b")], cloud)) == ["b", "a"]


@pytest.mark.parametrize(
    ("claim", "said"),
    [
        ([types()], "leave no value"),
        ([types("a"), types("b")], "leave no value"),
        ([Requirement(key=INSTANCE_TYPE_LABEL, operator="Gt", values=("3",))], "lists no instance type"),
        ([types("a"), capacity("borrowed")], "no capacity type In \\[borrowed\\]"),
        ([types("a"), capacity("spot")], "a: it is not offered as spot"),
        ([types("a"), zones("r-9")], "a: it is not offered as on-demand in zones In \\[r-9\\]"),
    ],
)
def test_what_cannot_be_had_is_said_with_why(claim: list[Requirement], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said) as refused:
        choose(claim, [offered("a", Offering("a", zones=("r-1",)))])
    assert refused.value.fix


def test_resources_that_no_type_has_are_said() -> None:
    with pytest.raises(InvalidRequest, match=r"gpu1: it has 1 of nvidia\.com/gpu, not 8"):
        choose([types("gpu1")], [offered("gpu1", Offering("gpu1"))], resources={"nvidia.com/gpu": "8"})


some_zones = st.lists(st.sampled_from(["r-1", "r-2", "r-3"]), unique=True).map(tuple)
capacity_types: st.SearchStrategy[CapacityType] = st.sampled_from(["on-demand", "spot", "reserved"])
type_names = st.sampled_from(["a", "b", "c", "d"])


@st.composite
def clouds(draw: st.DrawFn) -> list[InstanceType]:
    offered_names = draw(st.lists(type_names, unique=True))
    return [
        InstanceType(
            name,
            offerings=tuple(
                Offering(name, each, draw(some_zones), draw(st.none() | st.floats(0, 9)), draw(st.booleans()))
                for each in draw(st.lists(capacity_types, unique=True))
            ),
        )
        for name in offered_names
    ]


def on(key: str, values: st.SearchStrategy[str]) -> st.SearchStrategy[Requirement]:
    return st.builds(
        lambda operator, chosen: Requirement(key=key, operator=operator, values=tuple(chosen)),
        st.sampled_from(["In", "NotIn"]),
        st.lists(values, max_size=3, unique=True),
    )


claims = st.lists(
    on(INSTANCE_TYPE_LABEL, type_names)
    | on(CAPACITY_TYPE_LABEL, capacity_types)
    | on(ZONE_LABEL, st.sampled_from(["r-1", "r-2", "r-3"])),
    max_size=4,
)


@given(claims, clouds())
def test_whatever_is_chosen_is_allowed_and_nothing_is_chosen_twice(
    claim: list[Requirement], cloud: list[InstanceType]
) -> None:
    allowed = Requirements(claim)
    try:
        chosen = choose(claim, cloud)
    except InvalidRequest:
        return
    assert chosen
    assert len(set(chosen)) == len(chosen)
    for each in chosen:
        assert each.instance_type in allowed.on(INSTANCE_TYPE_LABEL)
        assert each.capacity_type in allowed.on(CAPACITY_TYPE_LABEL)
        assert all(zone in allowed.on(ZONE_LABEL) for zone in each.zones)
    prices = [(not each.available, each.capacity_type, each.price) for each in chosen if each.price is not None]
    for before, after in itertools.pairwise(prices):
        assert before[:2] != after[:2] or before[2] <= after[2]


@given(clouds())
def test_every_available_type_that_a_claim_names_is_tried(cloud: list[InstanceType]) -> None:
    claim = [types("a", "b", "c", "d"), capacity("on-demand", "spot", "reserved")]
    assert set(names(choose(claim, cloud))) == {"a", "b", "c", "d"}
