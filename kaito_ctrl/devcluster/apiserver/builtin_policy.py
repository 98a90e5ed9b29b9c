"""The rules of roles, role bindings, ingresses and network policies."""

from __future__ import annotations

from collections.abc import Iterator

from kaito_ctrl.devcluster.apiserver.builtin_core import Plain
from kaito_ctrl.devcluster.apiserver.errors import FieldError
from kaito_ctrl.devcluster.apiserver.kinds import Environment, Strategy
from kaito_ctrl.devcluster.apiserver.meta import is_dns1123_subdomain, path_segment_errors
from kaito_ctrl.devcluster.apiserver.store import Obj

__all__ = ["BindingStrategy", "IngressStrategy", "NetworkPolicyStrategy", "RoleStrategy"]


_GROUP = "rbac.authorization.k8s.io"
_SUBJECTS = ("ServiceAccount", "User", "Group")


class _Rbac(Plain):
    """Names in this group may hold colons and capitals."""

    create_on_update = True

    def __init__(self, *, namespaced: bool) -> None:
        self._namespaced = namespaced

    def name_errors(self, name: str) -> list[str]:
        return path_segment_errors(name)


class RoleStrategy(_Rbac):
    """Roles and cluster roles."""

    def default(self, obj: Obj) -> None:
        obj.setdefault("rules", None)

    def validate(self, obj: Obj) -> Iterator[FieldError]:
        if obj.get("aggregationRule") is not None and not obj["aggregationRule"].get("clusterRoleSelectors"):
            why = "at least one clusterRoleSelector required if aggregationRule is non-nil"
            yield FieldError.required("aggregationRule.clusterRoleSelectors", why)
        for index, rule in enumerate(obj.get("rules") or ()):
            path = f"rules[{index}]"
            if not rule.get("verbs"):
                yield FieldError.required(f"{path}.verbs", "verbs must contain at least one value")
            if rule.get("nonResourceURLs"):
                why = ""
                if self._namespaced:
                    why = "namespaced rules cannot apply to non-resource URLs"
                elif any(rule.get(key) for key in ("apiGroups", "resources", "resourceNames")):
                    why = "rules cannot apply to both regular resources and non-resource URLs"
                if why:
                    yield FieldError.invalid(f"{path}.nonResourceURLs", rule["nonResourceURLs"], why)
                continue
            if not rule.get("apiGroups"):
                yield FieldError.required(f"{path}.apiGroups", "resource rules must supply at least one api group")
            if not rule.get("resources"):
                yield FieldError.required(f"{path}.resources", "resource rules must supply at least one resource")


class BindingStrategy(_Rbac):
    """Role bindings and cluster role bindings: what they bind never changes."""

    def default(self, obj: Obj) -> None:
        for subject in obj.get("subjects") or ():
            if not subject.get("apiGroup"):
                if subject.get("kind") == "ServiceAccount":
                    subject.pop("apiGroup", None)
                else:
                    subject["apiGroup"] = _GROUP
        if obj.get("roleRef"):
            obj["roleRef"].setdefault("apiGroup", _GROUP)

    def validate(self, obj: Obj) -> Iterator[FieldError]:
        role = obj.get("roleRef") or {}
        kinds = ["Role", "ClusterRole"] if self._namespaced else ["ClusterRole"]
        if role.get("apiGroup", _GROUP) != _GROUP:
            yield FieldError.unsupported("roleRef.apiGroup", role["apiGroup"], [_GROUP])
        if role.get("kind") not in kinds:
            yield FieldError.unsupported("roleRef.kind", role.get("kind") or "", kinds)
        if not role.get("name"):
            yield FieldError.required("roleRef.name")
        for index, subject in enumerate(obj.get("subjects") or ()):
            yield from self._subject_errors(subject, f"subjects[{index}]")

    def _subject_errors(self, subject: Obj, path: str) -> Iterator[FieldError]:
        kind, name, group = subject.get("kind") or "", subject.get("name") or "", subject.get("apiGroup") or ""
        if not name:
            yield FieldError.required(f"{path}.name")
        if kind not in _SUBJECTS:
            yield FieldError.unsupported(f"{path}.kind", kind, _SUBJECTS)
            return
        if kind != "ServiceAccount":
            if group != _GROUP:
                yield FieldError.unsupported(f"{path}.apiGroup", group, [_GROUP])
            return
        for text in is_dns1123_subdomain(name) if name else ():
            yield FieldError.invalid(f"{path}.name", name, text)
        if group:
            yield FieldError.unsupported(f"{path}.apiGroup", group, [""])
        if not self._namespaced and not subject.get("namespace"):
            yield FieldError.required(f"{path}.namespace")

    def validate_update(self, new: Obj, old: Obj) -> Iterator[FieldError]:
        if new.get("roleRef") != old.get("roleRef"):
            yield FieldError.invalid("roleRef", new.get("roleRef"), "cannot change roleRef")


class IngressStrategy(Strategy):
    """``networking.k8s.io/v1 Ingress``."""

    def prepare_create(self, obj: Obj, env: Environment) -> None:
        obj["status"] = {"loadBalancer": {}}

    def validate(self, obj: Obj) -> Iterator[FieldError]:
        spec = obj.get("spec") or {}
        if not spec.get("rules") and spec.get("defaultBackend") is None:
            why = "either `defaultBackend` or `rules` must be specified"
            yield FieldError.invalid("spec", spec.get("rules") or [], why)


class NetworkPolicyStrategy(Strategy):
    """``networking.k8s.io/v1 NetworkPolicy``."""

    def default(self, obj: Obj) -> None:
        spec = obj.setdefault("spec", {})
        spec.setdefault("podSelector", {})
        if not spec.get("policyTypes"):
            spec["policyTypes"] = ["Ingress", *(["Egress"] if spec.get("egress") else [])]
