"""The kinds that make pods: Deployment, ReplicaSet, StatefulSet, DaemonSet, ReplicationController, Job, CronJob."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kaito_ctrl.devcluster.apiserver.builtin_pods import default_pod_spec, validate_template
from kaito_ctrl.devcluster.apiserver.errors import FieldError
from kaito_ctrl.devcluster.apiserver.kinds import Environment, Strategy
from kaito_ctrl.devcluster.apiserver.selectors import match_label_selector
from kaito_ctrl.devcluster.apiserver.store import Obj

__all__ = [
    "CronJobStrategy",
    "DaemonSetStrategy",
    "DeploymentStrategy",
    "JobStrategy",
    "ReplicaSetStrategy",
    "ReplicationControllerStrategy",
    "StatefulSetStrategy",
]


class _Templated(Strategy):
    """A selector that never changes, and a template that it must match."""

    restart_policies: tuple[str, ...] = ("Always",)

    def default(self, obj: Obj) -> None:
        spec = obj.setdefault("spec", {})
        template = spec.setdefault("template", {})
        template.setdefault("metadata", {})
        default_pod_spec(template.setdefault("spec", {}))
        self.default_spec(spec)

    def default_spec(self, spec: Obj) -> None:
        """The defaults beside the template's."""

    def prepare_create(self, obj: Obj, env: Environment) -> None:
        obj["status"] = {}

    def validate(self, obj: Obj) -> Iterator[FieldError]:
        spec = obj["spec"]
        replicas = spec.get("replicas", 0)
        if replicas < 0:
            yield FieldError.invalid("spec.replicas", replicas, "must be greater than or equal to 0")
        yield from self.validate_selector(spec)
        yield from validate_template(spec["template"], "spec.template")
        policy = (spec["template"].get("spec") or {}).get("restartPolicy")
        if policy in {"Always", "OnFailure", "Never"} and policy not in self.restart_policies:
            yield FieldError.unsupported("spec.template.spec.restartPolicy", policy, self.restart_policies)

    def validate_selector(self, spec: Obj) -> Iterator[FieldError]:
        selector = spec.get("selector")
        labels = (spec["template"].get("metadata") or {}).get("labels") or {}
        if selector is None:
            yield FieldError.required("spec.selector")
            if not labels:
                yield FieldError.invalid(
                    "spec.template.metadata.labels", None, "`selector` does not match template `labels`"
                )
        elif not selector.get("matchLabels") and not selector.get("matchExpressions"):
            yield FieldError.invalid("spec.selector", selector, "empty selector is invalid for deployment")
        elif not match_label_selector(selector, labels):
            yield FieldError.invalid(
                "spec.template.metadata.labels", labels, "`selector` does not match template `labels`"
            )

    def validate_update(self, new: Obj, old: Obj) -> Iterator[FieldError]:
        if new["spec"].get("selector") != old["spec"].get("selector"):
            yield FieldError.invalid("spec.selector", new["spec"].get("selector"), "field is immutable")


class DeploymentStrategy(_Templated):
    """``apps/v1 Deployment``."""

    def default_spec(self, spec: Obj) -> None:
        spec.setdefault("replicas", 1)
        strategy = spec.setdefault("strategy", {})
        strategy.setdefault("type", "RollingUpdate")
        if strategy["type"] == "RollingUpdate":
            rolling = strategy.setdefault("rollingUpdate", {})
            rolling.setdefault("maxUnavailable", "25%")
            rolling.setdefault("maxSurge", "25%")
        spec.setdefault("revisionHistoryLimit", 10)
        spec.setdefault("progressDeadlineSeconds", 600)

    def validate(self, obj: Obj) -> Iterator[FieldError]:
        yield from super().validate(obj)
        strategy = obj["spec"]["strategy"]
        if strategy["type"] not in {"Recreate", "RollingUpdate"}:
            yield FieldError.unsupported("spec.strategy.type", strategy["type"], ["Recreate", "RollingUpdate"])
        elif strategy["type"] == "Recreate" and strategy.get("rollingUpdate") is not None:
            yield FieldError.forbidden(
                "spec.strategy.rollingUpdate", "may not be specified when strategy `type` is 'Recreate'"
            )
        else:
            rolling = strategy.get("rollingUpdate") or {}
            if _zero(rolling.get("maxUnavailable", 1)) and _zero(rolling.get("maxSurge", 1)):
                yield FieldError.invalid(
                    "spec.strategy.rollingUpdate.maxUnavailable",
                    rolling["maxUnavailable"],
                    "may not be 0 when `maxSurge` is 0",
                )


