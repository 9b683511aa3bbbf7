"""Stand-ins for what runs on a GPU, which compute nothing and keep for backward what the real ones keep.

They are put into a model of fake tensors (`dry_run`), private to it, instance by instance. In: a model and what is to
run. Out: the same model, whose memory in a step is that on a GPU. Each function says what its original keeps.
"""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ATTENTION", "attend", "fused_adapters", "quantised_linear", "stand_in"]

ATTENTION = "speechkit_planned"


class _Attend(torch.autograd.Function):
    """Flash attention: keeps queries, keys, values, the output and one number a row; no scores."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out = q.new_empty((q.shape[0], q.shape[2], q.shape[1], v.shape[-1]))  # (B, S, H, E)
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:3], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return tuple(torch.empty_like(one) for one in ctx.saved_tensors[:3])


def attend(repeated: bool, mask: torch.Tensor | None) -> str:
    """Register an attention under ATTENTION; `repeated`: keys and values copied for each head that shares them.

    `mask` is kept while the model lives, as transformers' is through a step. Returns the name.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    def attention(
        module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **_: Any
    ) -> tuple[torch.Tensor, None]:
        groups = query.shape[1] // key.shape[1]
        if repeated and groups > 1:
            key, value = (
                x[:, :, None].expand(-1, -1, groups, -1, -1).reshape(x.shape[0], -1, *x.shape[2:]) for x in (key, value)
            )
        if torch.is_autocast_enabled("cpu"):
            low = torch.get_autocast_dtype("cpu")
            query, key, value = query.to(low), key.to(low), value.to(low)
        return _Attend.apply(query, key, value), None

    AttentionInterface.register(ATTENTION, attention)
    AttentionMaskInterface.register(ATTENTION, lambda **_: mask)
    return ATTENTION


class _Norm(torch.autograd.Function):
    """`rms_norm`: keeps its input, the weight and one number a row."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, weight, x.new_empty(x.shape[:-1], dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight) if ctx.needs_input_grad[1] else None


class _Gate(torch.autograd.Function):
    """`swiglu`, `geglu`: keep both inputs."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return torch.empty_like(gate)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        gate, up = ctx.saved_tensors
        return torch.empty_like(gate), torch.empty_like(up)


class _Loss(torch.autograd.Function):
    """`linear_cross_entropy`: one chunk of logits at a time; keeps the gradients, which it makes in forward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        from speechkit_kernels.linear_cross_entropy import chunk_of

        rows = x.numel() // x.shape[-1]
        chunk = chunk_of(rows, weight.shape[0], x.element_size())
        logits = x.new_empty((chunk, weight.shape[0]))
        made: list[torch.Tensor] = [torch.empty_like(x)] if ctx.needs_input_grad[0] else []
        if ctx.needs_input_grad[1]:
            made.append(weight.new_empty(weight.shape, dtype=torch.float32 if rows > chunk else x.dtype))
            if rows > chunk:  # the product of a chunk, before it is added
                del logits
                logits = x.new_empty((chunk + x.shape[-1], weight.shape[0]))
        ctx.save_for_backward(*made)
        ctx.weight_dtype = weight.dtype
        return logits.new_empty((), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        made = iter(ctx.saved_tensors)
        dx = torch.empty_like(next(made)) if ctx.needs_input_grad[0] else None
        dweight = torch.empty_like(next(made), dtype=ctx.weight_dtype) if ctx.needs_input_grad[1] else None
        return dx, dweight


class _Adapted(torch.autograd.Function):
    """`lora_linear` over a weight that is not trained: keeps x, A and B; a quantised weight is unpacked on the way."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, shape: torch.Size, packed: bool, a: torch.Tensor, b: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(x, a, b)
        ctx.unpacked = shape if packed else torch.Size((0,))
        weight = x.new_empty(ctx.unpacked)
        out = x.new_empty((*x.shape[:-1], shape[0]))
        del weight
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        x, a, b = ctx.saved_tensors
        weight = x.new_empty(ctx.unpacked)
        dx = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        del weight
        return dx, None, None, torch.empty_like(a), torch.empty_like(b)


