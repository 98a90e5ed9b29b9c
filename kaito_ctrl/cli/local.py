"""A whole KAITO on one machine: the embedded cluster, a simulated cloud whose machines join it, and the controllers.

The controllers are a process of their own in all but name: they reach the cluster through its API alone, keep nothing
that the others can see, and can be killed and started again at any moment (:meth:`LocalKaito.kill_controllers`).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Self

from kaito_api.crd import all_crds
from kaito_ctrl.cli.daemon import DaemonOptions, NodeApi, build_manager
from kaito_ctrl.devcluster.cluster import DevCluster
from kaito_ctrl.devcluster.images import ImageTable, LocalImage
from kaito_ctrl.devcluster.kubelet import ProcessKubelet
from kaito_ctrl.runtime import Client, Cluster, Manager
from kaito_ctrl.runtime.clock import Clock, SystemClock, system_random
from kaito_ctrl.runtime.errors import TransportError
from kaito_ctrl.runtime.transport import Request, Response, Transport
from kaito_presets.skus import SkuTable
from kaito_provisioner import CloudProvider, Instance, LaunchRequest
from kaito_provisioner.sim import SimCloud, SimInstanceType

__all__ = ["KillSwitch", "LocalKaito", "OpenProvider", "install_crds", "local_options"]

OpenProvider = Callable[[DevCluster, Clock, random.Random, float], AbstractAsyncContextManager[CloudProvider]]
"""Opens a cloud whose machines join that cluster, and take that many seconds to boot."""
_CRD_PATH = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
# The image takes curl's arguments, with or without the word `curl` before them, or any other command.
_CURL = ("sh", "-c", 'command -v -- "$1" >/dev/null || set -- curl "$@"; exec "$@"', "sh")


def local_images(more: Mapping[str, LocalImage] | None = None) -> ImageTable:
    """What the process kubelet runs for the images that KAITO's pods name, after *more*.

    An adapter's image is a ``LocalImage`` with a folder of this machine for its ``/data``; one that is not there cannot
    be pulled.
    """
    server = Path(str(files("kaito_presets.inference").joinpath("image")))
    image = LocalImage(
        # The server has the path of its adapters' volume built in, where the kubelet cannot put its folder for it.
        env={"KAITO_RANDOM_WEIGHTS": "tiny", "KAITO_ADAPTERS_DIR": "/mnt/adapter"},
        paths={"/workspace/tfs": server},
    )
    known = {"*/kaito-*": image, "curlimages/curl": LocalImage(entrypoint=_CURL)}
    return ImageTable({**(more or {}), **known}, inside=("/data",))


def offered_types() -> list[SimInstanceType]:
    """The simulated cloud offers what the built-in table of Azure's sizes lists."""
    return [SimInstanceType(sku.name, sku.gpu_count) for sku in SkuTable.builtin("azure")]


def local_options(*, node_api: NodeApi = "machine") -> DaemonOptions:
    """How the controllers run beside a cluster in the same process: without ports, but for the webhook's."""
    return DaemonOptions(node_api=node_api, metrics_port=None, health_port=None, webhook_port=0, drain=2.0)


async def install_crds(client: Client) -> None:
    """Apply the CRDs that kaito-ctrl brings. Safe to repeat."""
    for crd in all_crds():
        await client.request(
            "PATCH",
            f"{_CRD_PATH}/{crd['metadata']['name']}",
            query=(("fieldManager", "kaito-ctrl"), ("force", "true")),
            body=crd,
            headers={"content-type": "application/apply-patch+yaml"},
        )


class KillSwitch:
    """A transport that goes dead at once and for good, as a killed process's does: nothing more gets out or in."""

    def __init__(self, inner: Transport) -> None:
        self._inner = inner
        self.dead = False

    async def send(self, request: Request) -> Response:
        if self.dead:
            raise TransportError("this process has been killed")
        return await self._inner.send(request)

    async def aclose(self) -> None:
        await self._inner.aclose()


