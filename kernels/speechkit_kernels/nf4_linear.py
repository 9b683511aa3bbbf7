"""Product with a frozen 4-bit weight: y = x Wᵀ + bias and dx = dy W, where W' = level[code] · absmax (nf4.py).

Few rows wait for W's bytes alone, so there W is dequantised in registers inside the product: 0.52 bytes a weight are
read, where writing W out and multiplying moves 0.52 + 2 + 2. Many rows are bound by arithmetic: W goes through a
shared scratch and the library multiplies (weights.py). `plan` says which, and why.

    vector   y[n] = Σ blocks absmax · Σ 64 level[code] · x     a row of x to a program, no tensor cores: T4 too
    tile     y = x Wᵀ by tl.dot, W in registers from memory to product; even and odd k are two products, since a byte
             holds two
    library  through the scratch

The tiles of one launch share K between them (backward: N), so that a narrow W still fills the card. Each leaves its
part in float32; the last of a tile's programs to finish, told by a counter, adds the parts in their order: one launch
and one result, whatever the order in which they ran. With a low-rank pair given, a tile adds s · B (A xᵀ): as that is
linear in x, each program does so for its own part of K, and the whole of LoRA is in the same launch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from speechkit_kernels.launch import Hardware, block_of, hardware_of, on_its_device, programs, support
from speechkit_kernels.nf4 import kept_of, scale_of, tables_of
from speechkit_kernels.reference.nf4 import BLOCK, NF4Weight
from speechkit_kernels.scratch import tickets
from speechkit_kernels.weights import Plan, frozen_linear, library_gradient, library_product

__all__ = ["LowRank", "nf4_linear", "plan"]

VECTOR_ROWS = 4  # on a card whose tensor cores Triton cannot use
TILE_ROWS = 64  # beyond, the library's product gains more than writing W costs; an estimate, to be measured
HALVES = (torch.float16, torch.bfloat16)
OUTER = 64  # rows of W to a tile
GROUPS = 2  # blocks of 64 weights to a step
VECTOR_OUTER, VECTOR_GROUPS = 4, 16
EACH = 4  # programs to a multiprocessor, as many as have registers there
LEAST_RANK = 32  # wider than a tile's 16 rows: the warps of a square product lie along its rows, and W would follow
RANKS = 64  # of a low-rank pair that a tile holds: beside 128, 64 rows spill 440 to 616 bytes a thread


class LowRank(NamedTuple):
    """s · B (A x)."""

    a: torch.Tensor  # (R, K)
    b: torch.Tensor  # (N, R)
    scale: float


@triton.jit
def fetched(packed_ptr, absmax_ptr, peak_ptr, row, group, blocks, rows, groups, NESTED: tl.constexpr):
    """Of some rows below `rows` and blocks below `groups` what lies in memory: bytes (OUTER, GROUPS, 32), and what is
    kept of their absmax (OUTER, GROUPS). Each step asks for the next one's. Triton's own pipelining is left out: it
    would also copy every level that is looked up into shared memory, four bytes at a time.
    """
    inside = (row < rows)[:, None] & (group < groups)[None, :]
    block = row[:, None] * blocks + group[None, :]
    byte = tl.arange(0, 32)[None, None, :]
    pair = tl.load(packed_ptr + block[:, :, None] * 32 + byte, mask=inside[:, :, None], other=0)
    kept, peak = kept_of(absmax_ptr, peak_ptr, block, inside, NESTED)
    return pair, kept, peak


@triton.jit
def _vector(x_ptr, packed_ptr, absmax_ptr, levels_ptr, peak_ptr, table_ptr, offset_ptr, bias_ptr, y_ptr, x_step, outer,
            inner, NESTED: tl.constexpr, BIAS: tl.constexpr, OUTER: tl.constexpr, GROUPS: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * OUTER + tl.arange(0, OUTER)
    m = tl.program_id(1).to(tl.int64)
    byte, blocks = tl.arange(0, 32), inner // 64
    total = tl.zeros((OUTER, GROUPS), tl.float32)
    group = tl.arange(0, GROUPS)
    coming, kept, peak = fetched(packed_ptr, absmax_ptr, peak_ptr, row, group, blocks, outer, blocks, NESTED)
    for first in tl.range(0, blocks, GROUPS, num_stages=1):
        pair, scale = coming, scale_of(kept, peak, table_ptr, offset_ptr, NESTED)
        group = first + tl.arange(0, GROUPS)
        coming, kept, peak = fetched(packed_ptr, absmax_ptr, peak_ptr, row, group + GROUPS, blocks, outer, blocks,
                                     NESTED)  # fmt: skip
        at = group[:, None] * 64 + 2 * byte[None, :]  # (GROUPS, 32)
        even = tl.load(x_ptr + m * x_step + at, mask=at < inner, other=0.0).to(tl.float32)
        odd = tl.load(x_ptr + m * x_step + at + 1, mask=at < inner, other=0.0).to(tl.float32)
        upper = tl.load(levels_ptr + (pair >> 4).to(tl.int32)) * even[None, :, :]
        lower = tl.load(levels_ptr + (pair & 15).to(tl.int32)) * odd[None, :, :]
        total += tl.sum(upper + lower, axis=2) * scale
    y = tl.sum(total, axis=1)
    if BIAS:
        y += tl.load(bias_ptr + row, mask=row < outer, other=0.0).to(tl.float32)
    tl.store(y_ptr + m * outer + row, y.to(y_ptr.dtype.element_ty), mask=row < outer)


@triton.jit
def _dealt(w, OUTER: tl.constexpr, GROUPS: tl.constexpr):
    """(OUTER, GROUPS, 32) → (OUTER, 4, 2, GROUPS, 2, 2): k in the order in which `mma` deals it to the lanes of a warp.

    Of 16 k a lane multiplies two neighbours and two that lie 8 behind. A lane has loaded 16 bytes that follow each
    other; in this order they are what it multiplies, and nothing goes through shared memory. A sum has no order.
    """
    return tl.permute(tl.reshape(w, (OUTER, GROUPS, 2, 4, 2, 2)), (0, 3, 4, 1, 2, 5))


@triton.jit
def _dealt_k(GROUPS: tl.constexpr):
    """(GROUPS · 32,): which k the weights at even k are of, in the order of `_dealt`."""
    at = tl.arange(0, GROUPS * 32)
    piece, pair, group = at // (8 * GROUPS), at // (4 * GROUPS) % 2, at // 4 % GROUPS
    return group * 64 + at // 2 % 2 * 32 + piece * 8 + pair * 4 + at % 2 * 2


@triton.jit
def _halves(pair, kept, peak, levels_ptr, table_ptr, offset_ptr, KIND: tl.constexpr, NESTED: tl.constexpr,
            DEALT: tl.constexpr, OUTER: tl.constexpr, GROUPS: tl.constexpr):  # fmt: skip
    """The weights at even and at odd k of what was `fetched`: (OUTER, GROUPS · 32) each, in the dtype KIND."""
    scale, pair = scale_of(kept, peak, table_ptr, offset_ptr, NESTED)[:, :, None], pair.to(tl.int32)
    even = (tl.load(levels_ptr + (pair >> 4)) * scale).to(KIND)
    odd = (tl.load(levels_ptr + (pair & 15)) * scale).to(KIND)
    if DEALT:
        even, odd = _dealt(even, OUTER, GROUPS), _dealt(odd, OUTER, GROUPS)
    return tl.reshape(even, (OUTER, GROUPS * 32)), tl.reshape(odd, (OUTER, GROUPS * 32))


@triton.jit
def gather_parts(part, part_ptr, ticket_ptr, at, inside, size, SPLITS: tl.constexpr):
    """Leave `part`; the last of SPLITS programs gets (the sum of all parts, True)."""
    split = tl.program_id(1)
    tl.store(part_ptr + split * size + at, part, mask=inside)
    tl.debug_barrier()  # every thread's part is written before one of them says so
    last = tl.atomic_add(ticket_ptr + tl.program_id(0), 1, sem="acq_rel") == SPLITS - 1
    if last:
        part = tl.zeros_like(part)
        for other in range(SPLITS):
            part += tl.load(part_ptr + other * size + at, mask=inside, other=0.0, cache_modifier=".cg")
        tl.store(ticket_ptr + tl.program_id(0), 0)
    return part, last


@triton.jit
def _forward(x_ptr, packed_ptr, absmax_ptr, levels_ptr, peak_ptr, table_ptr, offset_ptr, bias_ptr, a_ptr, b_ptr, y_ptr,
             part_ptr, ticket_ptr, x_step, rows, outer, inner, rank, low_scale, each, KIND: tl.constexpr,
             NESTED: tl.constexpr, BIAS: tl.constexpr, LOW: tl.constexpr, SPLITS: tl.constexpr, ROWS: tl.constexpr,
             OUTER: tl.constexpr, GROUPS: tl.constexpr, RANK: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * OUTER + tl.arange(0, OUTER)
    m, r = tl.arange(0, ROWS).to(tl.int64), tl.arange(0, RANK).to(tl.int64)
    blocks = inner // 64
    start = tl.program_id(1) * each
    stop = tl.minimum(start + each, blocks)
    y = tl.zeros((ROWS, OUTER), tl.float32)
    low = tl.zeros((ROWS, RANK), tl.float32)
    dealt = _dealt_k(GROUPS)
    group = start + tl.arange(0, GROUPS)
    pair, kept, peak = fetched(packed_ptr, absmax_ptr, peak_ptr, row, group, blocks, outer, stop, NESTED)
    for first in tl.range(start, stop, GROUPS, num_stages=1):
        coming, kept_next, peak_next = fetched(packed_ptr, absmax_ptr, peak_ptr, row,
                                               first + GROUPS + tl.arange(0, GROUPS), blocks, outer, stop,
                                               NESTED)  # fmt: skip
        even, odd = _halves(pair, kept, peak, levels_ptr, table_ptr, offset_ptr, KIND, NESTED, True, OUTER, GROUPS)
        pair, kept, peak = coming, kept_next, peak_next
        k = first * 64 + dealt
        at = m[:, None] * x_step + k[None, :]
        seen = (m < rows)[:, None] & (k < stop * 64)[None, :]
        x_even = tl.load(x_ptr + at, mask=seen, other=0.0).to(KIND)  # (ROWS, GROUPS · 32)
        x_odd = tl.load(x_ptr + at + 1, mask=seen, other=0.0).to(KIND)
        y = tl.dot(x_even, tl.trans(even), y, input_precision="ieee")
        y = tl.dot(x_odd, tl.trans(odd), y, input_precision="ieee")
        if LOW:
            near = r[:, None] * inner + k[None, :]
            held = (r < rank)[:, None] & (k < stop * 64)[None, :]
            a_even = tl.load(a_ptr + near, mask=held, other=0.0).to(KIND)  # (RANK, GROUPS · 32)
            a_odd = tl.load(a_ptr + near + 1, mask=held, other=0.0).to(KIND)
            low = tl.dot(x_even, tl.trans(a_even), low, input_precision="ieee")
            low = tl.dot(x_odd, tl.trans(a_odd), low, input_precision="ieee")
    if LOW:
        held = (row < outer)[:, None] & (r < rank)[None, :]
        b = tl.load(b_ptr + row[:, None] * rank + r[None, :], mask=held, other=0.0).to(KIND)
        y += tl.dot(low.to(KIND), tl.trans(b), input_precision="ieee") * low_scale
    at = m[:, None] * outer + row[None, :]
    inside = (m < rows)[:, None] & (row < outer)[None, :]
    last = True
    if SPLITS > 1:
        y, last = gather_parts(y, part_ptr, ticket_ptr, at, inside, tl.cast(rows, tl.int64) * outer, SPLITS)
    if last:
        if BIAS:
            y += tl.load(bias_ptr + row, mask=row < outer, other=0.0).to(tl.float32)[None, :]
        tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _backward(dy_ptr, packed_ptr, absmax_ptr, levels_ptr, peak_ptr, table_ptr, offset_ptr, dx_ptr, part_ptr, ticket_ptr,
              dy_step, rows, outer, inner, each, KIND: tl.constexpr, NESTED: tl.constexpr, SPLITS: tl.constexpr,
              ROWS: tl.constexpr, OUTER: tl.constexpr, GROUPS: tl.constexpr):  # fmt: skip
    group = tl.program_id(0) * GROUPS + tl.arange(0, GROUPS)
    m, blocks = tl.arange(0, ROWS).to(tl.int64), inner // 64
    start = tl.program_id(1) * each
    stop = tl.minimum(start + each, outer)
    upper = tl.zeros((ROWS, GROUPS * 32), tl.float32)
    lower = tl.zeros((ROWS, GROUPS * 32), tl.float32)
    row = tl.cast(start, tl.int64) + tl.arange(0, OUTER)
    pair, kept, peak = fetched(packed_ptr, absmax_ptr, peak_ptr, row, group, blocks, stop, blocks, NESTED)
    for first in tl.range(start, stop, OUTER, num_stages=1):
        row = tl.cast(first, tl.int64) + tl.arange(0, OUTER)
        coming, kept_next, peak_next = fetched(packed_ptr, absmax_ptr, peak_ptr, row + OUTER, group, blocks, stop,
                                               blocks, NESTED)  # fmt: skip
        even, odd = _halves(pair, kept, peak, levels_ptr, table_ptr, offset_ptr, KIND, NESTED, False, OUTER, GROUPS)
        pair, kept, peak = coming, kept_next, peak_next
        seen = (m < rows)[:, None] & (row < stop)[None, :]
        dy = tl.load(dy_ptr + m[:, None] * dy_step + row[None, :], mask=seen, other=0.0).to(KIND)  # (ROWS, OUTER)
        upper = tl.dot(dy, even, upper, input_precision="ieee")
        lower = tl.dot(dy, odd, lower, input_precision="ieee")
    dx = tl.interleave(upper, lower)  # (ROWS, GROUPS · 64)
    k = tl.program_id(0) * (GROUPS * 64) + tl.arange(0, GROUPS * 64)
    at = m[:, None] * inner + k[None, :]
    inside = (m < rows)[:, None] & (k < inner)[None, :]
    last = True
    if SPLITS > 1:
        dx, last = gather_parts(dx, part_ptr, ticket_ptr, at, inside, tl.cast(rows, tl.int64) * inner, SPLITS)
    if last:
        tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=inside)


def shared_out(device: torch.device, tiles: int, length: int, step: int) -> tuple[int, int]:
    """Programs to a tile, and how much of `length`, in whole steps, each has; every program has some.

    EACH to a multiprocessor: a program has a step of 4 KiB on its way, an H200 wants some 20 KiB (4.3 TB/s for 0.7 µs).
    """
    steps = triton.cdiv(length, step)
    splits = max(1, min(steps, programs(device, 1 << 30, EACH) // tiles))
    each = triton.cdiv(steps, splits) * step
    return triton.cdiv(length, each), each


def kind_of(x: torch.Tensor) -> tl.dtype:
    """The dtype of a product's operands. Triton's interpreter multiplies the bits of bfloat16 as integers."""
    if x.dtype == torch.float16:
        return tl.float16
    return tl.bfloat16 if x.dtype == torch.bfloat16 and x.is_cuda else tl.float32


def warps_of_tile(rows: int, rank: int = 0) -> int:
    """Warps that hold a tile's sums in registers; four spill on sm_90 above 16 rows or with a low rank."""
    return 4 if rows <= 16 and not rank else 8


