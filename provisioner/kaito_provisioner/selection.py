"""What a claim may be made of, in the order in which to ask the cloud for it.

:func:`choose` is the whole decision, from the claim's requirements and what the cloud lists:

* What the cloud is known not to have goes last. It is tried all the same when nothing else is left: the cloud knows
  better, and its refusal says why.
* Then capacity types, in the order in which the claim names them (``on-demand`` if it does not).
* Then instance types: the cheapest first where the price is known, then the others in the order in which the claim
  names them, or the cloud lists them.

What the cloud has refused is remembered across claims by
:class:`~kaito_provisioner.unavailable.UnavailableOfferings`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import get_args

from kaito_api.karpenter import CAPACITY_TYPE_LABEL, INSTANCE_TYPE_LABEL, ZONE_LABEL, Requirement
from kaito_api.quantity import parse_quantity
from kaito_provisioner.cloud import CapacityType, InstanceType, InvalidRequest, Offering
from kaito_provisioner.requirements import Requirements, ValueSet

__all__ = ["choose"]

_CAPACITY_TYPES: tuple[CapacityType, ...] = get_args(CapacityType)
_GPUS = frozenset({"nvidia.com/gpu", "amd.com/gpu"})
"""What a node has as hardware or not at all. Other devices come and go with plugins, which no instance type knows."""


def choose(
    requirements: Iterable[Requirement],
    instance_types: Sequence[InstanceType],
    *,
    resources: Mapping[str, str] | None = None,
) -> tuple[Offering, ...]:
    """Every acceptable offering, the preferred first: at least one, each once, with its zones narrowed to the claim's.

    *resources* are what the claim asks of its node at least. A type that the claim names and the cloud does not list is
    kept: the cloud will know. Raises ``InvalidRequest`` where nothing is acceptable.
    """
    wanted = Requirements(requirements)
    types, capacity, zones = (wanted.on(key) for key in (INSTANCE_TYPE_LABEL, CAPACITY_TYPE_LABEL, ZONE_LABEL))
    for key, allowed in wanted.items():
        # What DoesNotExist says of other labels, no cloud needs to fulfil.
        if not allowed and key in (INSTANCE_TYPE_LABEL, CAPACITY_TYPE_LABEL, ZONE_LABEL):
            raise InvalidRequest(
                f"the requirements on {key} leave no value", fix="take requirements back: all on one key have to hold"
            )
    capacities = _capacities(capacity, named=CAPACITY_TYPE_LABEL in wanted)
    listed = {each.name: each for each in instance_types}
    names = types.named or tuple(name for name in listed if name in types)
    if not names:
        raise InvalidRequest(
            f"the cloud lists no instance type that fulfils {INSTANCE_TYPE_LABEL} {types}",
            fix=f"name instance types: {INSTANCE_TYPE_LABEL} In [...]",
        )
    everywhere = tuple(dict.fromkeys(z for each in instance_types for o in each.offerings for z in o.zones))
    found: list[tuple[tuple[bool, int, float, int], Offering]] = []
    refusals: list[str] = []

    def assumed(name: str) -> Iterator[Offering]:
        """What to ask for where the cloud does not say how it offers a type. Nobody has a reservation unasked."""
        return (Offering(name, each) for each in capacities if each != "reserved" or capacity.named)

    for place, name in enumerate(names):
        why_not = _unfit(listed.get(name, InstanceType(name)), wanted, resources or {})
        if why_not is not None:
            refusals.append(f"{name}: {why_not}")
            continue
        offered = listed[name].offerings if name in listed else ()
        before = len(found)
        for offering in offered or assumed(name):
            narrowed = _narrow(offering, zones, everywhere)
            if narrowed is None or offering.capacity_type not in capacities:
                continue
            price = math.inf if offering.price is None else offering.price
            found.append(((not offering.available, capacities.index(offering.capacity_type), price, place), narrowed))
        if len(found) == before:
            asked = ", ".join(capacities) + (f" in zones {zones}" if ZONE_LABEL in wanted else "")
            refusals.append(f"{name}: it is not offered as {asked}")
    if not found:
        raise InvalidRequest(
            f"no instance type fulfils the requirements: {'; '.join(refusals)}",
            fix="allow another instance type, zone or capacity type",
        )
    return tuple(dict.fromkeys(offering for _, offering in sorted(found, key=lambda each: each[0])))


def _capacities(allowed: ValueSet, *, named: bool) -> tuple[CapacityType, ...]:
    if not named:
        return ("on-demand",)
    order: Iterable[str] = allowed.named or _CAPACITY_TYPES
    chosen = tuple(known for value in order for known in _CAPACITY_TYPES if value == known and value in allowed)
    if not chosen:
        raise InvalidRequest(
            f"there is no capacity type {allowed}",
            fix=f"use one of {', '.join(_CAPACITY_TYPES)} for {CAPACITY_TYPE_LABEL}",
        )
    return chosen


def _unfit(kind: InstanceType, wanted: Requirements, resources: Mapping[str, str]) -> str | None:
    """Why *kind* will not do, as far as the cloud says what it is like."""
    key = wanted.conflict(kind.labels)
    if key is not None:
        return f"its {key} is {kind.labels[key]}, not {wanted.on(key)}"
    has = kind.allocatable or kind.capacity
    for resource, least in resources.items():
        amount = has.get(resource, "0" if resource in _GPUS and has else None)
        if amount is not None and not _is_disk(resource) and parse_quantity(amount) < parse_quantity(least):
            return f"it has {amount} of {resource}, not {least}"
    return None


def _is_disk(resource: str) -> bool:
    """A disk is made as large as it is asked for."""
    return resource in ("storage", "ephemeral-storage")


def _narrow(offering: Offering, allowed: ValueSet, everywhere: Sequence[str]) -> Offering | None:
    """*offering* in the allowed zones only; ``None`` if it is in none of them."""
    if offering.zones:
        zones = tuple(zone for zone in offering.zones if zone in allowed)
        return replace(offering, zones=zones) if zones else None
    # Nobody knows where it is offered: ask for it where it may be.
    if allowed.named:
        return replace(offering, zones=allowed.named)
    rest = tuple(zone for zone in everywhere if zone in allowed)
    if len(rest) == len(everywhere):
        return offering
    return replace(offering, zones=rest) if rest else None
