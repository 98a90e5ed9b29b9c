"""Which instance types have which GPUs, cloud by cloud, as immutable tables read from data files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Literal

from pydantic import ConfigDict, Field
from pydantic.alias_generators import to_camel

from kaito_api.meta import Model
from kaito_presets.datafile import DataFileError, read_folder, validated
from kaito_presets.nearest import nearest

__all__ = ["Sku", "SkuTable"]

_GIB = 2**30
_ACRONYMS = {"total_gpu_memory_gib": "totalGPUMemoryGiB"}


class Sku(Model):
    """One instance type. ``total_gpu_memory_gib`` is the memory of all its GPUs together, ``gpu_model`` their name."""

    model_config = ConfigDict(extra="forbid", alias_generator=lambda name: _ACRONYMS.get(name) or to_camel(name))

    name: str
    cloud: str
    gpu_count: int = Field(ge=1)
    total_gpu_memory_gib: int = Field(ge=1)
    gpu_model: str | None = None

    @property
    def total_gpu_memory_bytes(self) -> int:
        return self.total_gpu_memory_gib * _GIB

    @property
    def per_gpu_memory_bytes(self) -> int:
        """Memory of one GPU in bytes."""
        return self.total_gpu_memory_bytes // self.gpu_count

    @property
    def vendor(self) -> Literal["nvidia", "amd", "aws"] | None:
        """Who makes the accelerator; ``None`` if the table does not say."""
        match (self.gpu_model or "").partition(" ")[0]:
            case "NVIDIA":
                return "nvidia"
            case "AMD":
                return "amd"
            case "AWS":
                return "aws"
            case _:
                return None


class SkuTable:
    """The instance types of one cloud, by name. It never changes."""

    __slots__ = ("_skus", "cloud")

    def __init__(self, cloud: str, skus: Iterable[Sku]) -> None:
        self.cloud = cloud
        self._skus = {sku.name: sku for sku in sorted(skus, key=lambda sku: sku.name)}

    @staticmethod
    def builtin(cloud: str = "azure") -> SkuTable:
        """The table of *cloud* that comes with this package. Raises ``ValueError`` for a cloud without one."""
        tables = _builtin()
        if cloud not in tables:
            raise ValueError(f"unsupported cloud {cloud!r}: supported are {', '.join(sorted(tables))}")
        return tables[cloud]

    @staticmethod
    def clouds() -> tuple[str, ...]:
        """The clouds that have a built-in table."""
        return tuple(sorted(_builtin()))

    def get(self, name: str) -> Sku | None:
        """The instance type of exactly that name."""
        return self._skus.get(name)

    def names(self) -> tuple[str, ...]:
        """Every name, in order."""
        return tuple(self._skus)

    def suggest(self, name: str, limit: int = 3) -> tuple[str, ...]:
        """The names nearest to a mistyped one, best first, whatever its case; empty if nothing is near."""
        return nearest(name, self._skus, limit)

    def __iter__(self) -> Iterator[Sku]:
        return iter(self._skus.values())

    def __len__(self) -> int:
        return len(self._skus)

    def __contains__(self, name: object) -> bool:
        return name in self._skus

    def __repr__(self) -> str:
        return f"SkuTable({self.cloud!r}, {len(self)} instance types)"


@cache
def _builtin() -> dict[str, SkuTable]:
    return {table.cloud: table for table in _read(files("kaito_presets").joinpath("instance_types"))}


def _read(folder: Traversable) -> Iterator[SkuTable]:
    for file, content in read_folder(folder):
        cloud, entries = content.get("cloud"), content.get("instanceTypes")
        if set(content) != {"cloud", "instanceTypes"} or not isinstance(cloud, str) or not isinstance(entries, dict):
            raise DataFileError(f"{file}: expected exactly the keys cloud and instanceTypes, the latter by name")
        yield SkuTable(
            cloud,
            [
                validated(Sku, {"name": name, "cloud": cloud, **entry}, f"{file}: {name}")
                for name, entry in entries.items()
            ],
        )