def _zero(value: Any) -> bool:
    return value in (0, "0%")


class ReplicaSetStrategy(_Templated):
    """``apps/v1 ReplicaSet``."""

    def default_spec(self, spec: Obj) -> None:
        spec.setdefault("replicas", 1)

    def prepare_create(self, obj: Obj, env: Environment) -> None:
        obj["status"] = {"replicas": 0}


class ReplicationControllerStrategy(_Templated):
    """``v1 ReplicationController``: its selector is a plain map and defaults to the template's labels."""

    def default_spec(self, spec: Obj) -> None:
        spec.setdefault("replicas", 1)
        labels = (spec["template"].get("metadata") or {}).get("labels")
        if labels:
            spec.setdefault("selector", dict(labels))

    def prepare_create(self, obj: Obj, env: Environment) -> None:
        obj["status"] = {"replicas": 0}

    def validate_selector(self, spec: Obj) -> Iterator[FieldError]:
        selector = spec.get("selector")
        labels = (spec["template"].get("metadata") or {}).get("labels") or {}
        if not selector:
            yield FieldError.required("spec.selector")
        elif not match_label_selector({"matchLabels": selector}, labels):
            yield FieldError.invalid(
                "spec.template.metadata.labels", labels, "`selector` does not match template `labels`"
            )

    def validate_update(self, new: Obj, old: Obj) -> Iterator[FieldError]:
        yield from ()


_STATEFULSET_MUTABLE = frozenset(
    {
        "replicas",
        "ordinals",
        "template",
        "updateStrategy",
        "revisionHistoryLimit",
        "persistentVolumeClaimRetentionPolicy",
        "minReadySeconds",
    }
)


class StatefulSetStrategy(_Templated):
    """``apps/v1 StatefulSet``."""

    def default_spec(self, spec: Obj) -> None:
        spec.setdefault("replicas", 1)
        spec.setdefault("podManagementPolicy", "OrderedReady")
        update = spec.setdefault("updateStrategy", {})
        update.setdefault("type", "RollingUpdate")
        if update["type"] == "RollingUpdate":
            update.setdefault("rollingUpdate", {}).setdefault("partition", 0)
        spec.setdefault("revisionHistoryLimit", 10)
        retention = spec.setdefault("persistentVolumeClaimRetentionPolicy", {})
        retention.setdefault("whenDeleted", "Retain")
        retention.setdefault("whenScaled", "Retain")
        for claim in spec.get("volumeClaimTemplates") or ():
            claim.setdefault("apiVersion", "v1")
            claim.setdefault("kind", "PersistentVolumeClaim")
            claim.setdefault("spec", {}).setdefault("volumeMode", "Filesystem")
            claim.setdefault("status", {}).setdefault("phase", "Pending")

    def prepare_create(self, obj: Obj, env: Environment) -> None:
        obj["status"] = {"replicas": 0, "availableReplicas": 0}

    def validate(self, obj: Obj) -> Iterator[FieldError]:
        policy = obj["spec"]["podManagementPolicy"]
        if policy not in {"OrderedReady", "Parallel"}:
            yield FieldError.unsupported("spec.podManagementPolicy", policy, ["OrderedReady", "Parallel"])
        # Mounts of claim templates are volumes that only exist in the pods.
        claims = [c["metadata"]["name"] for c in obj["spec"].get("volumeClaimTemplates") or () if c.get("metadata")]
        template = obj["spec"]["template"]
        inner = template.get("spec") or {}
        volumes = [*(inner.get("volumes") or ()), *({"name": name, "emptyDir": {}} for name in claims)]
        widened = {**template, "spec": {**inner, "volumes": volumes}}
        yield from super().validate({**obj, "spec": {**obj["spec"], "template": widened}})

    def validate_update(self, new: Obj, old: Obj) -> Iterator[FieldError]:
        def frozen(spec: Mapping[str, Any]) -> Obj:
            return {key: value for key, value in spec.items() if key not in _STATEFULSET_MUTABLE}

        if frozen(new["spec"]) != frozen(old["spec"]):
            yield FieldError.forbidden(
                "spec",
                "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', "
                "'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and "
                "'minReadySeconds' are forbidden",
            )


