"""SPDY/3.1 frames: what goes out comes in, however it is cut, and nonsense is refused."""

from __future__ import annotations

import struct
import zlib

import pytest

from kaito_ctrl.devcluster.streaming import spdy
from kaito_ctrl.devcluster.streaming.spdy import (
    Data,
    Frame,
    Framer,
    GoAway,
    Headers,
    Ping,
    ProtocolError,
    RstStream,
    Settings,
    SynReply,
    SynStream,
    WindowUpdate,
)

FRAMES: list[Frame] = [
    SynStream(1, {"streamtype": "error", "port": "80"}),
    SynStream(3, {"streamtype": "data"}, fin=True, associated=1, priority=7, unidirectional=True),
    SynReply(1),
    SynReply(3, {"status": "200 OK"}, fin=True),
    Headers(1, {"more": "", "übung": "ü"}),
    Data(1, b"bytes"),
    Data(1, b"", fin=True),
    Settings({4: 100, 7: 65536}),
    Ping(2),
    WindowUpdate(0, 1),
    RstStream(3, spdy.PROTOCOL_ERROR),
    GoAway(3, 1),
]


def test_the_dictionary_is_the_one_of_the_specification() -> None:
    # Every zlib stream names its dictionary by this number; it is SPDY/3's.
    assert zlib.adler32(spdy.DICTIONARY) == 0xE3C6A7C2


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_frames_arrive_as_they_were_sent_however_they_are_cut(size: int) -> None:
    sender, receiver = Framer(), Framer()
    wire = b"".join(map(sender.encode, FRAMES))
    cuts = [wire[at : at + size] for at in range(0, len(wire), size)]
    assert [frame for cut in cuts for frame in receiver.feed(cut)] == FRAMES


def test_header_names_travel_in_lower_case() -> None:
    [frame] = Framer().feed(Framer().encode(SynStream(1, {"StreamType": "Data"})))
    assert frame == SynStream(1, {"streamtype": "Data"})


def test_a_frame_of_an_unknown_type_is_passed_over() -> None:
    unknown = struct.pack(">HHI", 0x8003, 11, 4) + b"cred"
    assert list(Framer().feed(unknown + Framer().encode(Ping(1)))) == [Ping(1)]


def control(kind: int, payload: bytes) -> bytes:
    return struct.pack(">HHI", 0x8003, kind, len(payload)) + payload


def block(plain: bytes) -> bytes:
    deflate = zlib.compressobj(zdict=spdy.DICTIONARY)
    return deflate.compress(plain) + deflate.flush(zlib.Z_SYNC_FLUSH)


@pytest.mark.parametrize(
    ("wire", "why"),
    [
        (struct.pack(">HHI", 0x8002, 6, 4) + b"\0\0\0\1", "SPDY version 2"),
        (control(6, b""), "broken control frame of type 6"),
        (control(3, b"\0\0\0\1"), "broken control frame of type 3"),
        (control(2, b"\0\0\0\1" + b"not zlib"), "broken control frame of type 2"),
        (control(2, b"\0\0\0\1" + block(struct.pack(">II", 1, 99) + b"short")), "in the middle of a header"),
        (control(2, b"\0\0\0\1" + block(struct.pack(">I", 2**31))), "broken control frame of type 2"),
        (control(2, b"\0\0\0\1" + block(bytes(2**22))), "a header block of more than"),
    ],
)
def test_nonsense_is_refused(wire: bytes, why: str) -> None:
    with pytest.raises(ProtocolError, match=why):
        list(Framer().feed(wire))
