"""Asking a served model, as ``curl -X POST http://.../chat`` would."""

from __future__ import annotations

from dataclasses import dataclass

import aiohttp

__all__ = ["Answer", "ChatError", "ask"]


class ChatError(Exception):
    """The server could not be reached, or refused."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back; ``random`` says that the model's weights are random numbers, and the text with them."""

    text: str
    random: bool


async def ask(url: str, prompt: str, *, timeout: float = 60.0) -> Answer:
    """POST *prompt* to *url* (``http://HOST:PORT/chat``). Raises :class:`ChatError`."""
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=timeout)) as session,
            session.post(url, json={"prompt": prompt}, headers={"accept": "application/json"}) as response,
        ):
            if response.status != 200:
                raise ChatError(f"{url} answered {response.status}: {(await response.text())[:300]}")
            body = await response.json()
            return Answer(str(body["Result"]), response.headers.get("X-Kaito-Weights") == "random")
    except (aiohttp.ClientError, TimeoutError, KeyError, ValueError) as error:
        raise ChatError(f"{url}: {type(error).__name__} {error}") from error
