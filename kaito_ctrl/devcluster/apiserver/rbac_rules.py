"""What a policy rule allows, and whether a set of rules covers another: pure functions over ``PolicyRule`` objects.

The semantics are those of https://kubernetes.io/docs/reference/access-authn-authz/rbac/.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Attributes", "Rule", "allows", "describe", "missing"]

Rule = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Attributes:
    """What is asked for: a verb on a resource, or, with ``path``, on a URL that is none."""

    verb: str
    group: str = ""
    version: str = ""
    resource: str = ""
    subresource: str = ""
    namespace: str = ""
    name: str = ""
    path: str = ""


def _has(rule: Rule, key: str, value: str) -> bool:
    found = rule.get(key) or ()
    return value in found or "*" in found


def _resource_matches(rule: Rule, resource: str, subresource: str) -> bool:
    found = rule.get("resources") or ()
    if "*" in found:
        return True
    if not subresource:
        return resource in found
    return f"{resource}/{subresource}" in found or f"*/{subresource}" in found


def _path_matches(pattern: str, path: str) -> bool:
    return pattern in {"*", path} or (pattern.endswith("*") and path.startswith(pattern.rstrip("*")))


def allows(rule: Rule, asked: Attributes) -> bool:
    """Whether *rule* allows what is *asked*."""
    if not _has(rule, "verbs", asked.verb):
        return False
    if asked.path:
        return any(_path_matches(pattern, asked.path) for pattern in rule.get("nonResourceURLs") or ())
    names = rule.get("resourceNames") or ()
    return (
        _has(rule, "apiGroups", asked.group)
        and _resource_matches(rule, asked.resource, asked.subresource)
        and (not names or asked.name in names)
    )


def _atoms(rule: Rule) -> Iterator[Rule]:
    """*rule* as rules of one verb on one thing each."""
    for group in rule.get("apiGroups") or ():
        for resource in rule.get("resources") or ():
            for verb in rule.get("verbs") or ():
                atom = {"apiGroups": [group], "resources": [resource], "verbs": [verb]}
                names = rule.get("resourceNames") or ()
                if not names:
                    yield atom
                for name in names:
                    yield {**atom, "resourceNames": [name]}
    for path in rule.get("nonResourceURLs") or ():
        for verb in rule.get("verbs") or ():
            yield {"nonResourceURLs": [path], "verbs": [verb]}


def _covers(rule: Rule, atom: Rule) -> bool:
    if not _has(rule, "verbs", atom["verbs"][0]):
        return False
    if "nonResourceURLs" in atom:
        wanted = atom["nonResourceURLs"][0]
        return any(_path_matches(pattern, wanted) for pattern in rule.get("nonResourceURLs") or ())
    resource, _, subresource = atom["resources"][0].partition("/")
    names = rule.get("resourceNames") or ()
    return (
        _has(rule, "apiGroups", atom["apiGroups"][0])
        and (_resource_matches(rule, resource, subresource) or atom["resources"][0] in (rule.get("resources") or ()))
        and (not names or (atom.get("resourceNames") or [""])[0] in names)
    )


def missing(held: Sequence[Rule], wanted: Iterable[Rule]) -> list[Rule]:
    """The part of *wanted* that *held* does not allow, verbs on the same thing put together; empty when it covers."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for rule in wanted:
        for atom in _atoms(rule):
            if any(_covers(own, atom) for own in held):
                continue
            if "nonResourceURLs" in atom:
                found["url", *atom["nonResourceURLs"], *atom["verbs"]] = dict(atom)
                continue
            place = (*atom["apiGroups"], *atom["resources"], *atom.get("resourceNames", ()))
            known = found.setdefault(place, {**atom, "verbs": []})
            known["verbs"] += [verb for verb in atom["verbs"] if verb not in known["verbs"]]
    return list(found.values())


def describe(rule: Rule) -> str:
    """*rule* in the short form of error messages."""
    fields = ("apiGroups", "APIGroups"), ("resources", "Resources"), ("nonResourceURLs", "NonResourceURLs")
    names = *fields, ("resourceNames", "ResourceNames"), ("verbs", "Verbs")
    return "{" + ", ".join(f"{shown}:{go_list(rule[key])}" for key, shown in names if rule.get(key)) + "}"


def go_list(texts: Iterable[str]) -> str:
    """Strings as Go prints a slice of them with ``%q``."""
    return "[" + " ".join(json.dumps(text) for text in texts) + "]"
