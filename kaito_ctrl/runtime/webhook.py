"""Admission webhooks: a TLS server with its own certificates, which registers itself and says yes or no to writes.

A handler is a plain function from an :class:`AdmissionRequest` to an :class:`AdmissionResponse`; it gets raw
objects, as admission comes before the schema has had its say. The server writes the webhook configurations with its
certificate authority in them, so that nothing has to be set up beside it.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import structlog
from aiohttp import web

from kaito_api.meta import Resource
from kaito_ctrl.runtime.certs import CertificateAuthority
from kaito_ctrl.runtime.client import Client
from kaito_ctrl.runtime.clock import Clock
from kaito_ctrl.runtime.codec import decode_json, encode_json
from kaito_ctrl.runtime.lifetime import Lifetime
from kaito_ctrl.runtime.metrics import Metrics

__all__ = ["AdmissionRequest", "AdmissionResponse", "AdmissionServer", "AdmissionWebhook"]

_BODY_LIMIT = 7 * 2**20
"""What controller-runtime allows: an object is 1.5 MiB at most, and a review holds two."""


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

    def configuration(self, client_config: Mapping[str, Any]) -> dict[str, Any]:
        """The webhook configuration object that has the API server call it at *client_config*."""
        kind = "MutatingWebhookConfiguration" if self.mutating else "ValidatingWebhookConfiguration"
        return {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": kind,
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
    """Serves webhooks. Without *service* the API server is told to call ``https://host:port``; with one, that Service
    (namespace, name, port), which has to lead here."""

    def __init__(
        self,
        client: Client,
        webhooks: Sequence[AdmissionWebhook],
        *,
        clock: Clock,
        metrics: Metrics | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        service: tuple[str, str, int] | None = None,
    ) -> None:
        self._client = client
        self._webhooks = tuple(webhooks)
        self._clock = clock
        self._metrics = metrics
        self._host = host
        self._port = port
        self._service = service
        self._log = structlog.get_logger("kaito_ctrl").bind(component="webhook")

    async def run(self, lifetime: Lifetime) -> None:
        """Started once the API server has been told where to call."""
        now = self._clock.now()
        authority = CertificateAuthority("kaito-ctrl-webhook", now=now)
        hosts = [self._host]
        if self._service is not None:
            namespace, name, _ = self._service
            hosts = [f"{name}.{namespace}.svc", f"{name}.{namespace}.svc.cluster.local", name]
        certificate = authority.issue(hosts, now=now)
        app = web.Application(client_max_size=_BODY_LIMIT)
        for webhook in self._webhooks:
            app.router.add_post(webhook.path, self._route(webhook))
        runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=2.0)
        await runner.setup()
        try:
            site = web.TCPSite(runner, self._host, self._port, ssl_context=certificate.server_context())
            await site.start()
            port = runner.addresses[0][1]
            for webhook in self._webhooks:
                await self._register(webhook, authority.pem, port)
            lifetime.started()
            await lifetime.wait_stopping()
        finally:
            await runner.cleanup()

    async def _register(self, webhook: AdmissionWebhook, ca: bytes, port: int) -> None:
        config: dict[str, Any] = {"caBundle": base64.b64encode(ca).decode()}
        if self._service is None:
            config["url"] = f"https://{self._host}:{port}{webhook.path}"
        else:
            namespace, name, service_port = self._service
            config["service"] = {
                "namespace": namespace,
                "name": name,
                "port": service_port,
                "path": webhook.path,
            }
        wire = webhook.configuration(config)
        plural = wire["kind"].lower() + "s"
        await self._client.request(
            "PATCH",
            f"/apis/admissionregistration.k8s.io/v1/{plural}/{webhook.name}",
            query=(("fieldManager", self._client.field_manager), ("force", "true")),
            body=wire,
            headers={"content-type": "application/apply-patch+yaml"},
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
