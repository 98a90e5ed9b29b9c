"""An API server for a test: the embedded one in milliseconds, or a real one in seconds, behind the same few methods.

::

    @pytest.fixture(params=["embedded", "real"])
    async def env(request):
        async with envtest(request.param, crds=[Path("manifests/crds")]) as env:
            yield env

    async def test_my_controller(env):
        cluster = await env.cluster()
        manager = Manager(cluster)
        manager.add(MyController())
        ...

There are no nodes, and no controllers but those that collect garbage, empty namespaces and make service accounts:
nothing that a test writes is touched by anybody else. For pods that run there is
:class:`kaito_ctrl.devcluster.cluster.DevCluster`. Everything is gone after the block, and also when the process is
killed in it.

A real server takes a few seconds to start. To share one between tests, have a session fixture run
:func:`~kaito_ctrl.testing.controlplane.run_control_plane`, and pass that instead of ``"real"``.
"""

from __future__ import annotations

import asyncio
import json
import random
import secrets
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import yaml

from kaito_ctrl.devcluster.apiserver import ApiServer, Endpoint, serve
from kaito_ctrl.devcluster.apiserver.gc import GarbageCollector
from kaito_ctrl.devcluster.apiserver.identity import ANONYMOUS
from kaito_ctrl.devcluster.apiserver.identity import User as Identity
from kaito_ctrl.devcluster.apiserver.namespaces import NamespaceController
from kaito_ctrl.devcluster.apiserver.tokens import ISSUER
from kaito_ctrl.runtime import Client, Cluster
from kaito_ctrl.runtime.clock import Clock
from kaito_ctrl.runtime.codec import decode_json
from kaito_ctrl.runtime.connect import connect
from kaito_ctrl.runtime.errors import AlreadyExists, NotFound
from kaito_ctrl.runtime.transport import Request, Response, Transport
from kaito_ctrl.testing.controlplane import ControlPlane, Flags, assets, run_control_plane
from kaito_ctrl.testing.keeper import Keeper

__all__ = ["Environment", "ServiceAccount", "User", "envtest"]

_CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
_RBAC = "rbac.authorization.k8s.io"
_ESTABLISH_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class User:
    """Somebody whom the API server knows, by the ``credentials`` that are the ``user`` of a kubeconfig."""

    name: str
    credentials: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class ServiceAccount:
    """An identity for what runs in a cluster; :meth:`Environment.token_of` makes a user of it."""

    namespace: str
    name: str
    uid: str


