"""The aks backend for ``kaito-ctrl run``: its settings from options and variables, and the cloud that they name."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

from kaito_ctrl.cli.guard import SettingsError

if TYPE_CHECKING:
    from kaito_ctrl.runtime.clock import Clock
    from kaito_provisioner import CloudProvider
    from kaito_provisioner.aks import AksSettings, VmSize

__all__ = ["known_sizes", "open_aks", "require_sdk", "settings_from"]

_SDK = ("azure.identity", "azure.mgmt.containerservice")


def settings_from(given: Mapping[str, str | None], env: Mapping[str, str] = os.environ) -> AksSettings:
    """What *given*, by the names of variables, says; and *env* about the rest.

    Raises :class:`SettingsError` with everything that keeps the provisioner from starting, the SDK included.
    """
    from kaito_provisioner.aks import AksSettings
    from kaito_provisioner.aks import SettingsError as AksProblems

    problems: tuple[str, ...] = ()
    try:
        require_sdk()
    except SettingsError as error:
        problems = error.problems
    try:
        settings = AksSettings.from_env({**env, **{name: value for name, value in given.items() if value is not None}})
    except AksProblems as error:
        raise SettingsError(
            (*problems, *error.problems, "all of these can be given as options, too: kaito-ctrl run --help")
        ) from error
    if problems:
        raise SettingsError(problems)
    return settings


@asynccontextmanager
async def open_aks(settings: AksSettings, clock: Clock) -> AsyncIterator[CloudProvider]:
    """The cloud of *settings*, inside the block. Raises :class:`SettingsError` for an identity that is refused."""
    from kaito_provisioner import Unauthorized
    from kaito_provisioner.aks import connect_aks

    async with AsyncExitStack() as stack:
        try:
            cloud = await stack.enter_async_context(connect_aks(settings, clock=clock, instance_types=known_sizes()))
        except Unauthorized as error:
            raise SettingsError((f"{error.message}; {error.fix}" if error.fix else error.message,)) from error
        yield cloud


def known_sizes() -> list[VmSize]:
    """What the built-in table knows of Azure's sizes with GPUs."""
    from kaito_presets.skus import SkuTable
    from kaito_provisioner.aks import VmSize

    return [VmSize(sku.name, gpus=sku.gpu_count) for sku in SkuTable.builtin("azure")]


def require_sdk() -> None:
    """Raises :class:`SettingsError` where the Azure SDK is not installed."""
    if not all(map(_installed, _SDK)):
        raise SettingsError(("the Azure SDK, which aks needs, is not installed: pip install 'kaito-ctrl[aks]'",))


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
