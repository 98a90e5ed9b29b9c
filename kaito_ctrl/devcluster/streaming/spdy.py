"""SPDY/3.1 frames, as bytes and back. Pure: no I/O, and no idea of what the streams are for.

SPDY (draft-mbelshe-httpbis-spdy-00, with the session window of 3.1) came before HTTP/2, and lives on in ``kubectl``.
A control frame is ``1|version:15|type:16|flags:8|length:24``, a data frame ``0|stream:31|flags:8|length:24``; header
blocks are zlib streams with a dictionary of their own, one for each direction of a connection.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum

__all__ = [
    "CANCEL",
    "DICTIONARY",
    "FIN",
    "INVALID_STREAM",
    "PROTOCOL_ERROR",
    "Data",
    "Frame",
    "Framer",
    "GoAway",
    "Headers",
    "Ping",
    "ProtocolError",
    "RstStream",
    "Settings",
    "SynReply",
    "SynStream",
    "WindowUpdate",
]

VERSION = 3
FIN = 0x01
UNIDIRECTIONAL = 0x02
PROTOCOL_ERROR, INVALID_STREAM, CANCEL = 1, 2, 5
MAX_FRAME = 2**24 - 1
_MAX_HEADERS = 1 << 20

_NAMES = (
    "options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges age allow "
    "authorization cache-control connection content-base content-encoding content-language content-length "
    "content-location content-md5 content-range content-type date etag expect expires from host if-match "
    "if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma "
    "proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade "
    "user-agent vary via warning www-authenticate method get status"
)
_MORE = ("200 OK", "version", "HTTP/1.1", "url", "public", "set-cookie", "keep-alive", "origin")
_TEXT = (
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505"
    "203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized"
    "403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable"
    "Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT"
    "chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,"
    "text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0."
)
DICTIONARY = (
    b"".join(struct.pack(">I", len(each)) + each.encode() for each in (*_NAMES.split(), *_MORE)) + _TEXT.encode()
)
"""What both sides' header compression starts from (section 2.6.10.1)."""


class ProtocolError(Exception):
    """The other side does not speak SPDY/3; nothing more can be understood of it."""


@dataclass(frozen=True, slots=True)
class SynStream:
    """A new stream. Header names are lower-case."""

    stream: int
    headers: Mapping[str, str]
    fin: bool = False
    associated: int = 0
    priority: int = 0
    unidirectional: bool = False


@dataclass(frozen=True, slots=True)
class SynReply:
    """The other side takes the stream."""

    stream: int
    headers: Mapping[str, str] = field(default_factory=dict)
    fin: bool = False


@dataclass(frozen=True, slots=True)
class Headers:
    """More headers of a stream."""

    stream: int
    headers: Mapping[str, str]
    fin: bool = False


@dataclass(frozen=True, slots=True)
class RstStream:
    """The stream ends at once, in both directions."""

    stream: int
    status: int = CANCEL


@dataclass(frozen=True, slots=True)
class Settings:
    """Values by number."""

    values: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ping:
    """To be sent back as it is, when its number is of the other side's parity."""

    number: int


@dataclass(frozen=True, slots=True)
class GoAway:
    """No more streams will be taken after this one."""

    last_stream: int = 0
    status: int = 0


@dataclass(frozen=True, slots=True)
class WindowUpdate:
    """So many more bytes may be sent: on the stream, or on the whole session (stream 0)."""

    stream: int
    delta: int


@dataclass(frozen=True, slots=True)
class Data:
    """Bytes of a stream; with *fin* its last from that side."""

    stream: int
    data: bytes
    fin: bool = False


Frame = SynStream | SynReply | Headers | RstStream | Settings | Ping | GoAway | WindowUpdate | Data


class _Type(IntEnum):
    SYN_STREAM = 1
    SYN_REPLY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PING = 6
    GOAWAY = 7
    HEADERS = 8
    WINDOW_UPDATE = 9


