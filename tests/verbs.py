"""The verbs of an API client for tests, on top of one call."""

from __future__ import annotations

from typing import Any


class Verbs:
    """Mix-in for a class whose ``__call__(method, path, body, **options)`` sends one request."""

    async def __call__(self, method: str, path: str, body: Any = None, **options: Any) -> Any:
        raise NotImplementedError

    async def get(self, path: str, **options: Any) -> Any:
        return await self("GET", path, **options)

    async def post(self, path: str, body: Any, **options: Any) -> Any:
        return await self("POST", path, body, **options)

    async def put(self, path: str, body: Any, **options: Any) -> Any:
        return await self("PUT", path, body, **options)

    async def delete(self, path: str, body: Any = None, **options: Any) -> Any:
        return await self("DELETE", path, body, **options)

    async def merge(self, path: str, body: Any, **options: Any) -> Any:
        return await self("PATCH", path, body, media="application/merge-patch+json", **options)

    async def json_patch(self, path: str, body: Any, **options: Any) -> Any:
        return await self("PATCH", path, body, media="application/json-patch+json", **options)

    async def strategic(self, path: str, body: Any, **options: Any) -> Any:
        return await self("PATCH", path, body, media="application/strategic-merge-patch+json", **options)

    async def apply(self, path: str, body: Any, manager: str = "me", **options: Any) -> Any:
        return await self("PATCH", path, body, media="application/apply-patch+yaml", fieldManager=manager, **options)
