"""Reading the package's data files: YAML in which every mistake is an error that names the file.

A repeated key is refused (YAML would silently keep the last one), and so is a field that the model does not know.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from importlib.resources.abc import Traversable
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

__all__ = ["DataFileError", "read_folder", "validated"]

_M = TypeVar("_M", bound=BaseModel)


class DataFileError(ValueError):
    """A data file cannot be read, or says something that cannot be meant. The message names file and field."""


class _StrictLoader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_folder(folder: Traversable) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Name and content of every ``*.yaml`` file in *folder*, in order of name. Raises :class:`DataFileError`."""
    for entry in sorted(folder.iterdir(), key=lambda e: e.name):
        if not entry.name.endswith((".yaml", ".yml")):
            continue
        try:
            content = yaml.load(entry.read_text(encoding="utf-8"), Loader=_StrictLoader)  # noqa: S506
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise DataFileError(f"{entry.name}: {error}") from error
        if not isinstance(content, dict):
            raise DataFileError(f"{entry.name}: expected a mapping at the top")
        yield entry.name, content


def validated(model: type[_M], content: Any, where: str) -> _M:
    """*content* as a *model*. Raises :class:`DataFileError` with every problem, each after *where* and its field."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in problem['loc']) or 'entry'}: {problem['msg']}"
            for problem in error.errors(include_url=False)
        )
        raise DataFileError(f"{where}: {problems}") from error
