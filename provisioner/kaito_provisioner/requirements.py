"""The algebra of Karpenter's requirements: which values of which labels a claim accepts.

A requirement allows either the values that it names, or all but those that it names; of the latter, bounds may cut off
what is no whole number or lies outside. Both kinds are a :class:`ValueSet`, closed under intersection. Several entries
on one key are ANDed, an entry that is not there allows everything, and deprecated keys mean the stable ones.

Unlike Karpenter's sets, ours keep the order in which a claim names its values: for some keys it is a preference.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from kaito_api.karpenter import Requirement
from kaito_provisioner.cloud import InvalidRequest

__all__ = ["ANY", "NONE", "Requirements", "ValueSet", "normalize"]

_STABLE = {
    "beta.kubernetes.io/arch": "kubernetes.io/arch",
    "beta.kubernetes.io/os": "kubernetes.io/os",
    "beta.kubernetes.io/instance-type": "node.kubernetes.io/instance-type",
    "failure-domain.beta.kubernetes.io/zone": "topology.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region": "topology.kubernetes.io/region",
}
_INTEGER = re.compile(r"[+-]?[0-9]+")
_LEAST, _MOST = -(2**63), 2**63 - 1
"""Go's ``int``: what does not fit there is no number to anybody else who reads the label."""


def normalize(key: str) -> str:
    """The stable name of a label."""
    return _STABLE.get(key, key)


def _integer(text: str) -> int | None:
    """As Go's ``strconv.Atoi`` reads it."""
    if _INTEGER.fullmatch(text) is None:
        return None
    number = int(text)
    return number if _LEAST <= number <= _MOST else None


@dataclass(frozen=True, slots=True)
class ValueSet:
    """The values that a label may have: ``value in allowed``. Built by :meth:`of`, :data:`ANY` and :data:`NONE`.

    ``values`` are those allowed or, of a complement, those forbidden: each once, in the order in which they were named.
    ``lower`` and ``upper`` are inclusive, and only ever set on a complement.
    """

    values: tuple[str, ...]
    complement: bool = False
    lower: int | None = None
    upper: int | None = None

    @classmethod
    def of(cls, requirement: Requirement) -> ValueSet:
        """What one entry allows. Raises ``InvalidRequest`` for a bound that is not one whole number."""
        match requirement.operator:
            case "In":
                return cls(_once(requirement.values))
            case "NotIn":
                return cls(_once(requirement.values), complement=True)
            case "Exists":
                return ANY
            case "DoesNotExist":
                return NONE
        bound = _integer(requirement.values[0]) if len(requirement.values) == 1 else None
        if bound is None:
            raise InvalidRequest(
                f"the requirement on {requirement.key} is {requirement.operator} {_listed(requirement.values)}",
                fix=f"give {requirement.operator} one whole number",
            )
        match requirement.operator:
            case "Gt":
                return _bounded(bound + 1, None)
            case "Gte":
                return _bounded(bound, None)
            case "Lt":
                return _bounded(None, bound - 1)
            case "Lte":
                return _bounded(None, bound)

    def __contains__(self, value: str) -> bool:
        if not self.complement:
            return value in self.values
        return value not in self.values and self._within(value)

    def __bool__(self) -> bool:
        """Whether it allows anything at all."""
        return self.complement or bool(self.values)

    def __and__(self, other: ValueSet) -> ValueSet:
        """What both allow. Values come in the order of the left one, if it names any."""
        if not self.complement:
            return ValueSet(tuple(value for value in self.values if value in other))
        if not other.complement:
            return ValueSet(tuple(value for value in other.values if value in self))
        lower = max((each.lower for each in (self, other) if each.lower is not None), default=None)
        upper = min((each.upper for each in (self, other) if each.upper is not None), default=None)
        bounded = _bounded(lower, upper)
        if not bounded:
            return NONE
        # What the bounds exclude anyway need not be excluded by name.
        forbidden = tuple(value for value in _once((*self.values, *other.values)) if bounded._within(value))
        return ValueSet(forbidden, complement=True, lower=lower, upper=upper)

    def __str__(self) -> str:
        """As a claim would spell it, e.g. ``In [a, b]``."""
        parts = [f"Gte {self.lower}"] if self.lower is not None else []
        parts += [f"Lte {self.upper}"] if self.upper is not None else []
        if self.values:
            parts.append(f"{'NotIn' if self.complement else 'In'} {_listed(self.values)}")
        return " and ".join(parts) or ("Exists" if self.complement else "DoesNotExist")

    @property
    def named(self) -> tuple[str, ...]:
        """The allowed values where they are named one by one; empty where they are not."""
        return () if self.complement else self.values

    def _within(self, value: str) -> bool:
        if self.lower is None and self.upper is None:
            return True
        number = _integer(value)
        if number is None:
            return False
        return (self.lower is None or number >= self.lower) and (self.upper is None or number <= self.upper)


ANY = ValueSet((), complement=True)
"""Whatever the value is: ``Exists``, and what a key that nobody mentions allows."""
NONE = ValueSet(())
"""No value at all: ``DoesNotExist``, and what is left of a contradiction."""


def _bounded(lower: int | None, upper: int | None) -> ValueSet:
    if (_LEAST if lower is None else lower) > (_MOST if upper is None else upper):
        return NONE
    return ValueSet((), complement=True, lower=lower, upper=upper)


def _once(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))


def _listed(values: Iterable[str]) -> str:
    return f"[{', '.join(values)}]"


class Requirements(Mapping[str, ValueSet]):
    """What a claim's requirements allow, by normalised key. A key that is not there allows everything: :meth:`on`."""

    def __init__(self, entries: Iterable[Requirement] = ()) -> None:
        """Raises ``InvalidRequest`` for an entry that makes no sense."""
        self._sets: dict[str, ValueSet] = {}
        for entry in entries:
            key = normalize(entry.key)
            self._sets[key] = self._sets.get(key, ANY) & ValueSet.of(entry)

    def __getitem__(self, key: str) -> ValueSet:
        return self._sets[normalize(key)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sets)

    def __len__(self) -> int:
        return len(self._sets)

    def __str__(self) -> str:
        return "; ".join(f"{key} {allowed}" for key, allowed in self._sets.items()) or "none"

    def on(self, key: str) -> ValueSet:
        """What *key* may be."""
        return self._sets.get(normalize(key), ANY)

    def conflict(self, labels: Mapping[str, str]) -> str | None:
        """The first key of *labels* whose value is not allowed. Keys that *labels* lack do not matter: a node has more
        labels than its instance type says."""
        for key, value in labels.items():
            if value not in self.on(key):
                return key
        return None
