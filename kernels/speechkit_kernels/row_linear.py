"""Product with a frozen 8-bit weight that has one scale a row: int8, or float8 e4m3 from sm_89 on.

    y[m, n] = scale[n] · Σ value[n, k] · x[m, k] + bias[n]          scale[n] is taken out of the sum

Backward: dx = dy W through the shared scratch (weights.py). At few rows W's bytes are what is waited for, and they are
widened in registers: one byte a weight is read, where writing W out and multiplying moves 1 + 2 + 2. Every value of
both formats is exact in a half, so that the operands of tl.dot are W's own numbers and the scale is applied in float32
to sums: less rounding than a product with W dequantised. Many rows go through the scratch and the library.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from speechkit_kernels.launch import FP8, Hardware, block_of, hardware_of, on_its_device, support
from speechkit_kernels.nf4_linear import HALVES, TILE_ROWS, gather_parts, kind_of, shared_out, warps_of_tile
from speechkit_kernels.reference.weights import RowWeight, row_quantise
from speechkit_kernels.scratch import tickets
from speechkit_kernels.weights import Plan, frozen_linear, library_product

__all__ = ["RowWeight", "plan", "row_linear", "row_quantise"]

OUTER, INNER = 64, 64  # rows and columns of W to a step


@triton.jit
def _forward(x_ptr, value_ptr, scale_ptr, bias_ptr, y_ptr, part_ptr, ticket_ptr, x_step, rows, outer, inner, each,
             KIND: tl.constexpr, BIAS: tl.constexpr, SPLITS: tl.constexpr, ROWS: tl.constexpr, OUTER: tl.constexpr,
             INNER: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * OUTER + tl.arange(0, OUTER)
    m = tl.arange(0, ROWS).to(tl.int64)
    start = tl.program_id(1) * each
    stop = tl.minimum(start + each, inner)
    y = tl.zeros((OUTER, ROWS), tl.float32)
    for first in range(start, stop, INNER):
        k = first + tl.arange(0, INNER)
        inside = (row < outer)[:, None] & (k < stop)[None, :]
        value = tl.load(value_ptr + row[:, None] * inner + k[None, :], mask=inside, other=0.0).to(KIND)
        seen = (m < rows)[None, :] & (k < stop)[:, None]
        x = tl.load(x_ptr + m[None, :] * x_step + k[:, None], mask=seen, other=0.0).to(KIND)  # (INNER, ROWS)
        y = tl.dot(value, x, y, input_precision="ieee")
    y *= tl.load(scale_ptr + row, mask=row < outer, other=0.0)[:, None]
    at = m[None, :] * outer + row[:, None]
    inside = (m < rows)[None, :] & (row < outer)[:, None]
    last = True
    if SPLITS > 1:
        y, last = gather_parts(y, part_ptr, ticket_ptr, at, inside, tl.cast(rows, tl.int64) * outer, SPLITS)
    if last:
        if BIAS:
            y += tl.load(bias_ptr + row, mask=row < outer, other=0.0).to(tl.float32)[:, None]
        tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=inside)


def _launch_forward(x: torch.Tensor, weight: RowWeight, bias: torch.Tensor | None) -> torch.Tensor:
    """(M, K) → (M, N)."""
    (outer, inner), rows = weight.shape, x.shape[0]
    y = torch.empty((rows, outer), dtype=x.dtype, device=x.device)
    tiles = triton.cdiv(outer, OUTER)
    splits, each = shared_out(x.device, tiles, inner, INNER)
    parts = torch.empty((splits, rows, outer) if splits > 1 else (1,), dtype=torch.float32, device=x.device)
    _forward[(tiles, splits)](
        x, weight.values, weight.scale, y if bias is None else bias, y, parts, tickets(x.device, tiles), x.stride(0),
        rows, outer, inner, each, KIND=kind_of(x), BIAS=bias is not None, SPLITS=splits,
        ROWS=max(16, block_of(rows)), OUTER=OUTER, INNER=INNER, num_warps=warps_of_tile(rows), num_stages=3,
    )  # fmt: skip
    return y


def plan(hardware: Hardware, dtype: torch.dtype, rows: int, values: torch.dtype) -> Plan:
    """How M rows are multiplied with a weight of `values` there: "tile" or "library", and why."""
    found = support(hardware, dtype, matmul=True)
    if not found.value:
        return Plan("library", found.reason)
    if values == torch.float8_e4m3fn and hardware.capability is not None and hardware.capability < FP8:
        return Plan("library", f"{hardware} does not convert float8, which is in hardware from sm_89 on")
    if dtype not in HALVES:
        return Plan("library", f"tensor cores multiply halves, not {dtype}")
    if not rows:
        return Plan("library", "there are no rows")
    if rows > TILE_ROWS:
        return Plan("library", f"{rows} rows are more than {TILE_ROWS}: arithmetic takes longer than writing W out")
    return Plan("tile", f"{rows} of at most {TILE_ROWS} rows wait for the bytes of W, which are read once")


def product(
    x: torch.Tensor, weight: RowWeight, bias: torch.Tensor | None = None, onto: torch.Tensor | None = None
) -> torch.Tensor:
    """(M, K) → (M, N) by `plan`, without a gradient."""
    if plan(hardware_of(x.device), x.dtype, x.shape[0], weight.values.dtype).value == "library":
        return library_product(x, weight, bias, onto)
    y = _launch_forward(x, weight, bias)
    return y if onto is None else onto.add_(y)


@on_its_device
def row_linear(x: torch.Tensor, weight: RowWeight, bias: torch.Tensor | None = None) -> torch.Tensor:
    """(…, K) → (…, N) with a frozen weight in int8 or float8, differentiable once in x and bias.

    The dtype is that of x, or autocast's; sums are in float32. Raises ValueError for shapes, devices or dtypes that do
    not fit.
    """
    return frozen_linear("row_linear", x, weight, bias)
