"""Cuts the items out of a list's body while it arrives, so that a list of any size costs neither its whole body in
memory nor a pause to decode it.

Where an item ends is guessed and then proved. The guess is the text between two items that have been seen (``},`` and
how an item begins), searched for at memory speed; the proof is the decode of the item's header, which has to be done
anyway: an item's bytes are one JSON object, and neither a beginning of it nor it and something more is one. Where a
guess fails, and for the first items, a JSON scanner finds the end. So nothing depends on how a server writes its
lists, only the speed does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import msgspec

from kaito_ctrl.runtime.codec import ListHead, Record, decode_record

__all__ = ["ListBody"]

_SPACE = b" \t\r\n"
_PATIENCE = 256 * 1024
"""Bytes in which the guess finds nothing before the scanner is asked."""

_head = msgspec.json.Decoder(ListHead)
# Latin-1 keeps offsets equal to those of the bytes, and what numbers and control characters mean is not asked here.
_scan = json.JSONDecoder(strict=False, parse_int=len, parse_float=len).raw_decode


_brackets = re.compile(r'[\[\]{}]|"(?:[^"\\]*(?:\\.[^"\\]*)*")?', re.DOTALL)


class _Incomplete(Exception):
    """What is looked for may still be under way."""


class ListBody:
    """One body: :meth:`feed` it chunk by chunk, then :meth:`end` it; both give the items that are complete, and have
    to be exhausted. ``head`` is the list's metadata, complete at the end; ``unreadable`` counts the items that are no
    objects with usable metadata."""

    def __init__(self) -> None:
        self.head = ListHead()
        self.unreadable = 0
        self._parts: list[bytes] = []
        self._size = 0
        self._wanted = 0
        self._data = b""
        self._text: str | None = None
        self._at = 0
        self._stage = self._begin
        self._between = b""
        self._gap = 0
        self._listed = False
        self._final = False

    def feed(self, chunk: bytes) -> Iterator[Record]:
        """The items that *chunk* completes. Never raises."""
        self._parts.append(chunk)
        self._size += len(chunk)
        if self._size >= self._wanted:
            yield from self._advance()

    def end(self) -> Iterator[Record]:
        """The last items, at the end of the body. Raises ``ValueError`` when it was no complete list."""
        self._final = True
        yield from self._advance()
        if self._stage != self._done or not self._listed or self._data.strip(_SPACE):
            raise ValueError("the body is not one JSON list")

    def _advance(self) -> Iterator[Record]:
        self._data, self._text = b"".join(self._parts), None
        try:
            while self._stage != self._done:
                if self._between and self._stage == self._item:
                    yield from self._guessed_items()
                record = self._stage()
                if record is not None:
                    yield record
        except _Incomplete:
            if self._final:
                raise ValueError("the body ends before the list does, or is no list") from None
        # Only what no item has taken stays, and it is looked at again when there is half as much again: all the
        # attempts at an item of any length together cost a few times its length.
        self._data, self._text = self._data[self._at :], None
        self._at = 0
        self._parts = [self._data]
        self._size = len(self._data)
        self._wanted = self._size + max(self._size // 2, 1)

    # -- stages: each takes one thing from the data, and moves on ------------------------------------------------

    def _begin(self) -> Record | None:
        self._expect(b"{")
        self._stage = self._member
        return None

    def _member(self) -> Record | None:
        at = self._at
        try:
            if self._peek() == b"}":
                self._at += 1
                self._stage = self._done
                return None
            name, _ = self._value()
            self._expect(b":")
            if self._peek() == b"[" and name == b'"items"':
                self._at += 1
                self._listed = True
                self._stage = self._item
                return None
            value, _ = self._value()
            if name == b'"items"':
                self._listed = value == b"null"
            if name == b'"metadata"':
                try:
                    self.head = _head.decode(value)
                except ValueError:
                    raise _Incomplete from None
            if self._peek() == b",":
                self._at += 1
        except _Incomplete:
            self._at = at
            raise
        return None

    def _guessed_items(self) -> Iterator[Record]:
        """Items, for as long as the guess holds."""
        data, between, gap = self._data, self._between, self._gap
        while end := data.find(between, self._at) + 1:
            try:
                record = decode_record(data[self._at : end])
            except ValueError:
                return
            self._at = end + gap
            yield record
        if not self._final and len(data) - self._at < _PATIENCE:
            raise _Incomplete

    def _item(self) -> Record | None:
        at = self._at
        try:
            if self._peek() == b"]":
                self._at += 1
                self._stage = self._after_items
                return None
            raw, end = self._value()
            if self._peek() == b",":
                self._at += 1
                self._peek()
                if raw.endswith(b"}"):
                    self._gap = self._at - end
                    self._between = b"}" + self._data[end : self._at] + _beginning(raw)
        except _Incomplete:
            self._at = at
            raise
        try:
            return decode_record(raw)
        except ValueError:
            self.unreadable += 1
            return None

    def _after_items(self) -> Record | None:
        if self._peek() == b",":
            self._at += 1
        self._stage = self._member
        return None

    def _done(self) -> Record | None:
        return None

    # -- inside --------------------------------------------------------------------------------------------------

    def _peek(self) -> bytes:
        """The next byte that is no white space."""
        while True:
            byte = self._data[self._at : self._at + 1]
            if not byte:
                raise _Incomplete
            if byte not in _SPACE:
                return byte
            self._at += 1

    def _expect(self, byte: bytes) -> None:
        if self._peek() != byte:
            raise _Incomplete
        self._at += 1

    def _value(self) -> tuple[bytes, int]:
        """The JSON value that begins here, and where it ends; only one that something follows is known to be whole."""
        self._peek()
        if self._text is None:
            self._text = self._data.decode("latin-1")
        try:
            _, end = _scan(self._text, self._at)
        except ValueError:
            raise _Incomplete from None
        except RecursionError:
            end = _end_of_nested(self._text, self._at)
        if end >= len(self._data):
            raise _Incomplete
        value = self._data[self._at : end]
        self._at = end
        return value, end


def _end_of_nested(text: str, at: int) -> int:
    """Where the object or list that begins at *at* ends, of any depth. Raises ``_Incomplete``."""
    depth = 0
    for token in _brackets.finditer(text, at):
        match token[0]:
            case "{" | "[":
                depth += 1
            case "}" | "]":
                depth -= 1
            case '"':
                break  # a string that does not end here
        if depth == 0:
            return token.end()
    raise _Incomplete


def _beginning(item: bytes) -> bytes:
    """How items of this list begin: up to the first name in their metadata, or to their first name."""
    at = item.find(b'"metadata"', 0, 512)
    at = item.find(b'"', at + 10) if at > 0 else item.find(b'"')
    return item[: at + 1]
