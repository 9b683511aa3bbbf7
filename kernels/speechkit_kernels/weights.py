"""Frozen weights behind one door: what a quantised weight can do, its product's gradient, the way through a scratch.

    y = x Wᵀ + bias,   dx = dy W,   dbias = Σ rows dy        W is frozen: nothing is saved for a gradient of it

In: x (…, K), any `Weight` (N, K). Out: (…, N). Knows no format: a weight says itself how it multiplies. The way that
every format has is `library_product`: W is written into the scratch that a stream shares, in the dtype of x, and the
library multiplies. At M 8192 writing it takes 3 % of the time of the product, and no weight keeps a copy.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from speechkit_kernels.launch import check_same, check_shape, rows_of
from speechkit_kernels.scratch import scratch

CAST = (torch.float32, torch.float16, torch.bfloat16)  # what autocast casts

__all__ = ["Plan", "Weight", "frozen_linear", "library_gradient", "library_product"]


class Plan(NamedTuple):
    """How a product is computed, and why."""

    value: str  # "vector", "tile" or "library"
    reason: str


@runtime_checkable
class Weight(Protocol):
    """A frozen weight (N, K)."""

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""

    @property
    def device(self) -> torch.device:
        """Where its numbers are."""

    def dequantise(self, dtype: torch.dtype | None = None, out: torch.Tensor | None = None) -> torch.Tensor:
        """(N, K) in `dtype`, by default that of what it was made of, or into `out`."""

    def product(
        self, x: torch.Tensor, bias: torch.Tensor | None = None, onto: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(M, K) → (M, N), without a gradient; added onto `onto` (M, N) if given, which then holds the bias already."""

    def input_gradient(self, dy: torch.Tensor, onto: torch.Tensor | None = None) -> torch.Tensor:
        """(M, N) → (M, K), without a gradient; added onto `onto` (M, K) if given."""

    def linear(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """(…, K) → (…, N), differentiable in x and bias."""


def library_product(
    x: torch.Tensor, weight: Weight, bias: torch.Tensor | None = None, onto: torch.Tensor | None = None
) -> torch.Tensor:
    """(M, K) → (M, N) through the scratch."""
    with scratch(x.device, weight.shape, x.dtype) as w:
        weight.dequantise(out=w)
        return linear(x, w, bias) if onto is None else onto.addmm_(x, w.T)


def library_gradient(dy: torch.Tensor, weight: Weight, onto: torch.Tensor | None = None) -> torch.Tensor:
    """(M, N) → (M, K) through the scratch."""
    with scratch(dy.device, weight.shape, dy.dtype) as w:
        weight.dequantise(out=w)
        return dy @ w if onto is None else onto.addmm_(dy, w)


class _FrozenLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, bias: torch.Tensor | None, weight: Weight) -> torch.Tensor:
        ctx.weight, ctx.shape = weight, x.shape
        ctx.bias_dtype = None if bias is None else bias.dtype
        y = weight.product(rows_of(x), None if bias is None else bias.to(x.dtype).contiguous())
        return y.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> Any:
        flat, dx, dbias = rows_of(dy), None, None
        if ctx.needs_input_grad[0]:
            with torch.autocast(dy.device.type, enabled=False):  # in the dtype of forward, wherever backward is called
                dx = ctx.weight.input_gradient(flat).view(ctx.shape)
        if ctx.needs_input_grad[1]:
            dbias = flat.sum(dim=0, dtype=torch.promote_types(flat.dtype, torch.float32)).to(ctx.bias_dtype)
        return dx, dbias, None


def frozen_linear(name: str, x: torch.Tensor, weight: Weight, bias: torch.Tensor | None = None) -> torch.Tensor:
    """(…, K) → (…, N), differentiable in x and bias; `name` is that of the caller, for what does not fit."""
    check_product(name, x, weight, bias)
    return _FrozenLinear.apply(in_autocast(x), bias, weight)


def in_autocast(x: torch.Tensor) -> torch.Tensor:
    """x as a matrix product under torch.autocast would take it."""
    if x.dtype not in CAST or x.device.type == "meta" or not torch.is_autocast_enabled(x.device.type):
        return x
    return x.to(torch.get_autocast_dtype(x.device.type))


def check_product(name: str, x: torch.Tensor, weight: Weight | torch.Tensor, bias: torch.Tensor | None) -> None:
    """Raise ValueError for what cannot be multiplied."""
    check_same(name, {"x": x} | ({"bias": bias} if bias is not None else {}))
    outer, inner = weight.shape
    if weight.device != x.device:
        raise ValueError(f"{name}: weight is on {weight.device}, x on {x.device}; put them on one device")
    if not x.dim() or x.shape[-1] != inner:
        raise ValueError(f"{name}: x has shape {tuple(x.shape)}; wanted (…, {inner}) for a weight of {outer} x {inner}")
    if bias is not None:
        check_shape(name, "bias", bias, (outer,))
