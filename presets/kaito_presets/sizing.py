"""Whether a preset fits on a number of machines: one pure function, in bytes, that shows its working.

Four rules, all of which must hold. A distributed preset is spread over *n* = *count* instances; of any other one each
instance holds the whole model, however many replicas there are, so *n* = 1:

- GPU count: ``n * GPUs per instance >= GPUs of the preset``;
- memory per GPU: ``instance memory / GPUs per instance >= memory per GPU of the preset``;
- total memory: ``n * instance memory >= total memory of the preset``. The instance's memory is that of all its GPUs
  already, so it is not multiplied by their number again;
- nodes: a distributed preset's processes are the same number on each instance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kaito_api.quantity import format_binary
from kaito_presets.preset import Preset, Requirements
from kaito_presets.skus import Sku, SkuTable

__all__ = ["Check", "Sizing", "Workload", "fitting_skus", "size"]

Workload = Literal["inference", "tuning"]
_GIB = 2**30


@dataclass(frozen=True, slots=True)
class Check:
    """One rule applied. ``needed`` and ``provided`` are GPUs for ``gpuCount``, bytes for the two memory rules, and
    processes of the model for ``processes``: all of them, and those that can be spread evenly.

    ``working`` is how ``provided`` came about; ``problem`` says what is wrong, and is empty if nothing is.
    """

    rule: Literal["gpuCount", "perGPUMemory", "totalGPUMemory", "processes"]
    needed: int
    provided: int
    working: str
    problem: str = ""

    @property
    def ok(self) -> bool:
        return self.provided >= self.needed

    def __str__(self) -> str:
        show = _human if self.rule.endswith("Memory") else str
        return f"{self.rule}: needs {show(self.needed)}, has {self.working}: {'ok' if self.ok else 'insufficient'}"


@dataclass(frozen=True, slots=True)
class Sizing:
    """The outcome for one preset on *count* instances of one type; ``notes`` inform and decide nothing."""

    preset: str
    instance_type: str
    count: int
    checks: tuple[Check, ...]
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)

    @property
    def problems(self) -> tuple[str, ...]:
        """One sentence for each rule that does not hold."""
        return tuple(check.problem for check in self.checks if not check.ok)

    def lines(self) -> tuple[str, ...]:
        """The whole working, one line a rule, notes last: for people."""
        return (*map(str, self.checks), *self.notes)


def size(preset: Preset, sku: Sku, count: int, *, workload: Workload = "inference") -> Sizing:
    """Apply the rules to *count* instances of *sku*.

    Raises ``ValueError`` if *count* is below 1, or for tuning if the preset cannot be tuned.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, not {count}")
    need = _requirements(preset, workload)
    spread = preset.distributed and workload == "inference"
    instances = count if spread else 1
    gpus, total = instances * sku.gpu_count, instances * sku.total_gpu_memory_bytes
    per_gpu, instance = _human(sku.per_gpu_memory_bytes), f"Instance type {sku.name}"
    wanted = f"preset {preset.name} requires at least"
    machines = f"{instances} x {sku.name}"
    if count > instances:
        wanted = f"each replica of {wanted}"
    checks: tuple[Check, ...] = (
        Check(
            "gpuCount",
            need.gpu_count,
            gpus,
            f"{instances} x {sku.gpu_count} = {gpus}",
            f"Insufficient number of GPUs: {instance} provides {gpus} ({machines}), but {wanted} {need.gpu_count}",
        ),
        Check(
            "perGPUMemory",
            need.per_gpu_memory_bytes,
            sku.per_gpu_memory_bytes,
            f"{_human(sku.total_gpu_memory_bytes)} / {sku.gpu_count} = {per_gpu}",
            f"Insufficient per GPU memory: {instance} provides {per_gpu} per GPU, "
            f"but {wanted} {_human(need.per_gpu_memory_bytes)} per GPU",
        ),
        Check(
            "totalGPUMemory",
            need.total_gpu_memory_bytes,
            total,
            f"{instances} x {_human(sku.total_gpu_memory_bytes)} = {_human(total)}",
            f"Insufficient total GPU memory: {instance} has a total of {_human(total)} ({machines}), "
            f"but {wanted} {_human(need.total_gpu_memory_bytes)}",
        ),
    )
    if spread:
        checks = (*checks, _even(preset, count))
    return Sizing(preset.name, sku.name, count, checks, _notes(preset, sku, workload))


def _even(preset: Preset, count: int) -> Check:
    world = preset.world_size or 1
    each = world // count
    working = f"{count} x {each} = {count * each}"
    text = f"{world} processes of preset {preset.name} cannot be spread evenly over {count} nodes"
    return Check("processes", world, count * each, working, f"Uneven distribution: the {text}")


def fitting_skus(preset: Preset, table: SkuTable, count: int, *, workload: Workload = "inference") -> tuple[Sku, ...]:
    """The instance types of *table* of which *count* are enough, smallest total memory first, then by name.

    Only NVIDIA GPUs: that is the device which the workload's pods ask for.
    """
    fitting = [sku for sku in table if sku.vendor == "nvidia" and size(preset, sku, count, workload=workload).ok]
    return tuple(sorted(fitting, key=lambda sku: (sku.total_gpu_memory_bytes, sku.name)))


def _requirements(preset: Preset, workload: Workload) -> Requirements:
    if workload == "inference":
        return preset
    if preset.tuning is None:
        raise ValueError(f"preset {preset.name} does not support tuning")
    return preset.tuning


def _notes(preset: Preset, sku: Sku, workload: Workload) -> tuple[str, ...]:
    notes = []
    if preset.architecture is not None and workload == "inference":
        shape = preset.architecture
        per_token = shape.kv_bytes_per_token()
        notes.append(
            f"KV cache (16-bit): {_human(per_token)} per token, "
            f"{_human(per_token * shape.context)} for one full context of {shape.context} tokens"
        )
    if sku.vendor not in (None, "nvidia"):
        notes.append(
            f"{sku.name} has {sku.gpu_model}: the workload's pods ask for nvidia.com/gpu and would stay pending"
        )
    return tuple(notes)


def _human(amount: int) -> str:
    """Bytes as people say them: exact where a binary suffix is, else GiB to one decimal."""
    exact = format_binary(amount)
    if not amount:
        return "0Gi"
    return exact if not exact.isdigit() and len(exact) <= 6 else f"{amount / _GIB:.1f}Gi"
