"""The webhook server: TLS with its own certificates, registered with the API server and kept so.

It serves admission webhooks (:mod:`kaito_ctrl.runtime.admission`) and conversion webhooks
(:mod:`kaito_ctrl.runtime.conversion`), and writes its certificate authority into their registrations, so that nothing
has to be set up beside it: no certificate manager, no Secret.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import platform
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, Protocol
from urllib.parse import urlsplit

from aiohttp import web

from kaito_ctrl.runtime.certs import CertificateAuthority, IssuedCertificate, merge_bundles
from kaito_ctrl.runtime.client import Client, decode_answer
from kaito_ctrl.runtime.clock import Clock
from kaito_ctrl.runtime.codec import decode_json, encode_json
from kaito_ctrl.runtime.errors import Conflict, KubeError, NotFound
from kaito_ctrl.runtime.lifetime import Lifetime
from kaito_ctrl.runtime.logs import logger
from kaito_ctrl.runtime.metrics import Metrics

__all__ = ["Hook", "WebhookServer"]

_ADMISSION_LIMIT = 7 * 2**20
"""Bytes; what controller-runtime allows: an object is 1.5 MiB at most, and a review of an update holds two."""
_CONVERSION_LIMIT = 2**28
"""The API server has all objects of a list converted by one review, of which a client may have asked for everything."""

_BUNDLE_LIMIT = 32
"""Authorities in one registration: processes that serve behind one Service, with those that were killed."""
_ATTEMPTS = 2 * _BUNDLE_LIMIT
"""Of everybody who writes at the same time, one gets through in each round."""
_CHECK_SOON = 5.0


class Hook(Protocol):
    """Something that the API server calls, and is told so by an object at ``resource_path``."""

    @property
    def name(self) -> str: ...
    @property
    def path(self) -> str:
        """Where it is called, on this server."""
        ...

    @property
    def timeout(self) -> int:
        """Seconds after which the API server has stopped waiting."""
        ...

    @property
    def resource_path(self) -> str: ...
    @property
    def removable(self) -> bool:
        """Whether the registration goes when nobody answers any more."""
        ...

    @property
    def conversion(self) -> bool:
        """Whether the registration is a part of a definition, which somebody else makes."""
        ...

    def client_config(self, configuration: Mapping[str, Any]) -> Mapping[str, Any]: ...
    def registration(self, client_config: Mapping[str, Any]) -> dict[str, Any]: ...
    async def answer(self, review: Mapping[str, Any]) -> dict[str, Any]: ...
    def failure(self, review: Mapping[str, Any], message: str) -> dict[str, Any]: ...


class WebhookServer:
    """Serves webhooks, and keeps them registered for as long as it does.

    It listens on *host* and *port* (0: any free one). The API server is told to call *url*, by default
    ``https://host:port``, or the Service (namespace, name, port) *service*, either of which has to lead here.

    Its certificates live for *lifetime*, and are renewed after two thirds of it. A new one is presented from the look
    after the one that has its authority trusted, and the authority before it stays trusted, so that no call fails
    meanwhile. Several processes may serve behind one Service: each adds its own
    authority to the bundle that is there, replaces the one of an earlier process of the same *instance* (by default
    the host's name, which is the pod's), and takes its own out when it ends in good order and others remain.
    Registrations are looked at every *check_every* seconds and mended.

    An orderly stop without a Service removes the registrations of admission: a controller that is switched off on
    somebody's laptop must not have the API server refuse every write to its kinds. Behind a Service they stay, as
    others serve, or are about to; and after a crash they stay too, until the next start. Those of conversion stay
    always: without one, objects would be served in the wrong version instead of not at all. The definition that a
    conversion belongs to may come later.

    Raises ``ValueError`` for an address that the API server (at *api_server_url*, by default where the client's
    transport leads, if it says) cannot call.
    """

    def __init__(
        self,
        client: Client,
        webhooks: Sequence[Hook],
        *,
        clock: Clock,
        metrics: Metrics | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        url: str | None = None,
        service: tuple[str, str, int] | None = None,
        api_server_url: str | None = None,
        lifetime: timedelta = timedelta(days=365),
        check_every: float = 60.0,
        instance: str | None = None,
    ) -> None:
        self._client = client
        self._webhooks = tuple(webhooks)
        self._clock = clock
        self._metrics = metrics or Metrics()
        self._host = host
        self._port = port
        self._url = url.rstrip("/") if url is not None else None
        self._service = service
        self._lifetime = lifetime
        self._check_every = check_every
        self._instance = instance if instance is not None else platform.node()
        self._authorities: list[bytes] = []
        self._renew_at = clock.now()
        self._fresh: IssuedCertificate | None = None
        self._missing: set[str] = set()
        self._log = logger().bind(component="webhook")
        if service is None:
            _refuse_uncallable(
                url, host, api_server_url if api_server_url is not None else getattr(client.transport, "url", None)
            )
        elif url is not None:
            raise ValueError("a webhook is called at a url or through a service, not both")

    @property
    def url(self) -> str:
        """Where the API server is told to call, if not through a Service; known once it has started."""
        return self._url or ""

    async def run(self, lifetime: Lifetime) -> None:
        """Started once the API server has been told where to call."""
        context = self._renew().server_context()
        app = web.Application(client_max_size=0)  # it is the webhook that says how much is too much
        for webhook in self._webhooks:
            app.router.add_post(webhook.path, self._route(webhook))
        runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=2.0)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self._port, ssl_context=context).start()
            if self._service is None and self._url is None:
                shown = f"[{self._host}]" if ":" in self._host else self._host
                self._url = f"https://{shown}:{runner.addresses[0][1]}"
            for webhook in self._webhooks:
                await self._register(webhook, afresh=True)
            lifetime.started()
            while not await self._stopped(lifetime):
                await self._maintain(context)
            for webhook in self._webhooks:
                await self._leave(webhook)
        finally:
            await runner.cleanup()

    async def _stopped(self, lifetime: Lifetime) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(min(self._check_every, _CHECK_SOON) if self._missing else self._check_every):
                await lifetime.wait_stopping()
        return lifetime.is_stopping

    # -- certificates ----------------------------------------------------------------------------------------------

    def _renew(self) -> IssuedCertificate:
        now = self._clock.now()
        authority = CertificateAuthority(
            "kaito-ctrl-webhook", now=now, lifetime=self._lifetime, unit=self._instance if self._service else ""
        )
        self._authorities = [authority.pem, *self._authorities[:1]]
        self._renew_at = now + self._lifetime * 2 / 3
        return authority.issue(self._names(), now=now, lifetime=self._lifetime)

    def _names(self) -> list[str]:
        if self._service is not None:
            namespace, name, _ = self._service
            return [f"{name}.{namespace}.svc", f"{name}.{namespace}.svc.cluster.local", name]
        return [(urlsplit(self._url).hostname if self._url is not None else None) or self._host]

    async def _maintain(self, context: ssl.SSLContext) -> None:
        if self._fresh is None and self._clock.now() >= self._renew_at:
            self._fresh = self._renew()
        try:
            written = [await self._register(webhook) for webhook in self._webhooks]
        except KubeError as error:
            self._log.warning("cannot look after the webhooks' registration", error=str(error))
            return
        if self._fresh is not None and not any(written):
            # Its authority is trusted since an earlier look: API servers hear of what was written just now a moment
            # later. That of the certificate before it is trusted still.
            self._fresh.load_into(context)
            self._fresh = None

    # -- registration ----------------------------------------------------------------------------------------------

    async def _register(self, webhook: Hook, *, afresh: bool = False) -> bool:
        """Write the registration *afresh*, or else if it is not as it should be, until it is found that way: somebody
        else may be adding their own authority at the same time. Whether it was written."""
        written = False
        for _ in range(_ATTEMPTS):
            present = await self._present(webhook)
            if present is None and webhook.conversion:
                if webhook.name not in self._missing:
                    self._log.warning("there is no such CustomResourceDefinition to convert for", crd=webhook.name)
                self._missing.add(webhook.name)
                return written
            self._missing.discard(webhook.name)
            known = webhook.client_config(present) if present is not None else {}
            if not afresh and self._service is None and known.get("url") not in (None, self._url_of(webhook)):
                return written  # another process has taken it over since: not to be fought about
            wanted = self._client_config(webhook, known)
            if known == wanted and not afresh:
                return written
            afresh, written = False, True
            with suppress(Conflict):
                await self._write(webhook, wanted, present)
        raise Conflict(409, "Conflict", f"the registration of webhook {webhook.name} keeps changing")

    async def _write(self, webhook: Hook, client_config: Mapping[str, Any], present: Mapping[str, Any] | None) -> None:
        body = webhook.registration(client_config)
        if present is not None:
            body["metadata"]["resourceVersion"] = present["metadata"]["resourceVersion"]
        await self._client.request(
            "PATCH",
            webhook.resource_path,
            query=(("fieldManager", self._client.field_manager), ("force", "true")),
            body=body,
            headers={"content-type": "application/apply-patch+yaml"},
        )

    def _url_of(self, webhook: Hook) -> str:
        return f"{self._url}{webhook.path}"

    async def _present(self, webhook: Hook) -> dict[str, Any] | None:
        try:
            return decode_answer(await self._client.request("GET", webhook.resource_path))
        except NotFound as error:
            if not error.of_object:
                raise
            return None

    def _client_config(self, webhook: Hook, known: Mapping[str, Any]) -> dict[str, Any]:
        # A url leads to this process alone, a Service to any of its own.
        others = [_bundle(known)] if self._service is not None else []
        unit = self._instance if self._service is not None else ""
        bundle = merge_bundles(self._authorities, others, now=self._clock.now(), limit=_BUNDLE_LIMIT, unit=unit)
        config: dict[str, Any] = {"caBundle": base64.b64encode(bundle).decode()}
        if self._service is None:
            config["url"] = self._url_of(webhook)
        else:
            namespace, name, port = self._service
            config["service"] = {"namespace": namespace, "name": name, "port": port, "path": webhook.path}
        return config

    async def _leave(self, webhook: Hook) -> None:
        try:
            if self._service is not None:
                await self._withdraw(webhook)
            elif webhook.removable:
                await self._deregister(webhook)
        except (NotFound, Conflict):
            pass
        except KubeError as error:
            self._log.warning(
                "cannot take back a webhook's registration: without anybody to serve it, writes to its kind fail until "
                "it is deleted or served",
                webhook=webhook.name,
                error=str(error),
            )

    async def _withdraw(self, webhook: Hook) -> None:
        """Nobody calls this process any more: have its authority forgotten, unless nothing else would be trusted."""
        for _ in range(_ATTEMPTS):
            present = await self._present(webhook)
            if present is None:
                return
            known = webhook.client_config(present)
            rest = merge_bundles([], [_bundle(known)], now=self._clock.now(), limit=_BUNDLE_LIMIT, unit=self._instance)
            if not rest or rest == _bundle(known):
                return
            with suppress(Conflict):
                await self._write(webhook, {**known, "caBundle": base64.b64encode(rest).decode()}, present)
                return

    async def _deregister(self, webhook: Hook) -> None:
        present = await self._present(webhook)
        if present is None or webhook.client_config(present).get("url") != self._url_of(webhook):
            return  # another process has taken it over
        metadata = present["metadata"]
        preconditions = {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]}
        await self._client.request("DELETE", webhook.resource_path, body={"preconditions": preconditions})

    # -- answering -------------------------------------------------------------------------------------------------

    def _route(self, webhook: Hook) -> Callable[[web.Request], Awaitable[web.Response]]:
        metrics = self._metrics.webhook(webhook.path)
        panics = self._metrics.conversion_panics if webhook.conversion else self._metrics.webhook_panics
        limit = _CONVERSION_LIMIT if webhook.conversion else _ADMISSION_LIMIT

        async def answer(request: web.Request) -> web.Response:
            clock = asyncio.get_running_loop().time
            began, code = clock(), 500
            metrics.in_flight.inc()
            try:
                review = _review(await _body(request, limit))
                if review is None:
                    code = 400
                    return _json({"message": "expected a review with a request and its uid"}, code)
                code = 200
                try:
                    async with asyncio.timeout(webhook.timeout):
                        return _json(await webhook.answer(review))
                except Exception as error:  # noqa: BLE001
                    # A bug in a rule must not look like a refusal of the rule, nor take the server down.
                    self._log.exception("webhook failed", webhook=webhook.name)
                    panics.inc()
                    return _json(webhook.failure(review, _text(error)))
            except web.HTTPException as error:
                code = error.status
                raise
            finally:
                metrics.in_flight.dec()
                metrics.answered(code, clock() - began)

        return answer


async def _body(request: web.Request, limit: int) -> bytes:
    """Raises ``HTTPRequestEntityTooLarge`` for more than *limit* bytes."""
    parts, size = [], 0
    async for part in request.content.iter_any():
        size += len(part)
        if size > limit:
            raise web.HTTPRequestEntityTooLarge(limit, max(size, request.content_length or 0))
        parts.append(part)
    return b"".join(parts)


def _json(body: object, status: int = 200) -> web.Response:
    return web.Response(body=encode_json(body), status=status, content_type="application/json")


def _review(body: bytes) -> dict[str, Any] | None:
    try:
        review = decode_json(body)
        return review if isinstance(review["request"]["uid"], str) else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _text(error: Exception) -> str:
    return "it took too long" if isinstance(error, TimeoutError) else f"{type(error).__name__}: {error}"


def _bundle(client_config: Mapping[str, Any]) -> bytes:
    return base64.b64decode(client_config.get("caBundle") or "")


def _refuse_uncallable(url: str | None, host: str, api_server_url: str | None) -> None:
    called = (urlsplit(url).hostname if url is not None else host) or ""
    if called in ("0.0.0.0", "::", ""):  # noqa: S104
        raise ValueError(
            f"webhooks that listen on {host!r} need a url (or a service) at which the API server calls them"
        )
    if api_server_url is None:
        return
    server = urlsplit(api_server_url).hostname or ""
    if _is_loopback(called) and not _is_loopback(server):
        raise ValueError(
            f"the API server at {server} cannot call a webhook at {called}, a loopback address: give a url at which it "
            "reaches this process, run behind a Service, or switch the webhook off"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
