"""Azure's errors, read: codes and texts, wherever they stand.

The same refusal comes in many shapes: wrapped in ``error`` or not, at once or at the end of a long-running operation
(then with HTTP status 200), with the word that matters in ``code``, in ``subcode``, in a nested detail, or only in the
text, quoted from another service.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from azure.core.exceptions import HttpResponseError

__all__ = ["Answer"]

_LONGEST = 400
"""Characters of Azure's own words in a message: a condition is read on a terminal."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An error as Azure put it. ``codes`` are those of all levels, the outermost first; ``text`` is all texts."""

    status: int
    codes: tuple[str, ...]
    message: str
    text: str
    retry_after: float | None = None

    @classmethod
    def of_body(cls, status: int, body: object, headers: Mapping[str, str] | None = None) -> Answer:
        """From a JSON body, wrapped or not, or an operation's, or a pool's ``provisioningError``."""
        errors = tuple(_errors(body))
        texts = [str(each["message"]) for each in errors if each.get("message")]
        codes = [str(each[key]) for each in errors for key in ("code", "subcode") if each.get(key)]
        codes += [code for text in texts for code in _QUOTED.findall(text)]
        # The innermost is the one that knows: the outer ones say where it happened, or "see details".
        message = texts[-1] if texts else ""
        quoted = _QUOTED_TEXT.findall(message)
        return cls(
            status=status,
            codes=tuple(dict.fromkeys(codes)),
            message=quoted[-1] if quoted else message,
            text="\n".join(texts).lower(),
            retry_after=_retry_after(headers or {}),
        )

    @classmethod
    def of(cls, error: HttpResponseError) -> Answer:
        """From what the SDK raised."""
        response = error.response
        status = error.status_code or 0
        if response is None:
            return cls(status, (), str(error), str(error).lower())
        try:
            text = response.text()
        except Exception:  # noqa: BLE001 - a body that was never read, or is no text: the status must do
            text = ""
        try:
            body = json.loads(text)
        except ValueError:
            body = {"message": text} if text and not text.lstrip().startswith("<") else None
        return cls.of_body(status, body, getattr(response, "headers", {}))

    def has(self, *codes: str) -> bool:
        """Whether any level has one of *codes*, which are in lower case."""
        return any(code.lower() in codes for code in self.codes)

    def says(self, *phrases: str) -> bool:
        """Whether any text has one of *phrases*, which are in lower case."""
        return any(phrase in self.text for phrase in phrases)

    def spoken(self) -> str:
        """For a message: the codes that say something, and Azure's words, cut to a readable length."""
        words = " ".join(self.message.split())
        if len(words) > _LONGEST:
            words = words[: _LONGEST - 3].rstrip() + "..."
        code = next((code for code in reversed(self.codes) if code.lower() not in _EMPTY), "")
        code = code or (self.codes[0] if self.codes else f"HTTP {self.status}")
        return f"{code}: {words}" if words and not words.startswith(code) else words or code


_QUOTED = re.compile(r"""\b(?:error ?code|subcode|code)['"]?\s*[:=]\s*\\?['"]?([A-Z][A-Za-z_]{3,})""", re.IGNORECASE)
"""Codes of other services, as AKS quotes them: ``Code="AllocationFailed"``, ``ErrorCode: X``, ``"code":"Y"``."""
_QUOTED_TEXT = re.compile(r"""Message=\\?"(.+?)\\?"\s*(?:;|}|$)""")
"""And the texts that go with them."""
_EMPTY = frozenset({"badrequest", "conflict", "forbidden", "clienterror", "internalerror", "error", "unknown"})
"""Codes that say no more than the status does."""


def _errors(body: object) -> Iterator[Mapping[str, Any]]:
    """Every error object in *body*, the outermost first."""
    if isinstance(body, list):
        for each in body:
            yield from _errors(each)
    if not isinstance(body, dict):
        return
    if any(isinstance(body.get(key), str) for key in ("code", "subcode", "message")):
        yield body
    for key in ("error", "innererror", "innerError", "errorDetail", "details"):
        yield from _errors(body.get(key))


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds. A date is read by the server's own clock."""
    named = {key.lower(): value for key, value in headers.items()}
    for key, scale in (("retry-after-ms", 1000.0), ("x-ms-retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = named.get(key, "").strip()
        if not value:
            continue
        try:
            return max(0.0, float(value) / scale)
        except ValueError:
            pass
        try:
            then = parsedate_to_datetime(value)
            return max(0.0, (then - parsedate_to_datetime(named["date"])).total_seconds())
        except (ValueError, TypeError, KeyError):
            continue
    return None
