"""Nodes as agent pools of an AKS cluster.

    settings = AksSettings.from_env(os.environ)
    async with connect_aks(settings, clock=SystemClock(), instance_types=[...]) as cloud:
        ...                                        # an AksCloud: the CloudProvider of that cluster

Needs the Azure SDK: ``pip install 'kaito-ctrl[aks]'``. It is loaded by :func:`connect_aks`, not before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kaito_provisioner.aks.config import AksSettings, SettingsError
from kaito_provisioner.aks.sizes import VmSize

if TYPE_CHECKING:
    from kaito_provisioner.aks.connect import connect_aks
    from kaito_provisioner.aks.provider import AksCloud

__all__ = ["AksCloud", "AksSettings", "SettingsError", "VmSize", "connect_aks"]


def __getattr__(name: str) -> Any:
    if name not in ("AksCloud", "connect_aks"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from kaito_provisioner.aks import connect, provider
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("azure", "aiohttp", "msal"):
            raise
        raise ModuleNotFoundError(
            f"the aks provisioner needs the Azure SDK ({error.name} is missing): pip install 'kaito-ctrl[aks]'",
            name=error.name,
        ) from error
    return provider.AksCloud if name == "AksCloud" else connect.connect_aks
