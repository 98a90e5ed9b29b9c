"""From settings to a cloud that answers, and back: what is opened here is closed here."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from azure.core.credentials_async import AsyncTokenCredential
from azure.core.pipeline.transport import AsyncHttpTransport

from kaito_ctrl.runtime.clock import Clock
from kaito_provisioner.aks.arm import open_arm
from kaito_provisioner.aks.config import AksSettings
from kaito_provisioner.aks.identity import open_credential
from kaito_provisioner.aks.provider import AksCloud
from kaito_provisioner.aks.sizes import VmSize

__all__ = ["connect_aks"]


@asynccontextmanager
async def connect_aks(
    settings: AksSettings,
    *,
    clock: Clock,
    instance_types: Iterable[VmSize] = (),
    credential: AsyncTokenCredential | None = None,
    transport: AsyncHttpTransport[Any, Any] | None = None,
) -> AsyncIterator[AksCloud]:
    """The cloud that makes nodes in the cluster of *settings*.

    *instance_types* are those to choose from where a claim leaves the choice. *credential* and *transport* replace the
    identity of *settings* and the network. Raises ``Unauthorized`` if the identity yields no token.
    """
    async with AsyncExitStack() as stack:
        if credential is None:
            credential = await stack.enter_async_context(open_credential(settings))
        arm = await stack.enter_async_context(open_arm(settings, credential, transport=transport))
        yield AksCloud(arm, settings, clock=clock, instance_types=instance_types)
