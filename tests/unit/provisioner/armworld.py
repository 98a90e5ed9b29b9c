"""A test that is given the local ARM and the real SDK's client for it, in virtual time::

@with_arm()
async def test_something(azure: Azure) -> None: ...
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from azure.core.exceptions import HttpResponseError
from azure.core.polling import AsyncLROPoller
from azure.mgmt.containerservice.aio import ContainerServiceClient
from azure.mgmt.containerservice.aio.operations import AgentPoolsOperations
from azure.mgmt.containerservice.models import AgentPool

from kaito_ctrl.testing import VirtualClock, run_virtual
from kaito_provisioner.testing import LocalArm

__all__ = ["CPU", "GPU", "Azure", "with_arm"]

GPU, CPU = "Standard_NC24ads_A100_v4", "Standard_D4s_v5"


@dataclass
class Azure:
    """The cloud, and what its clients do most."""

    arm: LocalArm
    client: ContainerServiceClient

    @property
    def pools(self) -> AgentPoolsOperations:
        return self.client.agent_pools

    @property
    def where(self) -> tuple[str, str]:
        return self.arm.cluster.resource_group, self.arm.cluster.name

    async def put(self, name: str = "ws1", vm_size: str = GPU, **properties: Any) -> AsyncLROPoller[AgentPool]:
        """Begin to make a pool, or to change one. *properties* by their names on the wire."""
        options = {key: properties.pop(key) for key in ("etag", "match_condition", "retry_total") if key in properties}
        body: Any = {"properties": {"vmSize": vm_size, "count": 1, **properties}}
        return await self.pools.begin_create_or_update(*self.where, name, body, **options)

    async def make(self, name: str = "ws1", vm_size: str = GPU, **properties: Any) -> AgentPool:
        """Make a pool, and wait for it."""
        return await (await self.put(name, vm_size, **properties)).result()

    async def get(self, name: str = "ws1") -> Any:
        """A pool's properties."""
        pool = await self.pools.get(*self.where, name)
        return pool.properties

    async def names(self) -> list[str]:
        return [str(pool.name) async for pool in self.pools.list(*self.where)]

    async def delete(self, name: str = "ws1", **options: Any) -> None:
        """Delete a pool, and wait until it is gone."""
        await (await self.pools.begin_delete(*self.where, name, **options)).result()

    async def refused(self, call: Awaitable[Any]) -> HttpResponseError:
        """The error that the call raises."""
        try:
            answer = await call
        except HttpResponseError as error:
            return error
        raise AssertionError(f"it was answered: {answer}")


def with_arm(**options: Any) -> Callable[[Callable[..., Awaitable[None]]], Callable[..., None]]:
    """See the module's docstring; *options* are the ``LocalArm``'s."""

    def decorate(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
        async def play(**arguments: Any) -> None:
            async with LocalArm(clock=VirtualClock(), rng=random.Random(7), **options) as arm, arm.client() as client:
                await test(Azure(arm, client), **arguments)

        def run(**arguments: Any) -> None:
            run_virtual(play(**arguments))

        signature = inspect.signature(test)
        run.__name__, run.__doc__, run.__module__ = test.__name__, test.__doc__, test.__module__
        run.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=list(signature.parameters.values())[1:], return_annotation=None
        )
        return run

    return decorate
