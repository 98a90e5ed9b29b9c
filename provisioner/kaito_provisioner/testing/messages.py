"""A request and its answer, whichever way they came."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kaito_provisioner.testing.errors import ArmError, turned_away

__all__ = ["IDEMPOTENT", "Answer", "Request"]

IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"})
"""The methods of requests that aiohttp sends again when the connection is lost before there is an answer."""


@dataclass(frozen=True, slots=True)
class Request:
    """``base`` is the scheme and host by which the client has reached us; names of headers are in lower case."""

    method: str
    base: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes = b""

    def json(self) -> Any:
        """Raises ``InvalidRequestContent`` when it is none."""
        try:
            return json.loads(self.body)
        except ValueError as error:
            raise turned_away(
                400,
                "InvalidRequestContent",
                f"The request content was invalid and could not be deserialized: '{error}'.",
            ) from None


@dataclass(slots=True)
class Answer:
    """``body`` is JSON, or nothing."""

    status: int
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def of(error: ArmError) -> Answer:
        """The answer that the error is."""
        return Answer(error.status, error.body(), dict(error.headers))

    @property
    def content(self) -> bytes:
        return b"" if self.body is None else json.dumps(self.body).encode()
