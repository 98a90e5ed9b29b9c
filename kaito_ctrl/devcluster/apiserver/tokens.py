"""Bearer tokens: fixed ones of users, and those that service accounts are issued for a while.

An issued token is a JWT, bound to its account and perhaps to a pod or a secret: it is good until it expires by the
injected clock, is revoked, or what it is bound to is gone. It is signed with a key of this process, so it opens no
other server and outlives no restart.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from kaito_ctrl.devcluster.apiserver.identity import AUTHENTICATED, User, account_groups
from kaito_ctrl.devcluster.apiserver.store import Obj, Store
from kaito_ctrl.runtime.clock import Clock, UidSource

__all__ = ["ISSUER", "TokenError", "Tokens"]

ISSUER = "https://kubernetes.default.svc"
"""Who issues the tokens, and the audience of those that are meant for the API server itself."""
_BOUND = {"pod": "pods", "secret": "secrets", "node": "nodes"}


class TokenError(Exception):
    """The token is nobody's, or no longer anybody's."""


def _part(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _bytes(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


_HEAD = _part(msgspec.json.encode({"alg": "HS256", "typ": "JWT"}))


class Tokens:
    """Knows whose a token is."""

    def __init__(self, store: Store, clock: Clock, uids: UidSource) -> None:
        self._store = store
        self._clock = clock
        self._uids = uids
        self._key = secrets.token_bytes(32)
        self._fixed: dict[bytes, User] = {}
        self._revoked: set[bytes] = set()

    def add(self, token: str, user: User) -> None:
        """From now on *token* is *user*'s, until it is revoked."""
        self._fixed[token.encode()] = user
        self._revoked.discard(token.encode())

    def revoke(self, token: str) -> None:
        """From now on *token*, fixed or issued, is nobody's."""
        self._fixed.pop(token.encode(), None)
        self._revoked.add(token.encode())

    def issue(self, account: Obj, audiences: Sequence[str], seconds: int, bound: Mapping[str, Obj]) -> str:
        """A token of that service account for *seconds*; *bound* names what it dies with: ``{"pod": {name, uid}}``."""
        metadata = account["metadata"]
        issued = int(self._clock.now().timestamp())
        whose = {"name": metadata["name"], "uid": metadata["uid"]}
        claims = {
            "aud": list(audiences),
            "exp": issued + seconds,
            "iat": issued,
            "iss": ISSUER,
            "jti": self._uids(),
            "kubernetes.io": {"namespace": metadata["namespace"], **bound, "serviceaccount": whose},
            "nbf": issued,
            "sub": f"system:serviceaccount:{metadata['namespace']}:{metadata['name']}",
        }
        text = f"{_HEAD}.{_part(msgspec.json.encode(claims))}"
        return f"{text}.{self._signature(text)}"

    def owner(self, token: str, audiences: Sequence[str] = (ISSUER,)) -> tuple[User, list[str]]:
        """Whose *token* is, and for which of *audiences* it is meant. Raises :class:`TokenError`."""
        given = token.encode()
        if given in self._revoked:
            raise TokenError("invalid bearer token")
        for fixed, user in self._fixed.items():
            if hmac.compare_digest(fixed, given):
                return user, list(audiences)
        return self._account(token, audiences)

    def _signature(self, text: str) -> str:
        return _part(hmac.new(self._key, text.encode(), hashlib.sha256).digest())

    def _account(self, token: str, audiences: Sequence[str]) -> tuple[User, list[str]]:
        text, _, signature = token.rpartition(".")
        if not hmac.compare_digest(self._signature(text).encode(), signature.encode()):
            raise TokenError("invalid bearer token")
        try:
            claims: dict[str, Any] = msgspec.json.decode(_bytes(text.partition(".")[2]))
        except (binascii.Error, msgspec.DecodeError) as error:
            raise TokenError("invalid bearer token") from error
        if self._clock.now().timestamp() >= claims["exp"]:
            raise TokenError("[invalid bearer token, service account token has expired]")
        meant = [audience for audience in audiences if audience in claims["aud"]]
        if not meant:
            why = f"token audiences {claims['aud']} is invalid for the target audiences {list(audiences)}"
            raise TokenError(f"[invalid bearer token, {why}]")
        about = claims["kubernetes.io"]
        namespace, account = about["namespace"], about["serviceaccount"]
        self._require("serviceaccounts", namespace, account)
        extra = {"authentication.kubernetes.io/credential-id": (f"JTI={claims['jti']}",)}
        for kind, plural in _BOUND.items():
            if kind in about:
                self._require(plural, "" if kind == "node" else namespace, about[kind])
                extra[f"authentication.kubernetes.io/{kind}-name"] = (about[kind]["name"],)
                extra[f"authentication.kubernetes.io/{kind}-uid"] = (about[kind]["uid"],)
        return User(claims["sub"], (*account_groups(namespace), AUTHENTICATED), account["uid"], extra), meant

    def _require(self, plural: str, namespace: str, wanted: Mapping[str, str]) -> None:
        found = self._store.bucket("", plural).items.get((namespace, wanted["name"]))
        if found is None or found.uid != wanted["uid"]:
            raise TokenError("[invalid bearer token, service account token has been invalidated]")
