"""Role-based access control: who may do what, by the roles and bindings in the store.

Permissions only add up, so the first rule that allows ends the search. A binding whose role is missing grants nothing
and is named in the refusal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from kaito_ctrl.devcluster.apiserver.errors import StatusError, forbidden, not_found
from kaito_ctrl.devcluster.apiserver.identity import User, account_name
from kaito_ctrl.devcluster.apiserver.rbac_rules import Attributes, Rule, allows, describe, go_list, missing
from kaito_ctrl.devcluster.apiserver.store import Obj, Store

__all__ = ["GROUP", "Authorizer", "Decision", "Rbac", "forbid"]

GROUP = "rbac.authorization.k8s.io"
_PLURALS = {"Role": "roles", "ClusterRole": "clusterroles"}
_EVERYTHING: Sequence[Rule] = (
    {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]},
    {"nonResourceURLs": ["*"], "verbs": ["*"]},
)


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether something is allowed, and why; the reason may be empty."""

    allowed: bool
    reason: str = ""


class Authorizer:
    """Decides about requests. This one allows everything, and asks nobody who may grant what."""

    def decide(self, user: User, asked: Attributes) -> Decision:
        return Decision(True)

    def rules(self, user: User, namespace: str) -> Sequence[Rule]:
        """Everything *user* may do in *namespace* ("": everywhere)."""
        return _EVERYTHING

    def check_grant(self, user: User, plural: str, new: Obj, old: Obj | None) -> None:
        """Raises a 403 when writing a role or binding would hand out what *user* does not have."""


class Rbac(Authorizer):
    """Decides by the roles and bindings in *store*."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def decide(self, user: User, asked: Attributes) -> Decision:
        if user.is_superuser:
            return Decision(True)
        problems = []
        for source, rules in self._grants(user, asked.namespace):
            if isinstance(rules, StatusError):
                problems.append(
                    f'{rules.details["kind"].removesuffix("s")}.{GROUP} "{rules.details["name"]}" not found'
                )
            elif any(allows(rule, asked) for rule in rules):
                return Decision(True, f"RBAC: allowed by {source}")
        if not problems:
            return Decision(False)
        return Decision(False, "RBAC: " + (problems[0] if len(problems) == 1 else f"[{', '.join(problems)}]"))

    def rules(self, user: User, namespace: str) -> Sequence[Rule]:
        grants = (found for _, found in self._grants(user, namespace))
        return [rule for found in grants if not isinstance(found, StatusError) for rule in found]

    def _grants(self, user: User, namespace: str) -> Iterator[tuple[str, Sequence[Rule] | StatusError]]:
        """Every binding of *user* that counts in *namespace*: what it is called, and its rules or what they lack."""
        for plural, kind in (("clusterrolebindings", "ClusterRoleBinding"), ("rolebindings", "RoleBinding")):
            bucket = self._store.bucket(GROUP, plural)
            local = kind == "RoleBinding"
            if local and not namespace:
                return
            for key in bucket.keys(namespace) if local else bucket.keys():
                binding = bucket.items[key].obj
                subject = next((s for s in binding.get("subjects") or () if _is(s, user, key[0])), None)
                if subject is None:
                    continue
                role = binding["roleRef"]
                name = f"{key[1]}/{key[0]}" if local else key[1]
                source = f'{kind} "{name}" of {role["kind"]} "{role["name"]}" to {_subject_text(subject, key[0])}'
                try:
                    yield source, self.role_rules(role, key[0])
                except StatusError as error:
                    yield source, error

    def role_rules(self, role: Mapping[str, str], namespace: str) -> Sequence[Rule]:
        """The rules of the role that a binding in *namespace* refers to. Raises a 404."""
        plural = _PLURALS[role["kind"]]
        found = self._store.bucket(GROUP, plural).items.get((namespace if plural == "roles" else "", role["name"]))
        if found is None:
            raise not_found(GROUP, plural, role["name"])
        return found.obj.get("rules") or ()

    def check_grant(self, user: User, plural: str, new: Obj, old: Obj | None) -> None:
        if user.is_superuser:
            return
        metadata = new["metadata"]
        namespace, name = metadata.get("namespace") or "", metadata.get("name") or ""
        if old is not None and _granted(new) == _granted(old) and _only_metadata(new, old):
            return
        if plural in {"roles", "clusterroles"}:
            asked = Attributes("escalate", GROUP, "*", plural, namespace=namespace, name=name if old else "")
            if self.decide(user, asked).allowed:
                return
            self._confirm(user, namespace, plural, name, new.get("rules") or ())
            if any(_aggregates(obj) for obj in (new, old or {})) and missing(self.rules(user, ""), _EVERYTHING):
                raise forbidden(GROUP, plural, name, "must have cluster-admin privileges to use the aggregationRule")
            return
        role = new.get("roleRef") or {}
        if role.get("kind") not in _PLURALS:
            return  # its validation says so
        asked = Attributes("bind", GROUP, "*", _PLURALS[role["kind"]], namespace=namespace, name=role.get("name") or "")
        if not self.decide(user, asked).allowed:
            self._confirm(user, namespace, plural, name, self.role_rules(role, namespace))

    def _confirm(self, user: User, namespace: str, plural: str, name: str, wanted: Sequence[Rule]) -> None:
        lacking = missing(self.rules(user, namespace), wanted)
        if lacking:
            shown = "\n".join(sorted({describe(rule) for rule in lacking}))
            who = f'user "{user.name}" (groups={go_list(user.groups)})'
            why = f"{who} is attempting to grant RBAC permissions not currently held:\n{shown}"
            raise forbidden(GROUP, plural, name, why)


def _granted(obj: Obj) -> tuple[object, ...]:
    return tuple(obj.get(key) for key in ("rules", "aggregationRule", "roleRef", "subjects"))


def _only_metadata(new: Obj, old: Obj) -> bool:
    """Whether nothing but what the garbage collector writes has changed."""
    ignored = {"ownerReferences", "finalizers", "managedFields", "resourceVersion"}
    return all(
        new["metadata"].get(key) == old["metadata"].get(key)
        for key in (new["metadata"].keys() | old["metadata"].keys()) - ignored
    )


def _aggregates(role: Obj) -> bool:
    return bool((role.get("aggregationRule") or {}).get("clusterRoleSelectors"))


def _is(subject: Mapping[str, str], user: User, namespace: str) -> bool:
    match subject.get("kind"):
        case "User":
            return subject["name"] == user.name
        case "Group":
            return subject["name"] in user.groups
        case "ServiceAccount":
            return account_name(user.name) == (subject.get("namespace") or namespace, subject["name"])
    return False


def _subject_text(subject: Mapping[str, str], namespace: str) -> str:
    name = subject["name"]
    if subject["kind"] == "ServiceAccount":
        name = f"{name}/{subject.get('namespace') or namespace}"
    return f'{subject["kind"]} "{name}"'


def forbid(user: User, asked: Attributes, reason: str = "") -> StatusError:
    """The 403 for a request that *user* may not make."""
    who = f'User "{user.name}" cannot {asked.verb}'
    if asked.path:
        why = f'{who} path "{asked.path}"'
        text = f"{why}: {reason}" if reason else why
        return StatusError(403, "Forbidden", f"forbidden: {text}", details={})
    resource = f"{asked.resource}/{asked.subresource}" if asked.subresource else asked.resource
    where = f'in the namespace "{asked.namespace}"' if asked.namespace else "at the cluster scope"
    why = f'{who} resource "{resource}" in API group "{asked.group}" {where}'
    return forbidden(asked.group, asked.resource, asked.name, f"{why}: {reason}" if reason else why)
