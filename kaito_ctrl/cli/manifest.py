"""Manifest files: YAML in, objects out, with errors that name the file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

__all__ = ["ManifestError", "dump_yaml", "load_manifests"]


class ManifestError(ValueError):
    """A manifest file cannot be read; the message says which and why."""


def load_manifests(path: Path) -> tuple[dict[str, Any], ...]:
    """Every object of a YAML (or JSON) file, of what is in its Lists too; ``-`` is the standard input. Raises
    :class:`ManifestError`."""
    return tuple(_flat(_read(path)))


def _flat(documents: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for document in documents:
        items = document.get("items")
        if str(document["kind"]).endswith("List") and isinstance(items, list):
            yield from (item for item in items if isinstance(item, dict))
        else:
            yield document


def _read(path: Path) -> Iterator[dict[str, Any]]:
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: {error}") from error
    try:
        for document in yaml.safe_load_all(text):
            if document is None:
                continue
            if not isinstance(document, dict) or "kind" not in document or "apiVersion" not in document:
                raise ManifestError(f"{path}: a document is no Kubernetes object: it needs apiVersion and kind")
            yield document
    except yaml.YAMLError as error:
        raise ManifestError(f"{path}: not valid YAML: {error}") from error


class _Dumper(yaml.SafeDumper):
    """Without anchors: people read what it writes."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def dump_yaml(value: Any) -> str:
    """YAML in the order given, without anchors."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)
