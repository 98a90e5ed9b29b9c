"""VM sizes: what a machine of each has, and which quota it counts against."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SIZES", "VmSize"]


@dataclass(frozen=True, slots=True)
class VmSize:
    """One size. ``memory`` is in GiB; ``family`` is the name under which the subscription's quota counts its cores."""

    name: str
    family: str
    cores: int
    memory: int
    gpus: int = 0
    resource: str = "nvidia.com/gpu"
    """What a device plug-in calls them."""

    @property
    def accelerator(self) -> str:
        """What the ``accelerator`` label of its nodes says; empty where they have none."""
        return "nvidia" if self.gpus and self.resource == "nvidia.com/gpu" else ""


SIZES = {
    each.name: each
    for each in (
        VmSize("Standard_D2s_v5", "standardDSv5Family", 2, 8),
        VmSize("Standard_D4s_v5", "standardDSv5Family", 4, 16),
        VmSize("Standard_D8s_v5", "standardDSv5Family", 8, 32),
        VmSize("Standard_NC4as_T4_v3", "Standard NCASv3_T4 Family", 4, 28, 1),
        VmSize("Standard_NC8as_T4_v3", "Standard NCASv3_T4 Family", 8, 56, 1),
        VmSize("Standard_NC16as_T4_v3", "Standard NCASv3_T4 Family", 16, 110, 1),
        VmSize("Standard_NC64as_T4_v3", "Standard NCASv3_T4 Family", 64, 440, 4),
        VmSize("Standard_NC6", "standardNCFamily", 6, 56, 1),
        VmSize("Standard_NC12", "standardNCFamily", 12, 112, 2),
        VmSize("Standard_NC24", "standardNCFamily", 24, 224, 4),
        VmSize("Standard_NC24r", "standardNCFamily", 24, 224, 4),
        VmSize("Standard_NC6s_v2", "standardNCSv2Family", 6, 112, 1),
        VmSize("Standard_NC12s_v2", "standardNCSv2Family", 12, 224, 2),
        VmSize("Standard_NC24s_v2", "standardNCSv2Family", 24, 448, 4),
        VmSize("Standard_NC24rs_v2", "standardNCSv2Family", 24, 448, 4),
        VmSize("Standard_NC6s_v3", "standardNCSv3Family", 6, 112, 1),
        VmSize("Standard_NC12s_v3", "standardNCSv3Family", 12, 224, 2),
        VmSize("Standard_NC24s_v3", "standardNCSv3Family", 24, 448, 4),
        VmSize("Standard_NC24rs_v3", "standardNCSv3Family", 24, 448, 4),
        VmSize("Standard_NC24ads_A100_v4", "StandardNCADSA100v4Family", 24, 220, 1),
        VmSize("Standard_NC48ads_A100_v4", "StandardNCADSA100v4Family", 48, 440, 2),
        VmSize("Standard_NC96ads_A100_v4", "StandardNCADSA100v4Family", 96, 880, 4),
        VmSize("Standard_NC40ads_H100_v5", "standardNCADSH100v5Family", 40, 320, 1),
        VmSize("Standard_NC80adis_H100_v5", "standardNCADSH100v5Family", 80, 640, 2),
        VmSize("Standard_NCC40ads_H100_v5", "standardNCCads2023Family", 40, 320, 1),
        VmSize("Standard_ND6s", "standardNDSFamily", 6, 112, 1),
        VmSize("Standard_ND12s", "standardNDSFamily", 12, 224, 2),
        VmSize("Standard_ND24s", "standardNDSFamily", 24, 448, 4),
        VmSize("Standard_ND24rs", "standardNDSFamily", 24, 448, 4),
        VmSize("Standard_NG32ads_V620_v1", "standardNGADSV620v1Family", 32, 64, 1, "amd.com/gpu"),
        VmSize("Standard_NG32adms_V620_v1", "standardNGADSV620v1Family", 32, 176, 1, "amd.com/gpu"),
        VmSize("Standard_NV6", "standardNVFamily", 6, 56, 1),
        VmSize("Standard_NV12", "standardNVFamily", 12, 112, 2),
        VmSize("Standard_NV24", "standardNVFamily", 24, 224, 4),
        VmSize("Standard_NV12s_v3", "standardNVSv3Family", 12, 112, 1),
        VmSize("Standard_NV24s_v3", "standardNVSv3Family", 24, 224, 2),
        VmSize("Standard_NV48s_v3", "standardNVSv3Family", 48, 448, 4),
        VmSize("Standard_NV12ads_A10_v5", "StandardNVADSA10v5Family", 12, 110, 1),
        VmSize("Standard_NV18ads_A10_v5", "StandardNVADSA10v5Family", 18, 220, 1),
        VmSize("Standard_NV36adms_A10_v5", "StandardNVADSA10v5Family", 36, 880, 1),
        VmSize("Standard_NV6ads_A10_v5", "StandardNVADSA10v5Family", 6, 55, 1),
        VmSize("Standard_NV36ads_A10_v5", "StandardNVADSA10v5Family", 36, 440, 1),
        VmSize("Standard_NV72ads_A10_v5", "StandardNVADSA10v5Family", 72, 880, 2),
        VmSize("Standard_ND40rs_v2", "standardNDSv2Family", 40, 672, 8),
        VmSize("Standard_ND96asr_v4", "standardNDASv4_A100Family", 96, 900, 8),
        VmSize("Standard_ND96amsr_A100_v4", "standardNDAMSv4_A100Family", 96, 1900, 8),
        VmSize("Standard_ND96asr_A100_v4", "standardNDASv4_A100Family", 96, 900, 8),
        VmSize("Standard_ND96isr_H200_v5", "standardNDSH200v5Family", 96, 1850, 8),
        VmSize("Standard_ND96isr_H100_v5", "standardNDSH100v5Family", 96, 1900, 8),
    )
}
"""The sizes that the cloud offers unless it is given others; as Azure's documentation has them."""
