"""Bytes to headers and back: what the hot path needs of JSON, and no more.

A watch line is read once by msgspec into its type, the object's metadata and the object's bytes; the rest of the
body stays bytes until somebody reads it. Decoding is total: nothing here raises for a field that is missing or odd,
because one strange object must not end a watch. All bytes handed out are copies of their own: what keeps an object
does not keep the chunk that it came in.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

__all__ = [
    "LAST_APPLIED",
    "Header",
    "HeaderOwner",
    "LineSplitter",
    "ListHead",
    "Record",
    "WatchLine",
    "decode_header",
    "decode_json",
    "decode_list",
    "decode_record",
    "decode_watch_line",
    "encode_json",
    "strip_managed_fields",
]

LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
"""Repeats the whole object. It is left out of headers; the typed view has it."""


class HeaderOwner(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """The fields of an owner reference that routing needs."""

    api_version: str = ""
    kind: str = ""
    name: str = ""
    uid: str = ""
    controller: bool | None = None


class Header(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """The metadata that predicates, indexes and routing need; everything has a default, so nothing is required."""

    name: str = ""
    namespace: str | None = None
    uid: str = ""
    resource_version: str = ""
    generation: int | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    owner_references: tuple[HeaderOwner, ...] | None = None
    finalizers: tuple[str, ...] | None = None
    deletion_timestamp: str | None = None


class Record(NamedTuple):
    """One object as it came: its header, and all its bytes."""

    header: Header
    raw: bytes


class _Envelope(msgspec.Struct, frozen=True, gc=False):
    metadata: Header = Header()


class _Managed(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    managed_fields: msgspec.Raw = msgspec.Raw()


class _ManagedEnvelope(msgspec.Struct, frozen=True, gc=False):
    metadata: _Managed = _Managed()


class ListHead(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """The metadata of a list: its resourceVersion, and the token for its next page."""

    resource_version: str = ""
    continue_: str = msgspec.field(default="", name="continue")
    remaining_item_count: int | None = None


class _List(msgspec.Struct, frozen=True, gc=False):
    metadata: ListHead = ListHead()
    items: list[msgspec.Raw] | None = None


class WatchLine(msgspec.Struct, frozen=True, gc=False):
    """One line of a watch: the event's type and the object, unparsed."""

    type: str = ""
    object: msgspec.Raw = msgspec.Raw(b"{}")


_header = msgspec.json.Decoder(_Envelope)
_managed = msgspec.json.Decoder(_ManagedEnvelope)
_list = msgspec.json.Decoder(_List)
_line = msgspec.json.Decoder(WatchLine)
_any = msgspec.json.Decoder()
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_encoder = msgspec.json.Encoder()

encode_json = _encoder.encode


def decode_json(raw: bytes) -> Any:
    """Plain JSON. Raises ``ValueError``."""
    return _any.decode(raw)


def decode_header(raw: bytes | msgspec.Raw) -> Header:
    """The header of one object. Raises ``ValueError`` only when the bytes are no JSON object with usable metadata."""
    try:
        header: Header = _header.decode(raw).metadata
    except RecursionError as error:
        raise ValueError(f"JSON is nested too deeply: {error}") from error
    if header.annotations:
        header.annotations.pop(LAST_APPLIED, None)
    return header


def decode_record(raw: bytes) -> Record:
    """One object with its header. Raises like :func:`decode_header`."""
    return Record(decode_header(raw), raw)


def decode_list(raw: bytes) -> tuple[ListHead, list[bytes]]:
    """A list response as its head and the bytes of each item.

    Raises ``ValueError`` when it is no list, or nested too deeply.
    """
    try:
        decoded = _list.decode(raw)
    except RecursionError as error:
        raise ValueError(f"JSON is nested too deeply: {error}") from error
    return decoded.metadata, [bytes(item) for item in decoded.items or ()]


def decode_watch_line(line: bytes) -> WatchLine:
    """One watch line. Raises ``ValueError`` when it is no JSON object, or nested too deeply."""
    try:
        return _line.decode(line)
    except RecursionError as error:
        raise ValueError(f"JSON is nested too deeply: {error}") from error


def strip_managed_fields(raw: bytes) -> bytes:
    """The object without ``metadata.managedFields``, which no reader of a cache needs and which can be half of it.

    Every other byte stays as it was, wherever the field can be cut out of an object that is written as API servers
    write it.
    """
    if b'"managedFields"' not in raw:
        return raw
    managed = bytes(_managed.decode(raw).metadata.managed_fields)
    if not managed:
        return raw
    field = b'"managedFields":' + managed
    start = raw.find(field)
    if start < 0 or raw.find(field, start + 1) >= 0:
        return _without_managed_fields(raw)
    end = start + len(field)
    if raw[end : end + 1] == b",":
        end += 1
    elif raw[start - 1 : start] == b",":
        start -= 1
    elif raw[start - 1 : start] + raw[end : end + 1] != b"{}":
        return _without_managed_fields(raw)
    return raw[:start] + raw[end:]


def _without_managed_fields(raw: bytes) -> bytes:
    fields = _fields.decode(raw)
    metadata = _fields.decode(fields["metadata"])
    del metadata["managedFields"]
    fields["metadata"] = msgspec.Raw(_encoder.encode(metadata))
    return _encoder.encode(fields)


class LineSplitter:
    """Cuts a stream of chunks into lines, of any length, in linear time."""

    __slots__ = ("_parts",)

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def feed(self, chunk: bytes) -> list[bytes]:
        """The lines that *chunk* completes, without their newlines; blank ones are dropped."""
        if b"\n" not in chunk:
            self._parts.append(chunk)
            return []
        first, *rest = chunk.split(b"\n")
        if self._parts:
            first = b"".join((*self._parts, first))
            self._parts.clear()
        tail = rest.pop()
        if tail:
            self._parts.append(tail)
        return [line for line in (first, *rest) if line]
