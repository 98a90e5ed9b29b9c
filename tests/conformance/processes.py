"""A real Kubernetes API server on loopback: etcd, kube-apiserver and, if present, kube-controller-manager.

The binaries come from the folder that ``KUBEBUILDER_ASSETS`` names. Only flags that servers from 1.20 on know are
used. Everything lives in a temporary folder, and dies with the process that started it, however that ends.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import ssl
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from kaito_ctrl.runtime.certs import CertificateAuthority

__all__ = ["RealServer", "assets", "run_real_server"]

_TOKEN = "conformance"
_READY_SECONDS = 60.0
_PR_SET_PDEATHSIG = 1


def assets() -> Path | None:
    """The folder with the binaries; ``None`` without one. Raises when it is named but incomplete."""
    named = os.environ.get("KUBEBUILDER_ASSETS")
    if not named:
        return None
    folder = Path(named)
    for binary in ("etcd", "kube-apiserver"):
        if not os.access(folder / binary, os.X_OK):
            raise FileNotFoundError(f"KUBEBUILDER_ASSETS={named}: there is no executable {binary} in it")
    return folder


@dataclass(frozen=True, slots=True)
class RealServer:
    """A server that is ready. ``version`` is (major, minor)."""

    kubeconfig: Path
    etcd: str
    version: tuple[int, int]
    controllers: bool
    """Whether garbage is collected, namespaces are emptied and service accounts are made."""

    def compact(self) -> None:
        """Forget all history in the storage: what only the storage remembers has expired afterwards."""
        # An unused key's answer carries the current revision.
        head = _post(f"{self.etcd}/v3/kv/range", {"key": "YQ=="})
        _post(f"{self.etcd}/v3/kv/compaction", {"revision": head["header"]["revision"], "physical": True})


@contextmanager
def run_real_server(folder: Path) -> Iterator[RealServer]:
    """Start the binaries of *folder*; stop them at the end of the block."""
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kaito-ctrl-conformance-")))
        client, peer, secure = _free_ports(3)
        etcd, url = f"http://127.0.0.1:{client}", f"https://127.0.0.1:{secure}"
        _keys(home)

        def start(name: str, *flags: str) -> subprocess.Popen[bytes]:
            return stack.enter_context(_process(home, folder / name, flags))

        start(
            "etcd",
            f"--data-dir={home / 'etcd'}",
            f"--listen-client-urls={etcd}",
            f"--advertise-client-urls={etcd}",
            f"--listen-peer-urls=http://127.0.0.1:{peer}",
            "--unsafe-no-fsync",
        )
        server = start(
            "kube-apiserver",
            f"--etcd-servers={etcd}",
            f"--secure-port={secure}",
            "--bind-address=127.0.0.1",
            f"--cert-dir={home / 'certs'}",
            f"--tls-cert-file={home / 'server.crt'}",
            f"--tls-private-key-file={home / 'server.key'}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-signing-key-file={home / 'accounts.key'}",
            f"--service-account-key-file={home / 'accounts.pub'}",
            f"--token-auth-file={home / 'tokens'}",
            "--authorization-mode=RBAC",
            "--service-cluster-ip-range=10.0.0.0/24",
            "--allow-privileged=true",
        )
        kubeconfig = home / "kubeconfig"
        kubeconfig.write_text(json.dumps(_kubeconfig(url, home / "ca.crt")))
        context = ssl.create_default_context(cafile=str(home / "ca.crt"))

        def get(path: str) -> bytes:
            request = urllib.request.Request(url + path, headers={"authorization": f"Bearer {_TOKEN}"})
            with urllib.request.urlopen(request, timeout=5, context=context) as answer:
                body: bytes = answer.read()
                return body

        _wait(server, home, lambda: get("/readyz"))
        known = json.loads(get("/version"))
        version = (int(known["major"]), int(known["minor"].rstrip("+")))
        controllers = (folder / "kube-controller-manager").exists()
        if controllers:
            # Before 1.24 it also listens in the clear, on a port of everybody's.
            old = ["--port=0"] if version < (1, 24) else []
            manager = start(
                "kube-controller-manager",
                f"--kubeconfig={kubeconfig}",
                f"--service-account-private-key-file={home / 'accounts.key'}",
                f"--root-ca-file={home / 'ca.crt'}",
                "--leader-elect=false",
                "--secure-port=0",
                "--controllers=garbagecollector,namespace,serviceaccount",
                "--kube-api-qps=500",
                "--kube-api-burst=1000",
                *old,
            )
            _wait(manager, home, lambda: get("/api/v1/namespaces/default/serviceaccounts/default"))
        yield RealServer(kubeconfig, etcd, version, controllers)


@contextmanager
def _process(home: Path, binary: Path, flags: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    libc = ctypes.CDLL(None, use_errno=True)

    def die_with_parent() -> None:
        # A killed pytest runs no clean-up: the kernel does it then.
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    with (home / f"{binary.name}.log").open("wb") as log:
        process = subprocess.Popen(
            [str(binary), *flags],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=home,
            preexec_fn=die_with_parent,
        )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(3)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(process: subprocess.Popen[bytes], home: Path, probe: Callable[[], object]) -> None:
    """Until *probe* does not raise. Raises with the end of the log when the process has ended, or takes too long."""
    deadline = time.monotonic() + _READY_SECONDS
    while True:
        try:
            probe()
        except (OSError, urllib.error.URLError) as error:
            status = process.poll()
            if status is not None or time.monotonic() > deadline:
                name = Path(str(process.args[0])).name  # type: ignore[index]
                tail = (home / f"{name}.log").read_text(errors="replace")[-3000:]
                raise RuntimeError(f"{name} did not get ready ({error}; exit status {status}):\n{tail}") from error
            time.sleep(0.05)
        else:
            return


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _keys(home: Path) -> None:
    now = datetime.now(UTC)
    authority = CertificateAuthority("conformance", now=now)
    serving = authority.issue(["127.0.0.1", "localhost"], now=now)
    accounts = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = serialization.Encoding.PEM
    private = accounts.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    public = accounts.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    for name, content in (
        ("ca.crt", authority.pem),
        ("server.crt", serving.certificate),
        ("server.key", serving.key),
        ("accounts.key", private),
        ("accounts.pub", public),
        ("tokens", f"{_TOKEN},admin,1,system:masters\n".encode()),
    ):
        (home / name).touch(mode=0o600)
        (home / name).write_bytes(content)


def _kubeconfig(url: str, ca: Path) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": url, "certificate-authority": str(ca)}}],
        "users": [{"name": "u", "user": {"token": _TOKEN}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "c",
    }


def _post(url: str, body: dict[str, Any]) -> Any:
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode()), timeout=10) as answer:
        return json.load(answer)
