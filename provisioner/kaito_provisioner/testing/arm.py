"""A local Azure Resource Manager: one managed cluster whose agent pools the real SDK can make, list and delete.

Over TLS on loopback, for programs; or in the same process without any network, for virtual time.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import Mapping
from contextlib import AsyncExitStack
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from azure.mgmt.containerservice.aio import ContainerServiceClient

from kaito_ctrl.runtime.certs import CertificateAuthority
from kaito_ctrl.runtime.clock import Clock, SystemClock, system_random, uid_source
from kaito_provisioner.testing.agentpool import completed
from kaito_provisioner.testing.api import AgentPoolsApi, Throttles
from kaito_provisioner.testing.capacity import Capacity, Quota
from kaito_provisioner.testing.cloud import Cloud
from kaito_provisioner.testing.faults import Faults
from kaito_provisioner.testing.front import FrontDoor, Requests
from kaito_provisioner.testing.messages import Answer, Request
from kaito_provisioner.testing.nodes import NodeJoiner
from kaito_provisioner.testing.server import serve
from kaito_provisioner.testing.sizes import SIZES, VmSize
from kaito_provisioner.testing.state import Cluster, Pool, Vm
from kaito_provisioner.testing.tasks import Tasks
from kaito_provisioner.testing.tokens import IDENTITY_PATH, Identity, Issuer
from kaito_provisioner.testing.transport import LocalArmTransport, LocalCredential
from kaito_provisioner.testing.vms import Joiner, Timings

__all__ = ["LocalArm"]

_PUBLIC = "https://management.azure.com"


class LocalArm:
    """An async context manager; its cluster is there inside the block, with one system pool.

    With *serve* it listens on *host*, at *port* with TLS and at *identity_port* for the managed identity's endpoint (0:
    any that is free); without, only :meth:`transport` leads to it. Machines that boot join a cluster through *joiner*.
    """

    def __init__(
        self,
        *,
        subscription: str = "00000000-0000-0000-0000-000000000000",
        resource_group: str = "kaito",
        cluster: str = "kaito-aks",
        location: str = "eastus",
        identity: Identity | None = None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        timings: Timings | None = None,
        sizes: Mapping[str, VmSize] = SIZES,
        joiner: Joiner | None = None,
        serve: bool = False,
        host: str = "127.0.0.1",
        port: int = 0,
        identity_port: int = 0,
        system_pool: str = "system",
    ) -> None:
        self.cluster = Cluster(subscription, resource_group, cluster, location)
        self.faults = Faults()
        self.timings = timings or Timings()
        self.base_url = _PUBLIC
        """The Resource Manager's URL, without a slash at its end."""
        self.ca_pem = b""
        self.ca_file: Path | None = None
        self.token_file: Path | None = None
        """A projected service-account token that the identity's federated credential trusts."""
        self.issuer = Issuer(identity or Identity(), clock or SystemClock(), rng or system_random())
        self._clock = self.issuer.clock
        self._rng = self.issuer.rng
        self._sizes = sizes
        self._joiner = joiner
        self._serve = serve
        self._host = host
        self._ports = (port, identity_port)
        self._system_pool = system_pool
        self._identity_url = ""
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._stack.__aenter__()
        tasks = Tasks(await self._stack.enter_async_context(asyncio.TaskGroup()))
        self._stack.callback(tasks.cancel)
        self._cloud = Cloud(
            self.cluster,
            tasks,
            clock=self._clock,
            rng=self._rng,
            timings=self.timings,
            sizes=self._sizes,
            faults=self.faults,
            joiner=self._joiner,
        )
        self._api = AgentPoolsApi(self._cloud, self._clock)
        self._front = FrontDoor(self._api, self.issuer, self.faults, self._clock, uid_source(self._rng))
        if self._system_pool:
            size = next((each for each in self._sizes.values() if not each.gpus), None) or next(
                iter(self._sizes.values())
            )
            body = {"properties": {"vmSize": size.name, "mode": "System"}}
            self._cloud.add(self._system_pool, completed(body, None, self._sizes, self.cluster.location))
        if isinstance(self._joiner, NodeJoiner):
            tasks.start(self._joiner.run(), "nodes")
        if self._serve:
            await self._listen()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> bool | None:
        if isinstance(exc, asyncio.CancelledError):
            # Maybe by one of our own tasks, whose failure it then is that has to be raised.
            return await self._stack.__aexit__(exc_type, exc, tb)
        await self._stack.aclose()
        return None

    async def _listen(self) -> None:
        now = self._clock.now()
        authority = CertificateAuthority("kaito-ctrl local ARM", now=now)
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="kaito-arm-")))
        tls = authority.issue([self._host, "localhost"], now=now).server_context()
        self.base_url = await self._stack.enter_async_context(serve(self.handle, self._host, self._ports[0], tls))
        self._identity_url = await self._stack.enter_async_context(serve(self.handle, self._host, self._ports[1], None))
        self.ca_pem = authority.pem
        self.ca_file, self.token_file = folder / "ca.pem", folder / "token"
        self.ca_file.write_bytes(self.ca_pem)
        self.token_file.write_text(self.issuer.assertion())

    # -- ways in -------------------------------------------------------------------------------------------------

    async def handle(self, request: Request) -> Answer:
        """Answer one request. Raises :class:`~kaito_provisioner.testing.faults.Dropped`."""
        return await self._front.handle(request)

    def transport(self) -> LocalArmTransport:
        """A way in for the SDK that needs no network."""
        return LocalArmTransport(self.handle)

    def credential(self) -> LocalCredential:
        """A credential whose tokens are good."""
        return LocalCredential(self.issuer)

    def client(self, **options: Any) -> ContainerServiceClient:
        """The real SDK's client: over TLS when there is a server, else in this process."""
        way = {"connection_verify": str(self.ca_file)} if self._serve else {"transport": self.transport()}
        return ContainerServiceClient(
            self.credential(), self.cluster.subscription, base_url=self.base_url, **{**way, **options}
        )

    def environment(self, identity: Literal["workload", "managed"] = "workload") -> dict[str, str]:
        """What a program has to find in its environment in order to work with this ARM."""
        env = {
            "ARM_SUBSCRIPTION_ID": self.cluster.subscription,
            "ARM_RESOURCE_GROUP": self.cluster.resource_group,
            "AZURE_CLUSTER_NAME": self.cluster.name,
            "LOCATION": self.cluster.location,
            "AZURE_IDENTITY": identity,
            "AZURE_TENANT_ID": self.issuer.identity.tenant,
            "AZURE_CLIENT_ID": self.issuer.identity.client_id,
            "AZURE_RESOURCE_MANAGER_ENDPOINT": self.base_url,
            "AZURE_AUTHORITY_HOST": self.base_url,
            "AZURE_CA_BUNDLE": str(self.ca_file or ""),
        }
        if identity == "workload":
            return {**env, "AZURE_FEDERATED_TOKEN_FILE": str(self.token_file or "")}
        return {
            **env,
            "IDENTITY_ENDPOINT": f"{self._identity_url}{IDENTITY_PATH}",
            "IDENTITY_HEADER": self.issuer.identity_header,
        }

    # -- the truth, and what can be set --------------------------------------------------------------------------

    def pools(self) -> dict[str, Pool]:
        """Every pool but the system's, by name, as it really is."""
        return {name: pool for name, pool in self.cluster.pools.items() if name != self._system_pool}

    def vms(self) -> list[Vm]:
        """Every machine that costs money."""
        return self._cloud.vms()

    @property
    def nodes(self) -> frozenset[str]:
        """The nodes whose machines run and have registered."""
        return frozenset(self._cloud.machines.registered)

    def kill_vm(self, node_name: str) -> None:
        """Switch a machine off; it stays in its pool. Raises ``KeyError``."""
        vm = {each.node_name: each for each in self.vms()}[node_name]
        self._cloud.machines.die(vm)

    def evict(self, node_name: str) -> None:
        """The cloud takes a machine back, as it does with spot ones; its pool stays. Raises ``KeyError``."""
        vm = {each.node_name: each for each in self.vms()}[node_name]
        self.cluster.pools[vm.pool].vms.remove(vm)
        self._cloud.machines.retire(vm)

    def add_pool(self, name: str, vm_size: str, **properties: Any) -> Pool:
        """A pool that somebody else has made, without any machine."""
        body = {"properties": {"vmSize": vm_size, "count": 0, **properties}}
        return self._cloud.add(name, completed(body, None, self._sizes, self.cluster.location))

    def unregister(self) -> None:
        """The subscription has never used AKS: the resource provider has to be registered first."""
        self._front.registered_at = None

    @property
    def history(self) -> list[tuple[datetime, str, str]]:
        """When which pool was ``created`` and ``deleted``."""
        return self._cloud.history

    @property
    def requests(self) -> Requests:
        """What has been asked."""
        return self._front.requests

    @property
    def capacity(self) -> Capacity:
        return self._cloud.capacity

    @property
    def quota(self) -> Quota:
        return self._cloud.quota

    @property
    def throttles(self) -> Throttles:
        return self._api.throttles

    @property
    def cloud(self) -> Cloud:
        """For ``most_operations``, ``old_wording`` and ``nested_details``."""
        return self._cloud

    @property
    def api(self) -> AgentPoolsApi:
        """For ``page_size``, ``read_lag`` and ``list_lag``."""
        return self._api
