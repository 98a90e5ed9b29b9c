from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from kaito_presets.inference.text import Detokenizer, StopMatcher


def decode(ids: Sequence[int]) -> str:
    """A byte-level vocabulary: every token is one byte, so that most characters need several."""
    return bytes(ids).decode(errors="replace")


@given(st.text())
def test_pieces_add_up_and_no_character_is_torn(text: str) -> None:
    detokenizer = Detokenizer(decode)
    pieces = [detokenizer.push(byte) for byte in text.encode()]
    assert "".join(pieces) + detokenizer.flush() == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


@given(st.binary())
def test_broken_bytes_come_out_as_the_decoder_shows_them(raw: bytes) -> None:
    detokenizer = Detokenizer(decode)
    got = "".join([detokenizer.push(byte) for byte in raw]) + detokenizer.flush()
    assert got.replace("\ufffd", "") == decode(raw).replace("\ufffd", "")


few = st.text(alphabet="ab", max_size=30)
stops = st.lists(st.text(alphabet="ab", min_size=1, max_size=4), max_size=3)


@given(few, stops, st.data())
def test_the_text_is_cut_before_the_first_stop_string_however_it_arrives(
    text: str, stop: list[str], data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    matcher = StopMatcher(stop)
    got = "".join(matcher.push(piece) for piece in pieces) + matcher.flush()
    hits = [text.index(s) for s in stop if s in text]
    if not hits:
        assert got == text
        assert not matcher.stopped
        return
    # What is emitted never contains a stop string, and the first to be complete ends the text.
    assert matcher.stopped
    assert not any(s in got for s in stop)
    assert text.startswith(got)


def test_what_may_become_a_stop_string_is_held_back_until_it_cannot() -> None:
    matcher = StopMatcher(["END"])
    assert [matcher.push(c) for c in "aENbEND!"] == ["a", "", "", "ENb", "", "", "", ""]
    assert matcher.stopped
    assert matcher.flush() == ""
