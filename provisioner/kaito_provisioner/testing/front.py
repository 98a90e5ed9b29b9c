"""The way in: ARM's front door, which knows who asks, how often, and where to; and where faults strike."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from email.utils import format_datetime
from math import ceil
from re import fullmatch
from urllib.parse import unquote

from kaito_ctrl.runtime.clock import Clock, UidSource
from kaito_ctrl.runtime.tokenbucket import TokenBucket
from kaito_provisioner.testing.api import AgentPoolsApi
from kaito_provisioner.testing.errors import (
    ArmError,
    group_is_missing,
    subscription_is_missing,
    throttled,
    turned_away,
)
from kaito_provisioner.testing.faults import Call, Dropped, Faults
from kaito_provisioner.testing.messages import IDEMPOTENT, Answer, Request
from kaito_provisioner.testing.tokens import IDENTITY_PATH, Issuer

__all__ = ["Entry", "FrontDoor", "Requests"]

_API_VERSION = r"\d{4}-\d\d-\d\d(-preview)?"
_KEPT = 100_000
_REGISTRATION = 15.0
_VERBS = {"GET": "reads", "DELETE": "deletes"}
# Per subscription and principal: Azure's documentation, "Understand how Azure Resource Manager throttles requests".
_SUBSCRIPTION = {"reads": (250, 1 / 25), "writes": (200, 1 / 10), "deletes": (200, 1 / 10)}


@dataclass(slots=True)
class Entry:
    """One request. ``at`` is a monotonic clock's; ``status`` is 0 while it has not been answered."""

    call: Call
    method: str
    path: str
    pool: str
    at: float
    client: str = ""
    """The client's own id of the request."""
    status: int = 0
    code: str = ""
    """Of the error that it was answered with."""


@dataclass(slots=True)
class Requests:
    """What has been asked. ``counts`` has a number for each kind of request; ``log`` the last 100,000 of them."""

    counts: Counter[str] = field(default_factory=Counter)
    log: deque[Entry] = field(default_factory=lambda: deque(maxlen=_KEPT))

    def clear(self) -> None:
        self.counts.clear()
        self.log.clear()


