"""``metadata``: names, labels and the rules that hold for every kind."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from kaito_ctrl.devcluster.apiserver.errors import FieldError
from kaito_ctrl.devcluster.apiserver.store import Obj

__all__ = [
    "is_dns1035",
    "is_dns1123_label",
    "is_dns1123_subdomain",
    "label_value_errors",
    "path_segment_errors",
    "qualified_name_errors",
    "validate_annotations",
    "validate_labels",
    "validate_meta",
    "validate_meta_update",
]

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_DNS1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
_QUALIFIED = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")

ANNOTATIONS_LIMIT = 256 * 1024

_SUBDOMAIN_TEXT = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and "
    "end with an alphanumeric character (e.g. 'example.com', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)
_LABEL_TEXT = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with "
    "an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
)
_DNS1035_TEXT = (
    "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, "
    "and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is "
    "'[a-z]([-a-z0-9]*[a-z0-9])?')"
)
_VALUE_TEXT = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and "
    "end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is "
    "'(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
)
_QUALIFIED_TEXT = (
    "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric "
    "character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is "
    "'([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
)


def is_dns1123_subdomain(name: str) -> list[str]:
    """What is wrong with *name*, in words; nothing when it is a DNS subdomain."""
    found = ["must be no more than 253 characters"] if len(name) > 253 else []
    return found if _SUBDOMAIN.fullmatch(name) else [*found, _SUBDOMAIN_TEXT]


def is_dns1123_label(name: str) -> list[str]:
    found = ["must be no more than 63 characters"] if len(name) > 63 else []
    return found if _LABEL.fullmatch(name) else [*found, _LABEL_TEXT]


def is_dns1035(name: str) -> list[str]:
    found = ["must be no more than 63 characters"] if len(name) > 63 else []
    return found if _DNS1035.fullmatch(name) else [*found, _DNS1035_TEXT]


def path_segment_errors(name: str) -> list[str]:
    """Names of RBAC objects: anything that fits one segment of a path."""
    if name in {".", ".."}:
        return [f"may not be '{name}'"]
    return [f"may not contain '{bad}'" for bad in "/%" if bad in name]


def label_value_errors(value: str) -> list[str]:
    found = ["must be no more than 63 characters"] if len(value) > 63 else []
    return found if _VALUE.fullmatch(value) else [*found, _VALUE_TEXT]


def qualified_name_errors(name: str) -> list[str]:
    prefix, slash, short = name.rpartition("/")
    found = []
    if slash:
        if not prefix:
            found.append("prefix part must be non-empty")
        found += [f"prefix part {text}" for text in is_dns1123_subdomain(prefix)] if prefix else []
    if not short:
        found.append("name part must be non-empty")
    elif len(short) > 63:
        found.append("name part must be no more than 63 characters")
    if not _QUALIFIED.fullmatch(short):
        found.append(_QUALIFIED_TEXT)
    return found


def validate_labels(labels: Mapping[str, Any], path: str) -> Iterator[FieldError]:
    for key, value in labels.items():
        for text in qualified_name_errors(key):
            yield FieldError.invalid(path, key, text)
        for text in label_value_errors(value):
            yield FieldError.invalid(path, value, text)


def validate_annotations(annotations: Mapping[str, Any], path: str) -> Iterator[FieldError]:
    for key in annotations:
        for text in qualified_name_errors(key.lower()):
            yield FieldError.invalid(path, key, text)
    if sum(len(key) + len(value) for key, value in annotations.items()) > ANNOTATIONS_LIMIT:
        yield FieldError.too_long(path, ANNOTATIONS_LIMIT)


def validate_meta(metadata: Obj, name_errors: Any, *, namespaced: bool) -> Iterator[FieldError]:
    """Everything that can be wrong with ``metadata`` alone. *name_errors* tells what is wrong with a name."""
    name = metadata.get("name") or ""
    generate = metadata.get("generateName") or ""
    if generate:
        # The random suffix makes a trailing dash of the prefix legal.
        for text in name_errors(re.sub(r"-$", "-x", generate)):
            yield FieldError.invalid("metadata.generateName", generate, text)
    if not name:
        yield FieldError.required("metadata.name", "name or generateName is required")
    else:
        for text in name_errors(name):
            yield FieldError.invalid("metadata.name", name, text)
    namespace = metadata.get("namespace") or ""
    if namespaced:
        if not namespace:
            yield FieldError.required("metadata.namespace")
        else:
            for text in is_dns1123_label(namespace):
                yield FieldError.invalid("metadata.namespace", namespace, text)
    elif namespace:
        yield FieldError.forbidden("metadata.namespace", "not allowed on this type")
    yield from validate_labels(metadata.get("labels") or {}, "metadata.labels")
    yield from validate_annotations(metadata.get("annotations") or {}, "metadata.annotations")
    yield from _owners(metadata.get("ownerReferences") or ())
    for index, finalizer in enumerate(metadata.get("finalizers") or ()):
        for text in qualified_name_errors(finalizer):
            yield FieldError.invalid(f"metadata.finalizers[{index}]", finalizer, text)


def _owners(owners: Any) -> Iterator[FieldError]:
    controllers = []
    for index, owner in enumerate(owners):
        for key, path in (("apiVersion", "apiVersion"), ("kind", "kind"), ("name", "name"), ("uid", "uid")):
            if not owner.get(key):
                text = "version must not be empty" if key == "apiVersion" else f"{key} must not be empty"
                yield FieldError.invalid(f"metadata.ownerReferences[{index}].{path}", owner.get(key) or "", text)
        if owner.get("controller"):
            controllers.append(owner)
    if len(controllers) > 1:
        names = " and ".join(f"{o['kind']}/{o['name']}" for o in controllers[:2])
        yield FieldError.invalid(
            "metadata.ownerReferences",
            owners,
            f'Only one reference can have Controller set to true. Found "true" in references for {names}',
        )


def validate_meta_update(new: Obj, old: Obj) -> Iterator[FieldError]:
    """What an update may not do to ``metadata``."""
    for key in ("name", "namespace", "uid", "creationTimestamp"):
        if new.get(key) != old.get(key):
            yield FieldError.invalid(f"metadata.{key}", new.get(key), "field is immutable")
    if old.get("deletionTimestamp"):
        known = set(old.get("finalizers") or ())
        added = [name for name in new.get("finalizers") or () if name not in known]
        if added:
            yield FieldError.forbidden(
                "metadata.finalizers",
                "no new finalizers can be added if the object is being deleted, found new finalizers "
                "[]string{" + ", ".join(f'"{name}"' for name in added) + "}",
            )
