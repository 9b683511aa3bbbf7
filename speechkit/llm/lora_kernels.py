"""The fused low-rank product in adapted layers: forward and backward of one autograd Function instead of peft's four.

In: a model with peft's LoRA layers. Out: the same model, in place, whose layers have a subclass of their class
(`exchange`); a `FusedReport` of what runs fused and what does not, with the reason. A layer decides at every call: with
its adapter switched off, merged, doubled, with dropout in training, with DoRA or with hooks within, peft's own forward
runs. Values are peft's but for rounding: the update is computed in the dtype of the layer's product, where peft's own
goes through float32 and back.

It runs on a CPU too, from `FEWEST` rows on: measured on a Xeon (one thread, rank 16, widths 256 to 1024), 256 to 2048
rows take 0.4 to 0.95 of the time of peft's forward and backward, over NF4 as well; 8 rows 1.0 to 1.6. In a run of
several processes the number of rows counts nothing: all of them go the same way.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from speechkit.llm.exchange import Recipe, put_in, recipe_of, take_out, why_not

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["FusedReport", "fuse", "fused", "keep_unpacked", "layers_of", "unfuse"]

KIND, KERNEL = "low-rank updates", "lora_linear"
SHARED = 64  # bitsandbytes' block that the kernel reads
FEWEST = 128  # rows on a CPU, below which peft's own forward is as fast or faster


@dataclass(frozen=True, repr=False)
class FusedReport:
    """What an adapted model's layers do when they are called as they stand now. Prints as a few lines."""

    fused: int  # layers whose product and update are one function
    layers: int  # adapted layers in all
    bases: dict[str, int]  # of the fused ones: what their weights are → how many
    left: dict[str, int]  # reason → layers that run peft's own forward for it

    def __str__(self) -> str:
        head = f"{self.fused} of {self.layers} adapted layers run fused"
        kinds = ", ".join(f"{count} over {base}" for base, count in self.bases.items())
        lines = [f"{head} ({kinds})" if kinds else head]
        return "\n".join([*lines, *(f"  – {count} by peft's own forward: {why}" for why, count in self.left.items())])

    __repr__ = __str__


def fuse(model: nn.Module) -> FusedReport:
    """Put the fused product into all adapted layers of `model` that can have it; again, into those added since."""
    for _, layer in layers_of(model):
        if recipe_of(layer) is None and not never(layer) and not why_not(layer):
            put_in(layer, Recipe(KIND, KERNEL, type(layer), low_rank))
    return fused(model)


def unfuse(model: nn.Module) -> int:
    """Take it out again; from how many layers. Other kernels stay. Weights stay where they are."""
    return sum(take_out(layer) for _, layer in layers_of(model) if recipe_of(layer) is not None)


def fused(model: nn.Module) -> FusedReport:
    """What runs fused now, and what does not and why: read off the layers as they stand."""
    bases: Counter[str] = Counter()
    left: Counter[str] = Counter()
    for _, layer in layers_of(model):
        reason = never(layer) or why_plain(layer)
        if not reason and recipe_of(layer) is None:
            reason = why_not(layer) or "not asked for"
        if reason:
            left[reason] += 1
        else:
            bases[_name_of(layer.base_layer)] += 1
    count = sum(bases.values())
    return FusedReport(count, count + sum(left.values()), dict(bases), dict(left))


