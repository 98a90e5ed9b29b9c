"""Identities and their tokens: what Microsoft Entra and a managed identity's endpoint hand out, and what ARM checks.

Two ways lead to a token. A *workload identity* shows a token of its cluster's issuer, which has to name the right
issuer, subject and audience, and to be signed by it. A *managed identity* asks an endpoint on its own machine, in the
flavour of App Service, with a header that only it can know.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import parse_qs

import jwt
from cryptography.hazmat.primitives.asymmetric import ec

from kaito_ctrl.runtime.clock import Clock, uid_source
from kaito_provisioner.testing.errors import ArmError, turned_away
from kaito_provisioner.testing.messages import Answer, Request

__all__ = ["IDENTITY_PATH", "Identity", "Issuer"]

IDENTITY_PATH = "/msi/token"
_AUDIENCE = "https://management.azure.com"
_EXCHANGE = "api://AzureADTokenExchange"
_ASSERTION = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"


@dataclass(frozen=True, slots=True)
class Identity:
    """A user-assigned identity, and the federated credential that lets a cluster's service account be it."""

    tenant: str = "11111111-1111-1111-1111-111111111111"
    client_id: str = "22222222-2222-2222-2222-222222222222"
    object_id: str = "33333333-3333-3333-3333-333333333333"
    issuer: str = "https://oidc.local/kaito"
    subject: str = "system:serviceaccount:kaito-system:kaito-provisioner"


@dataclass(slots=True)
class _Token:
    audience: str
    expires: datetime | None


