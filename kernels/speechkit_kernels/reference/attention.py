"""Attention by its definition, with the whole table of scores in memory: dense, packed documents, paged cache."""

from __future__ import annotations

import math
from typing import Any

import torch

__all__ = ["attention", "attention_mask", "gather_pages", "paged_attention"]


def attention_mask(
    queries: int, keys: int, *, causal: bool = False, window: int | None = None, device: torch.device | None = None
) -> torch.Tensor:
    """(queries, keys) bool, True where a query sees a key. The last query stands beside the last key.

    With i' = i + keys - queries: causal j <= i'; window |i' - j| < window, so that under both a query sees at most
    `window` keys, its own among them.
    """
    here = torch.arange(queries, device=device)[:, None] + (keys - queries)
    there = torch.arange(keys, device=device)[None, :]
    seen = (there <= here) if causal else torch.ones(queries, keys, dtype=torch.bool, device=device)
    return seen if window is None else seen & ((here - there).abs() < window)


def attention(
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
    mask: torch.Tensor | None = None,
    return_lse: bool = False,
) -> Any:
    """o = softmax(c · tanh(scale · q kᵀ / c)) v over the keys that a query sees; without softcap c the bare scores.

    q: (B, S, H, D); k, v: (B, N, Hk, D), Hk a divisor of H: query head h reads key head h // (H / Hk).
    Packed: q (S, H, D), k, v (N, Hk, D) with `cu_seqlens` (documents + 1,), where each document starts and the last one
    ends; `cu_seqlens_k` where the keys differ. mask: bool, broadcast to (B, H, S, N), True where seen, on top of the
    rest. A query that sees no key gives zero. With return_lse also log Σ exp: (B, H, S) or (H, S) float32.
    Method: Vaswani et al. 2017, arXiv:1706.03762, equation 1; soft cap of Gemma 2, arXiv:2408.00118.
    """
    packed = cu_seqlens is not None
    if packed:
        q, k, v = q[None], k[None], v[None]
    seen = _packed_mask(q, k, cu_seqlens, cu_seqlens_k, causal, window) if packed else attention_mask(
        q.shape[1], k.shape[1], causal=causal, window=window, device=q.device
    )  # fmt: skip
    seen = seen if mask is None else seen & mask
    group = q.shape[2] // max(k.shape[2], 1)
    wide_k, wide_v = (x.float().repeat_interleave(group, dim=2) for x in (k, v))
    factor = scale if scale is not None else q.shape[-1] ** -0.5
    scores = torch.einsum("bshd,bnhd->bhsn", q.float(), wide_k) * factor
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~seen, -math.inf)
    blind = ~seen.any(dim=-1, keepdim=True)  # a softmax over nothing would be NaN
    share = torch.softmax(scores.masked_fill(blind, 0.0), dim=-1).masked_fill(blind, 0.0)
    o = torch.einsum("bhsn,bnhd->bshd", share, wide_v).to(q.dtype)
    lse = torch.logsumexp(scores.masked_fill(blind, 0.0), dim=-1).masked_fill(blind[..., 0], -math.inf)
    if packed:
        o, lse = o[0], lse[0]
    return (o, lse) if return_lse else o


def _packed_mask(
    q: torch.Tensor, k: torch.Tensor, starts: Any, starts_k: Any, causal: bool, window: int | None
) -> torch.Tensor:
    """(S, N) bool: the table of each document on the diagonal, nothing between documents."""
    seen = torch.zeros(q.shape[1], k.shape[1], dtype=torch.bool, device=q.device)
    rows, columns = starts.tolist(), (starts if starts_k is None else starts_k).tolist()
    for at in range(len(rows) - 1):
        (a, b), (c, d) = rows[at : at + 2], columns[at : at + 2]
        seen[a:b, c:d] = attention_mask(b - a, d - c, causal=causal, window=window, device=q.device)
    return seen


def gather_pages(cache: torch.Tensor, table: torch.Tensor, length: int) -> torch.Tensor:
    """(pages, page, Hk, D) and the pages (N,) of one sequence → its first `length` tokens (length, Hk, D)."""
    needed = -(-length // cache.shape[1])
    return cache[table[:needed].long()].flatten(0, 1)[:length]


def paged_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_table: torch.Tensor,
    lengths: torch.Tensor,
    *,
    window: int | None = None,
    softcap: float | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """One query (B, H, D) a sequence, the last of `lengths` (B,) tokens, over keys and values that lie in pages.

    k_cache, v_cache: (pages, page, Hk, D); block_table: (B, N), the page of each run of `page` tokens. → (B, H, D).
    """
    rows = []
    for query, table, length in zip(q, block_table, lengths.tolist(), strict=True):
        k, v = gather_pages(k_cache, table, length)[None], gather_pages(v_cache, table, length)[None]
        rows.append(attention(query[None, None], k, v, window=window, softcap=softcap, scale=scale)[0, 0])
    return torch.stack(rows) if rows else torch.empty_like(q)
