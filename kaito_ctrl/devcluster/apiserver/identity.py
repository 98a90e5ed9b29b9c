"""Who sends a request: a user name, groups, and what else its authenticator knows.

Names and groups are those of https://kubernetes.io/docs/reference/access-authn-authz/authentication/.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["ANONYMOUS", "AUTHENTICATED", "MASTERS", "UNAUTHENTICATED", "User", "account_groups", "account_name"]

MASTERS = "system:masters"
"""Whoever is in it may do everything, whatever the roles say."""
AUTHENTICATED = "system:authenticated"
UNAUTHENTICATED = "system:unauthenticated"
ACCOUNTS = "system:serviceaccounts"
_ACCOUNT = "system:serviceaccount:"


@dataclass(frozen=True, slots=True)
class User:
    """An identity. ``groups`` holds the system's own groups too."""

    name: str
    groups: tuple[str, ...] = ()
    uid: str = ""
    extra: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def authenticated(cls, name: str, *groups: str, uid: str = "") -> User:
        """A user of those groups and of ``system:authenticated``."""
        return cls(name, (*groups, AUTHENTICATED), uid)

    @classmethod
    def administrator(cls, name: str) -> User:
        """A user who may do everything."""
        return cls.authenticated(name, MASTERS)

    @property
    def is_superuser(self) -> bool:
        return MASTERS in self.groups

    def info(self) -> dict[str, Any]:
        """The ``authentication.k8s.io`` ``UserInfo``."""
        found: dict[str, Any] = {"username": self.name}
        if self.uid:
            found["uid"] = self.uid
        if self.groups:
            found["groups"] = list(self.groups)
        if self.extra:
            found["extra"] = {key: list(values) for key, values in self.extra.items()}
        return found


ANONYMOUS = User("system:anonymous", (UNAUTHENTICATED,))


def account_groups(namespace: str) -> tuple[str, ...]:
    """The groups of every service account of *namespace*."""
    return ACCOUNTS, f"{ACCOUNTS}:{namespace}"


def account_name(user: str) -> tuple[str, str] | None:
    """Namespace and name of the service account whose user name *user* is, or ``None``."""
    namespace, colon, name = user.removeprefix(_ACCOUNT).partition(":")
    return (namespace, name) if user.startswith(_ACCOUNT) and colon and namespace and name else None
