"""Leader election: of several processes, the one that holds a Lease does the work, and stops before another starts.

The Lease object is the one that client-go's ``LeaseLock`` reads and writes, so managers in Go and these can contend for
the same one. What it promises:

* A candidate takes a lease that has not changed for its whole duration, by the candidate's own monotonic clock; the
  times in the record are for people, so clocks may differ.
* A holder counts from just before it sent the renewal that succeeded, hence from earlier than any candidate can. Its
  fence closes after ``renew_deadline``; the rest of ``duration`` is the margin for clocks that run at different speeds,
  for writes that are on their way, and for a process that stands still between the check and the write.
* The lease is lost for good, and ``LeaseLost`` raised, as soon as the record names another holder, renewing has failed
  for ``renew_deadline``, or the event loop has stood still for half of that: a process that stalls may stall again.
* It is released only when asked to stop, which the manager does after everything that led has ended.

What no client can prevent: a Lease that somebody deletes can be taken at once by a candidate that has never seen it.
And a machine that is suspended stops the monotonic clock as well.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kaito_api import coordination
from kaito_api.coordination import LeaseSpec
from kaito_api.meta import ObjectMeta
from kaito_ctrl.runtime.client import Client, decode_answer
from kaito_ctrl.runtime.clock import Clock
from kaito_ctrl.runtime.errors import AlreadyExists, Conflict, DecodeError, KubeError, LeaseLost, NotFound
from kaito_ctrl.runtime.fence import Fence
from kaito_ctrl.runtime.lifetime import Lifetime
from kaito_ctrl.runtime.logs import logger
from kaito_ctrl.runtime.meta import ObjectKey, collection_path, object_path
from kaito_ctrl.runtime.metrics import Metrics
from kaito_ctrl.runtime.transport import Transport

__all__ = ["Dial", "Elector", "Lease", "pod_namespace"]

Dial = Callable[[], Awaitable[Transport]]
"""Makes another transport to the same API server, with connections of its own."""

_POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_JITTER = 1.2  # client-go's
_TICK = 0.001


def pod_namespace() -> str | None:
    """The namespace of the pod that this process runs in; ``None`` when it is not a pod."""
    try:
        return _POD_NAMESPACE.read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


@dataclass(frozen=True, slots=True)
class Lease:
    """Which Lease settles who leads, and how often it is renewed; all times in seconds.

    ``duration`` is how long a lease that is not renewed keeps others away, ``renew_deadline`` when a holder that cannot
    renew gives up, ``retry_period`` the time between two attempts. The defaults are client-go's. ``namespace`` defaults
    to the pod's own. ``identity`` tells candidates apart: no two may share one. By default it is made of the host's
    name and a random identifier.

    Raises ``ValueError`` for times that are not safe together.
    """

    name: str
    namespace: str | None = None
    duration: int = 15
    renew_deadline: float = 10.0
    retry_period: float = 2.0
    identity: str | None = None

    def __post_init__(self) -> None:
        if self.duration < 1:
            raise ValueError("a lease's duration is a whole number of seconds, and at least 1")
        if not self.duration > self.renew_deadline:
            raise ValueError(
                f"duration ({self.duration} s) must be longer than renew_deadline ({self.renew_deadline} s)"
            )
        if not self.renew_deadline > self.retry_period * _JITTER > 0:
            raise ValueError(
                f"renew_deadline ({self.renew_deadline} s) must be longer than {_JITTER} retry periods "
                f"({self.retry_period} s each)"
            )


class Elector:
    """Contends for a lease, holds it, gives it back. A runnable: it is up once it leads.

    ``identity`` must be unique among the candidates. *dial*, where there is one, gives the election a connection of its
    own, so that busy controllers cannot keep a renewal waiting.

    Raises ``KubeError`` when it is not known in which namespace the Lease lives.
    """

    def __init__(
        self,
        lease: Lease,
        transport: Transport,
        identity: str,
        *,
        clock: Clock,
        rng: random.Random,
        metrics: Metrics,
        dial: Dial | None = None,
    ) -> None:
        namespace = lease.namespace or pod_namespace()
        if namespace is None:
            raise KubeError(
                f"leader election: this is not a pod, so say where the Lease {lease.name!r} lives, for example "
                f"Lease({lease.name!r}, namespace='default')"
            )
        self.lease = lease
        self.key = ObjectKey(namespace, lease.name)
        self.identity = identity
        self.fence = Fence(clock, str(self.key))
        """Open while this process leads."""
        self._transport = transport
        self._dial = dial
        self._clock = clock
        self._rng = rng
        self._patience = max(1.0, lease.renew_deadline / 2)
        self._metrics = metrics
        self._leading = metrics.leading.labels(lease.name)
        self._leading.set(0)
        self._slow_renewals = metrics.slow_renewals.labels(lease.name)
        self._client = self._client_over(transport)
        self._raw: dict[str, Any] = {}
        """The Lease as this process last wrote or read it."""
        self._seen: LeaseSpec | None = None
        """The record as a candidate saw it last, and since when it has been like that."""
        self._seen_since = 0.0
        self._stamped: datetime | None = None
        self._held_until: float | None = None
        self._may_hold = False
        self._forfeited = False
        self._problem = ""
        self._log = logger().bind(lease=str(self.key), identity=identity)

    @property
    def leads(self) -> bool:
        """Whether this process holds the lease, beyond doubt."""
        return self.fence.remaining() > 0

    def check(self, max_tolerable_expired: float = 20.0) -> str | None:
        """What is wrong with a process that still lives that many seconds after the lease that it held has lapsed;
        a liveness check."""
        if self._held_until is None:
            return None
        expired = self._clock.monotonic() - self._held_until
        if expired <= max_tolerable_expired:
            return None
        return f"lease {self.key} lapsed {expired:.0f} s ago, and this process, which held it, still runs"

    def forfeit(self) -> None:
        """Close the fence, and let the lease lapse by itself instead of releasing it: for when something that led
        cannot be made to end."""
        self._forfeited = True
        self.fence.close()

    async def run(self, lifetime: Lifetime) -> None:
        """Lead until asked to stop; then release the lease. Raises ``LeaseLost``."""
        own = await self._dial() if self._dial is not None else None
        try:
            self._client = self._client_over(own or self._transport)
            holding = asyncio.create_task(self._hold(lifetime), name=f"lease/{self.key}")
            stopping = asyncio.create_task(lifetime.wait_stopping())
            try:
                await asyncio.wait((holding, stopping), return_when=asyncio.FIRST_COMPLETED)
                if holding.done():
                    holding.result()
                    await stopping  # without an error it ends only when the lease was forfeited
            finally:
                self.fence.close()
                self._leading.set(0)
                holding.cancel()
                stopping.cancel()
                await asyncio.wait((holding, stopping))
            if self._may_hold and not self._forfeited:
                await self._release()
        finally:
            if own is not None:
                await own.aclose()

    def _client_over(self, transport: Transport) -> Client:
        return Client(transport, metrics=self._metrics, timeout=self._patience)

    async def _hold(self, lifetime: Lifetime) -> None:
        await self._acquire()
        self._leading.set(1)
        self._log.info("leads")
        lifetime.started()
        try:
            while True:
                await self._keep()
        except LeaseLost as lost:
            if self._forfeited:
                return
            self._log.error("lease lost", reason=str(lost))
            raise

    # -- a candidate -----------------------------------------------------------------------------------------------

    async def _acquire(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._patience):
                    await self._try()
            except (AlreadyExists, Conflict):
                self._report("held by a candidate that was faster")
            except (KubeError, TimeoutError) as error:
                self._report(f"{type(error).__name__}: {error}")
            if self.leads:
                return
            self._held_until = None  # an answer that took too long is worth nothing
            await asyncio.sleep(self._pause())

    async def _try(self) -> None:
        raw = await self._get()
        if raw is None:
            # Deleted under a holder, perhaps, that does not know it yet.
            if self._lapses_in() <= 0:
                await self._create()
            return
        spec = self._observe(raw)
        holder = spec.holder_identity
        if holder == self.identity:  # an attempt of ours succeeded, and its answer was lost
            await self._write(raw, self._record(spec.acquire_time, spec.lease_transitions or 0))
        elif not holder or self._lapses_in() <= 0:
            await self._write(raw, self._record(None, (spec.lease_transitions or 0) + 1))
        else:
            self._report(f"held by {holder}")

    def _observe(self, raw: dict[str, Any]) -> LeaseSpec:
        spec = _spec(raw)
        if spec != self._seen:
            self._seen, self._seen_since = spec, self._clock.monotonic()
        return spec

    def _lapses_in(self) -> float:
        """Seconds until the record that was last seen can be taken over; not positive when it can."""
        if self._seen is None or not self._seen.holder_identity:
            return 0.0
        duration = self._seen.lease_duration_seconds or self.lease.duration
        return self._seen_since + duration - self._clock.monotonic()

    def _pause(self) -> float:
        pause = self.lease.retry_period * (1 + _JITTER * self._rng.random())
        # What lapses meanwhile is not left lying for the rest of a whole pause; but not everybody comes at once.
        lapses_in = self._lapses_in()
        return min(pause, lapses_in + self.lease.retry_period * self._rng.random()) if lapses_in > 0 else pause

    # -- the holder ------------------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        """Rest, and renew once. Raises ``LeaseLost``."""
        # A wait that is shorter than the loop's own resolution would be none, and the moment would never come.
        pause = min(self.lease.retry_period, max(self.fence.remaining(), _TICK))
        due = self._clock.monotonic() + pause
        await asyncio.sleep(pause)
        late = self._clock.monotonic() - due
        if late > self.lease.renew_deadline / 2:
            raise LeaseLost(f"lease {self.key}: the event loop stood still for {late:.1f} s; stepping down")
        if not self.leads:
            raise LeaseLost(
                f"lease {self.key}: not renewed for {self.lease.renew_deadline:g} s ({self._problem or 'no time'})"
            )
        try:
            async with asyncio.timeout(min(self._patience, self.fence.remaining())):
                await self._renew()
        except LeaseLost:
            raise
        except TimeoutError:
            self._report("no answer in time")
        except KubeError as error:
            self._report(f"{type(error).__name__}: {error}")
        else:
            self._report("")

    async def _renew(self) -> None:
        mine = _spec(self._raw)
        record = self._record(mine.acquire_time, mine.lease_transitions or 0)
        try:
            await self._write(self._raw, record)
            return
        except (Conflict, NotFound):
            pass  # somebody touched it; or a renewal of ours succeeded, and its answer was lost
        self._slow_renewals.inc()
        raw = await self._get()
        if raw is None:
            await self._create(record)
            return
        holder = _spec(raw).holder_identity
        if holder != self.identity:
            raise LeaseLost(f"lease {self.key}: now {f'held by {holder}' if holder else 'released by somebody else'}")
        await self._write(raw, record)

    async def _release(self) -> None:
        try:
            async with asyncio.timeout(self._patience):
                if await self._give_back():
                    self._log.info("lease released")
        except (KubeError, TimeoutError) as error:
            self._log.warning("cannot release the lease; it lapses by itself", error=str(error))
        self._held_until = None

    async def _give_back(self) -> bool:
        """Whether it was ours to give."""
        now = self._clock.now()
        record = LeaseSpec(holder_identity="", lease_duration_seconds=1, acquire_time=now, renew_time=now)
        path = object_path(coordination.Lease, self.key)
        if self._raw:
            try:
                await self._send("PUT", path, _with(self._raw, record))
                return True
            except (Conflict, NotFound):
                pass  # a renewal was cut off on its way, or somebody touched it
        raw = await self._get()
        if raw is None or _spec(raw).holder_identity != self.identity:
            return False
        await self._send("PUT", path, _with(raw, record))
        return True

    # -- the object ------------------------------------------------------------------------------------------------

    def _record(self, acquired: datetime | None, transitions: int) -> LeaseSpec:
        # A record that does not differ from the last one is no renewal to anybody, and a wall clock may stand still.
        now = max(self._clock.now(), self._stamped + timedelta(microseconds=1)) if self._stamped else self._clock.now()
        self._stamped = now
        return LeaseSpec(
            holder_identity=self.identity,
            lease_duration_seconds=self.lease.duration,
            acquire_time=acquired or now,
            renew_time=now,
            lease_transitions=transitions,
        )

    async def _get(self) -> dict[str, Any] | None:
        try:
            return decode_answer(await self._client.get_raw(coordination.Lease, self.key))
        except NotFound as error:
            if not error.of_object:
                raise
            return None

    async def _create(self, record: LeaseSpec | None = None) -> None:
        lease = coordination.Lease(metadata=ObjectMeta(name=self.key.name, namespace=self.key.namespace))
        path = collection_path(coordination.Lease, self.key.namespace)
        await self._claim("POST", path, _with(lease.to_wire(), record or self._record(None, 0)))

    async def _write(self, raw: Mapping[str, Any], record: LeaseSpec) -> None:
        """Replace the record in the object as it was read: its resourceVersion is the lock."""
        await self._claim("PUT", object_path(coordination.Lease, self.key), _with(raw, record))

    async def _claim(self, method: str, path: str, body: dict[str, Any]) -> None:
        self._may_hold = True
        sent = self._clock.monotonic()
        self._raw = await self._send(method, path, body)
        self._held_until = sent + self.lease.duration
        self.fence.open(sent + self.lease.renew_deadline)

    async def _send(self, method: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return decode_answer(await self._client.request(method, path, body=body))

    def _report(self, problem: str) -> None:
        """Say what keeps this process from holding the lease, when that changes."""
        if problem != self._problem:
            self._problem = problem
            if problem.startswith("held by"):
                self._log.info("waits for the lease", reason=problem)
            elif problem:
                self._log.warning("cannot get at the lease", reason=problem)


def _spec(raw: Mapping[str, Any]) -> LeaseSpec:
    try:
        return LeaseSpec.model_validate(raw.get("spec") or {})
    except ValidationError as error:
        raise DecodeError(f"this Lease does not fit its model: {error}") from error


def _with(raw: Mapping[str, Any], record: LeaseSpec) -> dict[str, Any]:
    return {**raw, "spec": {**(raw.get("spec") or {}), **record.to_wire()}}
