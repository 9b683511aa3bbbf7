"""Root-mean-square norm (Zhang & Sennrich 2019, arXiv:1910.07467), with the residual addition before it if wanted.

Of each row x (H,), in float32:

    s = x + residual                           the stream that goes on; without a residual s = x
    r = 1 / sqrt(mean(s²) + eps)
    y = s · r · (offset + weight)              offset 1 is Gemma's norm, whose weights are kept around zero

Backward, with g = dy · (offset + weight) and x̂ = s · r:

    ds = r · (g - x̂ · mean(g · x̂)) + what comes back along the stream
    dweight = Σ rows dy · x̂

One program holds a row. Backward shares the rows between a few programs each of which sums dweight in registers, so
that no atomics are needed and the sum has one order. In: (…, H). Out: the same shape and dtype.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from speechkit_kernels import reference
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

__all__ = ["rms_norm"]


@triton.jit
def _forward(x_ptr, residual_ptr, weight_ptr, y_ptr, s_ptr, r_ptr, x_step, residual_step, width, eps, offset,
             ADD: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < width
    s = tl.load(x_ptr + row * x_step + at, mask=inside, other=0.0).to(tl.float32)  # (H,)
    if ADD:
        s += tl.load(residual_ptr + row * residual_step + at, mask=inside, other=0.0).to(tl.float32)
        rounded = s.to(s_ptr.dtype.element_ty)
        tl.store(s_ptr + row * width + at, rounded, mask=inside)
        s = rounded.to(tl.float32)  # what the rest of the model will see
    r = tl.rsqrt(tl.sum(s * s, axis=0) / width + eps)
    tl.store(r_ptr + row, r)
    weight = tl.load(weight_ptr + at, mask=inside, other=0.0).to(tl.float32) + offset
    tl.store(y_ptr + row * width + at, (s * r * weight).to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _backward(dy_ptr, ds_ptr, s_ptr, weight_ptr, r_ptr, dx_ptr, dweight_ptr, dy_step, ds_step, s_step, rows, width,
              offset, ADD: tl.constexpr, TRAINED: tl.constexpr, STAGES: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    program, others = tl.program_id(0), tl.num_programs(0)
    at = tl.arange(0, BLOCK)
    inside = at < width
    weight = tl.load(weight_ptr + at, mask=inside, other=0.0).to(tl.float32) + offset
    dweight = tl.zeros((BLOCK,), tl.float32)
    for index in tl.range(program, rows, others, num_stages=STAGES):
        row = tl.cast(index, tl.int64)
        dy = tl.load(dy_ptr + row * dy_step + at, mask=inside, other=0.0).to(tl.float32)
        s = tl.load(s_ptr + row * s_step + at, mask=inside, other=0.0).to(tl.float32)
        r = tl.load(r_ptr + row)
        scaled, g = s * r, dy * weight
        dx = r * (g - scaled * (tl.sum(g * scaled, axis=0) / width))
        if ADD:
            dx += tl.load(ds_ptr + row * ds_step + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(dx_ptr + row * width + at, dx.to(dx_ptr.dtype.element_ty), mask=inside)
        if TRAINED:
            dweight += dy * scaled
    if TRAINED:
        tl.store(dweight_ptr + program.to(tl.int64) * width + at, dweight, mask=inside)


def _launch_forward(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float, offset: float, shape: torch.Size
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(M, H) → y and s (…, H) of `shape`, r (M,)."""
    rows, width = x.shape
    y = torch.empty(shape, dtype=x.dtype, device=x.device)  # no view of (M, H): those cannot be written over later
    s = torch.empty_like(y) if residual is not None else x
    r = torch.empty(rows, dtype=torch.float32, device=x.device)
    block, other = block_of(width), x if residual is None else residual
    if rows:
        _forward[(rows,)](
            x, other, weight, y, s, r, x.stride(0), other.stride(0), width, eps, offset,
            ADD=residual is not None, BLOCK=block, num_warps=warps_of(block),
        )  # fmt: skip
    return y, s, r


def _launch_backward(
    dy: torch.Tensor, ds: torch.Tensor | None, s: torch.Tensor, weight: torch.Tensor, r: torch.Tensor, offset: float,
    trained: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:  # fmt: skip
    """(M, H) each → dx (M, H), dweight (H,) where the weight is trained."""
    rows, width = s.shape
    dx = torch.empty((rows, width), dtype=dy.dtype, device=dy.device)
    block, other = block_of(width), dy if ds is None else ds
    stages = stages_of(width, dy, s, *(() if ds is None else (ds,)))
    shared = programs(dy.device, rows, each_of(block))
    partial = torch.empty((shared if trained else 1, width), dtype=torch.float32, device=dy.device)
    if not rows:
        return dx, torch.zeros_like(weight) if trained else None
    _backward[(shared,)](
        dy, other, s, weight, r, dx, partial, dy.stride(0), other.stride(0), s.stride(0), rows, width, offset,
        ADD=ds is not None, TRAINED=trained, STAGES=stages, BLOCK=block, num_warps=warps_of(block),
    )  # fmt: skip
    return dx, partial.sum(dim=0).to(weight.dtype) if trained else None


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor | None, eps: float, offset: float
    ) -> Any:
        flat = None if residual is None else rows_of(residual)
        y, s, r = _launch_forward(rows_of(x), flat, weight, eps, offset, x.shape)
        ctx.save_for_backward(s, weight, r)
        ctx.offset, ctx.shape, ctx.added = offset, x.shape, residual is not None
        return (y, s) if ctx.added else y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> Any:
        s, weight, r = ctx.saved_tensors
        ds = rows_of(gradients[1]) if ctx.added and gradients[1] is not None else None
        dx, dweight = _launch_backward(
            rows_of(gradients[0]), ds, rows_of(s), weight, r, ctx.offset, trained=ctx.needs_input_grad[1]
        )
        dx = dx.view(ctx.shape)
        return dx, dweight, dx if ctx.added else None, None, None


@on_its_device
def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float = 1e-6,
    *,
    offset: float = 0.0,
    residual: torch.Tensor | None = None,
) -> Any:
    """Normalise (…, H) by its root mean square; with `residual` (…, H) → (y, x + residual), fused.

    weight: (H,). offset: 1.0 for Gemma. Differentiable in x, weight and residual. float32 inside, dtype of x outside.
    Raises ValueError for shapes, devices or dtypes that do not fit.
    """
    name = "rms_norm"
    given = {"x": x, "weight": weight} | ({"residual": residual} if residual is not None else {})
    check_same(name, given)
    if not x.dim() or not x.shape[-1]:
        raise ValueError(f"{name}: x {tuple(x.shape)} has nothing to normalise in its last dimension; give (…, H)")
    check_shape(name, "weight", weight, x.shape[-1:])
    if residual is not None:
        check_shape(name, "residual", residual, x.shape)
    if not use_kernel(name, x, width=x.shape[-1]):
        return reference.rms_norm(x, weight, eps, offset=offset, residual=residual)
    return _RMSNorm.apply(x, weight.contiguous(), residual, eps, offset)
