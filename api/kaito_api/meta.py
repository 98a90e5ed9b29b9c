"""What every Kubernetes object shares: the base model, metadata, conditions, selectors.

Models are frozen. On the wire names are camelCase, in Python snake_case; ``to_wire`` gives exactly the fields that
were set, which is what server-side apply wants: an unset field is not owned, a field set to its default is.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer
from pydantic.alias_generators import to_camel

__all__ = [
    "Condition",
    "ConditionStatus",
    "LabelSelector",
    "LabelSelectorRequirement",
    "LocalReference",
    "MicroTime",
    "Model",
    "ObjectMeta",
    "OwnerReference",
    "Resource",
    "Time",
    "find_condition",
    "is_true",
    "owned_by",
    "rfc3339",
    "rfc3339_micro",
]


def rfc3339(moment: datetime) -> str:
    """*moment* as Kubernetes writes ``metav1.Time``: UTC, whole seconds, a ``Z``."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def rfc3339_micro(moment: datetime) -> str:
    """*moment* as Kubernetes writes ``metav1.MicroTime``: UTC, always six decimals, a ``Z``."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


Time = Annotated[datetime, PlainSerializer(rfc3339, return_type=str)]
"""``metav1.Time``: seconds resolution on the wire."""

MicroTime = Annotated[datetime, PlainSerializer(rfc3339_micro, return_type=str)]
"""``metav1.MicroTime``: microseconds on the wire."""


class Model(BaseModel):
    """Base of every value: frozen, camelCase on the wire, unknown fields ignored."""

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        alias_generator=to_camel,
        populate_by_name=True,
        validate_by_name=True,
        validate_by_alias=True,
    )

    def to_wire(self) -> dict[str, Any]:
        """A fresh JSON-ready dict with the fields that were set; ``None`` counts as unset."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True)

    def evolve(self, **changes: Any) -> Self:
        """A copy with some fields replaced (and thereby set); the rest is shared, not copied."""
        return self.model_copy(update=changes)


class OwnerReference(Model):
    """``metav1.OwnerReference``: who this object belongs to, for garbage collection and for waking the owner."""

    api_version: str
    kind: str
    name: str
    uid: str
    controller: bool | None = None
    block_owner_deletion: bool | None = None


class ObjectMeta(Model):
    """``metav1.ObjectMeta``, the fields that a controller reads or writes."""

    name: str = ""
    generate_name: str | None = None
    namespace: str | None = None
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    creation_timestamp: Time | None = None
    deletion_timestamp: Time | None = None
    deletion_grace_period_seconds: int | None = None
    labels: Mapping[str, str] = Field(default_factory=dict)
    annotations: Mapping[str, str] = Field(default_factory=dict)
    owner_references: tuple[OwnerReference, ...] = ()
    finalizers: tuple[str, ...] = ()


class Resource(Model):
    """An object with an identity. Subclasses say where it lives in the API::

    class ConfigMap(Resource):
        group, version, kind, plural = "", "v1", "ConfigMap", "configmaps"
        data: Mapping[str, str] = {}
    """

    group: ClassVar[str]
    version: ClassVar[str]
    kind: ClassVar[str]
    plural: ClassVar[str]
    namespaced: ClassVar[bool] = True

    metadata: ObjectMeta = ObjectMeta()

    @classmethod
    def api_version(cls) -> str:
        """``group/version``, or just the version for the core group."""
        return f"{cls.group}/{cls.version}" if cls.group else cls.version

    @property
    def name(self) -> str:
        return self.metadata.name

    @property
    def namespace(self) -> str | None:
        return self.metadata.namespace

    @property
    def uid(self) -> str:
        return self.metadata.uid

    @property
    def deleting(self) -> bool:
        """Whether deletion has been asked for; finalizers may still hold the object."""
        return self.metadata.deletion_timestamp is not None

    def to_wire(self) -> dict[str, Any]:
        return {"apiVersion": self.api_version(), "kind": self.kind, **super().to_wire()}

    def owner_reference(self, *, controller: bool = True) -> OwnerReference:
        """The reference by which a child points back at this object."""
        return OwnerReference(
            api_version=self.api_version(),
            kind=self.kind,
            name=self.name,
            uid=self.uid,
            controller=controller,
            block_owner_deletion=controller,
        )

    def __str__(self) -> str:
        where = f"{self.namespace}/" if self.namespace else ""
        return f"{self.kind} {where}{self.name}"


class LabelSelectorRequirement(Model):
    """One expression of a label selector: ``In`` and ``NotIn`` take values, the other two take none."""

    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: tuple[str, ...] = ()


class LabelSelector(Model):
    """``metav1.LabelSelector``: all labels and all expressions must hold; an empty selector matches everything."""

    match_labels: Mapping[str, str] = Field(default_factory=dict)
    match_expressions: tuple[LabelSelectorRequirement, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether an object with these labels is selected."""
        if any(labels.get(key) != value for key, value in self.match_labels.items()):
            return False
        for term in self.match_expressions:
            present = term.key in labels
            match term.operator:
                case "In":
                    ok = present and labels[term.key] in term.values
                case "NotIn":
                    ok = not present or labels[term.key] not in term.values
                case "Exists":
                    ok = present
                case "DoesNotExist":
                    ok = not present
            if not ok:
                return False
        return True


class LocalReference(Model):
    """``corev1.LocalObjectReference``: an object of the same namespace, by name."""

    name: str = ""


ConditionStatus = Literal["True", "False", "Unknown"]


class Condition(Model):
    """``metav1.Condition``; also reads knative's variant, which has a ``severity`` and may lack the rest.

    ``last_transition_time`` moves only when ``status`` does.
    """

    type: str
    status: ConditionStatus = "Unknown"
    reason: str = ""
    message: str = ""
    observed_generation: int | None = None
    last_transition_time: Time | None = None
    severity: str | None = None


def find_condition(conditions: tuple[Condition, ...], kind: str) -> Condition | None:
    """The condition of that type, if it is there."""
    return next((c for c in conditions if c.type == kind), None)


def is_true(conditions: tuple[Condition, ...], kind: str) -> bool:
    """Whether the condition of that type is there and True."""
    found = find_condition(conditions, kind)
    return found is not None and found.status == "True"


def owned_by(child: Resource, owner: Resource) -> bool:
    """Whether *owner* is the controlling owner of *child*, by uid: a namesake created later is somebody else."""
    return any(ref.controller and ref.uid == owner.uid for ref in child.metadata.owner_references)
