"""4-bit NormalFloat (Dettmers et al. 2023, arXiv:2305.14314): quantise and dequantise, bit for bit as bitsandbytes.

Of each block of 64 weights of the flat (N·K,), in float32:

    absmax = max |w|
    code = how many of the 15 middles between levels lie below w / absmax
    w' = level[code] · absmax

Nested, of each group of 256 absmax: code = how many of the 255 middles lie below (absmax - offset) / peak, and
absmax' = level[code] · peak + offset. Both countings are binary searches in a sorted table, 4 and 8 steps.

A weight is frozen, so there is no backward here; that of the product is in nf4_linear. A program quantises or
dequantises ROWS blocks; the two weights of a byte are held in two tiles (ROWS, 32) and woven together on storing.
Products and sums are kept apart (no fused multiply-add), because bitsandbytes rounds in between.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from speechkit_kernels.launch import check_same, check_shape, on_its_device, use_kernel
from speechkit_kernels.reference import nf4 as definition
from speechkit_kernels.reference.nf4 import BLOCK, GRID, GROUP, SMALLEST, Nested, NF4Weight, middles_of

__all__ = ["NF4Weight", "nf4_dequantise", "nf4_quantise"]

ROWS = 32  # blocks to a program: 2,048 weights, 16 to a thread
STILL = {"num_warps": 4, "enable_fp_fusion": False}


@triton.jit
def below(value, middles_ptr, STEPS: tl.constexpr):
    """How many of the 2^STEPS - 1 rising middles are smaller than each value, by bisection."""
    found = tl.zeros_like(value).to(tl.int32)
    for step in tl.static_range(STEPS - 1, -1, -1):
        found += tl.where(tl.load(middles_ptr + found + ((1 << step) - 1)) < value, 1 << step, 0)
    return found


@triton.jit
def kept_of(absmax_ptr, peak_ptr, block, inside, NESTED: tl.constexpr):
    """What is kept of the absmax of each block number: itself, or its 8-bit code and the peak of its group."""
    kept = tl.load(absmax_ptr + block, mask=inside, other=0)
    peak = kept
    if NESTED:
        peak = tl.load(peak_ptr + block // 256, mask=inside, other=0.0)
    return kept, peak


@triton.jit
def scale_of(kept, peak, table_ptr, offset_ptr, NESTED: tl.constexpr):
    """The float32 absmax."""
    scale = kept.to(tl.float32)
    if NESTED:
        scale = tl.load(table_ptr + kept.to(tl.int32)) * peak + tl.load(offset_ptr)
    return scale


@triton.jit
def _quantise(w_ptr, middles_ptr, packed_ptr, absmax_ptr, total, SMALLEST: tl.constexpr, ROWS: tl.constexpr):
    block = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    first = block[:, None] * 64 + 2 * tl.arange(0, 32)[None, :]  # (ROWS, 32) of the even ones
    even = tl.load(w_ptr + first, mask=first < total, other=0.0).to(tl.float32)
    odd = tl.load(w_ptr + first + 1, mask=first + 1 < total, other=0.0).to(tl.float32)
    absmax = tl.max(tl.maximum(tl.abs(even), tl.abs(odd)), axis=1)
    tail = block * 64 + 64 > total  # the block that is not full: divided, where the others are multiplied
    held = tl.maximum(absmax, tl.full((ROWS,), SMALLEST, tl.float32))
    inverse = tl.div_rn(tl.full((ROWS,), 1.0, tl.float32), held)[:, None]
    across = tl.broadcast_to(held[:, None], even.shape)
    even = tl.where(tail[:, None], tl.div_rn(even, across), even * inverse)
    odd = tl.where(tail[:, None], tl.div_rn(odd, across), odd * inverse)
    packed = below(even, middles_ptr, 4) * 16 + below(odd, middles_ptr, 4)
    tl.store(packed_ptr + first // 2, packed.to(tl.uint8), mask=first < total)
    tl.store(absmax_ptr + block, tl.where(tail, held, absmax), mask=block * 64 < total)


@triton.jit
def _nest(absmax_ptr, offset_ptr, middles_ptr, code_ptr, peak_ptr, count, half, GRIDDED: tl.constexpr):
    group = tl.program_id(0).to(tl.int64)
    at = group * 256 + tl.arange(0, 256)
    inside = at < count
    moved = tl.load(absmax_ptr + at, mask=inside, other=0.0) - tl.load(offset_ptr)
    moved = tl.where(inside, moved, 0.0)
    peak = tl.max(tl.abs(moved), axis=0)
    one = tl.full((256,), 1.0, tl.float32)
    scaled = moved * tl.div_rn(one, tl.where(peak > 0, peak, 1.0) * one)
    scaled = tl.minimum(tl.maximum(scaled, -1.0), 1.0)
    if GRIDDED:
        scaled = tl.div_rn(tl.floor((scaled + 1.0) * half + 0.5), half * one) - 1.0
    code = tl.where(peak > 0, below(scaled, middles_ptr, 8), 0)
    tl.store(code_ptr + at, code.to(tl.uint8), mask=inside)
    tl.store(peak_ptr + group, peak)


@triton.jit
def _dequantise(packed_ptr, absmax_ptr, levels_ptr, peak_ptr, table_ptr, offset_ptr, w_ptr, total, size,
                NESTED: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    block = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    byte = block[:, None] * 32 + tl.arange(0, 32)[None, :]  # side by side for the compiler too, so that loads are wide
    pair = tl.load(packed_ptr + byte, mask=byte < size, other=0).to(tl.int32)
    kept, peak = kept_of(absmax_ptr, peak_ptr, block, block * 64 < total, NESTED)
    scale = scale_of(kept, peak, table_ptr, offset_ptr, NESTED)[:, None]
    even = tl.load(levels_ptr + (pair >> 4)) * scale
    odd = tl.load(levels_ptr + (pair & 15)) * scale
    at = block[:, None] * 64 + tl.arange(0, 64)[None, :]
    tl.store(w_ptr + at, tl.interleave(even, odd).to(w_ptr.dtype.element_ty), mask=at < total)


def tables_of(weight: NF4Weight) -> tuple[torch.Tensor, ...]:
    """What a kernel reads besides the packed weights: absmax, levels, peak, 8-bit levels, offset."""
    more = weight.nested
    if more is None:  # never read, but a pointer is wanted
        return weight.absmax, weight.levels, weight.absmax, weight.levels, weight.levels
    return weight.absmax, weight.levels, more.peak, more.levels, more.offset


def _launch_quantise(flat: torch.Tensor, nested: bool, grid: bool) -> tuple[torch.Tensor, torch.Tensor, Nested | None]:
    """(N·K,) → packed, absmax or its codes, what turns those back."""
    total, device = flat.numel(), flat.device
    count = triton.cdiv(total, BLOCK)
    packed = torch.empty(triton.cdiv(total, 2), dtype=torch.uint8, device=device)
    absmax = torch.empty(count, dtype=torch.float32, device=device)
    middles = middles_of(definition.nf4_levels(device))
    _quantise[(triton.cdiv(count, ROWS),)](flat, middles, packed, absmax, total, SMALLEST, ROWS=ROWS, **STILL)
    if not nested:
        return packed, absmax, None
    levels, offset = definition.dynamic_levels(device), absmax.mean()
    codes = torch.empty(count, dtype=torch.uint8, device=device)
    peak = torch.empty(triton.cdiv(count, GROUP), dtype=torch.float32, device=device)
    _nest[(peak.numel(),)](absmax, offset, middles_of(levels), codes, peak, count, GRID, GRIDDED=grid, **STILL)
    return packed, codes, Nested(peak, levels, offset)


def _launch_dequantise(weight: NF4Weight, out: torch.Tensor) -> None:
    """Writes (N, K), one element beside the next."""
    total, nested = math.prod(weight.shape), weight.nested is not None
    count = triton.cdiv(total, BLOCK)
    absmax, levels, peak, table, offset = tables_of(weight)
    _dequantise[(triton.cdiv(count, ROWS),)](
        weight.packed, absmax, levels, peak, table, offset, out, total, weight.packed.numel(), NESTED=nested, ROWS=ROWS,
        num_warps=8, enable_fp_fusion=False,  # a thread reads 4 bytes and writes 16
    )  # fmt: skip


@on_its_device
def nf4_quantise(weight: torch.Tensor, *, nested: bool = True, grid: bool | None = None) -> NF4Weight:
    """(N, K) float → NF4Weight, in 4.127 bits a weight where nested, else 4.5.

    grid: how an absmax finds its 8-bit level: True as bitsandbytes on a CPU, False (the nearest) as elsewhere, None by
    the weight's device. Raises ValueError for another number of dimensions, no element or a dtype that is no float.
    """
    name = "nf4_quantise"
    check_same(name, {"weight": weight})
    if weight.dim() != 2 or not weight.numel():
        raise ValueError(f"{name}: weight has shape {tuple(weight.shape)}; give (N, K) with at least one element")
    if not use_kernel(name, weight):
        return definition.nf4_quantise(weight, nested=nested, grid=grid)
    gridded = weight.device.type == "cpu" if grid is None else grid
    packed, absmax, more = _launch_quantise(weight.detach().reshape(-1), nested, gridded)
    outer, inner = weight.shape
    return NF4Weight(packed, absmax, (outer, inner), weight.dtype, definition.nf4_levels(weight.device), more)


@on_its_device
def nf4_dequantise(
    weight: NF4Weight, dtype: torch.dtype | None = None, *, out: torch.Tensor | None = None
) -> torch.Tensor:
    """NF4Weight → (N, K) in `dtype` (by default that of what it was made of), into `out` if given.

    Raises ValueError for an `out` of another shape, device or dtype, or with gaps.
    """
    name = "nf4_dequantise"
    if out is None:
        out = torch.empty(weight.shape, dtype=dtype or weight.dtype, device=weight.device)
    check_same(name, {"out": out})
    check_same(name, {"out": out, "weight": weight.packed}, floating=False)
    check_shape(name, "out", out, weight.shape)
    if dtype not in (None, out.dtype) or not out.is_contiguous():
        raise ValueError(
            f"{name}: out is {out.dtype} with strides {out.stride()}; give {dtype or out.dtype} without gaps"
        )
    if not use_kernel(name, out):
        return out.copy_(definition.nf4_dequantise(weight, out.dtype))
    _launch_dequantise(weight, out)
    return out
