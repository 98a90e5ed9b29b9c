"""The server over TCP: TLS with certificates of its own, a bearer token, and a kubeconfig for stock ``kubectl``."""

from __future__ import annotations

import asyncio
import base64
import hmac
import ipaddress
import ssl
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from kaito_ctrl.devcluster.apiserver.errors import StatusError, unauthorized
from kaito_ctrl.devcluster.apiserver.server import ApiServer
from kaito_ctrl.devcluster.apiserver.store import encode
from kaito_ctrl.runtime.clock import Clock
from kaito_ctrl.runtime.errors import TransportError
from kaito_ctrl.runtime.transport import Request, Response

__all__ = ["Endpoint", "serve"]

_BODY_LIMIT = 3 * 1024 * 1024
_LIFETIME = timedelta(days=365)
_OPEN_PATHS = frozenset({"/healthz", "/livez", "/readyz", "/version"})


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a server listens, and what it takes to talk to it."""

    url: str
    ca_pem: str
    token: str
    name: str = "kaito-ctrl-dev"

    def kubeconfig(self) -> dict[str, Any]:
        """A complete kubeconfig, ready to be written as YAML."""
        authority = base64.b64encode(self.ca_pem.encode()).decode()
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "preferences": {},
            "clusters": [{"name": self.name, "cluster": {"server": self.url, "certificate-authority-data": authority}}],
            "users": [{"name": self.name, "user": {"token": self.token}}],
            "contexts": [
                {"name": self.name, "context": {"cluster": self.name, "user": self.name, "namespace": "default"}}
            ],
            "current-context": self.name,
        }


@dataclass(frozen=True, slots=True)
class _Certificates:
    ca_pem: str
    cert_pem: bytes
    key_pem: bytes


def _certificates(host: str, clock: Clock) -> _Certificates:
    """A fresh authority, and a serving certificate of it for *host* and the loopback names."""
    start, end = clock.now() - timedelta(hours=1), clock.now() + _LIFETIME

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority = name("kaito-ctrl development CA")
    usage = {
        "content_commitment": False,
        "key_encipherment": False,
        "data_encipherment": False,
        "key_agreement": False,
        "encipher_only": False,
        "decipher_only": False,
    }
    ca_identifier = x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key())
    ca = (
        x509.CertificateBuilder()
        .subject_name(authority)
        .issuer_name(authority)
        .public_key(ca_key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.KeyUsage(digital_signature=True, key_cert_sign=True, crl_sign=True, **usage), critical=True)
        .add_extension(ca_identifier, critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    names: list[x509.GeneralName] = [
        x509.DNSName("localhost"),
        x509.DNSName("kubernetes"),
        x509.DNSName("kubernetes.default.svc"),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        x509.IPAddress(ipaddress.ip_address("::1")),
    ]
    try:
        address = x509.IPAddress(ipaddress.ip_address(host))
        if address not in names:
            names.append(address)
    except ValueError:
        if host != "localhost":
            names.append(x509.DNSName(host))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name("kube-apiserver"))
        .issuer_name(authority)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(digital_signature=True, key_cert_sign=False, crl_sign=False, **usage), critical=True
        )
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ca_identifier), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    return _Certificates(
        ca.public_bytes(pem).decode(),
        certificate.public_bytes(pem),
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )


def _context(certificates: _Certificates) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # The ssl module only loads keys from files; this one is gone before the first connection.
    with tempfile.TemporaryDirectory() as folder:
        cert, key = Path(folder, "cert.pem"), Path(folder, "key.pem")
        cert.write_bytes(certificates.cert_pem)
        key.touch(mode=0o600)
        key.write_bytes(certificates.key_pem)
        context.load_cert_chain(cert, key)
    return context


class _Handler:
    """Carries requests from aiohttp to the server, and answers back."""

    def __init__(self, server: ApiServer, token: str) -> None:
        self._server = server
        self._expected = f"Bearer {token}".encode()

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        given = request.headers.get("Authorization", "").encode()
        if request.path not in _OPEN_PATHS and not hmac.compare_digest(given, self._expected):
            return self._refuse(unauthorized())
        body = await request.read() if request.body_exists else None
        wanted = Request(
            request.method,
            request.rel_url.raw_path,
            tuple(request.query.items()),
            dict(request.headers),
            body,
        )
        answer = await self._server.handle(wanted, user="kubernetes-admin")
        streaming = request.method == "GET" and (
            "stream=watch" in answer.headers.get("content-type", "") or request.path.endswith("/log")
        )
        if streaming:
            return await self._stream(request, answer)
        return web.Response(status=answer.status, body=await answer.read(), headers=_headers(answer))

    async def _stream(self, request: web.BaseRequest, answer: Response) -> web.StreamResponse:
        async with answer:
            response = web.StreamResponse(status=answer.status, headers=_headers(answer))
            response.enable_chunked_encoding()
            await response.prepare(request)
            try:
                async for chunk in answer.chunks():
                    await response.write(chunk)
                await response.write_eof()
            except (ConnectionResetError, TransportError):
                pass  # the reader went away; leaving the block releases the watch
            return response

    def _refuse(self, error: StatusError) -> web.Response:
        return web.Response(status=error.code, body=encode(error.status()), content_type="application/json")


def _request(message: Any, payload: Any, protocol: Any, writer: Any, task: asyncio.Task[None]) -> web.BaseRequest:
    """aiohttp's own request, but for the size of its body."""
    loop = asyncio.get_running_loop()
    return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=_BODY_LIMIT)


def _headers(answer: Response) -> dict[str, str]:
    return {"Content-Type": "application/json", **{key.title(): value for key, value in answer.headers.items()}}


@asynccontextmanager
async def serve(server: ApiServer, *, host: str = "127.0.0.1", port: int = 0, token: str) -> AsyncIterator[Endpoint]:
    """Listen on *host* and *port* (0: any free one) until the block is left; the server itself stays open.

    Every request but health and version needs *token* as its bearer token.
    """
    certificates = _certificates(host, server.backend.clock)
    runner = web.ServerRunner(
        web.Server(_Handler(server, token), request_factory=_request, access_log=None), shutdown_timeout=1.0
    )
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port, ssl_context=_context(certificates))
        await site.start()
        bound = runner.addresses[0][1]
        shown = f"[{host}]" if ":" in host else host
        yield Endpoint(f"https://{shown}:{bound}", certificates.ca_pem, token)
    finally:
        await runner.cleanup()
