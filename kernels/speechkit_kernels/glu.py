"""Gated linear units (Shazeer 2020, arXiv:2002.05202): y = act(gate) · up, elementwise, in float32.

    swiglu         act(g) = g σ(g)                     act'(g) = σ(g) (1 + g (1 - σ(g)))
    geglu, tanh    act(g) = g σ(z)                     act'(g) = σ(z) (1 + g z' (1 - σ(z)))
                   z = 2 sqrt(2/π) (g + 0.044715 g³)   as (1 + tanh(z/2)) / 2 = σ(z)
    geglu, exact   act(g) = g Φ(g)                     act'(g) = Φ(g) + g φ(g)
                   Φ and φ the normal distribution and its density

Backward: dgate = dy · up · act'(gate), dup = dy · act(gate). It computes act again from gate: three reads and two
writes, and nothing is kept but the inputs.

Where all lie without gaps they are one long row; otherwise, as for the two halves of a joint projection, rows are read
where they lie.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from speechkit_kernels.launch import block_of, check_same, check_shape, on_its_device, rows_of, use_kernel
from speechkit_kernels.reference import glu as reference

__all__ = ["geglu", "swiglu"]

BLOCK = 2048
SILU, TANH, EXACT = 0, 1, 2
APPROXIMATE = {"none": EXACT, "tanh": TANH}


@triton.jit
def _activation(g, KIND: tl.constexpr):
    """act(g) and act'(g)."""
    if KIND == 2:
        cdf = 0.5 * (1.0 + tl.erf(g * 0.7071067811865476))
        return g * cdf, cdf + g * 0.3989422804014327 * tl.exp(-0.5 * g * g)
    near, z, slope = g, g, tl.full(g.shape, 1.0, tl.float32)
    if KIND == 1:
        near = tl.minimum(tl.maximum(g, -30.0), 30.0)  # beyond, σ(z) is 0 or 1, and g³ might overflow
        z = 1.5957691216057308 * (near + 0.044715 * near * near * near)
        slope = 1.5957691216057308 * (1.0 + 0.134145 * near * near)
    e = tl.exp(-tl.abs(z))  # at most 1
    large = 1.0 / (1.0 + e)
    small = e * large  # 1 - large, without losing what is small; one exponential for both
    s, rest = tl.where(z < 0, small, large), tl.where(z < 0, large, small)
    return g * s, s * (1.0 + near * slope * rest)


@triton.jit
def _forward(gate_ptr, up_ptr, y_ptr, gate_step, up_step, width, blocks, KIND: tl.constexpr, BLOCK: tl.constexpr):
    program = tl.program_id(0).to(tl.int64)
    row, at = program // blocks, (program % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    gate = tl.load(gate_ptr + row * gate_step + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + row * up_step + at, mask=inside, other=0.0).to(tl.float32)
    active, _ = _activation(gate, KIND)
    tl.store(y_ptr + row * width + at, (active * up).to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _backward(dy_ptr, gate_ptr, up_ptr, dgate_ptr, dup_ptr, dy_step, gate_step, up_step, width, blocks,
              KIND: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    row, at = program // blocks, (program % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    dy = tl.load(dy_ptr + row * dy_step + at, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + row * gate_step + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + row * up_step + at, mask=inside, other=0.0).to(tl.float32)
    active, slope = _activation(gate, KIND)
    tl.store(dgate_ptr + row * width + at, (dy * up * slope).to(dgate_ptr.dtype.element_ty), mask=inside)
    tl.store(dup_ptr + row * width + at, (dy * active).to(dup_ptr.dtype.element_ty), mask=inside)


def _laid_out(*tensors: torch.Tensor) -> tuple[int, int, list[torch.Tensor]]:
    """Rows, width, and the tensors as (rows, width); one row where none has gaps."""
    if all(x.is_contiguous() for x in tensors):
        return 1, tensors[0].numel(), [x.view(1, -1) for x in tensors]
    flat = [rows_of(x) for x in tensors]
    return *flat[0].shape, flat


def _block(width: int) -> tuple[int, int]:
    """Elements a program, programs a row."""
    block = min(BLOCK, block_of(width))
    return block, triton.cdiv(width, block)


def _launch_forward(gate: torch.Tensor, up: torch.Tensor, kind: int) -> torch.Tensor:
    y = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    if not gate.numel():
        return y
    rows, width, (g, u) = _laid_out(gate, up)
    block, blocks = _block(width)
    _forward[(rows * blocks,)](g, u, y, g.stride(0), u.stride(0), width, blocks, KIND=kind, BLOCK=block, num_warps=4)
    return y


def _launch_backward(
    dy: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, kind: int
) -> tuple[torch.Tensor, torch.Tensor]:
    dgate, dup = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (gate, up))
    if not gate.numel():
        return dgate, dup
    rows, width, (d, g, u) = _laid_out(dy, gate, up)
    block, blocks = _block(width)
    _backward[(rows * blocks,)](
        d, g, u, dgate, dup, d.stride(0), g.stride(0), u.stride(0), width, blocks, KIND=kind, BLOCK=block, num_warps=4
    )
    return dgate, dup


class _GLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor, kind: int) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        ctx.kind = kind
        return _launch_forward(gate, up, kind)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> Any:
        gate, up = ctx.saved_tensors
        return *_launch_backward(gradients[0], gate, up, ctx.kind), None


def _check(name: str, gate: torch.Tensor, up: torch.Tensor) -> None:
    check_same(name, {"gate": gate, "up": up})
    check_shape(name, "up", up, gate.shape)
    if not gate.dim():
        raise ValueError(f"{name}: gate has no dimension; give (…, I)")


@on_its_device
def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) · up; (…, I) both, differentiable in both. float32 inside, dtype of gate outside.

    Raises ValueError for shapes, devices or dtypes that do not fit.
    """
    _check("swiglu", gate, up)
    if not use_kernel("swiglu", gate):
        return reference.swiglu(gate, up)
    return _GLU.apply(gate, up, SILU)


@on_its_device
def geglu(gate: torch.Tensor, up: torch.Tensor, approximate: str = "none") -> torch.Tensor:
    """gelu(gate) · up; (…, I) both, differentiable in both. float32 inside, dtype of gate outside.

    approximate: "none" for the exact GELU, "tanh" for Gemma's; the words of torch.nn.functional.gelu.
    Raises ValueError for shapes, devices, dtypes or words that do not fit.
    """
    _check("geglu", gate, up)
    if approximate not in APPROXIMATE:
        raise ValueError(f"geglu: approximate is {approximate!r}; give one of {', '.join(map(repr, APPROXIMATE))}")
    if not use_kernel("geglu", gate):
        return reference.geglu(gate, up, approximate)
    return _GLU.apply(gate, up, APPROXIMATE[approximate])
