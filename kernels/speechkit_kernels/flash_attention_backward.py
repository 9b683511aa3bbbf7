"""The backward pass of flash_attention.py: its formulas are there.

Two kernels, each of which recomputes the probabilities: one holds keys and visits queries, for dk and dv, the other
holds queries and visits keys, for dq. dk and dv sum over the query heads of their key head inside one program: no
atomics, one order, the same bits each time. Only what is wanted is computed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from speechkit_kernels.attention_launch import constants_of, count_of, readable, sizes_of, strides_of
from speechkit_kernels.attention_parts import capped, dot, load_rows, seen_by, spans, store_rows, whereabouts
from speechkit_kernels.attention_tiles import head_block, tiles
from speechkit_kernels.launch import hardware_of

if TYPE_CHECKING:
    from speechkit_kernels.attention_rule import Rule

__all__ = ["launch_backward"]


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


def _launch_delta(do: torch.Tensor, o: torch.Tensor, lse: torch.Tensor) -> torch.Tensor:
    """(B, S, H, D) twice → Σ do · o (B, H, S), with the strides of lse."""
    delta, block, (batch, queries, heads, width) = torch.empty_like(lse), 32, o.shape
    count = -(-queries // block)
    _delta[(count * heads * batch,)](
        do, o, delta, *strides_of(do), *strides_of(o), lse.stride(0), lse.stride(1), count, heads, queries, width,
        BLOCK_M=block, D=head_block(width), EXACT=head_block(width) == width,
    )  # fmt: skip
    return delta


def launch_backward(
    do: torch.Tensor, dlse: torch.Tensor | None, saved: tuple[torch.Tensor, ...], cu_q: torch.Tensor | None,
    cu_k: torch.Tensor | None, rule: Rule, wanted: tuple[bool, bool],
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:  # fmt: skip
    """q, k, v, o, lse and the gradients of o and lse → dq, dk, dv; `wanted`: that of queries, those of keys."""
    q, k, v, o, lse = saved
    do = readable(do)
    dq = torch.empty(q.shape, dtype=q.dtype, device=q.device) if wanted[0] else None
    dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) if wanted[1] else None for x in (k, v))
    if not q.numel() or not k.numel():
        return tuple(x if x is None else x.zero_() for x in (dq, dk, dv))  # type: ignore[return-value]
    delta = _launch_delta(do, o, lse)
    if dlse is not None:
        delta -= dlse
    chosen = tiles(hardware_of(q.device).capability, q.shape[-1], q.dtype)
    (numbers, rest), constants, scale = constants_of(q, k, cu_q, rule)
    starts = (q if cu_q is None else cu_q, q if cu_k is None else cu_k)
    batch, queries, heads, _ = q.shape
    kv_heads = k.shape[2]
    read = (*strides_of(q), *strides_of(k), *strides_of(v), *strides_of(do))
    if dk is not None and dv is not None:
        count = count_of(k.shape[1], cu_k, chosen.backward_keys.keys)
        _backward_keys[(count * kv_heads * batch,)](
            q, k, v, do, lse, delta, dk, dv, *starts, *read, *strides_of(dk), lse.stride(0), lse.stride(1),
            count, kv_heads, heads // kv_heads, *numbers, scale, *rest, **constants, **sizes_of(chosen.backward_keys),
        )  # fmt: skip
    if dq is not None:
        count = count_of(queries, cu_q, chosen.backward_queries.queries)
        _backward_queries[(count * heads * batch,)](
            q, k, v, do, lse, delta, dq, *starts, *read, *strides_of(dq), lse.stride(0), lse.stride(1),
            count, heads, heads // kv_heads, *numbers, scale, *rest, **constants, **sizes_of(chosen.backward_queries),
        )  # fmt: skip
    return dq, dk, dv
