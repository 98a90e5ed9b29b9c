"""What a preset is: one model, where it comes from, what it needs, how it is run.

Presets are values. Nothing in them can be changed, mappings included: a preset that one workload has altered must never
be seen by the next.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, PlainSerializer, model_validator
from pydantic.alias_generators import to_camel

from kaito_api.meta import Model
from kaito_api.quantity import parse_quantity

__all__ = ["Architecture", "Image", "Preset", "Requirements", "Source", "Tuning"]

_ACRONYMS = {"total_gpu_memory": "totalGPUMemory", "per_gpu_memory": "perGPUMemory"}


def _quantity(text: str) -> str:
    if parse_quantity(text) < 0:
        raise ValueError("a quantity of memory cannot be negative")
    return text


def _disk(text: str) -> str:
    # A forgotten suffix makes a disk of a few hundred bytes, which every cloud accepts and rounds to its smallest.
    if parse_quantity(text) < 2**30:
        raise ValueError(f"a disk of {text} bytes is too small to hold a model: is the suffix missing?")
    return text


MemoryQuantity = Annotated[str, AfterValidator(_quantity)]
DiskQuantity = Annotated[str, AfterValidator(_disk)]
FrozenMapping = Annotated[
    Mapping[str, str],
    AfterValidator(lambda m: MappingProxyType(dict(m))),
    PlainSerializer(lambda m: dict(m), return_type=dict[str, str]),
]


class _Entry(Model):
    """Part of a data file: unlike an object off the wire, it may have no field that we do not know."""

    model_config = ConfigDict(extra="forbid", alias_generator=lambda name: _ACRONYMS.get(name) or to_camel(name))


class Image(_Entry):
    """A container image without its registry."""

    repository: str = Field(pattern=r"^[a-z0-9]+(?:[._/-][a-z0-9]+)*$")
    tag: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$")


class Source(_Entry):
    """Where the weights are published: a Hugging Face repository, and the commit to use of it.

    ``revision`` is ``None`` only where the licence makes every user fetch their own copy.
    """

    repository: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    revision: str | None = Field(default=None, pattern=r"^[0-9a-f]{40}$")


class Requirements(_Entry):
    """The least that a workload can run on. A ``per_gpu_memory`` of ``0Gi`` means: any split of the total will do."""

    disk: DiskQuantity
    gpu_count: int = Field(ge=1)
    total_gpu_memory: MemoryQuantity
    per_gpu_memory: MemoryQuantity = "0Gi"
    readiness_timeout_seconds: int = Field(ge=1)

    @property
    def total_gpu_memory_bytes(self) -> int:
        return int(parse_quantity(self.total_gpu_memory))

    @property
    def per_gpu_memory_bytes(self) -> int:
        return int(parse_quantity(self.per_gpu_memory))


class Tuning(Requirements):
    """What fine-tuning the model needs."""


class Architecture(_Entry):
    """The shape of the network. ``name`` is its class in transformers; sizes are in elements, ``context`` in tokens."""

    name: str = Field(pattern=r"^\w+ForCausalLM$")
    hidden_size: int = Field(ge=1)
    intermediate_size: int = Field(ge=1)
    layers: int = Field(ge=1)
    heads: int = Field(ge=1)
    key_value_heads: int = Field(ge=1)
    vocabulary: int = Field(ge=1)
    context: int = Field(ge=1)

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.hidden_size % self.heads:
            raise ValueError(f"hiddenSize {self.hidden_size} is not a multiple of heads {self.heads}")
        if self.heads % self.key_value_heads:
            raise ValueError(f"heads {self.heads} is not a multiple of keyValueHeads {self.key_value_heads}")
        return self

    def kv_bytes_per_token(self, bytes_per_value: int = 2) -> int:
        """Bytes of key-value cache that one token of context takes."""
        return 2 * self.key_value_heads * (self.hidden_size // self.heads) * self.layers * bytes_per_value


class Preset(Requirements):
    """One entry of the catalogue; the requirements are those of inference.

    ``distributed`` models spread over ``world_size`` processes, one per GPU, possibly on several nodes.
    ``run_parameters`` are the server's flags without dashes; an empty value stands for a bare flag.
    """

    name: str = Field(pattern=r"^[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?$", max_length=63)
    family: str
    access_mode: Literal["public", "private"]
    image: Image | None = None
    source: Source | None = None
    runtime: Literal["transformers", "llama-2"] = "transformers"
    distributed: bool = False
    world_size: int | None = Field(default=None, ge=1)
    run_parameters: FrozenMapping = Field(default_factory=lambda: MappingProxyType({}))
    trust_remote_code: bool = False
    tuning: Tuning | None = None
    architecture: Architecture | None = None

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        if self.access_mode == "public" and self.image is None:
            raise ValueError("a public preset needs an image")
        if self.distributed and self.world_size is None:
            raise ValueError("a distributed preset needs a worldSize")
        if self.trust_remote_code and (self.source is None or self.source.revision is None):
            raise ValueError("trustRemoteCode needs a pinned source.revision")
        return self

    @property
    def served_name(self) -> str:
        """The name under which clients ask for the model."""
        return self.name
