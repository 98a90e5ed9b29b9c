"""A real Kubernetes control plane on loopback: etcd, kube-apiserver and, if present, kube-controller-manager.

The binaries come from a folder, by the convention of controller-runtime's envtest the one that ``KUBEBUILDER_ASSETS``
names; any release from 1.20 on will do. Everything lives in a temporary folder and on free ports, and ends with the
process that started it, however that ends. Each part can be killed, paused and started again on the same port and
data. The methods block; they may be called from any thread.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from kaito_ctrl.runtime.certs import CertificateAuthority
from kaito_ctrl.runtime.clock import system_random
from kaito_ctrl.testing.keeper import Keeper

__all__ = ["API_SERVER", "CONTROLLER_MANAGER", "ETCD", "ControlPlane", "Flags", "assets", "run_control_plane"]

ETCD, API_SERVER, CONTROLLER_MANAGER = "etcd", "kube-apiserver", "kube-controller-manager"
Flags = Mapping[str, str | None]
"""Flags by name, without dashes; ``None`` takes away one that is set by default."""

ISSUER = "https://kubernetes.default.svc"
HOUSEKEEPING = ("garbagecollector", "namespace", "serviceaccount")
"""The controllers without which objects do not live and end as one expects."""
TOKEN_LEEWAY = timedelta(minutes=1)
"""How long after its end a kube-apiserver still takes a service account's token."""

_READY_SECONDS = 60.0
_TOKEN = "admin"


def assets() -> Path | None:
    """The folder that ``KUBEBUILDER_ASSETS`` names; ``None`` without one. Raises ``FileNotFoundError`` for a folder
    that lacks a binary."""
    named = os.environ.get("KUBEBUILDER_ASSETS")
    if not named:
        return None
    folder = Path(named)
    for binary in (ETCD, API_SERVER):
        if not os.access(folder / binary, os.X_OK):
            raise FileNotFoundError(f"KUBEBUILDER_ASSETS={named}: there is no executable {binary} in it")
    return folder


