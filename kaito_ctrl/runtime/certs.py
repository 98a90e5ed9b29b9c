"""A certificate authority for one process, and the certificates that it signs: no external tool, no Secret."""

from __future__ import annotations

import ipaddress
import ssl
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

__all__ = ["CertificateAuthority", "IssuedCertificate", "merge_bundles"]

_CLOCK_SKEW = timedelta(hours=1)
_UNIT_LENGTH = 64  # X.520's upper bound


@dataclass(frozen=True, slots=True)
class IssuedCertificate:
    """A certificate with its key, as PEM."""

    certificate: bytes
    key: bytes

    def server_context(self) -> ssl.SSLContext:
        """For a server that presents this certificate, TLS 1.2 or later."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.load_into(context)
        return context

    def load_into(self, context: ssl.SSLContext) -> None:
        """Have the server of *context* present this certificate from its next connection on."""
        # The ssl module reads certificates from files alone; the key is on disk for the length of this call.
        with tempfile.TemporaryDirectory(prefix="kaito-ctrl-") as folder:
            path = Path(folder) / "tls.pem"
            path.touch(mode=0o600)
            path.write_bytes(self.key + self.certificate)
            context.load_cert_chain(path)


class CertificateAuthority:
    """Signs certificates of servers and of clients; ``pem`` is what the other side has to trust.

    *unit* says whose authority it is, where several of one name are trusted at the same time.
    """

    def __init__(self, name: str, *, now: datetime, lifetime: timedelta = timedelta(days=3650), unit: str = "") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        owner = [x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit[:_UNIT_LENGTH])] if unit else []
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name), *owner])
        public = self._key.public_key()
        identifier = x509.SubjectKeyIdentifier.from_public_key(public)
        usage = x509.KeyUsage(
            digital_signature=True,
            key_cert_sign=True,
            crl_sign=True,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            encipher_only=False,
            decipher_only=False,
        )
        self._certificate = (
            x509.CertificateBuilder()
            .subject_name(self._name)
            .issuer_name(self._name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _CLOCK_SKEW)
            .not_valid_after(now + lifetime)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(identifier, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        self.pem = self._certificate.public_bytes(serialization.Encoding.PEM)

    def issue(
        self, hosts: Sequence[str], *, now: datetime, lifetime: timedelta = timedelta(days=365)
    ) -> IssuedCertificate:
        """A certificate for *hosts*: names and IP addresses."""
        names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
        subject = [x509.NameAttribute(NameOID.COMMON_NAME, hosts[0])]
        return self._sign(subject, ExtendedKeyUsageOID.SERVER_AUTH, now, lifetime, names)

    def issue_client(
        self, user: str, groups: Sequence[str] = (), *, now: datetime, lifetime: timedelta = timedelta(days=365)
    ) -> IssuedCertificate:
        """A certificate that says to an API server: this is *user*, of those *groups*."""
        members = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
        subject = [x509.NameAttribute(NameOID.COMMON_NAME, user), *members]
        return self._sign(subject, ExtendedKeyUsageOID.CLIENT_AUTH, now, lifetime)

    def _sign(
        self,
        subject: Sequence[x509.NameAttribute[str]],
        usage: x509.ObjectIdentifier,
        now: datetime,
        lifetime: timedelta,
        *extensions: x509.ExtensionType,
    ) -> IssuedCertificate:
        key = ec.generate_private_key(ec.SECP256R1())
        public = key.public_key()
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name(subject))
            .issuer_name(self._name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _CLOCK_SKEW)
            .not_valid_after(now + lifetime)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        return IssuedCertificate(
            certificate.public_bytes(serialization.Encoding.PEM),
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
        )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def merge_bundles(
    ours: Sequence[bytes], present: Sequence[bytes], *, now: datetime, limit: int, unit: str = ""
) -> bytes:
    """One CA bundle of *ours* and the youngest of *present* (PEM all of them), at most *limit* certificates.

    What has expired is left out, and what is no certificate; and what is of the same *unit* as ours, and not ours: that
    was an earlier life of this process. The same set always gives the same bytes.
    """
    kept = {_pem(each): each for pem in ours for each in _valid(pem, now)}
    others = [each for pem in present for each in _valid(pem, now) if not unit or _unit(each) != unit[:_UNIT_LENGTH]]
    for certificate in sorted(others, key=lambda each: each.not_valid_before_utc, reverse=True):
        if len(kept) < limit:
            kept.setdefault(_pem(certificate), certificate)
    by_age = sorted(kept.items(), key=lambda item: (item[1].not_valid_before_utc, item[0]))
    return b"".join(pem for pem, _ in by_age)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _unit(certificate: x509.Certificate) -> str:
    units = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)
    return str(units[0].value) if units else ""


def _valid(bundle: bytes, now: datetime) -> list[x509.Certificate]:
    try:
        certificates = x509.load_pem_x509_certificates(bundle)
    except ValueError:
        return []
    return [each for each in certificates if each.not_valid_after_utc > now]
