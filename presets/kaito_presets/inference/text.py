"""From a stream of tokens to a stream of text that is never taken back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

__all__ = ["Detokenizer", "StopMatcher"]

_BROKEN = "\N{REPLACEMENT CHARACTER}"


class Detokenizer:
    """Decodes tokens one by one.

    A token is not a string: it may be half a character, and whether it begins with a space can depend on its
    neighbour. So each piece is the difference between two decodings that share their beginning, and is held back while
    it ends in the middle of a character. The pieces add up to the decoding of the whole, and the cost of each is
    bounded.
    """

    __slots__ = ("_decode", "_ids", "_shown", "_start")

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._start = 0  # the window begins here, with tokens that are shown already
        self._shown = 0  # the tokens before this one are shown

    def push(self, token: int) -> str:
        """The text that *token* adds, possibly none."""
        self._ids.append(token)
        before, now = self._window()
        if len(now) <= len(before) or now.endswith(_BROKEN):
            return ""
        self._start, self._shown = self._shown, len(self._ids)
        return now[len(before) :]

    def flush(self) -> str:
        """What was held back: an unfinished character comes out as U+FFFD."""
        before, now = self._window()
        self._start = self._shown = len(self._ids)
        return now[len(before) :]

    def _window(self) -> tuple[str, str]:
        return self._decode(self._ids[self._start : self._shown]), self._decode(self._ids[self._start :])


class StopMatcher:
    """Cuts a stream of text before the first stop string, holding back whatever may still become one."""

    __slots__ = ("_held", "_stops", "stopped")

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """The part of the text so far that is certain. After a stop string (``stopped``) there is none any more."""
        if self.stopped:
            return ""
        self._held += text
        hits = [at for at in (self._held.find(stop) for stop in self._stops) if at >= 0]
        if hits:
            self.stopped = True
            certain, self._held = self._held[: min(hits)], ""
            return certain
        keep = max((self._overlap(stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        certain, self._held = self._held[:cut], self._held[cut:]
        return certain

    def flush(self) -> str:
        """What was held back, once no more text comes."""
        rest, self._held = self._held, ""
        return rest

    def _overlap(self, stop: str) -> int:
        """How many characters at the end of the held text begin *stop*."""
        for length in range(min(len(stop) - 1, len(self._held)), 0, -1):
            if self._held.endswith(stop[:length]):
                return length
        return 0