@dataclass
class ControlPlane:
    """A control plane that is ready; made by :func:`run_control_plane`."""

    folder: Path
    """Holds kubeconfig, certificates, keys, data and logs (``kube-apiserver.log``)."""
    url: str
    etcd: str
    version: tuple[int, int] = (0, 0)
    """Major and minor."""
    _commands: dict[str, list[str]] = field(default_factory=dict)
    _running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _keeper: Keeper = field(kw_only=True)
    _authority: CertificateAuthority = field(kw_only=True)
    _accounts: rsa.RSAPrivateKey = field(kw_only=True)

    @property
    def kubeconfig(self) -> Path:
        """That of an administrator (group ``system:masters``)."""
        return self.folder / "kubeconfig"

    @property
    def kubelet_client_ca(self) -> str:
        """Who signed the certificate that the API server shows to kubelets, as PEM."""
        return (self.folder / "kubelet-client-ca.crt").read_text()

    @property
    def controllers(self) -> bool:
        """Whether there is a kube-controller-manager."""
        return CONTROLLER_MANAGER in self._commands

    # -- faults --------------------------------------------------------------------------------------------------

    def kill(self, name: str = API_SERVER) -> None:
        """SIGKILL one part."""
        self._keeper.kill(self._running.pop(name))

    def stop(self, name: str = API_SERVER) -> None:
        """End one part as a shutdown of its machine does."""
        self._keeper.stop(self._running.pop(name))

    def restart(self, name: str = API_SERVER) -> None:
        """Start a part that was ended again, on the same port and data, and wait until it is ready."""
        self._start(name)
        self._wait_ready(name)

    def pause(self, name: str = API_SERVER) -> None:
        """SIGSTOP: connections stay open, and nobody answers."""
        self._running[name].send_signal(signal.SIGSTOP)

    def resume(self, name: str = API_SERVER) -> None:
        """SIGCONT."""
        self._running[name].send_signal(signal.SIGCONT)

    def compact(self) -> None:
        """Forget all history in the storage: what only the storage remembers has expired afterwards."""
        # An unused key's answer carries the current revision.
        head = _post(f"{self.etcd}/v3/kv/range", {"key": "YQ=="})
        _post(f"{self.etcd}/v3/kv/compaction", {"revision": head["header"]["revision"], "physical": True})

    # -- access --------------------------------------------------------------------------------------------------

    def get(self, path: str) -> bytes:
        """What the API server answers to the administrator. Raises ``OSError`` for whatever is not a 200."""
        request = urllib.request.Request(self.url + path, headers={"authorization": f"Bearer {_TOKEN}"})  # noqa: S310
        context = ssl.create_default_context(cafile=str(self.folder / "ca.crt"))
        with urllib.request.urlopen(request, timeout=5, context=context) as answer:  # noqa: S310
            body: bytes = answer.read()
            return body

    def kubeconfig_of(self, user: Mapping[str, Any], *, server: str | None = None) -> dict[str, Any]:
        """A kubeconfig whose ``user`` is *user*: a token, a client certificate, a plugin. *server* stands in for the
        API server's own address, for one who goes through a proxy."""
        cluster = {"server": server or self.url, "certificate-authority": str(self.folder / "ca.crt")}
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "envtest", "cluster": cluster}],
            "users": [{"name": "envtest", "user": dict(user)}],
            "contexts": [{"name": "envtest", "context": {"cluster": "envtest", "user": "envtest"}}],
            "current-context": "envtest",
        }

    def certificate_user(
        self, name: str, groups: Sequence[str] = (), *, lifetime: timedelta = timedelta(days=1)
    ) -> dict[str, str]:
        """The ``user`` of a kubeconfig: *name*, in *groups*, by a client certificate that ends after *lifetime*."""
        status = self.certificate_status(name, groups, lifetime=lifetime)
        return {
            "client-certificate-data": base64.b64encode(status["clientCertificateData"].encode()).decode(),
            "client-key-data": base64.b64encode(status["clientKeyData"].encode()).decode(),
        }

    def certificate_status(self, name: str, groups: Sequence[str] = (), *, lifetime: timedelta) -> dict[str, str]:
        """The same as the ``status`` of an ExecCredential, which is what plugins answer with."""
        issued = self._authority.issue_client(name, groups, now=datetime.now(UTC), lifetime=lifetime)
        return {"clientCertificateData": issued.certificate.decode(), "clientKeyData": issued.key.decode()}

    def service_account_token(self, namespace: str, name: str, uid: str, *, lifetime: timedelta) -> str:
        """A token of that service account, such as a pod is given, that the server refuses after *lifetime*.

        It is signed here, because the server itself gives none for less than ten minutes; its claim ``exp`` is earlier
        by the minute that servers grant. Refusal may come ten seconds late: servers remember a success that long.
        """
        now = datetime.now(UTC)
        claims = {
            "iss": ISSUER,
            "aud": [ISSUER],
            "sub": f"system:serviceaccount:{namespace}:{name}",
            "iat": int((now - TOKEN_LEEWAY).timestamp()),
            "nbf": int((now - TOKEN_LEEWAY).timestamp()),
            "exp": int((now + lifetime - TOKEN_LEEWAY).timestamp()),
            "kubernetes.io": {"namespace": namespace, "serviceaccount": {"name": name, "uid": uid}},
        }
        signed = ".".join(_url64(json.dumps(part).encode()) for part in ({"alg": "RS256", "typ": "JWT"}, claims))
        signature = self._accounts.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{signed}.{_url64(signature)}"

    # -- processes -----------------------------------------------------------------------------------------------

    def _start(self, name: str) -> None:
        self._running[name] = self._keeper.start(self._commands[name], log=self.folder / f"{name}.log")

    def _wait_ready(self, name: str) -> None:
        """Raises ``RuntimeError`` with the end of the log when the part has ended, or takes too long."""
        probes: dict[str, Callable[[], object]] = {
            ETCD: lambda: _post(f"{self.etcd}/v3/kv/range", {"key": "YQ=="}),
            API_SERVER: lambda: self.get("/readyz"),
            CONTROLLER_MANAGER: lambda: self.get("/api/v1/namespaces/default/serviceaccounts/default"),
        }
        process = self._running[name]
        deadline = time.monotonic() + _READY_SECONDS
        while True:
            try:
                probes[name]()
            except OSError as error:
                status = process.poll()
                if status is not None or time.monotonic() > deadline:
                    tail = (self.folder / f"{name}.log").read_text(errors="replace")[-3000:]
                    raise RuntimeError(f"{name} did not get ready ({error}; exit status {status}):\n{tail}") from error
                time.sleep(0.05)
            else:
                return