class FrontDoor:
    """Answers every request, to whichever of our hosts it was sent."""

    def __init__(self, api: AgentPoolsApi, issuer: Issuer, faults: Faults, clock: Clock, uid: UidSource) -> None:
        self.requests = Requests()
        self.registered_at: float | None = float("-inf")
        """Since when the subscription may use AKS at all, by a monotonic clock; ``None``: nobody has registered it."""
        self._api = api
        self._lost: set[tuple[str, str, str]] = set()
        self._issuer = issuer
        self._faults = faults
        self._clock = clock
        self._uid = uid
        self._buckets = {
            name: TokenBucket(burst, refill, clock.monotonic()) for name, (burst, refill) in _SUBSCRIPTION.items()
        }

    async def handle(self, request: Request) -> Answer:
        """The answer. Raises :class:`~kaito_provisioner.testing.faults.Dropped` where there is to be none."""
        segments = [unquote(each) for each in request.path.split("/") if each]
        call, pool = _classify(request.method, request.path, segments)
        entry = Entry(
            call,
            request.method,
            request.path,
            pool,
            self._clock.monotonic(),
            request.headers.get("x-ms-client-request-id", ""),
        )
        self.requests.counts[call] += 1
        self.requests.log.append(entry)
        again = (entry.client, entry.method, entry.path)
        if self._faults.down or again in self._lost:
            self._lost.discard(again)
            raise Dropped
        fault = self._faults.take(call, pool)
        try:
            if fault is not None and not fault.after:
                await fault.strike()
            answer = self._answer(request, call, segments)
            if fault is not None and fault.after:
                await fault.strike()
        except Dropped:
            if fault is not None and not fault.resent and request.method in IDEMPOTENT:
                self._lost.add(again)
            raise
        except ArmError as error:
            answer = Answer.of(error)
            entry.code = error.code
        entry.status = answer.status
        answer.headers.update(self._headers(request))
        return answer

    def _answer(self, request: Request, call: Call, segments: list[str]) -> Answer:
        if call == "token":
            return self._issuer.answer(request)
        self._issuer.check(request, _action(request.method, call), request.path)
        version = request.query.get("api-version")
        if version is None:
            raise turned_away(
                400,
                "MissingApiVersionParameter",
                "The api-version query parameter (?api-version=) is required for all requests.",
            )
        if not fullmatch(_API_VERSION, version):
            raise turned_away(
                400,
                "InvalidApiVersionParameter",
                f"The api-version '{version}' is invalid. It is a date, as 2024-01-01.",
            )
        self._throttle(_VERBS.get(request.method, "writes"))
        cluster = self._api.cloud.cluster
        match [each.lower() for each in segments]:
            case ["subscriptions", subscription, *_] if subscription != cluster.subscription.lower():
                raise subscription_is_missing(segments[1])
            case ["subscriptions", _, "providers", "microsoft.containerservice", "locations", _, kind, _]:
                if kind == "operations":
                    return self._api.operation(request, segments[7])
                if kind == "operationresults":
                    return self._api.result(request, segments[7])
            case ["subscriptions", _, "providers", "microsoft.containerservice", *rest] if rest in ([], ["register"]):
                return self._register(request.method == "POST" and bool(rest))
            case ["subscriptions", _, "resourcegroups", group, *_] if group != cluster.resource_group.lower():
                raise group_is_missing(segments[3])
            case ["subscriptions", *_] if self._registration() != "Registered":
                raise turned_away(
                    409,
                    "MissingSubscriptionRegistration",
                    "The subscription is not registered to use namespace 'Microsoft.ContainerService'. See "
                    "https://aka.ms/rps-not-found for how to register subscriptions.",
                )
            case ["subscriptions", _, _, _, "providers", "microsoft.containerservice", "managedclusters", _, *_]:
                return self._api.cluster(request, segments[3], segments[7], segments[8:])
        raise turned_away(404, "InvalidResourceType", f"The resource '{request.path}' could not be found.")

    def _registration(self) -> str:
        if self.registered_at is None:
            return "NotRegistered"
        return "Registered" if self._clock.monotonic() >= self.registered_at else "Registering"

    def _register(self, begin: bool) -> Answer:
        if begin and self.registered_at is None:
            self.registered_at = self._clock.monotonic() + _REGISTRATION
        return Answer(200, {"namespace": "Microsoft.ContainerService", "registrationState": self._registration()})

    def _throttle(self, name: str) -> None:
        bucket, now = self._buckets[name], self._clock.monotonic()
        if self._api.throttles.enabled and not bucket.take(now):
            raise throttled(max(1, ceil(bucket.wait(now))), "SubscriptionRequestsThrottled")

    def _headers(self, request: Request) -> dict[str, str]:
        identifier = self._uid()
        sent = request.headers.get("x-ms-client-request-id")
        return {
            "Date": format_datetime(self._clock.now(), usegmt=True),
            "Cache-Control": "no-cache",
            "x-ms-request-id": identifier,
            "x-ms-correlation-request-id": sent or identifier,
            "x-ms-routing-request-id": f"LOCAL:{self._clock.now():%Y%m%dT%H%M%SZ}:{identifier}",
        }


def _classify(method: str, path: str, segments: list[str]) -> tuple[Call, str]:
    if path == IDENTITY_PATH or path.endswith("/oauth2/v2.0/token"):
        return "token", ""
    match [each.lower() for each in segments[4:]]:
        case ["locations", *_] if len(segments) == 8:
            return "operation", ""
        case [_, _, _, _, "agentpools"] if method == "GET":
            return "list", ""
        case [_, _, _, _, "agentpools", pool]:
            calls: dict[str, Call] = {"PUT": "put", "GET": "get", "DELETE": "delete"}
            return calls.get(method, "other"), pool
        case [_, _, _, _, "agentpools", pool, "abort"] if method == "POST":
            return "abort", pool
        case [_, _, _, _, "agentpools", pool, *_]:
            return "other", pool
    return "other", ""


def _action(method: str, call: Call) -> str:
    if call == "abort":
        return "abort"
    return {"GET": "read", "DELETE": "delete"}.get(method, "write")