class Environment:
    """An API server, and ways into it. ``client`` is an administrator's, ``version`` is (major, minor)."""

    def __init__(
        self,
        folder: Path,
        stack: AsyncExitStack,
        transport: Transport,
        *,
        control_plane: ControlPlane | None,
        server: ApiServer | None,
    ) -> None:
        self.client = Client(transport, "envtest")
        self.control_plane = control_plane
        """The real one, to be killed, paused and started again; ``None`` if the server is embedded."""
        self._folder = folder
        self._stack = stack
        self._server = server
        self._endpoint: Endpoint | None = None
        self._files = 0

    @property
    def version(self) -> tuple[int, int]:
        return self.control_plane.version if self.control_plane is not None else (1, 32)

    def compact(self) -> None:
        """Forget all history: watches and continue tokens from before answer 410 from here on."""
        if self.control_plane is not None:
            self.control_plane.compact()
        elif self._server is not None:
            self._server.compact()

    async def transport(self, user: User | None = None, *, clock: Clock | None = None) -> Transport:
        """A transport of its own for *user* (default: an administrator), closed at the end of the block.

        *clock* is for the expiry of credentials.
        """
        if self._server is not None:
            if user is None:
                return self._server.transport()
            return _Bearer(self._server.transport(user=ANONYMOUS), user.credentials["token"])
        made = await connect(kubeconfig=str(await self.kubeconfig(user)), clock=clock)
        self._stack.push_async_callback(made.aclose)
        return made

    async def cluster(self, user: User | None = None, **options: Any) -> Cluster:
        """A :class:`~kaito_ctrl.runtime.Cluster` over a transport of its own; *options* are the class's."""
        return Cluster(await self.transport(user, clock=options.get("clock")), **options)

    async def kubeconfig(self, user: User | None = None) -> Path:
        """A kubeconfig, for kubectl and for operators that run as processes; it goes with the block.

        The embedded server listens from the first call on.
        """
        if self.control_plane is not None:
            if user is None:
                return self.control_plane.kubeconfig
            content = self.control_plane.kubeconfig_of(user.credentials)
        else:
            endpoint = await self._listening()
            content = (endpoint if user is None else replace(endpoint, token=user.credentials["token"])).kubeconfig()
        self._files += 1
        path = self._folder / f"kubeconfig-{self._files}"
        path.touch(mode=0o600)
        path.write_text(json.dumps(content))
        return path

    async def _listening(self) -> Endpoint:
        assert self._server is not None
        if self._endpoint is None:
            listening = serve(self._server, token=secrets.token_urlsafe(24))
            self._endpoint = await self._stack.enter_async_context(listening)
        return self._endpoint

    async def add_user(
        self,
        name: str,
        groups: Sequence[str] = (),
        *,
        rules: Sequence[Mapping[str, Any]] = (),
        namespace: str | None = None,
    ) -> User:
        """Somebody who may do what the RBAC *rules* say, in one *namespace* or in all, and what *groups* may.

        To nobody else anything is allowed, on either server, but what is to everybody.
        """
        if rules:
            await self._grant({"kind": "User", "name": name, "apiGroup": _RBAC}, name, rules, namespace)
        if self.control_plane is not None:
            return User(name, self.control_plane.certificate_user(name, groups))
        assert self._server is not None
        token = secrets.token_urlsafe(24)
        self._server.tokens.add(token, Identity.authenticated(name, *groups))
        return User(name, {"token": token})

    async def add_service_account(
        self, namespace: str, name: str, *, rules: Sequence[Mapping[str, Any]] = ()
    ) -> ServiceAccount:
        """A service account that may do what the RBAC *rules* say, in all namespaces."""
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}"
        body = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}}
        made = decode_json(await self._apply(path, body))
        if rules:
            subject = {"kind": "ServiceAccount", "namespace": namespace, "name": name}
            await self._grant(subject, f"{namespace}:{name}", rules, None)
        return ServiceAccount(namespace, name, made["metadata"]["uid"])

    def token_of(self, account: ServiceAccount, *, lifetime: timedelta = timedelta(hours=1)) -> User:
        """That account with a token such as a pod is given, which the server refuses after *lifetime* (a real one up to
        ten seconds later: it remembers a success that long)."""
        name = f"system:serviceaccount:{account.namespace}:{account.name}"
        if self.control_plane is not None:
            made = self.control_plane.service_account_token(
                account.namespace, account.name, account.uid, lifetime=lifetime
            )
            return User(name, {"token": made})
        assert self._server is not None
        metadata = {"namespace": account.namespace, "name": account.name, "uid": account.uid}
        made = self._server.tokens.issue({"metadata": metadata}, (ISSUER,), int(lifetime.total_seconds()), {})
        return User(name, {"token": made})

    async def _grant(
        self, subject: Mapping[str, str], name: str, rules: Sequence[Mapping[str, Any]], namespace: str | None
    ) -> None:
        role = {"name": f"envtest:{name}"}
        reference = {"kind": "ClusterRole", "apiGroup": _RBAC, **role}
        binding = "ClusterRoleBinding" if namespace is None else "RoleBinding"
        place = f"/apis/{_RBAC}/v1" if namespace is None else f"/apis/{_RBAC}/v1/namespaces/{namespace}"
        for path, body in (
            (f"/apis/{_RBAC}/v1/clusterroles", {"kind": "ClusterRole", "rules": [dict(rule) for rule in rules]}),
            (f"{place}/{binding.lower()}s", {"kind": binding, "roleRef": reference, "subjects": [dict(subject)]}),
        ):
            await self._apply(f"{path}/{role['name']}", {"apiVersion": f"{_RBAC}/v1", "metadata": role, **body})

    async def install(self, crds: Iterable[Mapping[str, Any] | Path]) -> None:
        """Have the server serve these definitions: bodies, YAML files, or folders of such. Returns once it does.

        Safe to repeat. Raises ``TimeoutError`` when a kind is not served in time, e.g. for a conflict of names.
        """
        bodies = [body for each in crds for body in _read(each)]
        for crd in bodies:
            await self._define(crd)
        async with asyncio.timeout(_ESTABLISH_SECONDS):
            for crd in bodies:
                for version in crd["spec"]["versions"]:
                    if version["served"]:
                        await self._served(f"/apis/{crd['spec']['group']}/{version['name']}", crd)

    async def _define(self, crd: Mapping[str, Any]) -> None:
        # Not by server-side apply: what an old server does not know (CEL) it refuses there, and drops here.
        try:
            await self.client.request("POST", _CRDS, body=crd)
        except AlreadyExists:
            path = f"{_CRDS}/{crd['metadata']['name']}"
            present = decode_json(await self.client.request("GET", path))
            version = {"resourceVersion": present["metadata"]["resourceVersion"]}
            await self.client.request("PUT", path, body={**crd, "metadata": {**crd["metadata"], **version}})

    async def _served(self, group: str, crd: Mapping[str, Any]) -> None:
        while True:
            try:
                await self.client.request("GET", f"{group}/{crd['spec']['names']['plural']}", query=(("limit", "1"),))
            except NotFound:
                # It is established a little before every part of a server knows it, and nothing tells when.
                await asyncio.sleep(0.05)
            else:
                return

    async def _apply(self, path: str, body: Mapping[str, Any]) -> bytes:
        return await self.client.request(
            "PATCH",
            path,
            query=(("fieldManager", "envtest"), ("force", "true")),
            body=body,
            headers={"content-type": "application/apply-patch+yaml"},
        )


