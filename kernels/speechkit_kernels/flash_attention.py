"""Attention without the table of scores (Dao et al. 2022, arXiv:2205.14135; Dao 2023, arXiv:2307.08691).

Of one head, with t = scale · q kᵀ, s = t or c · tanh(t / c) under a soft cap c, and the keys that a query sees:

    o = softmax(s) v,    lse = log Σ exp s                         a tile of keys at a time, the running maximum m and
                                                                   sum l rescaled by exp(m_old - m_new) as m grows
Backward recomputes p = exp(s - lse) and needs, of o, only one number a query:

    delta = Σ do · o  (- dlse, where the log-sum-exp was used)     because Σ_j p_j dp_j = do · o
    dv = pᵀ do,    dp = do vᵀ,    ds = p · (dp - delta)
    dt = ds · (1 - (s / c)²) under a soft cap, else ds
    dq = scale · dt k,    dk = scale · dtᵀ q

Query i stands at i' = i + keys - queries, so that the last query is beside the last key. It sees key j if, where asked,
j <= i' (causal) and |i' - j| < window. A tile outside of that is never read, one wholly inside is not masked. Packed
documents: tile number n belongs to the last document with start // BLOCK + index <= n. These numbers never collide
(a document of L tokens is followed by at least ceil(L / BLOCK) free ones), so each program finds its document from
cu_seqlens alone, without a table made on the host, and at most one tile a document is idle.

dk and dv sum over the query heads of their key head inside one program: no atomics, one order, the same bits each time.
Exponentials are taken to base 2. In: (B, S, H, D) or packed (S, H, D) with any strides but the last. Out: contiguous.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from speechkit_kernels.attention_parts import (
    LOG2E,
    capped,
    dot,
    load_rows,
    precision,
    seen_by,
    spans,
    store_rows,
    whereabouts,
)
from speechkit_kernels.attention_rule import Rule, check_attention, check_documents
from speechkit_kernels.attention_tiles import Tile, head_block, tiles
from speechkit_kernels.launch import block_of, hardware_of, on_its_device, use_kernel
from speechkit_kernels.reference.attention import attention as _definition

__all__ = ["flash_attention"]

WIDEST_HEAD = 256
LOOKED_UP = 1024  # documents at a time
FARTHEST = 1 << 23  # elements from row to row; rows of one tile are addressed in int32 from the tile's start


@triton.jit
def _sweep(acc, top, total, q, k_ptr, v_ptr, i, begin, end, begin_k, queries, keys, k_step, v_step, width, scale2, cap,
           window, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, CAPPED: tl.constexpr, MASKED: tl.constexpr,
           BLOCK_N: tl.constexpr, D: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Tiles begin … end - 1 of keys, added to acc (M, D), top and total (M,)."""
    for tile in range(begin, end):
        j = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        k = load_rows(k_ptr, begin_k + tile * BLOCK_N, keys - tile * BLOCK_N, k_step, width, BLOCK_N, D, MASKED, EXACT)
        s = dot(q, tl.trans(k), tl.zeros((q.shape[0], BLOCK_N), tl.float32), PRECISION)  # (M, N)
        if CAPPED:
            s = cap * 1.4426950408889634 * capped(s * scale2, cap)
        else:
            s *= scale2
        if MASKED:
            s = tl.where(seen_by(i[:, None], j[None, :], keys - queries, queries, keys, window, CAUSAL, WINDOW),
                         s, float("-inf"))  # fmt: skip
        higher = tl.maximum(top, tl.max(s, axis=1))
        held = tl.where(higher == float("-inf"), 0.0, higher) if MASKED else higher  # nothing seen so far
        p, fade = tl.exp2(s - held[:, None]), tl.exp2(top - held)
        total = total * fade + tl.sum(p, axis=1)
        v = load_rows(v_ptr, begin_k + tile * BLOCK_N, keys - tile * BLOCK_N, v_step, width, BLOCK_N, D, MASKED, EXACT)
        acc = dot(p.to(v.dtype), v, acc * fade[:, None], PRECISION)
        top = higher
    return acc, top, total