class NodeJoiner:
    """Booted instances of the simulated cloud become nodes of the process kubelet."""

    def __init__(self, kubelet: ProcessKubelet) -> None:
        self._kubelet = kubelet

    async def join(self, instance: Instance, request: LaunchRequest) -> None:
        labels = {
            **instance.labels,
            **request.labels,
            "kubernetes.io/hostname": instance.name,
        }
        await self._kubelet.register(
            instance.name,
            labels=labels,
            capacity=dict(instance.capacity),
            taints=(*request.taints, *request.startup_taints),
            provider_id=instance.provider_id,
        )

    async def leave(self, instance: Instance) -> None:
        await self._kubelet.deregister(instance.name)


@dataclass(frozen=True, slots=True)
class _Life:
    """One incarnation of the controllers."""

    manager: Manager
    switch: KillSwitch
    task: asyncio.Task[None]


@dataclass
class LocalKaito:
    """See the module's docstring; made by :meth:`start`."""

    dev: DevCluster
    cloud: SimCloud
    """The simulated cloud; idle when the controllers were given another one."""
    provider: CloudProvider
    """The cloud that the controllers use."""
    clock: Clock
    rng: random.Random
    options: DaemonOptions
    restarts: int = 0
    """How often the controllers have been killed."""
    _life: _Life | None = None
    _born: asyncio.Event = field(default_factory=asyncio.Event)
    _stopping: bool = False

    @classmethod
    @asynccontextmanager
    async def start(
        cls,
        *,
        root: Path | None = None,
        boot: float = 3.0,
        tcp: bool = True,
        host: str = "127.0.0.1",
        port: int = 0,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        options: DaemonOptions | None = None,
        controllers: bool = True,
        rbac: bool = False,
        plain_node: str = "",
        images: Mapping[str, LocalImage] | None = None,
        provider: OpenProvider | None = None,
    ) -> AsyncIterator[Self]:
        """Everything up and ready inside the block; nothing left of it after. *boot* is the simulated machines' boot
        time in seconds, *plain_node* the name of a node that is there from the start, for pods that ask for no GPU:
        every cloud's cluster has one. *images* are known besides KAITO's own, and before them. *provider* opens another
        cloud than the simulated one, for as long as the cluster is there."""
        clock = clock or SystemClock()
        rng = rng or system_random()
        options = options or local_options()
        async with DevCluster.start(
            root=root, clock=clock, rng=rng, images=local_images(images), host=host, port=port, tcp=tcp, rbac=rbac
        ) as dev:
            client = Client(dev.transport(user="kaito-ctrl"))
            await install_crds(client)
            if plain_node:
                await dev.kubelet.register(plain_node)
            cloud = SimCloud(offered_types(), now=clock.now, joiner=NodeJoiner(dev.kubelet), boot=boot)
            async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
                used = await stack.enter_async_context(provider(dev, clock, rng, boot)) if provider else cloud
                kaito = cls(dev, cloud, used, clock, rng, options)
                world = [group.create_task(cloud.run(), name="cloud")]
                if controllers:
                    world.append(group.create_task(kaito._controllers(), name="controllers"))
                    await kaito.wait_ready()
                try:
                    yield kaito
                finally:
                    kaito._stop()
                    if len(world) > 1:
                        await asyncio.wait(world[1:])
                    world[0].cancel()

    @property
    def client(self) -> Client:
        """A client of the cluster that is none of the controllers'."""
        return Client(self.dev.transport(user="admin"), "kaito-ctrl-cli")

    async def wait_ready(self) -> None:
        """Until the controllers are up."""
        await self._born.wait()
        assert self._life is not None
        await self._life.manager.wait_ready()

    async def kill_controllers(self) -> None:
        """Kill the controllers where they stand, without any goodbye; new ones, that remember nothing, follow."""
        life = self._life
        if life is None:
            return
        self._born.clear()
        life.switch.dead = True
        life.task.cancel()
        await asyncio.wait((life.task,))
        self.restarts += 1

    async def _controllers(self) -> None:
        while not self._stopping:
            switch = KillSwitch(self.dev.transport(user="kaito-ctrl"))
            manager = build_manager(Cluster(switch, clock=self.clock, rng=self.rng), self.provider, self.options)
            try:
                async with asyncio.TaskGroup() as group:
                    self._life = _Life(manager, switch, group.create_task(manager.run(), name="manager"))
                    self._born.set()
            except ExceptionGroup:
                # What a killed process still said of its dead connections, nobody has heard.
                if not switch.dead:
                    raise

    def _stop(self) -> None:
        self._stopping = True
        if self._life is not None:
            self._life.manager.stop()