class DaemonSetStrategy(_Templated):
    """``apps/v1 DaemonSet``."""

    def default_spec(self, spec: Obj) -> None:
        update = spec.setdefault("updateStrategy", {})
        update.setdefault("type", "RollingUpdate")
        if update["type"] == "RollingUpdate":
            rolling = update.setdefault("rollingUpdate", {})
            rolling.setdefault("maxUnavailable", 1)
            rolling.setdefault("maxSurge", 0)
        spec.setdefault("revisionHistoryLimit", 10)

    def prepare_create(self, obj: Obj, env: Environment) -> None:
        keys = ("currentNumberScheduled", "desiredNumberScheduled", "numberMisscheduled", "numberReady")
        obj["status"] = dict.fromkeys(keys, 0)


class JobStrategy(_Templated):
    """``batch/v1 Job``: its selector is made from its uid."""

    restart_policies = ("OnFailure", "Never")

    def default_spec(self, spec: Obj) -> None:
        if spec.get("completions") is None and spec.get("parallelism") is None:
            spec["completions"] = 1
        spec.setdefault("parallelism", 1)
        spec.setdefault("completionMode", "NonIndexed")
        spec.setdefault("suspend", False)
        spec.setdefault("podReplacementPolicy", "TerminatingOrFailed")
        spec.setdefault("manualSelector", False)
        if spec.get("backoffLimitPerIndex") is None:
            spec.setdefault("backoffLimit", 6)

    def prepare_create(self, obj: Obj, env: Environment) -> None:
        super().prepare_create(obj, env)
        spec, uid, name = obj["spec"], obj["metadata"]["uid"], obj["metadata"]["name"]
        if spec["manualSelector"]:
            return
        labels = {
            "batch.kubernetes.io/controller-uid": uid,
            "batch.kubernetes.io/job-name": name,
            "controller-uid": uid,
            "job-name": name,
        }
        metadata = spec["template"].setdefault("metadata", {})
        metadata["labels"] = {**(metadata.get("labels") or {}), **labels}
        spec["selector"] = {"matchLabels": {"batch.kubernetes.io/controller-uid": uid}}
        if not obj["metadata"].get("labels"):
            obj["metadata"]["labels"] = dict(metadata["labels"])

    def validate_update(self, new: Obj, old: Obj) -> Iterator[FieldError]:
        yield from super().validate_update(new, old)
        suspended = bool(old["spec"].get("suspend"))
        if new["spec"].get("template") != old["spec"].get("template") and not suspended:
            yield FieldError.invalid("spec.template", new["spec"].get("template"), "field is immutable")
        if new["spec"].get("completionMode") != old["spec"].get("completionMode"):
            yield FieldError.invalid("spec.completionMode", new["spec"].get("completionMode"), "field is immutable")


class CronJobStrategy(Strategy):
    """``batch/v1 CronJob``."""

    def default(self, obj: Obj) -> None:
        spec = obj.setdefault("spec", {})
        spec.setdefault("concurrencyPolicy", "Allow")
        spec.setdefault("suspend", False)
        spec.setdefault("successfulJobsHistoryLimit", 3)
        spec.setdefault("failedJobsHistoryLimit", 1)
        job = spec.setdefault("jobTemplate", {}).setdefault("spec", {})
        default_pod_spec(job.setdefault("template", {}).setdefault("spec", {}))

    def prepare_create(self, obj: Obj, env: Environment) -> None:
        obj["status"] = {}

    def validate(self, obj: Obj) -> Iterator[FieldError]:
        schedule = obj["spec"].get("schedule") or ""
        if not schedule:
            yield FieldError.required("spec.schedule")
        elif not schedule.startswith("@") and len(schedule.split()) != 5:
            yield FieldError.invalid(
                "spec.schedule", schedule, f"expected exactly 5 fields, found {len(schedule.split())}"
            )
