"""An admission webhook over HTTPS: records what it is asked, answers what it is told."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import msgspec
from aiohttp import web

from kaito_ctrl.runtime.certs import CertificateAuthority
from tests.conformance.wire import Obj

__all__ = ["Answer", "Hook", "patching", "serve_hook"]

Answer = Callable[[Obj], Obj]
PROBE = "probe"


def patching(*operations: Obj) -> Answer:
    """An answer that allows, with a JSON patch."""
    text = base64.b64encode(msgspec.json.encode(list(operations))).decode()
    return lambda request: {"allowed": True, "patchType": "JSONPatch", "patch": text}


class Hook:
    """``answer`` gets the request of a review and makes its response. Probes are allowed and not recorded."""

    def __init__(self, ca: bytes) -> None:
        self.url = ""
        self.ca_bundle = base64.b64encode(ca).decode()
        self.asked: list[Obj] = []
        self.probed = False
        self.answer: Answer = lambda request: {"allowed": True}

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        asked = msgspec.json.decode(await request.read())["request"]
        if asked["name"] == PROBE:
            self.probed = True
            response: Obj = {"allowed": True}
        else:
            self.asked.append(asked)
            response = self.answer(asked)
        body = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"}
        return web.json_response({**body, "response": {"uid": asked["uid"], **response}})

    def configuration(self, name: str, namespace: str, /, **more: Any) -> Obj:
        """For config maps of *namespace*; *more* replaces parts of the webhook."""
        rule = {"apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"], "operations": ["*"]}
        webhook = {
            "name": "hook.conformance.kaito.sh",
            "clientConfig": {"url": f"{self.url}/check", "caBundle": self.ca_bundle},
            "rules": [rule],
            "sideEffects": "None",
            "admissionReviewVersions": ["v1"],
            "namespaceSelector": {"matchLabels": {"hooked": namespace}},
            **more,
        }
        return {"metadata": {"name": name}, "webhooks": [webhook]}


@asynccontextmanager
async def serve_hook() -> AsyncIterator[Hook]:
    now = datetime.now(UTC)
    authority = CertificateAuthority("conformance hook", now=now)
    hook = Hook(authority.pem)
    runner = web.ServerRunner(web.Server(hook.handle), shutdown_timeout=1.0)
    await runner.setup()
    context = authority.issue(["127.0.0.1"], now=now).server_context()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        hook.url = f"https://127.0.0.1:{runner.addresses[0][1]}"
        yield hook
    finally:
        await runner.cleanup()
