"""Layer norm (Ba et al. 2016, arXiv:1607.06450), with or without a bias.

Of each row x (H,), in float32:

    m = mean(x),  r = 1 / sqrt(mean((x - m)²) + eps),  x̂ = (x - m) r
    y = x̂ · weight + bias

Backward, with g = dy · weight; the two means are what m and r bring back:

    dx = r · (g - mean(g) - x̂ · mean(g · x̂))
    dweight = Σ rows dy · x̂,  dbias = Σ rows dy

One program holds a row, so that the variance is that of differences from the mean and loses nothing where the mean is
large. Backward shares the rows between a few programs each of which sums dweight and dbias in registers: no atomics,
one order. In: (…, H). Out: the same shape and dtype.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from speechkit_kernels.launch import (
    block_of,
    check_same,
    check_shape,
    each_of,
    on_its_device,
    programs,
    rows_of,
    stages_of,
    use_kernel,
    warps_of,
)
from speechkit_kernels.reference.layer_norm import layer_norm as definition

__all__ = ["layer_norm"]


@triton.jit
def _forward(x_ptr, weight_ptr, bias_ptr, y_ptr, m_ptr, r_ptr, x_step, width, eps, BIAS: tl.constexpr,
             BLOCK: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < width
    x = tl.load(x_ptr + row * x_step + at, mask=inside, other=0.0).to(tl.float32)  # (H,)
    m = tl.sum(x, axis=0) / width
    centred = tl.where(inside, x - m, 0.0)
    r = tl.rsqrt(tl.sum(centred * centred, axis=0) / width + eps)
    tl.store(m_ptr + row, m)
    tl.store(r_ptr + row, r)
    y = centred * r * tl.load(weight_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if BIAS:
        y += tl.load(bias_ptr + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + row * width + at, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _backward(dy_ptr, x_ptr, weight_ptr, m_ptr, r_ptr, dx_ptr, dweight_ptr, dbias_ptr, dy_step, x_step, rows, width,
              WEIGHT: tl.constexpr, BIAS: tl.constexpr, STAGES: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    program, others = tl.program_id(0), tl.num_programs(0)
    at = tl.arange(0, BLOCK)
    inside = at < width
    weight = tl.load(weight_ptr + at, mask=inside, other=0.0).to(tl.float32)
    dweight, dbias = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for index in tl.range(program, rows, others, num_stages=STAGES):
        row = tl.cast(index, tl.int64)
        dy = tl.load(dy_ptr + row * dy_step + at, mask=inside, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + row * x_step + at, mask=inside, other=0.0).to(tl.float32)
        r = tl.load(r_ptr + row)
        scaled = tl.where(inside, (x - tl.load(m_ptr + row)) * r, 0.0)
        g = dy * weight
        dx = r * (g - tl.sum(g, axis=0) / width - scaled * (tl.sum(g * scaled, axis=0) / width))
        tl.store(dx_ptr + row * width + at, dx.to(dx_ptr.dtype.element_ty), mask=inside)
        if WEIGHT:
            dweight += dy * scaled
        if BIAS:
            dbias += dy
    part = program.to(tl.int64) * width + at
    if WEIGHT:
        tl.store(dweight_ptr + part, dweight, mask=inside)
    if BIAS:
        tl.store(dbias_ptr + part, dbias, mask=inside)


def _launch_forward(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float, shape: torch.Size
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(M, H) → y (…, H) of `shape`, m and r (M,)."""
    rows, width = x.shape
    y = torch.empty(shape, dtype=x.dtype, device=x.device)  # no view of (M, H): those cannot be written over later
    m, r = (torch.empty(rows, dtype=torch.float32, device=x.device) for _ in range(2))
    block = block_of(width)
    if rows:
        _forward[(rows,)](
            x, weight, weight if bias is None else bias, y, m, r, x.stride(0), width, eps,
            BIAS=bias is not None, BLOCK=block, num_warps=warps_of(block),
        )  # fmt: skip
    return y, m, r


def _launch_backward(
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, m: torch.Tensor, r: torch.Tensor,
    trained: tuple[bool, bool],
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:  # fmt: skip
    """(M, H) → dx (M, H), dweight and dbias (H,) float32 where they are trained."""
    rows, width = x.shape
    dx = torch.empty((rows, width), dtype=x.dtype, device=x.device)
    block = block_of(width)
    shared = programs(x.device, rows, each_of(block))
    partial = [
        torch.empty((shared if wanted else 1, width), dtype=torch.float32, device=x.device) for wanted in trained
    ]
    if rows:
        _backward[(shared,)](
            dy, x, weight, m, r, dx, *partial, dy.stride(0), x.stride(0), rows, width,
            WEIGHT=trained[0], BIAS=trained[1], STAGES=stages_of(width, dy, x), BLOCK=block, num_warps=warps_of(block),
        )  # fmt: skip
    else:
        partial = [part.zero_() for part in partial]
    dweight, dbias = (part.sum(dim=0) if wanted else None for part, wanted in zip(partial, trained, strict=True))
    return dx, dweight, dbias


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float) -> torch.Tensor:
        flat = rows_of(x)
        y, m, r = _launch_forward(flat, weight, bias, eps, x.shape)
        ctx.save_for_backward(flat, weight, m, r)
        ctx.bias_dtype = None if bias is None else bias.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, weight, m, r = ctx.saved_tensors
        dy = gradients[0]
        trained = (ctx.needs_input_grad[1], ctx.needs_input_grad[2])
        dx, dweight, dbias = _launch_backward(rows_of(dy), x, weight, m, r, trained)
        dweight = None if dweight is None else dweight.to(weight.dtype)
        return dx.view(dy.shape), dweight, None if dbias is None else dbias.to(ctx.bias_dtype), None


@on_its_device
def layer_norm(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, eps: float = 1e-5
) -> torch.Tensor:
    """Normalise (…, H) to mean 0 and variance 1, then · weight + bias, (H,) each.

    Differentiable in all three. float32 inside, dtype of x outside.
    Raises ValueError for shapes, devices or dtypes that do not fit.
    """
    name = "layer_norm"
    check_same(name, {"x": x, "weight": weight} | ({"bias": bias} if bias is not None else {}))
    if not x.dim() or not x.shape[-1]:
        raise ValueError(f"{name}: x of shape {tuple(x.shape)} has nothing to normalise; give (…, H)")
    check_shape(name, "weight", weight, x.shape[-1:])
    if bias is not None:
        check_shape(name, "bias", bias, x.shape[-1:])
    if not use_kernel(name, x, width=x.shape[-1]):
        return definition(x, weight, bias, eps)
    return _LayerNorm.apply(x, weight.contiguous(), None if bias is None else bias.contiguous(), eps)
