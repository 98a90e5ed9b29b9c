"""The built-in kinds, registered: group, version, names, verbs, subresources, and whose rules they follow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kaito_ctrl.devcluster.apiserver import builtin_core as core
from kaito_ctrl.devcluster.apiserver import builtin_events as events
from kaito_ctrl.devcluster.apiserver import builtin_policy as policy
from kaito_ctrl.devcluster.apiserver import builtin_workloads as workloads
from kaito_ctrl.devcluster.apiserver.builtin_pods import PodStrategy, pod_fields
from kaito_ctrl.devcluster.apiserver.builtin_services import ServiceStrategy
from kaito_ctrl.devcluster.apiserver.crd import CrdStrategy
from kaito_ctrl.devcluster.apiserver.kinds import ALL_VERBS, Registry, Resource, Scale, Strategy, metadata_fields
from kaito_ctrl.devcluster.apiserver.printers import PRINTERS
from kaito_ctrl.devcluster.apiserver.schema import builtin
from kaito_ctrl.devcluster.apiserver.table import NameAge

__all__ = ["register_builtins"]

_REPLICAS = Scale(selector_path=".spec.selector")
_ALL = ("all",)
_Fields = Callable[[Mapping[str, Any]], Mapping[str, str]]


def register_builtins(registry: Registry) -> None:
    """Add every built-in kind to *registry*."""

    def add(
        group: str,
        kind: str,
        plural: str,
        strategy: Strategy | None = None,
        *,
        schema: str = "",
        version: str = "v1",
        short: str = "",
        namespaced: bool = True,
        status: bool = False,
        scale: Scale | None = None,
        subresources: tuple[str, ...] = (),
        categories: tuple[str, ...] = (),
        fields: _Fields | None = None,
        selectable: str = "",
        virtual: bool = False,
        verbs: tuple[str, ...] = ALL_VERBS,
        **more: Any,
    ) -> None:
        package = group.partition(".")[0] or "core"
        registry.add(
            Resource(
                group=group,
                version=version,
                kind=kind,
                plural=plural,
                printer=PRINTERS.get(kind) or NameAge(),
                namespaced=namespaced,
                short_names=tuple(short.split()),
                categories=categories,
                verbs=("create",) if virtual else verbs,
                schema=builtin(schema or f"{package}.{kind}"),
                strategy=strategy or core.Plain(),
                status=status,
                scale=scale,
                subresources=subresources,
                fields=fields or metadata_fields,
                selectable=frozenset(selectable.split()),
                virtual=virtual,
                **more,
            )
        )

    _core(add)
    _workloads(add)
    _others(add)


def _core(add: Callable[..., None]) -> None:
    pods = (
        "spec.nodeName spec.restartPolicy spec.schedulerName spec.serviceAccountName spec.hostNetwork status.phase "
        "status.podIP status.nominatedNodeName"
    )
    about = ["kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath"]
    common = "reason type source reportingComponent "
    add(
        "", "Namespace", "namespaces", core.NamespaceStrategy(), short="ns", namespaced=False, status=True,
        subresources=("finalize",), fields=core.namespace_fields, selectable="status.phase",
        verbs=tuple(verb for verb in ALL_VERBS if verb != "deletecollection"),
    )  # fmt: skip
    add(
        "", "Node", "nodes", core.NodeStrategy(), short="no", namespaced=False, status=True,
        fields=core.node_fields, selectable="spec.unschedulable",
    )  # fmt: skip
    add(
        "", "Pod", "pods", PodStrategy(), short="po", status=True, categories=_ALL,
        subresources=("attach", "binding", "eviction", "exec", "log", "portforward", "proxy"),
        fields=pod_fields, selectable=pods,
    )  # fmt: skip
    add(
        "", "Service", "services", ServiceStrategy(), short="svc", status=True, categories=_ALL, subresources=("proxy",)
    )
    add("", "Endpoints", "endpoints", core.EndpointsStrategy(), short="ep")
    add("", "ConfigMap", "configmaps", core.ConfigMapStrategy(), short="cm")
    add("", "Secret", "secrets", core.SecretStrategy(), fields=core.secret_fields, selectable="type")
    add("", "ServiceAccount", "serviceaccounts", short="sa", subresources=("token",))
    add(
        "", "Event", "events", events.EventStrategy(), short="ev", fields=events.event_fields,
        selectable=common + " ".join(f"involvedObject.{key}" for key in about),
    )  # fmt: skip
    add(
        "events.k8s.io", "Event", "events", events.EventsV1Strategy(), short="ev", fields=events.event_fields,
        selectable=common + " ".join(f"regarding.{key}" for key in about),
        storage=("", "events"), to_storage=events.events_v1_to_core, from_storage=events.events_v1_from_core,
    )  # fmt: skip
    add("", "PersistentVolumeClaim", "persistentvolumeclaims", core.PvcStrategy(), short="pvc", status=True)
    add(
        "", "PersistentVolume", "persistentvolumes", core.PersistentVolumeStrategy(), short="pv", namespaced=False,
        status=True,
    )  # fmt: skip
    add("", "LimitRange", "limitranges", core.CreatableOnUpdate(), short="limits")
    add("", "ResourceQuota", "resourcequotas", core.CreatableOnUpdate(), short="quota", status=True)
    add("", "PodTemplate", "podtemplates", Strategy())
    add(
        "", "ReplicationController", "replicationcontrollers", workloads.ReplicationControllerStrategy(), short="rc",
        status=True, scale=_REPLICAS, categories=_ALL,
    )  # fmt: skip
    add("", "Binding", "bindings", virtual=True)


def _workloads(add: Callable[..., None]) -> None:
    add(
        "apps", "Deployment", "deployments", workloads.DeploymentStrategy(), short="deploy", status=True,
        scale=_REPLICAS, categories=_ALL,
    )  # fmt: skip
    add(
        "apps", "ReplicaSet", "replicasets", workloads.ReplicaSetStrategy(), short="rs", status=True,
        scale=_REPLICAS, categories=_ALL,
    )  # fmt: skip
    add(
        "apps", "StatefulSet", "statefulsets", workloads.StatefulSetStrategy(), short="sts", status=True,
        scale=_REPLICAS, categories=_ALL,
    )  # fmt: skip
    add("apps", "DaemonSet", "daemonsets", workloads.DaemonSetStrategy(), short="ds", status=True, categories=_ALL)
    add("apps", "ControllerRevision", "controllerrevisions")
    add("batch", "Job", "jobs", workloads.JobStrategy(), status=True, categories=_ALL)
    add("batch", "CronJob", "cronjobs", workloads.CronJobStrategy(), short="cj", status=True, categories=_ALL)
    add(
        "autoscaling", "HorizontalPodAutoscaler", "horizontalpodautoscalers", short="hpa", status=True,
        categories=_ALL, version="v2", schema="autoscalingv2.HorizontalPodAutoscaler",
    )  # fmt: skip


def _others(add: Callable[..., None]) -> None:
    add("coordination.k8s.io", "Lease", "leases", core.LeaseStrategy())
    add("discovery.k8s.io", "EndpointSlice", "endpointslices", Strategy())
    rbac = "rbac.authorization.k8s.io"
    add(rbac, "Role", "roles", policy.RoleStrategy(namespaced=True))
    add(rbac, "RoleBinding", "rolebindings", policy.BindingStrategy(namespaced=True))
    add(rbac, "ClusterRole", "clusterroles", policy.RoleStrategy(namespaced=False), namespaced=False)
    add(
        rbac, "ClusterRoleBinding", "clusterrolebindings", policy.BindingStrategy(namespaced=False), namespaced=False
    )  # fmt: skip
    hooks = "admissionregistration.k8s.io"
    extensions = ("api-extensions",)
    add(
        hooks, "ValidatingWebhookConfiguration", "validatingwebhookconfigurations",
        core.WebhookStrategy(mutating=False), namespaced=False, categories=extensions,
    )  # fmt: skip
    add(
        hooks, "MutatingWebhookConfiguration", "mutatingwebhookconfigurations",
        core.WebhookStrategy(mutating=True), namespaced=False, categories=extensions,
    )  # fmt: skip
    add(
        "apiextensions.k8s.io", "CustomResourceDefinition", "customresourcedefinitions", CrdStrategy(),
        short="crd crds", namespaced=False, status=True, categories=extensions,
    )  # fmt: skip
    add("policy", "PodDisruptionBudget", "poddisruptionbudgets", core.PdbStrategy(), short="pdb", status=True)
    storage = "storage.k8s.io"
    add(storage, "StorageClass", "storageclasses", core.StorageClassStrategy(), short="sc", namespaced=False)
    add(storage, "VolumeAttachment", "volumeattachments", namespaced=False, status=True)
    add(storage, "CSIDriver", "csidrivers", namespaced=False)
    add(storage, "CSINode", "csinodes", namespaced=False)
    add(
        "scheduling.k8s.io", "PriorityClass", "priorityclasses", core.PriorityClassStrategy(), short="pc",
        namespaced=False,
    )  # fmt: skip
    networking = "networking.k8s.io"
    add(networking, "Ingress", "ingresses", policy.IngressStrategy(), short="ing", status=True)
    add(networking, "IngressClass", "ingressclasses", Strategy(), namespaced=False)
    add(networking, "NetworkPolicy", "networkpolicies", policy.NetworkPolicyStrategy(), short="netpol")
    add("node.k8s.io", "RuntimeClass", "runtimeclasses", namespaced=False)
    authentication, authorization = "authentication.k8s.io", "authorization.k8s.io"
    add(authentication, "TokenReview", "tokenreviews", namespaced=False, virtual=True)
    add(authentication, "SelfSubjectReview", "selfsubjectreviews", namespaced=False, virtual=True)
    add(authorization, "SubjectAccessReview", "subjectaccessreviews", namespaced=False, virtual=True)
    add(authorization, "SelfSubjectAccessReview", "selfsubjectaccessreviews", namespaced=False, virtual=True)
    add(authorization, "LocalSubjectAccessReview", "localsubjectaccessreviews", virtual=True)
    add(authorization, "SelfSubjectRulesReview", "selfsubjectrulesreviews", namespaced=False, virtual=True)