@asynccontextmanager
async def envtest(
    server: Literal["embedded", "real"] | ControlPlane = "embedded",
    *,
    crds: Iterable[Mapping[str, Any] | Path] = (),
    binaries: Path | None = None,
    flags: Flags | None = None,
    clock: Clock | None = None,
    rng: random.Random | None = None,
) -> AsyncIterator[Environment]:
    """An API server that serves *crds*, for the length of the block.

    *server* is ``"embedded"``, ``"real"``, or a real one that runs already and will go on. *binaries* is the folder
    with the real one's (default: the one that ``KUBEBUILDER_ASSETS`` names), *flags* override those of its
    kube-apiserver; *clock* and *rng* are the embedded one's. Raises ``FileNotFoundError`` when there are no binaries.
    """
    async with AsyncExitStack() as stack:
        if server == "embedded":
            environment = await _embedded(stack, clock, rng)
        elif isinstance(server, ControlPlane):
            environment = await _real(stack, server)
        else:
            folder = binaries or assets()
            if folder is None:
                raise FileNotFoundError("no kube-apiserver: set KUBEBUILDER_ASSETS to a folder with it and etcd")
            running = run_control_plane(folder, api_server=flags)
            plane = await asyncio.to_thread(running.__enter__)
            stack.push_async_exit(lambda *exc: asyncio.to_thread(running.__exit__, *exc))
            environment = await _real(stack, plane)
        await environment.install(crds)
        yield environment


async def _embedded(stack: AsyncExitStack, clock: Clock | None, rng: random.Random | None) -> Environment:
    keeper = stack.enter_context(Keeper("kaito-ctrl-envtest-"))
    server = ApiServer(clock=clock, rng=rng, rbac=True)
    await stack.enter_async_context(_housekeeping(server))
    stack.push_async_callback(server.aclose)
    return Environment(keeper.folder, stack, server.transport(), control_plane=None, server=server)


@asynccontextmanager
async def _housekeeping(server: ApiServer) -> AsyncIterator[None]:
    # No task group around the block: what a test raises has to come out as it is, not in a group.
    tasks = [asyncio.create_task(made(server).run()) for made in (GarbageCollector, NamespaceController)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
    errors = [end for end in ends if isinstance(end, Exception)]
    if errors:
        raise errors[0]


async def _real(stack: AsyncExitStack, plane: ControlPlane) -> Environment:
    keeper = stack.enter_context(Keeper("kaito-ctrl-envtest-"))
    transport = await connect(kubeconfig=str(plane.kubeconfig))
    stack.push_async_callback(transport.aclose)
    return Environment(keeper.folder, stack, transport, control_plane=plane, server=None)


class _Bearer:
    """Sends a token along."""

    def __init__(self, inner: Transport, token: str) -> None:
        self._inner = inner
        self._headers = {"authorization": f"Bearer {token}"}

    async def send(self, request: Request) -> Response:
        return await self._inner.send(replace(request, headers={**request.headers, **self._headers}))

    async def aclose(self) -> None:
        await self._inner.aclose()


def _read(crd: Mapping[str, Any] | Path) -> list[Mapping[str, Any]]:
    if not isinstance(crd, Path):
        return [crd]
    files = sorted(each for each in crd.iterdir() if each.suffix in (".yaml", ".yml")) if crd.is_dir() else [crd]
    found = [body for file in files for body in yaml.safe_load_all(file.read_text())]
    return [body for body in found if body and body.get("kind") == "CustomResourceDefinition"]
