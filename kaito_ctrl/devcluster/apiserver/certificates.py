"""Certificates for one process: an authority of its own, and a serving certificate for the loopback names."""

from __future__ import annotations

import ssl
from dataclasses import dataclass

from kaito_ctrl.runtime.certs import CertificateAuthority, IssuedCertificate
from kaito_ctrl.runtime.clock import Clock

__all__ = ["Certificates", "issue_certificates", "server_context"]

_NAMES = ("localhost", "kubernetes", "kubernetes.default.svc", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Certificates:
    """The authority to trust, as PEM text, and what a server presents."""

    ca_pem: str
    serving: IssuedCertificate


def issue_certificates(host: str, clock: Clock) -> Certificates:
    """A fresh authority, and a serving certificate of it for *host* and the loopback names."""
    now = clock.now()
    authority = CertificateAuthority("kaito-ctrl development CA", now=now)
    names = list(dict.fromkeys((*_NAMES, host)))
    return Certificates(authority.pem.decode(), authority.issue(names, now=now))


def server_context(certificates: Certificates) -> ssl.SSLContext:
    """The TLS side of a server that presents them."""
    return certificates.serving.server_context()
