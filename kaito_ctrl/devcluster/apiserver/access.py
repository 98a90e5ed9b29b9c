"""The way in: who a request is from, on whose behalf, and whether they may.

Credentials are a bearer token; impersonation is that of ``kubectl --as``, and asks for the right to impersonate each
thing that is claimed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from urllib.parse import unquote

from kaito_ctrl.devcluster.apiserver.errors import StatusError, internal, unauthorized
from kaito_ctrl.devcluster.apiserver.identity import (
    ANONYMOUS,
    AUTHENTICATED,
    UNAUTHENTICATED,
    User,
    account_groups,
    account_name,
)
from kaito_ctrl.devcluster.apiserver.rbac import Authorizer, forbid
from kaito_ctrl.devcluster.apiserver.rbac_rules import Attributes
from kaito_ctrl.devcluster.apiserver.requests import Query, Target
from kaito_ctrl.devcluster.apiserver.selectors import parse_fields
from kaito_ctrl.devcluster.apiserver.tokens import TokenError, Tokens

__all__ = ["Access", "attributes_of"]

_OPEN_PATHS = frozenset({"/healthz", "/livez", "/readyz", "/version"})
_VERBS = {"GET": "get", "HEAD": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_AS = "impersonate-"


class Access:
    """Authenticates by *tokens* and asks *authorizer*. With *anonymous*, a request without credentials is somebody."""

    def __init__(self, tokens: Tokens, authorizer: Authorizer, *, anonymous: bool) -> None:
        self.tokens = tokens
        self.authorizer = authorizer
        self._anonymous = anonymous

    def identify(self, path: str, headers: Mapping[str, str], user: User | None = None) -> User:
        """Who sends this: the owner of its bearer token, else *user*, and whom they act as.

        *headers* are lower-case. Raises a 401 for a token that is nobody's, a 403 for whom one may not act as.
        """
        caller = self._sender(path, headers, user)
        return self._acting(caller, headers) if any(key.startswith(_AS) for key in headers) else caller

    def check(self, user: User, asked: Attributes) -> None:
        """Raises a 403 unless *user* may."""
        decision = self.authorizer.decide(user, asked)
        if not decision.allowed:
            raise forbid(user, asked, decision.reason)

    def _sender(self, path: str, headers: Mapping[str, str], user: User | None) -> User:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and token.strip():
            try:
                return self.tokens.owner(token.strip())[0]
            except TokenError as error:
                raise unauthorized() from error
        if user is not None:
            return user
        if not self._anonymous and path not in _OPEN_PATHS:
            raise unauthorized()
        return ANONYMOUS

    def _acting(self, caller: User, headers: Mapping[str, str]) -> User:
        name = headers.get("impersonate-user", "")
        # A header that is sent several times arrives as one, with commas.
        groups = [group for part in headers.get("impersonate-group", "").split(",") if (group := part.strip())]
        extra = {
            unquote(key.removeprefix("impersonate-extra-")).lower(): tuple(value.split(","))
            for key, value in headers.items()
            if key.startswith("impersonate-extra-")
        }
        uid = headers.get("impersonate-uid", "")
        if not name:
            raise internal("requested groups, uid or extra fields without impersonating a user")
        for asked in _claims(name, groups, uid, extra):
            self.check(caller, asked)
        account = account_name(name)
        if account is not None and not groups:
            groups = list(account_groups(account[0]))
        if name == ANONYMOUS.name:
            if UNAUTHENTICATED not in groups:
                groups.append(UNAUTHENTICATED)
        elif not {AUTHENTICATED, UNAUTHENTICATED} & set(groups):
            groups.append(AUTHENTICATED)
        return User(name, tuple(groups), uid, extra)


def _claims(name: str, groups: list[str], uid: str, extra: Mapping[str, tuple[str, ...]]) -> Iterator[Attributes]:
    """What must be allowed for somebody to act as them."""
    account = account_name(name)
    if account is not None:
        yield Attributes("impersonate", "", "v1", "serviceaccounts", namespace=account[0], name=account[1])
    else:
        yield Attributes("impersonate", "", "v1", "users", name=name)
    for group in groups:
        yield Attributes("impersonate", "", "v1", "groups", name=group)
    authentication = "authentication.k8s.io"
    if uid:
        yield Attributes("impersonate", authentication, "v1", "uids", name=uid)
    for key, values in extra.items():
        for value in values:
            yield Attributes("impersonate", authentication, "v1", "userextras", key, name=value)


def attributes_of(method: str, path: str, query: Query, target: Target | None) -> Attributes:
    """What a request asks for, in the authorizer's terms; *target* is its parsed path."""
    if target is None:
        return Attributes(method.lower(), path=path)
    verb, name = _VERBS.get(method, method.lower()), target.name
    if target.watch:
        verb = "watch"
    elif not name and verb == "get":
        verb = "watch" if query.flag("watch") else "list"
    elif not name and verb == "delete":
        verb = "deletecollection"
    if not name and verb in {"list", "watch", "deletecollection"} and "metadata.name" in query.get("fieldSelector"):
        with suppress(StatusError):  # whoever may list is told what is wrong with it
            name = parse_fields(query.get("fieldSelector")).name
    # A namespace lies in itself: whoever may read it by a role binding of its own, may.
    namespace = name if target.plural == "namespaces" and not target.group else target.namespace
    return Attributes(
        verb, target.group, target.version, target.plural, target.subresource, namespace or target.namespace, name
    )
