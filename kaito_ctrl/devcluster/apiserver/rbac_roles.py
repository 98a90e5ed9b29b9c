"""The roles and bindings that a cluster with RBAC has from its first moment, and the roles that aggregate others.

They are those of https://kubernetes.io/docs/reference/access-authn-authz/rbac/#default-roles-and-role-bindings, but for
what belongs to components that this cluster does not have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kaito_ctrl.devcluster.apiserver.rbac import GROUP
from kaito_ctrl.devcluster.apiserver.selectors import match_label_selector
from kaito_ctrl.devcluster.apiserver.store import Bucket, Change, Obj, Store

__all__ = ["aggregate_roles", "bootstrap_objects"]

_READ = "get list watch"
_WRITE = "create delete deletecollection patch update"
_ALL = f"{_WRITE} {_READ}"
_LABELS = {"kubernetes.io/bootstrapping": "rbac-defaults"}
_ANNOTATIONS = {"rbac.authorization.kubernetes.io/autoupdate": "true"}

_Line = tuple[str, str, str]
"""Verbs, API group and resources, separated by spaces; the group ``/`` stands for URLs that are no resources."""

_HEALTH = "/healthz /livez /readyz"
_SCALED = "replicationcontrollers replicationcontrollers/scale"
_APPS = "daemonsets deployments deployments/scale replicasets replicasets/scale statefulsets statefulsets/scale"
_CONNECTIONS = "pods/attach pods/exec pods/portforward pods/proxy"
_EVENTS: tuple[_Line, _Line] = (
    ("create patch update", "", "events"),
    ("create patch update", "events.k8s.io", "events"),
)

_ROLES: Mapping[str, Sequence[_Line]] = {
    "cluster-admin": (("*", "*", "*"), ("*", "/", "*")),
    "system:discovery": (
        ("get", "/", f"/api /api/* /apis /apis/* {_HEALTH} /openapi /openapi/* /version /version/"),
    ),
    "system:monitoring": (("get", "/", f"{_HEALTH} /healthz/* /livez/* /readyz/* /metrics /metrics/slis"),),
    "system:public-info-viewer": (("get", "/", f"{_HEALTH} /version /version/"),),
    "system:basic-user": (
        ("create", "authorization.k8s.io", "selfsubjectaccessreviews selfsubjectrulesreviews"),
        ("create", "authentication.k8s.io", "selfsubjectreviews"),
    ),
    "system:auth-delegator": (
        ("create", "authentication.k8s.io", "tokenreviews"),
        ("create", "authorization.k8s.io", "subjectaccessreviews"),
    ),
    "system:service-account-issuer-discovery": (
        ("get", "/", "/.well-known/openid-configuration /.well-known/openid-configuration/"),
        ("get", "/", "/openid/v1/jwks /openid/v1/jwks/"),
    ),
    "system:node": (
        ("create", "authentication.k8s.io", "tokenreviews"),
        ("create", "authorization.k8s.io", "localsubjectaccessreviews subjectaccessreviews"),
        (_READ, "", "services configmaps secrets pods"),
        (f"create patch update {_READ}", "", "nodes"),
        ("patch update", "", "nodes/status pods/status"),
        ("create delete", "", "pods"),
        ("create", "", "pods/eviction serviceaccounts/token"),
        ("get", "", "endpoints persistentvolumeclaims persistentvolumes"),
        ("create delete get patch update", "coordination.k8s.io", "leases"),
        ("get", "storage.k8s.io", "volumeattachments"),
        (_READ, "storage.k8s.io", "csidrivers"),
        ("create delete get patch update", "storage.k8s.io", "csinodes"),
        (_READ, "node.k8s.io", "runtimeclasses"),
        *_EVENTS,
    ),
    "system:node-proxier": (
        ("list watch", "", "endpoints services"),
        (_READ, "", "nodes"),
        ("list watch", "discovery.k8s.io", "endpointslices"),
        *_EVENTS,
    ),
    "system:persistent-volume-provisioner": (
        (f"create delete {_READ}", "", "persistentvolumes"),
        (f"update {_READ}", "", "persistentvolumeclaims"),
        (_READ, "storage.k8s.io", "storageclasses"),
        ("watch", "", "events"),
        *_EVENTS,
    ),
    "system:aggregate-to-admin": (
        ("create", "authorization.k8s.io", "localsubjectaccessreviews"),
        (_ALL, GROUP, "rolebindings roles"),
    ),
    "system:aggregate-to-edit": (
        (_READ, "", f"{_CONNECTIONS} secrets services/proxy"),
        ("impersonate", "", "serviceaccounts"),
        (_WRITE, "", f"pods {_CONNECTIONS}"),
        ("create", "", "pods/eviction serviceaccounts/token"),
        (_WRITE, "", f"configmaps events persistentvolumeclaims {_SCALED}"),
        (_WRITE, "", "secrets serviceaccounts services services/proxy"),
        (_WRITE, "apps", f"{_APPS} deployments/rollback"),
        (_WRITE, "autoscaling", "horizontalpodautoscalers"),
        (_WRITE, "batch", "cronjobs jobs"),
        (_WRITE, "coordination.k8s.io", "leases"),
        (_WRITE, "networking.k8s.io", "ingresses networkpolicies"),
        (_WRITE, "policy", "poddisruptionbudgets"),
    ),
    "system:aggregate-to-view": (
        (_READ, "", f"configmaps endpoints persistentvolumeclaims persistentvolumeclaims/status pods {_SCALED}"),
        (_READ, "", "serviceaccounts services services/status"),
        (_READ, "", "bindings events limitranges namespaces namespaces/status pods/log pods/status"),
        (_READ, "", "replicationcontrollers/status resourcequotas resourcequotas/status"),
        (_READ, "discovery.k8s.io", "endpointslices"),
        (_READ, "apps", f"controllerrevisions {_APPS}"),
        (_READ, "apps", "daemonsets/status deployments/status replicasets/status statefulsets/status"),
        (_READ, "autoscaling", "horizontalpodautoscalers horizontalpodautoscalers/status"),
        (_READ, "batch", "cronjobs cronjobs/status jobs jobs/status"),
        (_READ, "coordination.k8s.io", "leases"),
        (_READ, "networking.k8s.io", "ingresses ingresses/status networkpolicies"),
        (_READ, "policy", "poddisruptionbudgets poddisruptionbudgets/status"),
    ),
}  # fmt: skip
_AGGREGATED = {"admin": (), "edit": ("admin",), "view": ("edit",)}
"""Roles that gather the rules labelled for them, and those they are labelled for themselves."""

_BINDINGS: Mapping[str, Sequence[tuple[str, str]]] = {
    "cluster-admin": (("Group", "system:masters"),),
    "system:basic-user": (("Group", "system:authenticated"),),
    "system:discovery": (("Group", "system:authenticated"),),
    "system:monitoring": (("Group", "system:monitoring"),),
    "system:node-proxier": (("User", "system:kube-proxy"),),
    "system:public-info-viewer": (("Group", "system:authenticated"), ("Group", "system:unauthenticated")),
    "system:service-account-issuer-discovery": (("Group", "system:serviceaccounts"),),
}


def _rule(line: _Line) -> Obj:
    verbs, group, things = (part.split(" ") for part in line)
    if group == ["/"]:
        return {"nonResourceURLs": things, "verbs": verbs}
    return {"apiGroups": group, "resources": things, "verbs": verbs}


def _aggregated_for(*names: str) -> dict[str, str]:
    return {f"{GROUP}/aggregate-to-{name}": "true" for name in names}


def bootstrap_objects() -> Iterator[tuple[str, Obj]]:
    """Plural and object of each, without what the server gives every object."""

    def metadata(name: str, *goals: str) -> Obj:
        labels = {**_LABELS, **_aggregated_for(*goals)}
        return {"name": name, "labels": labels, "annotations": dict(_ANNOTATIONS)}

    for name, goals in _AGGREGATED.items():
        selectors = [{"matchLabels": _aggregated_for(name)}]
        role: Obj = {"aggregationRule": {"clusterRoleSelectors": selectors}, "metadata": metadata(name, *goals)}
        yield "clusterroles", {**role, "rules": None}
    for name, lines in _ROLES.items():
        goals = (name.removeprefix("system:aggregate-to-"),) if name.startswith("system:aggregate-to-") else ()
        yield "clusterroles", {"metadata": metadata(name, *goals), "rules": [_rule(line) for line in lines]}
    for name, subjects in _BINDINGS.items():
        yield (
            "clusterrolebindings",
            {
                "metadata": metadata(name),
                "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": name},
                "subjects": [{"apiGroup": GROUP, "kind": kind, "name": whom} for kind, whom in subjects],
            },
        )


def aggregate_roles(store: Store) -> None:
    """From now on a cluster role with an aggregation rule has the rules of the roles that it selects."""
    bucket = store.bucket(GROUP, "clusterroles")

    def changed(where: Bucket, change: Change) -> None:
        if where is not bucket:
            return
        for key, stored in list(bucket.items.items()):
            selectors = (stored.obj.get("aggregationRule") or {}).get("clusterRoleSelectors")
            if not selectors:
                continue
            rules = _gathered(bucket, key[1], selectors)
            if rules != (stored.obj.get("rules") or []) and bucket.items.get(key) is stored:
                store.put(bucket, key, {**stored.obj, "metadata": dict(stored.obj["metadata"]), "rules": rules})

    store.listen(changed)


def _gathered(bucket: Bucket, name: str, selectors: Sequence[Mapping[str, Any]]) -> list[Any]:
    found: list[Any] = []
    for role in map(bucket.items.__getitem__, bucket.keys()):
        if role.key[1] != name and any(match_label_selector(selector, role.labels) for selector in selectors):
            found += [rule for rule in role.obj.get("rules") or () if rule not in found]
    return found