@dataclass(slots=True)
class Issuer:
    """Hands out tokens, and tells whether one is good."""

    identity: Identity
    clock: Clock
    rng: random.Random
    lifetime: timedelta = timedelta(hours=24)
    denied: set[str] = field(default_factory=set)
    """Actions that the identity has no right to: ``read``, ``write``, ``delete``, ``abort``."""
    _tokens: dict[str, _Token] = field(default_factory=dict)
    _key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    _uid: Callable[[], str] = field(init=False)
    identity_header: str = field(init=False)

    def __post_init__(self) -> None:
        self._uid = uid_source(self.rng)
        self.identity_header = self._uid()

    def issue(self, audience: str = _AUDIENCE, *, forever: bool = False) -> tuple[str, datetime]:
        """A token, and when it ends."""
        token, ends = f"arm.{self._uid()}", self.clock.now() + self.lifetime
        self._tokens[token] = _Token(audience.rstrip("/"), None if forever else ends)
        return token, ends

    def revoke(self) -> None:
        """No token that is out is good any more."""
        self._tokens.clear()

    def assertion(
        self, *, subject: str = "", issuer: str = "", audience: str = _EXCHANGE, expires: datetime | None = None
    ) -> str:
        """A service account's token, as the cluster's issuer signs it and the kubelet projects it into a pod."""
        now = self.clock.now()
        claims = {
            "iss": issuer or self.identity.issuer,
            "sub": subject or self.identity.subject,
            "aud": [audience],
            "iat": int(now.timestamp()),
            "exp": int((expires or now + timedelta(days=365)).timestamp()),
        }
        return jwt.encode(claims, self._key, algorithm="ES256")

    def check(self, request: Request, action: str, scope: str) -> None:
        """Raises what ARM answers to a request without a good token, or without the right to do that."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        known = self._tokens.get(token)
        if scheme.lower() != "bearer":
            raise self._unauthorized(
                "AuthenticationFailed", "Authentication failed. The 'Authorization' header is missing."
            )
        if known is None:
            raise self._unauthorized("InvalidAuthenticationToken", "The access token is invalid.")
        if known.expires is not None and self.clock.now() >= known.expires:
            raise self._unauthorized("ExpiredAuthenticationToken", "The access token expiry UTC time is in the past.")
        if known.audience not in (_AUDIENCE, "https://management.core.windows.net"):
            raise self._unauthorized(
                "InvalidAuthenticationTokenAudience",
                f"The access token has been obtained for wrong audience or resource '{known.audience}'.",
            )
        if action in self.denied:
            raise turned_away(
                403,
                "AuthorizationFailed",
                f"The client '{self.identity.client_id}' with object id '{self.identity.object_id}' does not have "
                "authorization to perform action 'Microsoft.ContainerService/managedClusters/agentPools/"
                f"{action}' over scope '{scope}' or the scope is invalid. If access was recently granted, please "
                "refresh your credentials.",
            )

    def answer(self, request: Request) -> Answer:
        """The answer of either endpoint."""
        return self._managed(request) if request.path == IDENTITY_PATH else self._federated(request)

    def _managed(self, request: Request) -> Answer:
        if request.headers.get("x-identity-header") != self.identity_header:
            return Answer(401, {"statusCode": 401, "message": "The X-IDENTITY-HEADER is missing or wrong."})
        client = request.query.get("client_id", self.identity.client_id)
        resource = request.query.get("resource", "")
        if client != self.identity.client_id or not resource:
            return Answer(400, {"statusCode": 400, "message": "No User Assigned or Delegated Managed Identity found."})
        token, ends = self.issue(resource)
        expires = str(int(ends.timestamp()))
        return Answer(200, {"access_token": token, "expires_on": expires, "resource": resource, "token_type": "Bearer"})

    def _federated(self, request: Request) -> Answer:
        tenant = request.path.strip("/").split("/")[0]
        form = {name: values[0] for name, values in parse_qs(request.body.decode("utf-8", "replace")).items()}
        if tenant != self.identity.tenant:
            return self._refusal(400, "invalid_request", 90002, f"Tenant '{tenant}' not found.")
        if form.get("client_id") != self.identity.client_id:
            return self._refusal(
                400,
                "unauthorized_client",
                700016,
                f"Application with identifier '{form.get('client_id')}' was not found.",
            )
        if form.get("grant_type") != "client_credentials" or form.get("client_assertion_type") != _ASSERTION:
            return self._refusal(401, "invalid_client", 7000216, "'client_assertion' is required.")
        problem = self._problem(form.get("client_assertion", ""))
        if problem is not None:
            return self._refusal(401, "invalid_client", *problem)
        token, _ = self.issue(form.get("scope", "").removesuffix("/.default"))
        seconds = int(self.lifetime.total_seconds())
        return Answer(
            200, {"token_type": "Bearer", "expires_in": seconds, "ext_expires_in": seconds, "access_token": token}
        )

    def _problem(self, assertion: str) -> tuple[int, str] | None:
        try:
            # By our own clock, which may be another than the machine's.
            claims = jwt.decode(
                assertion,
                self._key.public_key(),
                algorithms=["ES256"],
                audience=_EXCHANGE,
                options={"verify_exp": False, "verify_iat": False, "require": ["exp"]},
            )
        except jwt.InvalidAudienceError:
            return 700212, "No matching federated identity record found for presented assertion audience."
        except jwt.InvalidTokenError as error:
            return 50027, f"JWT token is invalid or malformed: {error}."
        if claims["exp"] <= self.clock.now().timestamp():
            return 700024, "Client assertion is not within its valid time range."
        for name, wanted in (("issuer", self.identity.issuer), ("subject", self.identity.subject)):
            if claims.get(name[:3]) != wanted:
                number, given = 700213 if name == "subject" else 700211, claims.get(name[:3])
                return (
                    number,
                    f"No matching federated identity record found for presented assertion {name} '{given}'.",
                )
        return None

    def _refusal(self, status: int, error: str, number: int, text: str) -> Answer:
        trace = self._uid()
        body: dict[str, Any] = {
            "error": error,
            "error_description": f"AADSTS{number}: {text} Trace ID: {trace} Correlation ID: {trace}",
            "error_codes": [number],
            "timestamp": f"{self.clock.now():%Y-%m-%d %H:%M:%SZ}",
            "trace_id": trace,
            "correlation_id": trace,
        }
        return Answer(status, body)

    def _unauthorized(self, code: str, text: str) -> ArmError:
        challenge = f'Bearer authorization_uri="https://login.microsoftonline.com/{self.identity.tenant}"'
        return turned_away(401, code, text, WWW_Authenticate=challenge)