def _launch_vector(x: torch.Tensor, weight: NF4Weight, bias: torch.Tensor | None) -> torch.Tensor:
    """(M, K) → (M, N)."""
    (outer, inner), rows = weight.shape, x.shape[0]
    y = torch.empty((rows, outer), dtype=x.dtype, device=x.device)
    _vector[(triton.cdiv(outer, VECTOR_OUTER), rows)](
        x, weight.packed, *tables_of(weight), y if bias is None else bias, y, x.stride(0), outer, inner,
        NESTED=weight.nested is not None, BIAS=bias is not None, OUTER=VECTOR_OUTER, GROUPS=VECTOR_GROUPS, num_warps=4,
    )  # fmt: skip
    return y


def launch_tile(
    x: torch.Tensor, weight: NF4Weight, bias: torch.Tensor | None = None, low: LowRank | None = None
) -> torch.Tensor:
    """(M, K) → (M, N)."""
    (outer, inner), rows = weight.shape, x.shape[0]
    y = torch.empty((rows, outer), dtype=x.dtype, device=x.device)
    tiles = triton.cdiv(outer, OUTER)
    splits, each = shared_out(x.device, tiles, inner // BLOCK, GROUPS)
    parts = torch.empty((splits, rows, outer) if splits > 1 else (1,), dtype=torch.float32, device=x.device)
    a, b, scale = (x, x, 0.0) if low is None else low
    rank = 0 if low is None else a.shape[0]
    _forward[(tiles, splits)](
        x, weight.packed, *tables_of(weight), y if bias is None else bias, a, b, y, parts, tickets(x.device, tiles),
        x.stride(0), rows, outer, inner, rank, scale, each, KIND=kind_of(x), NESTED=weight.nested is not None,
        BIAS=bias is not None, LOW=low is not None, SPLITS=splits, ROWS=max(16, block_of(rows)), OUTER=OUTER,
        GROUPS=GROUPS, RANK=max(LEAST_RANK, block_of(rank)), num_warps=warps_of_tile(rows, rank), num_stages=3,
    )  # fmt: skip
    return y


def _launch_backward(dy: torch.Tensor, weight: NF4Weight) -> torch.Tensor:
    """(M, N) → (M, K)."""
    (outer, inner), rows = weight.shape, dy.shape[0]
    dx = torch.empty((rows, inner), dtype=dy.dtype, device=dy.device)
    tiles = triton.cdiv(inner // BLOCK, GROUPS)
    splits, each = shared_out(dy.device, tiles, outer, OUTER)
    parts = torch.empty((splits, rows, inner) if splits > 1 else (1,), dtype=torch.float32, device=dy.device)
    _backward[(tiles, splits)](
        dy, weight.packed, *tables_of(weight), dx, parts, tickets(dy.device, tiles), dy.stride(0), rows, outer, inner,
        each, KIND=kind_of(dy), NESTED=weight.nested is not None, SPLITS=splits, ROWS=max(16, block_of(rows)),
        OUTER=OUTER, GROUPS=GROUPS, num_warps=warps_of_tile(rows), num_stages=3,
    )  # fmt: skip
    return dx


def plan(hardware: Hardware, dtype: torch.dtype, rows: int, inner: int, *, backward: bool = False) -> Plan:
    """How M rows are multiplied with a weight (N, K = `inner`) there: "vector", "tile" or "library", and why."""
    runs, tensor_cores = support(hardware, dtype), support(hardware, dtype, matmul=True)
    if not runs.value:
        return Plan("library", runs.reason)
    if dtype not in (torch.float32, *HALVES):
        return Plan("library", f"no kernel was written for {dtype}")
    if inner % BLOCK:
        return Plan("library", f"blocks of {BLOCK} cross the rows of {inner}, so that their absmax are not a row's own")
    if not rows:
        return Plan("library", "there are no rows")
    if not backward and (rows == 1 or (rows <= VECTOR_ROWS and not (tensor_cores.value and dtype in HALVES))):
        return Plan("vector", f"{rows} of at most {VECTOR_ROWS} rows wait for the bytes of W, which are read once each")
    if dtype not in HALVES:
        return Plan("library", f"tensor cores multiply halves, not {dtype}")
    if not tensor_cores.value:
        return Plan("library", tensor_cores.reason)
    if rows > TILE_ROWS:
        return Plan("library", f"{rows} rows are more than {TILE_ROWS}: arithmetic takes longer than writing W out")
    return Plan("tile", f"{rows} of at most {TILE_ROWS} rows wait for the bytes of W, which are read once")


def product(
    x: torch.Tensor, weight: NF4Weight, bias: torch.Tensor | None = None, onto: torch.Tensor | None = None
) -> torch.Tensor:
    """(M, K) → (M, N) by `plan`, without a gradient."""
    found = plan(hardware_of(x.device), x.dtype, *x.shape)
    if found.value == "library":
        return library_product(x, weight, bias, onto)
    y = _launch_vector(x, weight, bias) if found.value == "vector" else launch_tile(x, weight, bias)
    return y if onto is None else onto.add_(y)


def input_gradient(dy: torch.Tensor, weight: NF4Weight, onto: torch.Tensor | None = None) -> torch.Tensor:
    """(M, N) → (M, K) by `plan`, without a gradient."""
    found = plan(hardware_of(dy.device), dy.dtype, dy.shape[0], weight.shape[1], backward=True)
    if found.value == "library":
        return library_gradient(dy, weight, onto)
    dx = _launch_backward(dy, weight)
    return dx if onto is None else onto.add_(dx)


@on_its_device
def nf4_linear(x: torch.Tensor, weight: NF4Weight, bias: torch.Tensor | None = None) -> torch.Tensor:
    """(…, K) → (…, N) with a frozen 4-bit weight, differentiable once in x and bias.

    The dtype is that of x, or autocast's; sums are in float32, and a weight is rounded to that dtype before a product
    by tensor cores, as in the library's. Raises ValueError for shapes, devices or dtypes that do not fit.
    """
    return frozen_linear("nf4_linear", x, weight, bias)