class _Unpacked(torch.autograd.Function):
    """A product with a quantised weight: unpacked for forward and again for backward, never kept."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        ctx.x, ctx.size = (x.shape, x.dtype), shape
        weight = x.new_empty(shape)
        out = x.new_empty((*x.shape[:-1], shape[0]))
        del weight
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        weight = gradients[0].new_empty(ctx.size)
        dx = gradients[0].new_empty(ctx.x[0], dtype=ctx.x[1])
        del weight
        return dx, None


def stand_in(model: Any, compiled: bool) -> None:
    """For what `apply_kernels` put into `model`: as it runs compiled, else by its definitions, but for the loss.

    Its forward looks at the weight of the head, which is no plain one among fake tensors.
    """
    from speechkit_kernels.linear_cross_entropy import linear_cross_entropy

    from speechkit.llm.exchange import taken_in

    def gated(module: Any, x: torch.Tensor) -> torch.Tensor:
        if hasattr(module, "gate_up_proj"):
            gate, up = module.gate_up_proj(x).chunk(2, dim=-1)
        else:
            gate, up = module.gate_proj(x), module.up_proj(x)
        return module.down_proj(_Gate.apply(gate, up))

    def causal(module: Any, input_ids: torch.Tensor, labels: torch.Tensor, **rest: Any) -> Any:
        hidden = module.base_model(input_ids=input_ids, **rest).last_hidden_state
        head = module.get_output_embeddings()
        low = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else hidden.dtype
        x, weight = hidden.to(low), head.weight.to(low)
        if compiled:
            return SimpleNamespace(loss=_Loss.apply(x, weight))
        shifted = nn.functional.pad(labels, (0, 1), value=-100)[..., 1:]
        return SimpleNamespace(loss=linear_cross_entropy(x, weight, shifted))

    for _, module, recipe in list(taken_in(model)):
        if recipe.kind == "loss":
            _own(module, causal)
        elif not compiled:
            continue
        elif recipe.kind == "norms":
            _own(module, lambda module, x: _Norm.apply(x, module.weight))
        elif recipe.kind == "gated units" and not hasattr(module, "_apply_gate"):
            _own(module, gated)
        elif recipe.kind == "gated units":
            module.__dict__["_apply_gate"] = lambda x: _Gate.apply(*x.chunk(2, dim=-1))


def quantised_linear(model: nn.Module, keep: tuple[nn.Module | None, ...]) -> list[nn.Linear]:
    """Every linear layer but `keep` multiplies with a weight that is unpacked on the way; which they are."""
    found = [module for module in model.modules() if isinstance(module, nn.Linear) and module not in keep]
    for module in found:
        _own(module, _product)
    return found


def fused_adapters(model: nn.Module) -> int:
    """Every adapted linear layer of peft's computes as `lora_linear`; how many."""
    from speechkit.llm.lora_kernels import layers_of

    count = 0
    for _, layer in layers_of(model):
        if isinstance(layer.base_layer, nn.Linear):
            _own(layer, _adapted)
            count += 1
    return count


def _adapted(module: Any, x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    name = module.active_adapters[0]
    if torch.is_autocast_enabled("cpu"):
        x = x.to(torch.get_autocast_dtype("cpu"))
    base = module.base_layer
    packed = "forward" in base.__dict__
    return _Adapted.apply(x, base.weight.shape, packed, module.lora_A[name].weight, module.lora_B[name].weight)


def _product(module: Any, x: torch.Tensor) -> torch.Tensor:
    if torch.is_autocast_enabled("cpu"):
        x = x.to(torch.get_autocast_dtype("cpu"))
    return _Unpacked.apply(x, module.weight.shape)


def _own(module: Any, forward: Callable[..., Any]) -> None:
    """This instance's forward; the model is ours alone and lives for one step."""
    module.__dict__["forward"] = partial(forward, module)
