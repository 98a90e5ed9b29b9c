"""The catalogue of presets: a folder of data files, read once, validated as a whole, immutable.

Adding a model is adding a file. A file holds one family::

    family: Phi3
    presets:
      phi-3-mini-4k-instruct:
        accessMode: public
        ...                      # the fields of kaito_presets.preset.Preset, in camelCase
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable

from kaito_presets.datafile import DataFileError, read_folder, validated
from kaito_presets.nearest import nearest
from kaito_presets.preset import Preset

__all__ = ["Catalogue"]


class Catalogue:
    """Presets by name. Safe to share between threads and tasks: it never changes."""

    __slots__ = ("_presets",)

    def __init__(self, presets: Iterable[Preset]) -> None:
        """Raises ``DataFileError`` if two presets have one name."""
        found: dict[str, Preset] = {}
        for preset in presets:
            if preset.name in found:
                raise DataFileError(f"preset {preset.name} is defined twice")
            found[preset.name] = preset
        self._presets = dict(sorted(found.items()))

    @staticmethod
    def builtin() -> Catalogue:
        """The presets that come with this package; read on the first call."""
        return _builtin()

    @staticmethod
    def load(*folders: Traversable) -> Catalogue:
        """The presets of every ``*.yaml`` file in *folders* (``pathlib.Path`` will do). Raises ``DataFileError``."""
        return Catalogue(preset for folder in folders for preset in _read(folder))

    def get(self, name: str) -> Preset | None:
        """The preset of exactly that name."""
        return self._presets.get(name)

    def names(self) -> tuple[str, ...]:
        """Every name, in order."""
        return tuple(self._presets)

    def suggest(self, name: str, limit: int = 3) -> tuple[str, ...]:
        """The names nearest to a mistyped one, best first; empty if nothing is near."""
        return nearest(name, self._presets, limit)

    def __iter__(self) -> Iterator[Preset]:
        return iter(self._presets.values())

    def __len__(self) -> int:
        return len(self._presets)

    def __contains__(self, name: object) -> bool:
        return name in self._presets

    def __repr__(self) -> str:
        return f"Catalogue({len(self)} presets)"


@cache
def _builtin() -> Catalogue:
    return Catalogue.load(files("kaito_presets").joinpath("models"))


def _read(folder: Traversable) -> Iterator[Preset]:
    for file, content in read_folder(folder):
        entries = content.get("presets")
        if set(content) != {"family", "presets"} or not isinstance(entries, dict) or not entries:
            raise DataFileError(f"{file}: expected exactly the keys family and presets, the latter a mapping by name")
        for name, entry in entries.items():
            if not isinstance(entry, dict):
                raise DataFileError(f"{file}: {name}: expected a mapping")
            yield validated(Preset, {"name": name, "family": content["family"], **entry}, f"{file}: {name}")
