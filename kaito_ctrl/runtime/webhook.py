"""Admission webhooks: a TLS server with its own certificates, which registers itself and says yes or no to writes.

A handler is a plain function from an :class:`AdmissionRequest` to an :class:`AdmissionResponse`; it gets raw
objects, as admission comes before the schema has had its say. The server writes the webhook configurations with its
certificate authority in them, so that nothing has to be set up beside it.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import ssl
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal
from urllib.parse import urlsplit

import structlog
from aiohttp import web

from kaito_api.meta import Resource
from kaito_ctrl.runtime.certs import CertificateAuthority, IssuedCertificate, merge_bundles
from kaito_ctrl.runtime.client import Client
from kaito_ctrl.runtime.clock import Clock
from kaito_ctrl.runtime.codec import decode_json, encode_json
from kaito_ctrl.runtime.errors import Conflict, KubeError, NotFound
from kaito_ctrl.runtime.lifetime import Lifetime
from kaito_ctrl.runtime.metrics import Metrics

__all__ = ["AdmissionRequest", "AdmissionResponse", "AdmissionServer", "AdmissionWebhook"]

_BODY_LIMIT = 7 * 2**20
"""What controller-runtime allows: an object is 1.5 MiB at most, and a review holds two."""

_BUNDLE_LIMIT = 16
"""Authorities in one configuration: processes that serve behind one Service, with those that were killed."""
_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class AdmissionRequest:
    """A write that is being asked about. ``object`` and ``old`` are plain JSON; one of them may be ``None``."""

    operation: Literal["CREATE", "UPDATE", "DELETE", "CONNECT"]
    namespace: str
    name: str
    object: dict[str, Any] | None
    old: dict[str, Any] | None
    user: str
    dry_run: bool


@dataclass(frozen=True, slots=True)
class AdmissionResponse:
    """The answer: allowed or not, and why; warnings are shown to the user either way; a patch is RFC 6902."""

    allowed: bool
    message: str = ""
    code: int = 403
    reason: str = "Forbidden"
    warnings: tuple[str, ...] = ()
    patch: Sequence[Mapping[str, Any]] = ()


Handler = Callable[[AdmissionRequest], AdmissionResponse]


@dataclass(frozen=True, slots=True)
class AdmissionWebhook:
    """One webhook: what it is called, which writes it sees, and who answers."""

    name: str
    kind: type[Resource]
    handler: Handler
    path: str
    mutating: bool = False
    operations: tuple[str, ...] = ("CREATE", "UPDATE")
    failure_policy: Literal["Fail", "Ignore"] = "Fail"
    timeout: int = 10
    namespace_selector: Mapping[str, Any] = field(default_factory=dict)

    @property
    def _configuration_kind(self) -> str:
        return "MutatingWebhookConfiguration" if self.mutating else "ValidatingWebhookConfiguration"

    @property
    def resource_path(self) -> str:
        """Where its configuration object is."""
        return f"/apis/admissionregistration.k8s.io/v1/{self._configuration_kind.lower()}s/{self.name}"

    def configuration(self, client_config: Mapping[str, Any]) -> dict[str, Any]:
        """The webhook configuration object that has the API server call it at *client_config*."""
        return {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": self._configuration_kind,
            "metadata": {"name": self.name},
            "webhooks": [
                {
                    "name": self.name,
                    "clientConfig": dict(client_config),
                    "rules": [
                        {
                            "apiGroups": [self.kind.group],
                            "apiVersions": [self.kind.version],
                            "operations": list(self.operations),
                            "resources": [self.kind.plural],
                            "scope": "Namespaced" if self.kind.namespaced else "Cluster",
                        }
                    ],
                    "failurePolicy": self.failure_policy,
                    "sideEffects": "None",
                    "admissionReviewVersions": ["v1"],
                    "timeoutSeconds": self.timeout,
                    "namespaceSelector": dict(self.namespace_selector),
                }
            ],
        }


class AdmissionServer:
    """Serves webhooks, and keeps them registered for as long as it does.

    It listens on *host* and *port* (0: any free one). The API server is told to call *url*, by default
    ``https://host:port``, or the Service (namespace, name, port) *service*, either of which has to lead here.

    Its certificates live for *lifetime*, and are renewed after two thirds of it; the authority before the last stays
    trusted, so that no call fails meanwhile. Several processes may serve behind one Service: each adds its own
    authority to the bundle that is there. Registrations are looked at every *check_every* seconds and mended.

    An orderly stop without a Service removes the registrations: a controller that is switched off on somebody's
    laptop must not have the API server refuse every write to its kinds. Behind a Service they stay, as others serve,
    or are about to; and after a crash they stay too, until the next start.

    Raises ``ValueError`` for an address that the API server (at *api_server_url*, by default where the client's
    transport leads, if it says) cannot call.
    """

    def __init__(
        self,
        client: Client,
        webhooks: Sequence[AdmissionWebhook],
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
    ) -> None:
        self._client = client
        self._webhooks = tuple(webhooks)
        self._clock = clock
        self._metrics = metrics
        self._host = host
        self._port = port
        self._url = url.rstrip("/") if url is not None else None
        self._service = service
        self._lifetime = lifetime
        self._check_every = check_every
        self._authorities: list[bytes] = []
        self._renew_at = clock.now()
        self._fresh: IssuedCertificate | None = None
        self._log = structlog.get_logger("kaito_ctrl").bind(component="webhook")
        if service is None:
            _refuse_uncallable(
                url, host, api_server_url if api_server_url is not None else getattr(client.transport, "url", None)
            )
        elif url is not None:
            raise ValueError("a webhook is called at a url or through a service, not both")

    async def run(self, lifetime: Lifetime) -> None:
        """Started once the API server has been told where to call."""
        context = self._renew().server_context()
        app = web.Application(client_max_size=_BODY_LIMIT)
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
            if self._service is None:
                await self._deregister()
        finally:
            await runner.cleanup()

    async def _stopped(self, lifetime: Lifetime) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._check_every):
                await lifetime.wait_stopping()
        return lifetime.is_stopping

    def _renew(self) -> IssuedCertificate:
        now = self._clock.now()
        authority = CertificateAuthority("kaito-ctrl-webhook", now=now, lifetime=self._lifetime)
        self._authorities = [authority.pem, *self._authorities[:1]]
        self._renew_at = now + self._lifetime * 2 / 3
        return authority.issue(self._names(), now=now, lifetime=self._lifetime)

    def _names(self) -> list[str]:
        if self._service is not None:
            namespace, name, _ = self._service
            return [f"{name}.{namespace}.svc", f"{name}.{namespace}.svc.cluster.local", name]
        return [(urlsplit(self._url).hostname if self._url is not None else None) or self._host]

    async def _maintain(self, context: ssl.SSLContext) -> None:
        if self._clock.now() >= self._renew_at:
            self._fresh = self._renew()
        try:
            for webhook in self._webhooks:
                await self._register(webhook)
        except KubeError as error:
            self._log.warning("cannot look after the webhooks' registration", error=str(error))
            return
        if self._fresh is not None:
            # Only now that its authority is trusted; that of the certificate before it still is.
            self._fresh.load_into(context)
            self._fresh = None

    async def _register(self, webhook: AdmissionWebhook, *, afresh: bool = False) -> None:
        """Write the configuration *afresh*, or else if it is not as it should be, until it is found that way: somebody
        else may be adding their own authority at the same time."""
        for _ in range(_ATTEMPTS):
            present = await self._present(webhook)
            known = _client_config(present)
            if not afresh and self._service is None and known.get("url") not in (None, self._url_of(webhook)):
                return  # another process has taken it over since: not to be fought about
            wanted = self._client_config(webhook, known)
            if known == wanted and not afresh:
                return
            afresh = False
            body = webhook.configuration(wanted)
            if present is not None:
                body["metadata"]["resourceVersion"] = present["metadata"]["resourceVersion"]
            with suppress(Conflict):
                await self._client.request(
                    "PATCH",
                    webhook.resource_path,
                    query=(("fieldManager", self._client.field_manager), ("force", "true")),
                    body=body,
                    headers={"content-type": "application/apply-patch+yaml"},
                )
        raise Conflict(409, "Conflict", f"the configuration of webhook {webhook.name} keeps changing")

    def _url_of(self, webhook: AdmissionWebhook) -> str:
        return f"{self._url}{webhook.path}"

    async def _present(self, webhook: AdmissionWebhook) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = decode_json(await self._client.request("GET", webhook.resource_path))
        except NotFound as error:
            if not error.of_object:
                raise
            return None
        return found

    def _client_config(self, webhook: AdmissionWebhook, known: Mapping[str, Any]) -> dict[str, Any]:
        # A url leads to this process alone, a Service to any of its own.
        others = [base64.b64decode(known.get("caBundle") or "")] if self._service is not None else []
        bundle = merge_bundles(self._authorities, others, now=self._clock.now(), limit=_BUNDLE_LIMIT)
        config: dict[str, Any] = {"caBundle": base64.b64encode(bundle).decode()}
        if self._service is None:
            config["url"] = self._url_of(webhook)
        else:
            namespace, name, port = self._service
            config["service"] = {"namespace": namespace, "name": name, "port": port, "path": webhook.path}
        return config

    async def _deregister(self) -> None:
        for webhook in self._webhooks:
            try:
                present = await self._present(webhook)
                if present is None or _client_config(present).get("url") != self._url_of(webhook):
                    continue  # another process has taken it over
                metadata = present["metadata"]
                preconditions = {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]}
                await self._client.request("DELETE", webhook.resource_path, body={"preconditions": preconditions})
            except (NotFound, Conflict):
                continue
            except KubeError as error:
                self._log.warning(
                    "cannot remove a webhook's registration: writes to its kind fail until it is deleted or served",
                    webhook=webhook.name,
                    error=str(error),
                )

    def _route(self, webhook: AdmissionWebhook) -> Callable[[web.Request], Any]:
        async def answer(request: web.Request) -> web.Response:
            try:
                review = decode_json(await request.read())
                asked = review["request"]
                uid = asked["uid"]
            except (ValueError, KeyError, TypeError):
                return web.json_response({"message": "expected an AdmissionReview"}, status=400)
            try:
                response = webhook.handler(_request(asked))
            except Exception as error:  # noqa: BLE001
                # A bug in a rule must not look like a refusal of the rule, nor take the server down.
                self._log.exception("admission failed", webhook=webhook.name)
                response = AdmissionResponse(False, f"internal error: {error}", 500, "InternalError")
            if self._metrics is not None:
                self._metrics.webhook_requests.labels(webhook.path, "200").inc()
            return web.json_response(
                {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": _response(uid, response)}
            )

        return answer


def _client_config(configuration: Mapping[str, Any] | None) -> dict[str, Any]:
    webhooks = (configuration or {}).get("webhooks") or [{}]
    return webhooks[0].get("clientConfig") or {}


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


def _request(asked: Mapping[str, Any]) -> AdmissionRequest:
    return AdmissionRequest(
        operation=asked["operation"],
        namespace=asked.get("namespace") or "",
        name=asked.get("name") or "",
        object=asked.get("object"),
        old=asked.get("oldObject"),
        user=(asked.get("userInfo") or {}).get("username") or "",
        dry_run=bool(asked.get("dryRun")),
    )


def _response(uid: str, response: AdmissionResponse) -> dict[str, Any]:
    wire: dict[str, Any] = {"uid": uid, "allowed": response.allowed}
    if not response.allowed:
        wire["status"] = {"code": response.code, "reason": response.reason, "message": response.message}
    if response.warnings:
        wire["warnings"] = list(response.warnings)
    if response.allowed and response.patch:
        wire["patchType"] = "JSONPatch"
        wire["patch"] = base64.b64encode(encode_json(list(response.patch))).decode()
    return wire
