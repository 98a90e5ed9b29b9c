"""Bytes to headers and back: what the hot path needs of JSON, and no more.

A watch line is read once by msgspec into its type, the object's metadata and the object's bytes; the rest of the
body stays bytes until somebody reads it. Decoding is total: nothing here raises for a field that is missing or odd,
because one strange object must not end a watch.
"""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = [
    "Header",
    "HeaderOwner",
    "LineSplitter",
    "ListHead",
    "WatchLine",
    "decode_header",
    "decode_json",
    "decode_list",
    "decode_watch_line",
    "encode_json",
    "strip_managed_fields",
]


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


class _Envelope(msgspec.Struct, frozen=True, gc=False):
    metadata: Header = Header()


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
    return _header.decode(raw).metadata


def decode_list(raw: bytes) -> tuple[ListHead, list[bytes]]:
    """A list response as its head and the bytes of each item. Raises ``ValueError`` when it is no list."""
    decoded = _list.decode(raw)
    return decoded.metadata, [bytes(item) for item in decoded.items or ()]


def decode_watch_line(line: bytes) -> WatchLine:
    """One watch line. Raises ``ValueError`` when it is no JSON object."""
    return _line.decode(line)


def strip_managed_fields(raw: bytes) -> bytes:
    """The object without ``metadata.managedFields``, which no reader of a cache needs and which can be half of it."""
    if b'"managedFields"' not in raw:
        return raw
    fields = _fields.decode(raw)
    if "metadata" not in fields:
        return raw
    metadata = _fields.decode(fields["metadata"])
    if metadata.pop("managedFields", None) is None:
        return raw
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