def layers_of(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Name and layer of all that peft adapted by a low-rank update."""
    from peft.tuners.lora import LoraLayer

    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def keep_unpacked(model: nn.Module) -> int:
    """Keep bitsandbytes from repacking 4-bit weights; how many layers.

    On a CPU with bfloat16 it does so at the first call in evaluation, in place: scales are rounded to bfloat16, which
    is not undone, and what is repacked has no gradient, so that training after an evaluation would fail.
    """
    count = 0
    for module in model.modules():
        there: Any = module
        if type(module).__module__.startswith("bitsandbytes.") and getattr(there, "support_avx512bf16_for_cpu", False):
            there.support_avx512bf16_for_cpu = False
            count += 1
            state: Any = getattr(there.weight, "quant_state", None)
            if getattr(state, "packing_format_for_cpu", False):
                from bitsandbytes.functional import _convert_weight_packed_for_cpu_inverse as unpack

                there.weight.data, there.weight.quant_state = unpack(there.weight.data, state)
    return count


def never(layer: Any) -> str:
    """Why this layer can have no fused product, whatever its state; empty where it can."""
    recipe = recipe_of(layer)
    kind = recipe.base if recipe is not None else type(layer)
    if kind.__module__ not in ("peft.tuners.lora.layer", "peft.tuners.lora.bnb") or kind.__name__ not in (
        "Linear",
        "Linear4bit",
    ):
        return f"no kernel for peft's {kind.__name__}"
    base = layer.base_layer
    if type(base) is nn.Linear:
        return "" if base.weight.is_floating_point() else f"weights in {base.weight.dtype}"
    if kind.__name__ == "Linear4bit" and type(base).__name__ in ("Linear4bit", "LinearNF4"):
        return _four_bits(base.weight)
    return f"no kernel over {type(base).__name__}"


def why_plain(layer: Any) -> str:
    """Why peft's own forward runs in the layer as it stands; empty where the fused product does."""
    if layer.disable_adapters:
        return "the adapter is switched off"
    if layer.merged:
        return "the adapter is merged"
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if len(active) != 1:
        return f"{len(active)} adapters are active, the kernel has one" if active else "no adapter of it is active"
    if active[0] in layer.lora_variant:
        return "DoRA's norms are not in the kernel" if layer.use_dora.get(active[0]) else "a variant of LoRA"
    if layer.training and getattr(layer.lora_dropout[active[0]], "p", 0.0):
        return "dropout in training, whose mask the kernel does not draw"
    if layer.lora_bias.get(active[0]):
        return "B has a bias"
    if any(_hooked(part) for part in (layer.base_layer, layer.lora_A[active[0]], layer.lora_B[active[0]])):
        return "hooks within it would not be called (offload, ZeRO-3)"
    return _moved(layer.base_layer.weight)


def low_rank(base: type) -> dict[str, Any]:
    """`forward` for peft's LoRA layer over a linear one; `base` is peft's class."""
    plain: Any = base

    def forward(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """x: (…, K) → (…, N)."""
        if args or any(value is not None for value in kwargs.values()) or why_plain(self) or not _takes(self, x):
            out: torch.Tensor = plain.forward(self, x, *args, **kwargs)
            return out
        return _product(self, x)

    return {"forward": forward}


def _product(layer: Any, x: torch.Tensor) -> torch.Tensor:
    from speechkit_kernels.lora_linear import lora_linear

    name = next(name for name in layer.active_adapters if name in layer.lora_A)
    base = layer.base_layer
    a, b, scale = layer.lora_A[name].weight, layer.lora_B[name].weight, float(layer.scaling[name])
    if type(base) is nn.Linear:
        y: torch.Tensor = lora_linear(x, base.weight, a, b, scale, base.bias)
        return y
    given = x.dtype
    if base.compute_dtype is not None:
        x = x.to(base.compute_dtype)
    y = lora_linear(x, _frozen(base.weight), a, b, scale, base.bias)
    return y.to(given)


def _takes(layer: Any, x: torch.Tensor) -> bool:
    """Whether x goes into the layer's product, by itself or through autocast; peft says what is wrong where not."""
    if x.device.type == "cpu" and x.numel() < FEWEST * x.shape[-1] and not _shared():
        return False
    if type(layer.base_layer) is not nn.Linear:
        return x.dtype in (torch.float32, torch.float16, torch.bfloat16)
    return x.dtype == layer.base_layer.weight.dtype or torch.is_autocast_enabled(x.device.type)


def _shared() -> bool:
    """Whether several processes train together.

    Their batches differ in length, and gradients of A and B come in another order out of the product than out of peft's
    forward: DeepSpeed's buckets, filled in the order of arrival, would mix those of different weights.
    """
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _frozen(weight: Any) -> Any:
    """What the kernel multiplies with: on a GPU its own 4-bit weight, on a CPU one that bitsandbytes writes out."""
    from speechkit_kernels.reference.nf4 import NF4Weight

    if weight.device.type == "cpu":
        return HeldWeight(weight.detach(), weight.quant_state)
    return NF4Weight.from_bitsandbytes(weight)


@dataclass(frozen=True, eq=False)
class HeldWeight:
    """A frozen 4-bit weight (N, K) on a CPU, dequantised by bitsandbytes, which is faster there than indexing in torch.

    Satisfies `speechkit_kernels.weights.Weight`. Same bits as the kernel's definition.
    """

    data: torch.Tensor
    state: Any  # bitsandbytes' QuantState

    @property
    def shape(self) -> tuple[int, int]:
        outer, inner = self.state.shape
        return int(outer), int(inner)

    @property
    def device(self) -> torch.device:
        return self.data.device

    def dequantise(self, dtype: torch.dtype | None = None, out: torch.Tensor | None = None) -> torch.Tensor:
        """(N, K)."""
        from bitsandbytes.functional import dequantize_4bit

        found: torch.Tensor = dequantize_4bit(self.data, self.state).to(dtype or self.state.dtype)
        return found if out is None else out.copy_(found)

    def product(
        self, x: torch.Tensor, bias: torch.Tensor | None = None, onto: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(M, K) → (M, N)."""
        w = self.dequantise(x.dtype)
        return nn.functional.linear(x, w, bias) if onto is None else onto.addmm_(x, w.T)

    def input_gradient(self, dy: torch.Tensor, onto: torch.Tensor | None = None) -> torch.Tensor:
        """(M, N) → (M, K)."""
        w = self.dequantise(dy.dtype)
        return dy @ w if onto is None else onto.addmm_(dy, w)

    def linear(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """(…, K) → (…, N), differentiable in x and bias."""
        from speechkit_kernels.weights import frozen_linear

        return frozen_linear("HeldWeight", x, self, bias)


def _hooked(module: nn.Module) -> bool:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return "forward" in module.__dict__ or any(getattr(module, kind) for kind in kinds)


def _moved(weight: Any) -> str:
    """What keeps the kernel from reading a weight as it lies there now."""
    state = getattr(weight, "quant_state", None)
    if state is not None and getattr(state, "packing_format_for_cpu", False):
        return "bitsandbytes repacked the weight for its own product on this CPU"
    if type(weight) is not nn.Parameter and type(weight) is not torch.Tensor and state is None:
        return f"a weight of type {type(weight).__name__}"
    return ""


def _four_bits(weight: Any) -> str:
    state = getattr(weight, "quant_state", None)
    if state is None:
        return "its 4-bit weight is not on its device yet"
    if state.quant_type != "nf4" or state.blocksize != SHARED or len(state.shape) != 2:
        return f"4-bit weights as {state.quant_type} in blocks of {state.blocksize}; the kernel reads nf4 in {SHARED}"
    return "" if math.prod(state.shape) else "no weights"


def _name_of(base: Any) -> str:
    if type(base) is nn.Linear:
        return str(base.weight.dtype).removeprefix("torch.")
    return "NF4"