class Framer:
    """One side of one connection: what it sends and what it receives have a compression state each."""

    def __init__(self) -> None:
        self._deflate = zlib.compressobj(zlib.Z_BEST_COMPRESSION, zdict=DICTIONARY)
        self._inflate = zlib.decompressobj(zdict=DICTIONARY)
        self._buffer = bytearray()

    # -- out -----------------------------------------------------------------------------------------------------

    def encode(self, frame: Frame) -> bytes:
        """*frame* as bytes, which must be sent in the order of these calls."""
        match frame:
            case Data(stream, data, fin):
                return struct.pack(">II", stream, (FIN * fin) << 24 | len(data)) + data
            case SynStream():
                flags = FIN * frame.fin | UNIDIRECTIONAL * frame.unidirectional
                head = struct.pack(">IIBB", frame.stream, frame.associated, frame.priority << 5, 0)
                return _control(_Type.SYN_STREAM, flags, head + self._block(frame.headers))
            case SynReply(stream, headers, fin):
                return _control(_Type.SYN_REPLY, FIN * fin, struct.pack(">I", stream) + self._block(headers))
            case Headers(stream, headers, fin):
                return _control(_Type.HEADERS, FIN * fin, struct.pack(">I", stream) + self._block(headers))
            case RstStream(stream, status):
                return _control(_Type.RST_STREAM, 0, struct.pack(">II", stream, status))
            case Settings(values):
                entries = b"".join(struct.pack(">II", number, value) for number, value in values.items())
                return _control(_Type.SETTINGS, 0, struct.pack(">I", len(values)) + entries)
            case Ping(number):
                return _control(_Type.PING, 0, struct.pack(">I", number))
            case GoAway(last, status):
                return _control(_Type.GOAWAY, 0, struct.pack(">II", last, status))
            case WindowUpdate(stream, delta):
                return _control(_Type.WINDOW_UPDATE, 0, struct.pack(">II", stream, delta))
        raise AssertionError(frame)

    def _block(self, headers: Mapping[str, str]) -> bytes:
        texts = (text.encode() for pair in headers.items() for text in (pair[0].lower(), pair[1]))
        plain = struct.pack(">I", len(headers)) + b"".join(struct.pack(">I", len(each)) + each for each in texts)
        return self._deflate.compress(plain) + self._deflate.flush(zlib.Z_SYNC_FLUSH)

    # -- in ------------------------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that *data* completes. Raises :class:`ProtocolError`."""
        self._buffer += data
        while len(self._buffer) >= 8:
            first, second = struct.unpack_from(">II", self._buffer)
            end = 8 + (second & 0xFFFFFF)
            if len(self._buffer) < end:
                return
            payload = bytes(self._buffer[8:end])
            del self._buffer[:end]
            flags = second >> 24
            if not first >> 31:
                yield Data(first, payload, bool(flags & FIN))
                continue
            if first >> 16 & 0x7FFF != VERSION:
                raise ProtocolError(f"SPDY version {first >> 16 & 0x7FFF}; only {VERSION} is spoken here")
            try:
                frame = self._parse(first & 0xFFFF, flags, payload)
            except (struct.error, zlib.error, UnicodeDecodeError) as error:
                raise ProtocolError(f"a broken control frame of type {first & 0xFFFF}: {error}") from error
            if frame is not None:
                yield frame

    def _parse(self, kind: int, flags: int, payload: bytes) -> Frame | None:
        """``None`` for a type that nobody knows, which is to be ignored."""
        fin = bool(flags & FIN)
        number, second = (*struct.unpack_from(">I", payload), 0)
        if kind in (_Type.RST_STREAM, _Type.GOAWAY, _Type.WINDOW_UPDATE, _Type.SYN_STREAM):
            (second,) = struct.unpack_from(">I", payload, 4)
        match kind:
            case _Type.SYN_STREAM:
                headers = self._headers(payload[10:])
                return SynStream(number, headers, fin, second, payload[8] >> 5, bool(flags & UNIDIRECTIONAL))
            case _Type.SYN_REPLY:
                return SynReply(number, self._headers(payload[4:]), fin)
            case _Type.RST_STREAM:
                return RstStream(number, second)
            case _Type.SETTINGS:
                entries = struct.iter_unpack(">II", payload[4 : 4 + 8 * number])
                return Settings({key & 0xFFFFFF: value for key, value in entries})
            case _Type.PING:
                return Ping(number)
            case _Type.GOAWAY:
                return GoAway(number, second)
            case _Type.HEADERS:
                return Headers(number, self._headers(payload[4:]), fin)
            case _Type.WINDOW_UPDATE:
                return WindowUpdate(number, second & 0x7FFFFFFF)
        return None

    def _headers(self, block: bytes) -> dict[str, str]:
        plain = self._inflate.decompress(block, _MAX_HEADERS)
        if self._inflate.unconsumed_tail:
            raise ProtocolError(f"a header block of more than {_MAX_HEADERS} bytes")
        (count,) = struct.unpack_from(">I", plain)
        texts, at = [], 4
        for _ in range(2 * count):
            (size,) = struct.unpack_from(">I", plain, at)
            if at + 4 + size > len(plain):
                raise ProtocolError("a header block that ends in the middle of a header")
            texts.append(plain[at + 4 : at + 4 + size].decode())
            at += 4 + size
        return dict(zip(texts[::2], texts[1::2], strict=True))


def _control(kind: int, flags: int, payload: bytes) -> bytes:
    return struct.pack(">HHI", 0x8000 | VERSION, kind, flags << 24 | len(payload)) + payload
