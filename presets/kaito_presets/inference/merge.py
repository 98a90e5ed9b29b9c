"""Adapters into a model: load each LoRA beside its layers, combine them by strength, keep the combination alone.

peft does the work. What is ours: only safetensors are read, every tensor must find its place, and an error says which
adapter it is and what does not fit.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import peft
import structlog
import torch
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file

from kaito_presets.inference.adapters import CONFIG_FILE, WEIGHTS_FILE, Adapter
from kaito_presets.inference.config import CombinationType
from kaito_presets.inference.engine import LoadError

__all__ = ["COMBINED", "apply_adapters"]

log: Final = structlog.get_logger(__name__)

COMBINED = "combined_adapter"
"""What peft calls the adapter that is active in the end."""


def apply_adapters(model: Any, adapters: Sequence[Adapter], combination: CombinationType) -> None:
    """Change *model*, a transformers model, in place: from now on it computes with *adapters*, each by its strength.

    ``cat`` is the weighted sum itself, at the sum of the ranks. ``svd`` is the best approximation of that sum at the
    largest rank among them. ``linear`` sums the factors, which is crude, and needs equal ranks. A single adapter is
    exact with each. Raises ``LoadError``.
    """
    with warnings.catch_warnings():
        # What peft and transformers deprecate in each other is not for who runs the server.
        warnings.simplefilter("ignore", FutureWarning)
        _apply(model, adapters, combination)


def _apply(model: Any, adapters: Sequence[Adapter], combination: CombinationType) -> None:
    # Not the adapters' own names: peft keeps them as attributes, where `pop` or `a.b` cannot stand.
    keys = [f"adapter_{index}" for index in range(len(adapters))]
    wrapped: Any = None
    for key, adapter in zip(keys, adapters, strict=True):
        try:
            wrapped = _load(wrapped, model, key, adapter)
        except (SafetensorError, OSError) as error:
            raise LoadError(
                f"adapter {adapter.name}: {WEIGHTS_FILE} cannot be read ({error}): save or upload it again"
            ) from error
        except (ValueError, TypeError, KeyError, RuntimeError, NotImplementedError) as error:
            raise LoadError(_misfit(adapter, error)) from error
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    rank = max(_rank(layer, key) for layer in layers for key in keys)
    # The result is the same either way. peft's own `svd` decomposes a matrix of the layer's size, which takes many
    # seconds for each of a model's hundred; the sum has a low rank from the start, and its factors take milliseconds.
    reduce = combination == "svd" and len(adapters) > 1
    for key in keys:
        _describe_by_layers(wrapped, key)
    try:
        wrapped.add_weighted_adapter(
            keys, [adapter.strength for adapter in adapters], COMBINED, "cat" if reduce else combination
        )
    except ValueError as error:
        names = ", ".join(adapter.name for adapter in adapters)
        raise LoadError(
            f"the adapters {names} cannot be combined by --combination_type={combination}: {error}"
        ) from error
    kept = _reduce(layers, rank) if reduce else 1.0
    wrapped.set_adapter(COMBINED)
    for key in keys:
        wrapped.delete_adapter(key)
    model.requires_grad_(False)
    model.eval()
    strengths = {adapter.name: adapter.strength for adapter in adapters}
    log.info("adapters active", adapters=strengths, combination=combination, kept=round(kept, 4))


def _load(wrapped: Any, model: Any, key: str, adapter: Adapter) -> Any:
    """*model* wrapped by peft, with *adapter* beside its layers; *wrapped* if it was wrapped already."""
    tensors = load_file(adapter.path / WEIGHTS_FILE, device="cpu")
    strange = [name for name in tensors if ".lora_" not in name]
    if strange:
        # peft would overwrite the base model's own weights with these, whatever the strength.
        raise ValueError(f"{WEIGHTS_FILE} holds {_some(strange, key)}, which is no LoRA matrix")
    settings = peft.LoraConfig.from_pretrained(str(adapter.path))
    settings.init_lora_weights = True  # they are about to be overwritten: any other start is work for nothing
    settings.inference_mode = True
    if wrapped is None:
        wrapped = peft.PeftModel(model, settings, adapter_name=key)
    else:
        wrapped.add_adapter(key, settings)
    result = peft.set_peft_model_state_dict(wrapped, tensors, adapter_name=key)
    missing = [name for name in result.missing_keys if f".{key}." in name]
    if result.unexpected_keys:
        raise ValueError(f"the model has no place for {_some(result.unexpected_keys, key)}")
    if missing:
        raise ValueError(f"{WEIGHTS_FILE} lacks {_some(missing, key)}")
    return wrapped


def _some(names: Iterable[str], key: str) -> str:
    plain = sorted(name.replace(f".{key}", "").removeprefix("base_model.model.") for name in names)
    return plain[0] + (f" and {len(plain) - 1} more" if len(plain) > 1 else "")


def _misfit(adapter: Adapter, error: Exception) -> str:
    # Torch reports a header line and then each tensor on a line of its own: the first tensor is example enough.
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    text = next((line for line in lines if line.startswith("size mismatch")), lines[0])
    origin = f" (it says that it was made for {adapter.made_for})" if adapter.made_for else ""
    return (
        f"adapter {adapter.name} does not fit the model that is served{origin}: {text.rstrip('.')}. Use the preset "
        f"that it was trained on; if it was, {CONFIG_FILE} and {WEIGHTS_FILE} do not belong together"
    )


def _factors(layer: Any, key: str) -> tuple[Any, Any] | None:
    """The down and the up projection of one adapter in one layer, as parameters, if it is there."""
    if key in layer.lora_A:
        return layer.lora_A[key].weight, layer.lora_B[key].weight
    if key in layer.lora_embedding_A:
        return layer.lora_embedding_A[key], layer.lora_embedding_B[key]
    return None


def _rank(layer: Any, key: str) -> int:
    factors = _factors(layer, key)
    return int(factors[0].shape[0]) if factors else 0


def _describe_by_layers(wrapped: Any, key: str) -> None:
    """Say of an adapter where it is rather than how its places were chosen.

    peft derives the combination's settings from those of the first adapter: what that one leaves out (layers, modules)
    would be left out of the others too, and its rank-stabilised scaling would be applied once more to the sum.
    """
    settings = wrapped.peft_config[key]
    settings.target_modules = {
        name
        for name, module in wrapped.base_model.model.named_modules()
        if isinstance(module, LoraLayer) and _factors(module, key) is not None
    }
    settings.layers_to_transform = settings.layers_pattern = settings.exclude_modules = None
    settings.use_rslora = False


def _reduce(layers: Iterable[Any], rank: int) -> float:
    """Replace the combination in each layer by its best approximation of that rank.

    Returns the share of the combination that is kept, by its squared norm.
    """
    whole = kept = 0.0
    for down, up in _combined(layers):
        # up @ down = Q1 (R1 @ R2.T) Q2.T: the small matrix in the middle has all its singular values.
        q1, r1 = torch.linalg.qr(up.data.float())
        q2, r2 = torch.linalg.qr(down.data.float().T)
        u, s, vh = torch.linalg.svd(r1 @ r2.T)
        whole += float(s.square().sum())
        kept += float(s[:rank].square().sum())
        up.data = (q1 @ (u[:, :rank] * s[:rank])).to(up.dtype)
        down.data = (vh[:rank] @ q2.T).to(down.dtype)
    return kept / whole if whole else 1.0


def _combined(layers: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    for layer in layers:
        factors = _factors(layer, COMBINED)
        if factors is not None:
            yield factors
