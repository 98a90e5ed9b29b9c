"""The rules of roles, role bindings, ingresses and network policies."""

from __future__ import annotations

from collections.abc import Iterator

from kaito_ctrl.devcluster.apiserver.builtin_core import Plain
from kaito_ctrl.devcluster.apiserver.errors import FieldError
from kaito_ctrl.devcluster.apiserver.kinds import Environment, Strategy
from kaito_ctrl.devcluster.apiserver.meta import path_segment_errors
from kaito_ctrl.devcluster.apiserver.store import Obj

__all__ = ["BindingStrategy", "IngressStrategy", "NetworkPolicyStrategy", "RoleStrategy"]


class _Rbac(Plain):
    """Names in this group may hold colons and capitals."""

    create_on_update = True

    def __init__(self, *, namespaced: bool) -> None:
        self._namespaced = namespaced

    def name_errors(self, name: str) -> list[str]:
        return path_segment_errors(name)


class RoleStrategy(_Rbac):
    """Roles and cluster roles."""

    def validate(self, obj: Obj) -> Iterator[FieldError]:
        for index, rule in enumerate(obj.get("rules") or ()):
            path = f"rules[{index}]"
            if not rule.get("verbs"):
                yield FieldError.required(f"{path}.verbs", "verbs must contain at least one value")
            if rule.get("nonResourceURLs"):
                if self._namespaced:
                    why = "namespaced rules cannot apply to non-resource URLs"
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
                    subject["apiGroup"] = "rbac.authorization.k8s.io"
        if obj.get("roleRef"):
            obj["roleRef"].setdefault("apiGroup", "rbac.authorization.k8s.io")

    def validate(self, obj: Obj) -> Iterator[FieldError]:
        role = obj.get("roleRef") or {}
        kinds = ["Role", "ClusterRole"] if self._namespaced else ["ClusterRole"]
        if role.get("kind") not in kinds:
            yield FieldError.unsupported("roleRef.kind", role.get("kind") or "", kinds)
        if not role.get("name"):
            yield FieldError.required("roleRef.name")

    def validate_update(self, new: Obj, old: Obj) -> Iterator[FieldError]:
        if new.get("roleRef") != old.get("roleRef"):
            yield FieldError.invalid("roleRef", new.get("roleRef"), "cannot change roleRef")


class IngressStrategy(Strategy):
    """``networking.k8s.io/v1 Ingress``."""

    def prepare_create(self, obj: Obj, env: Environment) -> None:
        obj["status"] = {"loadBalancer": {}}


class NetworkPolicyStrategy(Strategy):
    """``networking.k8s.io/v1 NetworkPolicy``."""

    def default(self, obj: Obj) -> None:
        spec = obj.setdefault("spec", {})
        if not spec.get("policyTypes"):
            spec["policyTypes"] = ["Ingress", *(["Egress"] if spec.get("egress") else [])]