@triton.jit
def _forward(q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr, cu_q_ptr, cu_k_ptr,
             q_batch, q_step, q_head, k_batch, k_step, k_head, v_batch, v_step, v_head, o_batch, o_step, o_head,
             lse_batch, lse_head, tiles, heads, group, documents, queries, keys, width, scale2, cap, window,
             PACKED: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, CAPPED: tl.constexpr,
             BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, D: tl.constexpr, MANY: tl.constexpr,
             EXACT: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    program = tl.program_id(0)
    number = tiles - 1 - program % tiles  # causal: the tiles with most keys first
    head, batch = (program // tiles % heads).to(tl.int64), (program // tiles // heads).to(tl.int64)
    tile, begin_q, begin_k, queries, keys = whereabouts(
        cu_q_ptr, cu_k_ptr, documents, queries, keys, number, PACKED, BLOCK_M, False, MANY)  # fmt: skip
    if tile * BLOCK_M >= queries:
        return
    i, left, first_q = tile * BLOCK_M + tl.arange(0, BLOCK_M), queries - tile * BLOCK_M, begin_q + tile * BLOCK_M
    q = load_rows(q_ptr + batch * q_batch + head * q_head, first_q, left, q_step, width, BLOCK_M, D, True, EXACT)
    k_ptr += batch * k_batch + head // group * k_head
    v_ptr += batch * v_batch + head // group * v_head
    first, whole, ragged, last = spans(
        tile * BLOCK_M, tl.minimum(tile * BLOCK_M + BLOCK_M, queries), keys - queries, keys, window,
        CAUSAL, WINDOW, BLOCK_N, True)  # fmt: skip
    acc = tl.zeros((BLOCK_M, D), tl.float32)
    top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    if WINDOW:
        acc, top, total = _sweep(acc, top, total, q, k_ptr, v_ptr, i, first, whole, begin_k, queries, keys, k_step,
                                 v_step, width, scale2, cap, window, CAUSAL, WINDOW, CAPPED, True, BLOCK_N, D,
                                 EXACT, PRECISION)  # fmt: skip
    acc, top, total = _sweep(acc, top, total, q, k_ptr, v_ptr, i, whole, ragged, begin_k, queries, keys, k_step,
                             v_step, width, scale2, cap, window, CAUSAL, WINDOW, CAPPED, False, BLOCK_N, D,
                             EXACT, PRECISION)  # fmt: skip
    acc, top, total = _sweep(acc, top, total, q, k_ptr, v_ptr, i, ragged, last, begin_k, queries, keys, k_step,
                             v_step, width, scale2, cap, window, CAUSAL, WINDOW, CAPPED, True, BLOCK_N, D,
                             EXACT, PRECISION)  # fmt: skip
    o = acc / tl.where(total > 0.0, total, 1.0)[:, None]
    store_rows(o_ptr + batch * o_batch + head * o_head, first_q, left, o_step, width, o, BLOCK_M, D)
    lse = (top + tl.log2(tl.where(total > 0.0, total, 1.0))) * 0.6931471805599453
    tl.store(lse_ptr + batch * lse_batch + head * lse_head + begin_q + i, lse, mask=i < queries)


@triton.jit
def _delta(do_ptr, o_ptr, delta_ptr, do_batch, do_step, do_head, o_batch, o_step, o_head, lse_batch, lse_head, tiles,
           heads, queries, width, BLOCK_M: tl.constexpr, D: tl.constexpr, EXACT: tl.constexpr):  # fmt: skip
    program = tl.program_id(0)
    tile, head = program % tiles, (program // tiles % heads).to(tl.int64)
    batch = (program // tiles // heads).to(tl.int64)
    i, left, first = tile * BLOCK_M + tl.arange(0, BLOCK_M), queries - tile * BLOCK_M, tl.cast(tile, tl.int64) * BLOCK_M
    do = load_rows(do_ptr + batch * do_batch + head * do_head, first, left, do_step, width, BLOCK_M, D, True, EXACT)
    o = load_rows(o_ptr + batch * o_batch + head * o_head, first, left, o_step, width, BLOCK_M, D, True, EXACT)
    at = delta_ptr + batch * lse_batch + head * lse_head + i
    tl.store(at, tl.sum(do.to(tl.float32) * o.to(tl.float32), axis=1), mask=i < queries)


@triton.jit
def _keys_sweep(dk, dv, k, v, q_ptr, do_ptr, lse_ptr, delta_ptr, j, begin, end, begin_q, queries, keys, q_step, do_step,
                width, scale2, cap, window, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, CAPPED: tl.constexpr,
                MASKED: tl.constexpr, BLOCK_M: tl.constexpr, D: tl.constexpr, EXACT: tl.constexpr,
                PRECISION: tl.constexpr):  # fmt: skip
    """Tiles begin … end - 1 of queries, added to dk and dv (N, D). The tables are transposed, (N, M): so p and ds are
    the left operands of their products as they come.
    """
    for tile in range(begin, end):
        i = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        q = load_rows(
            q_ptr, begin_q + tile * BLOCK_M, queries - tile * BLOCK_M, q_step, width, BLOCK_M, D, MASKED, EXACT
        )
        lse = tl.load(lse_ptr + begin_q + i, mask=i < queries, other=0.0) * 1.4426950408889634
        s = dot(k, tl.trans(q), tl.zeros((k.shape[0], BLOCK_M), tl.float32), PRECISION)  # (N, M)
        if CAPPED:
            bent = capped(s * scale2, cap)
            s = cap * 1.4426950408889634 * bent
        else:
            s *= scale2
        p = tl.exp2(s - lse[None, :])
        if MASKED:
            p = tl.where(seen_by(i[None, :], j[:, None], keys - queries, queries, keys, window, CAUSAL, WINDOW), p, 0.0)
        do = load_rows(do_ptr, begin_q + tile * BLOCK_M, queries - tile * BLOCK_M, do_step, width, BLOCK_M, D, MASKED,
                   EXACT)  # fmt: skip
        dv = dot(p.to(do.dtype), do, dv, PRECISION)
        delta = tl.load(delta_ptr + begin_q + i, mask=i < queries, other=0.0)
        dp = dot(v, tl.trans(do), tl.zeros((v.shape[0], BLOCK_M), tl.float32), PRECISION)
        ds = p * (dp - delta[None, :])
        if CAPPED:
            ds *= 1.0 - bent * bent
        dk = dot(ds.to(q.dtype), q, dk, PRECISION)
    return dk, dv


@triton.jit
def _backward_keys(q_ptr, k_ptr, v_ptr, do_ptr, lse_ptr, delta_ptr, dk_ptr, dv_ptr, cu_q_ptr, cu_k_ptr,
                   q_batch, q_step, q_head, k_batch, k_step, k_head, v_batch, v_step, v_head, do_batch, do_step,
                   do_head, dk_batch, dk_step, dk_head, lse_batch, lse_head, tiles, heads, group, documents, queries,
                   keys, width, scale, scale2, cap, window, PACKED: tl.constexpr, CAUSAL: tl.constexpr,
                   WINDOW: tl.constexpr, CAPPED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
                   D: tl.constexpr, MANY: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    program = tl.program_id(0)
    head, batch = (program // tiles % heads).to(tl.int64), (program // tiles // heads).to(tl.int64)  # of keys
    tile, begin_q, begin_k, queries, keys = whereabouts(
        cu_q_ptr, cu_k_ptr, documents, queries, keys, program % tiles, PACKED, BLOCK_N, True, MANY)  # fmt: skip
    if tile * BLOCK_N >= keys:
        return
    j, left, first_k = tile * BLOCK_N + tl.arange(0, BLOCK_N), keys - tile * BLOCK_N, begin_k + tile * BLOCK_N
    k = load_rows(k_ptr + batch * k_batch + head * k_head, first_k, left, k_step, width, BLOCK_N, D, True, EXACT)
    v = load_rows(v_ptr + batch * v_batch + head * v_head, first_k, left, v_step, width, BLOCK_N, D, True, EXACT)
    first, whole, ragged, last = spans(
        tile * BLOCK_N, tl.minimum(tile * BLOCK_N + BLOCK_N, keys), keys - queries, queries, window,
        CAUSAL, WINDOW, BLOCK_M, False)  # fmt: skip
    dk, dv = tl.zeros((BLOCK_N, D), tl.float32), tl.zeros((BLOCK_N, D), tl.float32)
    for member in range(0, group):
        here = head * group + member
        q_at, do_at = q_ptr + batch * q_batch + here * q_head, do_ptr + batch * do_batch + here * do_head
        lse_at = lse_ptr + batch * lse_batch + here * lse_head
        delta_at = delta_ptr + batch * lse_batch + here * lse_head
        if CAUSAL or WINDOW:
            dk, dv = _keys_sweep(dk, dv, k, v, q_at, do_at, lse_at, delta_at, j, first, whole, begin_q, queries, keys,
                                 q_step, do_step, width, scale2, cap, window, CAUSAL, WINDOW, CAPPED, True, BLOCK_M, D,
                                 EXACT, PRECISION)  # fmt: skip
        dk, dv = _keys_sweep(dk, dv, k, v, q_at, do_at, lse_at, delta_at, j, whole, ragged, begin_q, queries, keys,
                             q_step, do_step, width, scale2, cap, window, CAUSAL, WINDOW, CAPPED, False, BLOCK_M, D,
                             EXACT, PRECISION)  # fmt: skip
        dk, dv = _keys_sweep(dk, dv, k, v, q_at, do_at, lse_at, delta_at, j, ragged, last, begin_q, queries, keys,
                             q_step, do_step, width, scale2, cap, window, CAUSAL, WINDOW, CAPPED, True, BLOCK_M, D,
                             EXACT, PRECISION)  # fmt: skip
    store_rows(dk_ptr + batch * dk_batch + head * dk_head, first_k, left, dk_step, width, dk * scale, BLOCK_N, D)
    store_rows(dv_ptr + batch * dk_batch + head * dk_head, first_k, left, dk_step, width, dv, BLOCK_N, D)


@triton.jit
def _queries_sweep(dq, q, do, lse, delta, k_ptr, v_ptr, i, begin, end, begin_k, queries, keys, k_step, v_step, width,
                   scale2, cap, window, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, CAPPED: tl.constexpr,
                   MASKED: tl.constexpr, BLOCK_N: tl.constexpr, D: tl.constexpr, EXACT: tl.constexpr,
                   PRECISION: tl.constexpr):  # fmt: skip
    """Tiles begin … end - 1 of keys, added to dq (M, D)."""
    for tile in range(begin, end):
        j = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        k = load_rows(k_ptr, begin_k + tile * BLOCK_N, keys - tile * BLOCK_N, k_step, width, BLOCK_N, D, MASKED, EXACT)
        s = dot(q, tl.trans(k), tl.zeros((q.shape[0], BLOCK_N), tl.float32), PRECISION)  # (M, N)
        if CAPPED:
            bent = capped(s * scale2, cap)
            s = cap * 1.4426950408889634 * bent
        else:
            s *= scale2
        p = tl.exp2(s - lse[:, None])
        if MASKED:
            p = tl.where(seen_by(i[:, None], j[None, :], keys - queries, queries, keys, window, CAUSAL, WINDOW), p, 0.0)
        v = load_rows(v_ptr, begin_k + tile * BLOCK_N, keys - tile * BLOCK_N, v_step, width, BLOCK_N, D, MASKED, EXACT)
        dp = dot(do, tl.trans(v), tl.zeros((do.shape[0], BLOCK_N), tl.float32), PRECISION)
        ds = p * (dp - delta[:, None])
        if CAPPED:
            ds *= 1.0 - bent * bent
        dq = dot(ds.to(k.dtype), k, dq, PRECISION)
    return dq


@triton.jit
def _backward_queries(q_ptr, k_ptr, v_ptr, do_ptr, lse_ptr, delta_ptr, dq_ptr, cu_q_ptr, cu_k_ptr,
                      q_batch, q_step, q_head, k_batch, k_step, k_head, v_batch, v_step, v_head, do_batch, do_step,
                      do_head, dq_batch, dq_step, dq_head, lse_batch, lse_head, tiles, heads, group, documents,
                      queries, keys, width, scale, scale2, cap, window, PACKED: tl.constexpr, CAUSAL: tl.constexpr,
                      WINDOW: tl.constexpr, CAPPED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
                      D: tl.constexpr, MANY: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    program = tl.program_id(0)
    number = tiles - 1 - program % tiles
    head, batch = (program // tiles % heads).to(tl.int64), (program // tiles // heads).to(tl.int64)
    tile, begin_q, begin_k, queries, keys = whereabouts(
        cu_q_ptr, cu_k_ptr, documents, queries, keys, number, PACKED, BLOCK_M, False, MANY)  # fmt: skip
    if tile * BLOCK_M >= queries:
        return
    i, left, first_q = tile * BLOCK_M + tl.arange(0, BLOCK_M), queries - tile * BLOCK_M, begin_q + tile * BLOCK_M
    inside = i < queries
    q = load_rows(q_ptr + batch * q_batch + head * q_head, first_q, left, q_step, width, BLOCK_M, D, True, EXACT)
    do = load_rows(do_ptr + batch * do_batch + head * do_head, first_q, left, do_step, width, BLOCK_M, D, True, EXACT)
    at = batch * lse_batch + head * lse_head + begin_q + i
    lse = tl.load(lse_ptr + at, mask=inside, other=0.0) * 1.4426950408889634
    delta = tl.load(delta_ptr + at, mask=inside, other=0.0)
    k_ptr += batch * k_batch + head // group * k_head
    v_ptr += batch * v_batch + head // group * v_head
    first, whole, ragged, last = spans(
        tile * BLOCK_M, tl.minimum(tile * BLOCK_M + BLOCK_M, queries), keys - queries, keys, window,
        CAUSAL, WINDOW, BLOCK_N, True)  # fmt: skip
    dq = tl.zeros((BLOCK_M, D), tl.float32)
    if WINDOW:
        dq = _queries_sweep(dq, q, do, lse, delta, k_ptr, v_ptr, i, first, whole, begin_k, queries, keys, k_step,
                            v_step, width, scale2, cap, window, CAUSAL, WINDOW, CAPPED, True, BLOCK_N, D,
                            EXACT, PRECISION)  # fmt: skip
    dq = _queries_sweep(dq, q, do, lse, delta, k_ptr, v_ptr, i, whole, ragged, begin_k, queries, keys, k_step,
                        v_step, width, scale2, cap, window, CAUSAL, WINDOW, CAPPED, False, BLOCK_N, D,
                        EXACT, PRECISION)  # fmt: skip
    dq = _queries_sweep(dq, q, do, lse, delta, k_ptr, v_ptr, i, ragged, last, begin_k, queries, keys, k_step,
                        v_step, width, scale2, cap, window, CAUSAL, WINDOW, CAPPED, True, BLOCK_N, D,
                        EXACT, PRECISION)  # fmt: skip
    store_rows(dq_ptr + batch * dq_batch + head * dq_head, first_q, left, dq_step, width, dq * scale, BLOCK_M, D)


def _strides(x: torch.Tensor) -> tuple[int, int, int]:
    """Of (B, S, H, D): from batch to batch, row to row, head to head."""
    return x.stride(0), x.stride(1), x.stride(2)


def _readable(x: torch.Tensor) -> torch.Tensor:
    """Itself if the kernels can read it where it lies: elements of a head side by side, rows not absurdly far apart."""
    lies = (x.stride(-1) == 1 or x.shape[-1] == 1) and x.stride(1) < FARTHEST
    return x if lies else x.contiguous()


def _constants(q: torch.Tensor, k: torch.Tensor, cu_q: torch.Tensor | None, rule: Rule) -> tuple[list[Any], Any, Any]:
    """Numbers that every kernel takes after its strides, compile-time constants, and scale."""
    documents = 0 if cu_q is None else cu_q.numel() - 1
    scale = rule.scale if rule.scale is not None else q.shape[-1] ** -0.5
    block = head_block(q.shape[-1])
    numbers = [documents, q.shape[1], k.shape[1], q.shape[-1]]
    rest = [scale * LOG2E, rule.softcap or 1.0, rule.window or 0]
    constants = {
        "PACKED": cu_q is not None, "CAUSAL": rule.causal, "WINDOW": rule.window is not None,
        "CAPPED": rule.softcap is not None, "D": block, "EXACT": block == q.shape[-1],
        "MANY": block_of(min(max(documents, 1), LOOKED_UP)),
        "PRECISION": precision(q),
    }  # fmt: skip
    return [numbers, rest], constants, scale


def _count(size: int, cu: torch.Tensor | None, block: int) -> int:
    """Tile numbers for `size` positions: of packed ones one more for each document (see the head)."""
    return -(-size // block) if cu is None else size // block + cu.numel() - 1


def _sizes(tile: Tile) -> dict[str, int]:
    return {"BLOCK_M": tile.queries, "BLOCK_N": tile.keys, "num_warps": tile.warps, "num_stages": tile.stages}


def _launch_forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_q: torch.Tensor | None, cu_k: torch.Tensor | None, rule: Rule
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """(B, S, H, D), (B, N, Hk, D) twice → o (B, S, H, D), lse (B, H, S); packed has B = 1."""
    batch, queries, heads, width = q.shape
    o = torch.empty((batch, queries, heads, width), dtype=q.dtype, device=q.device)
    lse = torch.empty((batch, heads, queries), dtype=torch.float32, device=q.device)
    if not o.numel():
        return o, lse
    tile = tiles(hardware_of(q.device).capability, width, q.dtype).forward
    (numbers, rest), constants, _ = _constants(q, k, cu_q, rule)
    count = _count(queries, cu_q, tile.queries)
    _forward[(count * heads * batch,)](
        q, k, v, o, lse, q if cu_q is None else cu_q, q if cu_k is None else cu_k,
        *_strides(q), *_strides(k), *_strides(v), *_strides(o), lse.stride(0), lse.stride(1),
        count, heads, heads // k.shape[2], *numbers, *rest, **constants,
        **_sizes(tile),
    )  # fmt: skip
    return o, lse


def _launch_delta(do: torch.Tensor, o: torch.Tensor, lse: torch.Tensor) -> torch.Tensor:
    """(B, S, H, D) twice → Σ do · o (B, H, S), with the strides of lse."""
    delta, block, (batch, queries, heads, width) = torch.empty_like(lse), 32, o.shape
    count = -(-queries // block)
    _delta[(count * heads * batch,)](
        do, o, delta, *_strides(do), *_strides(o), lse.stride(0), lse.stride(1), count, heads, queries, width,
        BLOCK_M=block, D=head_block(width), EXACT=head_block(width) == width,
    )  # fmt: skip
    return delta


def _launch_backward(
    do: torch.Tensor, dlse: torch.Tensor | None, saved: tuple[torch.Tensor, ...], cu_q: torch.Tensor | None,
    cu_k: torch.Tensor | None, rule: Rule,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """q, k, v, o, lse and the gradients of o and lse → dq, dk, dv."""
    q, k, v, o, lse = saved
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    if not q.numel() or not k.numel():
        return dq.zero_(), dk.zero_(), dv.zero_()
    delta = _launch_delta(do, o, lse)
    if dlse is not None:
        delta -= dlse
    chosen = tiles(hardware_of(q.device).capability, q.shape[-1], q.dtype)
    (numbers, rest), constants, scale = _constants(q, k, cu_q, rule)
    starts = (q if cu_q is None else cu_q, q if cu_k is None else cu_k)
    batch, queries, heads, _ = q.shape
    kv_heads = k.shape[2]
    read = (*_strides(q), *_strides(k), *_strides(v), *_strides(do))
    count = _count(k.shape[1], cu_k, chosen.backward_keys.keys)
    _backward_keys[(count * kv_heads * batch,)](
        q, k, v, do, lse, delta, dk, dv, *starts, *read, *_strides(dk), lse.stride(0), lse.stride(1),
        count, kv_heads, heads // kv_heads, *numbers, scale, *rest, **constants, **_sizes(chosen.backward_keys),
    )  # fmt: skip
    count = _count(queries, cu_q, chosen.backward_queries.queries)
    _backward_queries[(count * heads * batch,)](
        q, k, v, do, lse, delta, dq, *starts, *read, *_strides(dq), lse.stride(0), lse.stride(1),
        count, heads, heads // kv_heads, *numbers, scale, *rest, **constants, **_sizes(chosen.backward_queries),
    )  # fmt: skip
    return dq, dk, dv


class _FlashAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_q: torch.Tensor | None,
        cu_k: torch.Tensor | None, rule: Rule,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        q, k, v = _readable(q), _readable(k), _readable(v)
        o, lse = _launch_forward(q, k, v, cu_q, cu_k, rule)
        ctx.save_for_backward(q, k, v, o, lse, cu_q, cu_k)
        ctx.rule = rule
        ctx.set_materialize_grads(False)
        return o, lse

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        do, dlse = gradients
        *saved, cu_q, cu_k = ctx.saved_tensors
        do = torch.zeros_like(saved[3]) if do is None else _readable(do)
        return *_launch_backward(do, dlse, tuple(saved), cu_q, cu_k, ctx.rule), None, None, None


@on_its_device
def flash_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool = False,
    window: int | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    cu_seqlens: torch.Tensor | None = None,
    cu_seqlens_k: torch.Tensor | None = None,
    return_lse: bool = False,
) -> Any:
    """Attention of q (B, S, H, D) over k, v (B, N, Hk, D), D up to 256, Hk a divisor of H → (B, S, H, D).

    Packed: q (S, H, D), k, v (N, Hk, D), `cu_seqlens` (documents + 1,) int32 from 0 to S; `cu_seqlens_k` where keys
    have other lengths. causal, window: the last query stands beside the last key, |i' - j| < window. softcap:
    c · tanh(t / c). scale: 1 / sqrt(D) if None. A query that sees no key gives zero.
    return_lse: also log Σ exp (B, H, S) or (H, S) float32. Differentiable in q, k, v, through lse as well. Raises
    ValueError for what does not fit.
    """
    name, packed, rule = "flash_attention", cu_seqlens is not None, Rule(causal, window, softcap, scale)
    check_attention(name, q, k, v, packed, rule)
    if q.shape[-1] > WIDEST_HEAD:
        raise ValueError(f"{name}: heads of {q.shape[-1]} values; give at most {WIDEST_HEAD}")
    other = cu_seqlens if cu_seqlens_k is None else cu_seqlens_k
    if cu_seqlens is not None and other is not None:
        check_documents(name, cu_seqlens, q)
        check_documents(name, other, k)
        cu_seqlens, other = cu_seqlens.contiguous(), other.contiguous()
        if other.numel() != cu_seqlens.numel():
            raise ValueError(f"{name}: {cu_seqlens.numel() - 1} documents of queries, {other.numel() - 1} of keys")
    elif cu_seqlens_k is not None:
        raise ValueError(f"{name}: cu_seqlens_k without cu_seqlens; give both, or none")
    if not use_kernel(name, q, matmul=True):
        return _definition(
            q, k, v, causal=causal, window=window, softcap=softcap, scale=scale, cu_seqlens=cu_seqlens,
            cu_seqlens_k=cu_seqlens_k, return_lse=return_lse,
        )  # fmt: skip
    wide = (x[None] if packed else x for x in (q, k, v))
    o, lse = _FlashAttention.apply(*wide, cu_seqlens, other if packed else None, rule)
    o, lse = (o[0], lse[0]) if packed else (o, lse)
    return (o, lse) if return_lse else o