@contextmanager
def run_control_plane(
    binaries: Path,
    *,
    api_server: Flags | None = None,
    controllers: Sequence[str] = HOUSEKEEPING,
    controller_manager: Flags | None = None,
) -> Iterator[ControlPlane]:
    """Start the *binaries*; stop them at the end of the block.

    *api_server* and *controller_manager* override flags; *controllers* says which ones the latter runs (``"*"``: all),
    without any it is not started. Raises ``RuntimeError`` with the end of its log when a part does not start.
    """
    with Keeper("kaito-ctrl-envtest-") as keeper:
        home = keeper.folder
        client, peer, secure = _free_ports(3)
        authority, accounts = _keys(home)
        plane = ControlPlane(
            home,
            f"https://127.0.0.1:{secure}",
            f"http://127.0.0.1:{client}",
            _keeper=keeper,
            _authority=authority,
            _accounts=accounts,
        )
        plane.kubeconfig.touch(mode=0o600)
        plane.kubeconfig.write_text(json.dumps(plane.kubeconfig_of({"token": _TOKEN})))

        def start(name: str, flags: Flags, overrides: Flags | None) -> None:
            plane._commands[name] = [
                str(binaries / name),
                *(f"--{flag}={value}" for flag, value in {**flags, **(overrides or {})}.items() if value is not None),
            ]
            plane._start(name)

        start(ETCD, _etcd_flags(home, plane.etcd, peer), None)
        start(API_SERVER, _api_server_flags(home, plane.etcd, secure), api_server)
        plane._wait_ready(API_SERVER)
        known = json.loads(plane.get("/version"))
        plane.version = (int(known["major"]), int(known["minor"].rstrip("+")))
        if controllers and (binaries / CONTROLLER_MANAGER).exists():
            start(CONTROLLER_MANAGER, _controller_flags(plane, controllers), controller_manager)
            if {"serviceaccount", "*"} & set(controllers):
                plane._wait_ready(CONTROLLER_MANAGER)
        yield plane


def _etcd_flags(home: Path, url: str, peer: int) -> Flags:
    return {
        "data-dir": str(home / "etcd"),
        "listen-client-urls": url,
        "advertise-client-urls": url,
        "listen-peer-urls": f"http://127.0.0.1:{peer}",
        "unsafe-no-fsync": "true",
    }


def _api_server_flags(home: Path, etcd: str, port: int) -> Flags:
    return {
        "etcd-servers": etcd,
        "secure-port": str(port),
        "bind-address": "127.0.0.1",
        # What the Service `kubernetes` leads to may not be a loopback address, and nobody goes there. Without it the
        # server looks for a default route, and ends on a machine that has none.
        "advertise-address": "192.0.2.1",
        "cert-dir": str(home / "certs"),
        "tls-cert-file": str(home / "server.crt"),
        "tls-private-key-file": str(home / "server.key"),
        "client-ca-file": str(home / "ca.crt"),
        "service-account-issuer": ISSUER,
        "service-account-signing-key-file": str(home / "accounts.key"),
        "service-account-key-file": str(home / "accounts.pub"),
        "token-auth-file": str(home / "tokens"),
        "kubelet-client-certificate": str(home / "kubelet-client.crt"),
        "kubelet-client-key": str(home / "kubelet-client.key"),
        "authorization-mode": "RBAC",
        "service-cluster-ip-range": "10.0.0.0/24",
        "allow-privileged": "true",
    }


def _controller_flags(plane: ControlPlane, controllers: Sequence[str]) -> Flags:
    flags: dict[str, str | None] = {
        "kubeconfig": str(plane.kubeconfig),
        "service-account-private-key-file": str(plane.folder / "accounts.key"),
        "root-ca-file": str(plane.folder / "ca.crt"),
        "leader-elect": "false",
        "secure-port": "0",
        "controllers": ",".join(controllers),
        "kube-api-qps": "500",
        "kube-api-burst": "1000",
    }
    if plane.version < (1, 24):
        flags["port"] = "0"  # older ones also listen in the clear, on a port of everybody's
    return flags


def _free_ports(count: int) -> list[int]:
    """Ports that are free, and stay so while a part is down: none that the system gives to outgoing connections."""
    rng = system_random()
    found: list[int] = []
    while len(found) < count:
        port = rng.randrange(10_000, 32_000)
        with socket.socket() as trial:
            try:
                trial.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in found:
            found.append(port)
    return found


def _keys(home: Path) -> tuple[CertificateAuthority, rsa.RSAPrivateKey]:
    now = datetime.now(UTC)
    authority = CertificateAuthority("envtest", now=now)
    serving = authority.issue(["127.0.0.1", "localhost"], now=now)
    # Of another authority than users': whoever holds one of its certificates may run commands on every node.
    kubelets = CertificateAuthority("envtest-kubelets", now=now)
    asking = kubelets.issue_client("kube-apiserver", now=now)
    accounts = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = serialization.Encoding.PEM
    private = accounts.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    public = accounts.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    for name, content in (
        ("ca.crt", authority.pem),
        ("server.crt", serving.certificate),
        ("server.key", serving.key),
        ("kubelet-client-ca.crt", kubelets.pem),
        ("kubelet-client.crt", asking.certificate),
        ("kubelet-client.key", asking.key),
        ("accounts.key", private),
        ("accounts.pub", public),
        ("tokens", f"{_TOKEN},admin,1,system:masters\n".encode()),
    ):
        (home / name).touch(mode=0o600)
        (home / name).write_bytes(content)
    return authority, accounts


def _post(url: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode())  # noqa: S310 - the caller's, on loopback
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
        return json.load(answer)


def _url64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
