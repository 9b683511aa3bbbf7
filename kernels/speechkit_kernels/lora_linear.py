"""Linear layer with a low-rank update (Hu et al. 2021, arXiv:2106.09685), as one autograd Function over any weight.

With x (M, K), W (N, K), A (R, K), B (N, R) and s = alpha / R:

    h = s · x Aᵀ                           (M, R)
    y = x Wᵀ + h Bᵀ + bias                 (M, N)

Backward, with g = s · dy B (M, R):

    dB = dyᵀ h        dA = gᵀ x        dx = dy W + g A        dW = dyᵀ x, where W is trained        dbias = Σ rows dy

Kept for it: x, A and B, and W itself. h is computed again, for 2MKR operations beside the 2MKN of dx; a W that is
quantised is dequantised again into the scratch that all layers share. The small products come first and the large one
is added onto them in its own epilogue, so that y and dx are rounded once at their full size.

Dropout is 0: its mask would have to be kept, or drawn again. At few rows over a 4-bit W the update is inside the
kernel of nf4_linear, one launch for all of y; `plan` says when, and why not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from speechkit_kernels import nf4_linear
from speechkit_kernels.launch import Hardware, check_same, check_shape, hardware_of, on_its_device, rows_of
from speechkit_kernels.nf4_linear import RANKS, LowRank, launch_tile
from speechkit_kernels.reference.nf4 import NF4Weight
from speechkit_kernels.weights import Plan, Weight, check_product, in_autocast

__all__ = ["lora_linear", "plan"]


def plan(hardware: Hardware, dtype: torch.dtype, rows: int, inner: int, rank: int, *, nf4: bool) -> Plan:
    """Whether the update is "fused" into the product's kernel or computed "apart", and why.

    rows: M; inner: K; nf4: whether W is an NF4Weight.
    """
    if not nf4:
        return Plan("apart", "only a 4-bit weight has a kernel with the update inside")
    if rank > RANKS:
        return Plan("apart", f"rank {rank} is more than the {RANKS} that a tile holds")
    # one row too is a tile here: a vector program has too few rows of W to share its part of A x with
    found = nf4_linear.plan(hardware, dtype, max(rows, 2) if rows else 0, inner)
    return Plan("fused" if found.value == "tile" else "apart", found.reason)


def _launch_forward(
    x: torch.Tensor, weight: torch.Tensor | Weight, low: LowRank, bias: torch.Tensor | None
) -> torch.Tensor:
    """(M, K) → (M, N)."""
    if isinstance(weight, NF4Weight):
        found = plan(hardware_of(x.device), x.dtype, x.shape[0], x.shape[1], low.a.shape[0], nf4=True)
        if found.value == "fused":
            return launch_tile(x, weight, bias, low)
    h = (x @ low.a.T).mul_(low.scale)
    y = h @ low.b.T if bias is None else torch.addmm(bias, h, low.b.T)
    return y.addmm_(x, weight.T) if isinstance(weight, torch.Tensor) else weight.product(x, onto=y)


def _launch_backward(
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor | Weight, low: LowRank, wanted: tuple[bool, ...]
) -> list[torch.Tensor | None]:
    """(M, N), (M, K) → dx, dW, dA, dB as far as `wanted`."""
    dx = dw = da = db = None
    if wanted[3]:
        db = dy.T @ (x @ low.a.T).mul_(low.scale)
    g = (dy @ low.b).mul_(low.scale)
    if wanted[2]:
        da = g.T @ x
    if wanted[0]:
        dx = g @ low.a
        dx = dx.addmm_(dy, weight) if isinstance(weight, torch.Tensor) else weight.input_gradient(dy, onto=dx)
    if wanted[1]:
        dw = dy.T @ x
    return [dx, dw, da, db]


class _LoRALinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor | Weight, a: torch.Tensor, b: torch.Tensor,
        bias: torch.Tensor | None, scale: float,
    ) -> torch.Tensor:  # fmt: skip
        dense = isinstance(weight, torch.Tensor)
        ctx.save_for_backward(x, a, b, *([weight] if dense else []))
        ctx.weight, ctx.scale, ctx.bias_dtype = None if dense else weight, scale, None if bias is None else bias.dtype
        w = weight.to(x.dtype) if isinstance(weight, torch.Tensor) else weight
        low = LowRank(a.to(x.dtype).contiguous(), b.to(x.dtype).contiguous(), scale)
        y = _launch_forward(rows_of(x), w, low, None if bias is None else bias.to(x.dtype).contiguous())
        return y.view(*x.shape[:-1], w.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> Any:
        x, a, b, *dense = ctx.saved_tensors
        flat = rows_of(dy)
        w = dense[0].to(x.dtype) if dense else ctx.weight
        low = LowRank(a.to(x.dtype), b.to(x.dtype), ctx.scale)
        with torch.autocast(dy.device.type, enabled=False):  # in the dtype of forward, wherever backward is called
            found = _launch_backward(flat, rows_of(x), w, low, ctx.needs_input_grad)
        dx, dw, da, db = (
            None if gradient is None else gradient.to(given.dtype)
            for gradient, given in zip(found, (x, dense[0] if dense else x, a, b), strict=True)
        )
        dbias = None
        if ctx.needs_input_grad[4]:
            dbias = flat.sum(dim=0, dtype=torch.promote_types(flat.dtype, torch.float32)).to(ctx.bias_dtype)
        return None if dx is None else dx.view(x.shape), dw, da, db, dbias, None


@on_its_device
def lora_linear(
    x: torch.Tensor,
    weight: torch.Tensor | Weight,
    a: torch.Tensor,
    b: torch.Tensor,
    scale: float = 1.0,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """(…, K) → (…, N): x Wᵀ + scale · (x Aᵀ) Bᵀ + bias. Differentiable once in all that require it; dropout is 0.

    weight: (N, K), a tensor in any float dtype or a quantised `Weight`, which is frozen; a: (R, K); b: (N, R); bias:
    (N,). The dtype of the products and of y is that of x, or autocast's; gradients come in the dtype of what they are
    of. Raises ValueError for shapes, devices or dtypes that do not fit.
    """
    name = "lora_linear"
    check_product(name, x, weight, bias)
    check_same(name, {"x": x, "a": a, "b": b} | ({"weight": weight} if isinstance(weight, torch.Tensor) else {}))
    if a.dim() != 2 or not a.shape[0]:
        raise ValueError(f"{name}: a has shape {tuple(a.shape)}; wanted (R, {weight.shape[1]}) with R at least 1")
    check_shape(name, "a", a, (a.shape[0], weight.shape[1]))
    check_shape(name, "b", b, (weight.shape[0], a.shape[0]))
    return _LoRALinear.apply(in_autocast(x), weight, a, b, bias, scale)
