"""What the attention kernels share on the device: products, the soft cap, packed documents, which tiles are needed.

Called from kernels. lead: keys - queries, so that query i stands at i + lead among the keys.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from speechkit_kernels.launch import hardware_of

__all__ = ["LOG2E", "capped", "document_of", "dot", "load_rows", "precision", "seen_by", "spans", "store_rows",
           "whereabouts"]  # fmt: skip

LOG2E = 1.4426950408889634  # in kernels as a number: they read no globals


def precision(x: torch.Tensor) -> str:
    """How kernels here multiply matrices of the dtype of x: float32 as torch is set to."""
    if x.dtype == torch.bfloat16 and hardware_of(x.device).interpreted:
        return "bits"
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


@triton.jit
def capped(t, cap):
    """tanh(t / cap) of t in units of base 2, by one exponential; far out it is ±1."""
    return 1.0 - 2.0 / (tl.exp2(t * (2.0 / cap)) + 1.0)


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """acc + a b. PRECISION "bits": Triton's interpreter multiplies the bits of bfloat16 as if they were integers."""
    if PRECISION == "bits":
        found = tl.dot(a.to(tl.float32), b.to(tl.float32), acc)
    else:
        found = tl.dot(a, b, acc, input_precision=PRECISION)
    return found


@triton.jit
def document_of(cu_ptr, documents, number, BLOCK: tl.constexpr, MANY: tl.constexpr):
    """The document that tile `number` belongs to, and its place among that document's tiles."""
    count = 0
    for first in range(0, documents, MANY):
        index = first + tl.arange(0, MANY)
        start = tl.load(cu_ptr + index, mask=index < documents, other=0)
        count += tl.sum(((index < documents) & (start // BLOCK + index <= number)).to(tl.int32), axis=0)
    document = count - 1
    return document, number - (tl.load(cu_ptr + document).to(tl.int32) // BLOCK + document)


@triton.jit
def whereabouts(cu_q_ptr, cu_k_ptr, documents, queries, keys, number, PACKED: tl.constexpr, BLOCK: tl.constexpr,
                 BY_KEYS: tl.constexpr, MANY: tl.constexpr):  # fmt: skip
    """Document, tile in it, where its queries and keys begin, and how many they are."""
    document, tile = 0, number
    begin_q, begin_k = tl.cast(0, tl.int64), tl.cast(0, tl.int64)
    if PACKED:
        document, tile = document_of(cu_k_ptr if BY_KEYS else cu_q_ptr, documents, number, BLOCK, MANY)
        begin_q, begin_k = tl.load(cu_q_ptr + document).to(tl.int64), tl.load(cu_k_ptr + document).to(tl.int64)
        queries = (tl.load(cu_q_ptr + document + 1) - begin_q).to(tl.int32)
        keys = (tl.load(cu_k_ptr + document + 1) - begin_k).to(tl.int32)
    return tile, begin_q, begin_k, queries, keys


@triton.jit
def spans(low, high, lead, sized, window, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, BLOCK: tl.constexpr,
          OF_KEYS: tl.constexpr):  # fmt: skip
    """What a tile of positions low … high - 1 visits on the other side, where `sized` exist, as four tile numbers:
    the first, the first that needs no mask, the first that needs one again, the end. lead: keys - queries.
    """
    begin, end = 0, sized  # seen by at least one
    begin_all, end_all = 0, sized  # seen by all
    if OF_KEYS:  # the tile holds queries and visits keys: j <= i', |i' - j| < window
        if CAUSAL:
            end, end_all = tl.minimum(end, high + lead), tl.minimum(end_all, low + lead + 1)
        if WINDOW:
            begin, begin_all = tl.maximum(begin, low + lead - window + 1), tl.maximum(begin_all, high + lead - window)
            end, end_all = tl.minimum(end, high + lead + window - 1), tl.minimum(end_all, low + lead + window)
    else:  # the tile holds keys and visits queries: i >= j - lead
        if CAUSAL:
            begin, begin_all = tl.maximum(begin, low - lead), tl.maximum(begin_all, high - 1 - lead)
        if WINDOW:
            begin, begin_all = tl.maximum(begin, low - lead - window + 1), tl.maximum(begin_all, high - lead - window)
            end, end_all = tl.minimum(end, high - 1 - lead + window), tl.minimum(end_all, low - lead + window)
    first = begin // BLOCK
    last = tl.maximum(first, (tl.maximum(end, 0) + BLOCK - 1) // BLOCK)
    whole = tl.minimum(tl.maximum((begin_all + BLOCK - 1) // BLOCK, first), last)
    ragged = tl.minimum(tl.maximum(tl.maximum(end_all, 0) // BLOCK, whole), last)
    return first, whole, ragged, last


@triton.jit
def seen_by(i, j, lead, queries, keys, window, CAUSAL: tl.constexpr, WINDOW: tl.constexpr):
    seen = (i < queries) & (j < keys)
    if CAUSAL:
        seen = seen & (j <= i + lead)
    if WINDOW:
        seen = seen & (j < i + lead + window) & (j > i + lead - window)
    return seen


@triton.jit
def load_rows(base, first, left, step, width, BLOCK: tl.constexpr, D: tl.constexpr, RAGGED: tl.constexpr,
          EXACT: tl.constexpr):  # fmt: skip
    """(BLOCK, D) from row `first` on, of which `left` exist; zero outside. Without a mask where none is needed."""
    at, d = tl.arange(0, BLOCK), tl.arange(0, D)
    rows = (base + first * step) + (at[:, None] * step + d[None, :])  # only the scalar part changes from tile to tile
    if RAGGED and EXACT:
        found = tl.load(rows, mask=(at < left)[:, None], other=0.0)
    elif RAGGED:
        found = tl.load(rows, mask=(at < left)[:, None] & (d < width)[None, :], other=0.0)
    elif EXACT:
        found = tl.load(rows)
    else:
        found = tl.load(rows, mask=(d < width)[None, :], other=0.0)
    return found


@triton.jit
def store_rows(base, first, left, step, width, values, BLOCK: tl.constexpr, D: tl.constexpr):
    at, d = tl.arange(0, BLOCK), tl.arange(0, D)
    rows = (base + first * step) + (at[:, None] * step + d[None, :])
    tl.store(rows, values.to(base.dtype.element_ty), mask=(at < left)[:, None] & (d < width)[None, :])
