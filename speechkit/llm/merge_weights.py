"""Weights with their updates added, computed in float32 and rounded once; 4- and 8-bit layers written out in 16 bits.

In: peft's layers. Out: tensors and, where something is exchanged, steps that put it back, to be taken from the last one
on. Judges nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from speechkit.errors import PlanError
from speechkit.llm.lora_kernels import keep_unpacked, layers_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Update", "cast", "dequantise", "quantised", "unload", "updates_of"]


@dataclass(frozen=True)
class Update:
    """One weight and what it is to become."""

    name: str  # of the layer
    owner: nn.Module  # the base layer
    attribute: str  # the weight's name in it
    value: torch.Tensor  # float32, not rounded yet


def updates_of(model: Any) -> Iterator[Update]:
    """The weights that the active adapters change, one at a time. Raises PlanError for what cannot be added up."""
    for name, layer in layers_of(model):
        active = [one for one in layer.active_adapters if one in (*layer.lora_A, *layer.lora_embedding_A)]
        if not active or layer.disable_adapters:
            continue
        owner = layer.get_base_layer()
        attribute = getattr(layer, "parameter_name", "weight")
        weight = getattr(owner, attribute)
        if weight.is_meta:
            raise PlanError(f"the weights of {name} are offloaded; load the model whole to merge, on a CPU if need be")
        value = weight.detach().float()
        if len(active) > 1 and any(adapter in layer.lora_variant for adapter in active):
            raise PlanError(f"several adapters are active and one is DoRA: merge one at a time ({', '.join(active)})")
        for adapter in active:
            value = _with(layer, adapter, value)
        yield Update(name.removeprefix("base_model.model."), owner, attribute, value)
        if any(layer.lora_bias.get(adapter) for adapter in active):
            yield Update(name.removeprefix("base_model.model."), owner, "bias", _bias(layer, owner, active))


def quantised(model: nn.Module) -> dict[str, nn.Module]:
    """bitsandbytes' layers of a model, 4 and 8 bit, by name."""
    return {name: one for name, one in model.named_modules() if type(one).__module__.startswith("bitsandbytes.nn")}


def dequantise(model: Any, dtype: torch.dtype | None, back: list[Callable[[], None]]) -> None:
    """Every bitsandbytes layer of `model` becomes a plain one, all weights `dtype`; `back` gets the steps back.

    dtype: by default that from which the 4-bit weights were made. The values are those that the quantised model
    computes with, so that only the rounding to `dtype` is new.
    """
    keep_unpacked(model)
    found = quantised(model)
    chosen = dtype or _made_from(next(iter(found.values())))
    for name, old in found.items():
        parent = model.get_submodule(name.rpartition(".")[0])
        back.append(_exchange(parent, name.rpartition(".")[2], _plain_linear(old, chosen)))
    cast(model, chosen, back)
    back.append(_forget_quantisation(model))


def cast(model: nn.Module, dtype: torch.dtype, back: list[Callable[[], None]]) -> None:
    """All weights of the base in another dtype, tied ones still tied; adapters stay. `back` gets the steps back."""
    fresh: dict[int, nn.Parameter] = {}
    for path, module in model.named_modules():
        if ".lora_" in f".{path}":
            continue
        for name, weight in list(module._parameters.items()):
            if weight is None or not weight.is_floating_point() or weight.dtype == dtype:
                continue
            if id(weight) not in fresh:
                fresh[id(weight)] = nn.Parameter(weight.detach().to(dtype), weight.requires_grad)
            module._parameters[name] = fresh[id(weight)]
            back.append(partial(module._parameters.__setitem__, name, weight))


