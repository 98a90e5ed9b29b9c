"""GET of collections: selectors, order, pages, and which resourceVersion is shown."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from kaito_ctrl.devcluster.apiserver.backend import Backend
from kaito_ctrl.devcluster.apiserver.errors import (
    FieldError,
    bad_request,
    expired,
    invalid,
    too_large_resource_version,
)
from kaito_ctrl.devcluster.apiserver.kinds import Resource
from kaito_ctrl.devcluster.apiserver.requests import Call, parse_rv
from kaito_ctrl.devcluster.apiserver.selectors import FieldSelector, LabelSelector, parse_fields, parse_labels
from kaito_ctrl.devcluster.apiserver.store import Bucket, Key, Stored

__all__ = ["Filter", "Page", "list_page"]


@dataclass(frozen=True, slots=True)
class Filter:
    """Which objects of a bucket a request means."""

    resource: Resource
    namespace: str
    name: str
    labels: LabelSelector
    fields: FieldSelector

    @classmethod
    def of(cls, call: Call, resource: Resource) -> Filter:
        """Raises a 400 for a selector that is malformed or names a field the kind does not select by."""
        labels = parse_labels(call.query.get("labelSelector"))
        fields = parse_fields(call.query.get("fieldSelector"))
        for path, _equal, _value in fields.terms:
            if path not in resource.selectable:
                if resource.custom is None and resource.selectable == {"metadata.name", "metadata.namespace"}:
                    known = 'only "metadata.name", "metadata.namespace"'
                    raise bad_request(f'"{path}" is not a known field selector: {known}')
                raise bad_request(f"field label not supported: {path}")
        return cls(resource, call.target.namespace, call.target.name, labels, fields)

    @property
    def selective(self) -> bool:
        return bool(self.labels or self.fields)

    def matches(self, stored: Stored) -> bool:
        namespace, name = stored.key
        if self.namespace and namespace != self.namespace and self.resource.namespaced:
            return False
        if self.name and name != self.name:
            return False
        if self.labels and not self.labels.matches(stored.labels):
            return False
        return not self.fields or self.fields.matches(self.resource.fields(stored.obj))


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list, at one resourceVersion."""

    items: list[Stored]
    rv: int
    token: str = ""
    remaining: int | None = None


_NOW = -1
"""The version of a token that goes on at the state of now."""


def _decode_token(token: str) -> tuple[int, Key]:
    try:
        padded = token + "=" * (-len(token) % 4)
        value = msgspec.json.decode(base64.urlsafe_b64decode(padded))
        return int(value["rv"]), (value["ns"], value["name"])
    except (binascii.Error, ValueError, KeyError, TypeError, msgspec.DecodeError) as error:
        raise bad_request(f"continue key is not valid: {error}") from error


def _encode_token(rv: int, key: Key) -> str:
    value = {"v": "meta.k8s.io/v1", "rv": rv, "ns": key[0], "name": key[1]}
    return base64.urlsafe_b64encode(msgspec.json.encode(value)).decode().rstrip("=")


def _check_match(match: str, rv: str, *, continued: bool) -> None:
    """Which combinations of resourceVersion and resourceVersionMatch make sense. Raises a 422."""
    errors = []
    path = "resourceVersionMatch"
    if match:
        if continued:
            errors.append(FieldError.forbidden(path, "resourceVersionMatch is forbidden when continue is provided"))
        elif not rv:
            errors.append(
                FieldError.forbidden(path, "resourceVersionMatch is forbidden unless resourceVersion is provided")
            )
        elif match not in {"Exact", "NotOlderThan"}:
            errors.append(FieldError.unsupported(path, match, ["Exact", "NotOlderThan", ""]))
        elif match == "Exact" and rv == "0":
            errors.append(
                FieldError.forbidden(path, 'resourceVersionMatch "exact" is forbidden for resourceVersion "0"')
            )
    if errors:
        raise invalid("meta.k8s.io", "ListOptions", "", errors)


def _at(bucket: Bucket, rv: int, message: str) -> Mapping[Key, Stored]:
    if rv < bucket.floor:
        raise expired(message)
    return bucket.snapshot(rv)


_TOKEN_EXPIRED = (
    "The provided continue parameter is too old to display a consistent list result. You can start a new list without "
    "the continue parameter, or use the continue token in this response to retrieve the remainder of the results. "
    "Continuing with the provided token results in an inconsistent list - objects that were created, modified, or "
    "deleted between the time the first chunk was returned and now may show up in the list."
)


def list_page(backend: Backend, call: Call, resource: Resource, chosen: Filter) -> Page:
    """The page that *call* asks for. Raises 410 for a version that is gone, 504 for one that is not there yet."""
    bucket, query = backend.bucket(resource), call.query
    limit, token, rv_text = query.number("limit") or 0, query.get("continue"), query.get("resourceVersion")
    match = query.get("resourceVersionMatch")
    query.number("timeoutSeconds")  # means nothing here, but must be a number
    _check_match(match, rv_text, continued=bool(token))
    if token and rv_text not in {"", "0"}:
        raise bad_request("specifying resource version is not allowed when using continue")
    rv, after = backend.store.rv, ("", "")
    source: Mapping[Key, Stored] = bucket.items
    keys = bucket.keys(chosen.namespace if resource.namespaced else "")
    if token:
        rv, after = _decode_token(token)
        if rv == _NOW:
            rv = backend.store.rv
        elif rv < bucket.floor:
            raise expired(_TOKEN_EXPIRED, token=_encode_token(_NOW, after))
        else:
            source = bucket.snapshot(rv)
    elif rv_text:
        wanted = parse_rv(rv_text)
        if wanted > backend.store.rv:
            raise too_large_resource_version(wanted, backend.store.rv)
        if match == "Exact" or (limit and wanted and not match):
            rv = wanted
            source = _at(bucket, wanted, f"The resourceVersion for the provided list is too old: {wanted}")
    if source is not bucket.items:
        keys = sorted(key for key in source if not chosen.namespace or key[0] == chosen.namespace)
    # A list at "0" is served whole from the watch cache, whatever its limit.
    if rv_text == "0" and not token:
        limit = 0
    if not limit and not token and not chosen.selective and not chosen.name:
        return Page([source[key] for key in keys], rv)
    items: list[Stored] = []
    start = 0
    if token:
        import bisect

        start = bisect.bisect_right(keys, after)
    for position in range(start, len(keys)):
        stored = source[keys[position]]
        if not chosen.matches(stored):
            continue
        if limit and len(items) == limit:
            remaining = None if chosen.selective else len(keys) - position
            return Page(items, rv, _encode_token(rv, items[-1].key), remaining)
        items.append(stored)
    return Page(items, rv)
