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

The kernels of the backward pass are in flash_attention_backward.py.
Exponentials are taken to base 2. In: (B, S, H, D) or packed (S, H, D) with any strides but the last. Out: contiguous.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from speechkit_kernels.attention_launch import constants_of, count_of, readable, sizes_of, strides_of
from speechkit_kernels.attention_parts import capped, dot, load_rows, seen_by, spans, store_rows, whereabouts
from speechkit_kernels.attention_rule import Rule, check_attention, check_documents, check_values
from speechkit_kernels.attention_tiles import tiles
from speechkit_kernels.flash_attention_backward import launch_backward
from speechkit_kernels.launch import hardware_of, on_its_device, use_kernel
from speechkit_kernels.reference.attention import attention as _definition
from speechkit_kernels.weights import in_autocast

__all__ = ["flash_attention"]

WIDEST_HEAD = 256


@triton.jit
def _sweep(acc, top, total, q, k_ptr, v_ptr, i, begin, end, begin_k, queries, keys, k_step, v_step, width, scale2, cap,
           window, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, CAPPED: tl.constexpr, MASKED: tl.constexpr,
           POSITIVE: tl.constexpr, BLOCK_N: tl.constexpr, D: tl.constexpr, EXACT: tl.constexpr,
           PRECISION: tl.constexpr):  # fmt: skip
    """Tiles begin … end - 1 of keys, added to acc (M, D), top and total (M,)."""
    for tile in range(begin, end):
        j = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        k = load_rows(k_ptr, begin_k + tile * BLOCK_N, keys - tile * BLOCK_N, k_step, width, BLOCK_N, D, MASKED, EXACT)
        s = dot(q, tl.trans(k), tl.zeros((q.shape[0], BLOCK_N), tl.float32), PRECISION)  # (M, N)
        unit = 1.0
        if CAPPED:
            s = cap * 1.4426950408889634 * capped(s * scale2, cap)
        elif POSITIVE:  # max (scale · s) is scale · max s: one multiplication a row, and one fused with the difference
            unit = scale2
        else:
            s *= scale2
        if MASKED:
            s = tl.where(seen_by(i[:, None], j[None, :], keys - queries, queries, keys, window, CAUSAL, WINDOW),
                         s, float("-inf"))  # fmt: skip
        higher = tl.maximum(top, tl.max(s, axis=1) * unit)
        held = tl.where(higher == float("-inf"), 0.0, higher) if MASKED else higher  # nothing seen so far
        p, fade = tl.exp2(s * unit - held[:, None]), tl.exp2(top - held)
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
             POSITIVE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, D: tl.constexpr, MANY: tl.constexpr,
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
                                 v_step, width, scale2, cap, window, CAUSAL, WINDOW, CAPPED, True, POSITIVE, BLOCK_N, D,
                                 EXACT, PRECISION)  # fmt: skip
    acc, top, total = _sweep(acc, top, total, q, k_ptr, v_ptr, i, whole, ragged, begin_k, queries, keys, k_step,
                             v_step, width, scale2, cap, window, CAUSAL, WINDOW, CAPPED, False, POSITIVE, BLOCK_N, D,
                             EXACT, PRECISION)  # fmt: skip
    acc, top, total = _sweep(acc, top, total, q, k_ptr, v_ptr, i, ragged, last, begin_k, queries, keys, k_step,
                             v_step, width, scale2, cap, window, CAUSAL, WINDOW, CAPPED, True, POSITIVE, BLOCK_N, D,
                             EXACT, PRECISION)  # fmt: skip
    o = acc / tl.where(total > 0.0, total, 1.0)[:, None]
    store_rows(o_ptr + batch * o_batch + head * o_head, first_q, left, o_step, width, o, BLOCK_M, D)
    lse = (top + tl.log2(tl.where(total > 0.0, total, 1.0))) * 0.6931471805599453
    tl.store(lse_ptr + batch * lse_batch + head * lse_head + begin_q + i, lse, mask=i < queries)


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
    (numbers, rest), constants, scale = constants_of(q, k, cu_q, rule)
    count = count_of(queries, cu_q, tile.queries)
    _forward[(count * heads * batch,)](
        q, k, v, o, lse, q if cu_q is None else cu_q, q if cu_k is None else cu_k,
        *strides_of(q), *strides_of(k), *strides_of(v), *strides_of(o), lse.stride(0), lse.stride(1),
        count, heads, heads // k.shape[2], *numbers, *rest, **constants,
        POSITIVE=scale > 0, **sizes_of(tile),
    )  # fmt: skip
    return o, lse


class _FlashAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_q: torch.Tensor | None,
        cu_k: torch.Tensor | None, rule: Rule,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        q, k, v = readable(q), readable(k), readable(v)
        o, lse = _launch_forward(q, k, v, cu_q, cu_k, rule)
        ctx.save_for_backward(q, k, v, o, lse, cu_q, cu_k)
        ctx.rule = rule
        ctx.set_materialize_grads(False)
        return o, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> Any:
        do, dlse = gradients
        *saved, cu_q, cu_k = ctx.saved_tensors
        do = torch.zeros_like(saved[3]) if do is None else do
        wanted = ctx.needs_input_grad[0], any(ctx.needs_input_grad[1:3])
        return *launch_backward(do, dlse, tuple(saved), cu_q, cu_k, ctx.rule, wanted), None, None, None


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
    q, k, v = in_autocast(q), in_autocast(k), in_autocast(v)
    check_attention(name, q, k, v, packed, rule)
    check_values(name, q)
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