def unload(model: Any, back: list[Callable[[], None]]) -> None:
    """Take peft's layers out of the base in `model`, in place; `back` gets the steps back.

    Of a module that was trained whole the trained one stays. Raises PlanError for tokens that were trained alone.
    """
    from peft.tuners.lora import LoraLayer
    from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper

    inner = model.get_base_model()
    modules = dict(inner.named_modules())
    if alone := [name for name, module in modules.items() if isinstance(module, TrainableTokensWrapper)]:
        raise PlanError(f"{alone[0]} has tokens that were trained alone, not merged here; use peft's merge_and_unload")
    for name, module in modules.items():
        parent = modules[name.rpartition(".")[0]]
        if not name or isinstance(parent, LoraLayer):
            continue
        if isinstance(module, ModulesToSaveWrapper):
            active = [one for one in module.active_adapters if one in module.modules_to_save]
            kept: nn.Module = module.modules_to_save[active[0]] if active else module.original_module
            back.append(_exchange(parent, name.rpartition(".")[2], kept))
        elif isinstance(module, LoraLayer):
            back.append(_exchange(parent, name.rpartition(".")[2], module.get_base_layer()))
    if "peft_config" in inner.__dict__:
        back.append(partial(inner.__dict__.__setitem__, "peft_config", inner.__dict__.pop("peft_config")))


def _with(layer: Any, adapter: str, value: torch.Tensor) -> torch.Tensor:
    """value + the update of one adapter, in float32; DoRA and the like by peft's own rule, on float32."""
    variant = layer.lora_variant.get(adapter)
    if variant is not None:
        merged: torch.Tensor = variant.merge_safe(layer, adapter, value)
        layer._caches.pop(f"{adapter}-weight_norm", None)  # kept by peft for its own way back
        return merged.detach().float()
    if adapter in layer.lora_A and value.dim() == 2 and not hasattr(layer, "parameter_name"):
        a, b = layer.lora_A[adapter].weight.detach().float(), layer.lora_B[adapter].weight.detach().float()
        delta = (b @ a).mul_(layer.scaling[adapter])
        return value + (delta.T if getattr(layer, "fan_in_fan_out", False) else delta)
    return value + layer.get_delta_weight(adapter).detach().float()


def _bias(layer: Any, owner: Any, active: list[str]) -> torch.Tensor:
    if getattr(owner, "bias", None) is None:
        raise PlanError("an adapter with a bias cannot be merged into a layer without one (lora_bias of peft)")
    value: torch.Tensor = owner.bias.detach().float()
    for adapter in active:
        if layer.lora_bias.get(adapter):
            value = value + layer.lora_B[adapter].bias.detach().float() * layer.scaling[adapter]
    return value


def _made_from(layer: Any) -> torch.dtype:
    state = getattr(layer.weight, "quant_state", None)
    found = getattr(state, "dtype", None) or getattr(layer, "compute_dtype", None)
    return found if isinstance(found, torch.dtype) else torch.float16


def _plain_linear(old: Any, dtype: torch.dtype) -> nn.Linear:
    from peft.utils.integrations import dequantize_bnb_weight

    state = getattr(old, "state", None) if type(old).__name__ == "Linear8bitLt" else old.weight.quant_state
    weight = dequantize_bnb_weight(old.weight, state=state).detach().to(dtype)
    made = nn.Linear(old.in_features, old.out_features, bias=old.bias is not None, device="meta")
    made.weight = nn.Parameter(weight.reshape(old.out_features, old.in_features), requires_grad=False)
    if old.bias is not None:
        made.bias = nn.Parameter(old.bias.detach().to(dtype), requires_grad=False)
    return made.train(old.training)


def _exchange(parent: nn.Module, name: str, fresh: nn.Module) -> Callable[[], None]:
    old = parent._modules[name]
    parent._modules[name] = fresh
    return partial(parent._modules.__setitem__, name, old)


def _forget_quantisation(model: Any) -> Callable[[], None]:
    """What transformers keeps about it: a saved model would say that it is quantised."""
    names = ("hf_quantizer", "quantization_method", "is_loaded_in_4bit", "is_loaded_in_8bit", "is_quantized")
    kept = {name: model.__dict__.pop(name) for name in names if name in model.__dict__}
    settings = model.config.__dict__.pop("quantization_config", None)

    def back() -> None:
        model.__dict__.update(kept)
        if settings is not None:
            model.config.quantization_config = settings

    return back
