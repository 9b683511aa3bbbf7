"""Attention of one new token a sequence over keys and values that lie in pages (Kwon et al. 2023, arXiv:2309.06180).

The token of sequence b is the last of its `lengths[b]` tokens; token j lies at row j % page of page
block_table[b, j // page]. With t = scale · q kᵀ, s = t or c · tanh(t / c) under a soft cap, and the keys j < length
(with a window also j >= length - window):

    o = Σ_j exp(s_j) v_j / Σ_j exp(s_j)

Reading the cache is the whole cost. One program serves all query heads of a key head, so that each page is read once;
where sequences times key heads are too few for the card, each is cut into parts. A part r leaves o_r already divided by
its own sum, and lse_r = log Σ exp; a second kernel joins them:

    m = max_r lse_r,    o = Σ_r exp(lse_r - m) o_r / Σ_r exp(lse_r - m)

No backward: this is for decoding. In: q (B, H, D). Out: (B, H, D).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from speechkit_kernels.attention_parts import LOG2E, capped, dot, precision
from speechkit_kernels.attention_rule import Rule, check_rule, check_values
from speechkit_kernels.attention_tiles import head_block
from speechkit_kernels.flash_attention import WIDEST_HEAD
from speechkit_kernels.launch import (
    MATMUL,
    block_of,
    check_same,
    check_shape,
    hardware_of,
    on_its_device,
    use_kernel,
)
from speechkit_kernels.reference.attention import paged_attention as _definition

__all__ = ["paged_attention", "parts"]

TILE = 64  # keys at a time
SHORTEST = 256  # keys that a part of its own is worth


@triton.jit
def _part(q_ptr, k_ptr, v_ptr, table_ptr, lengths_ptr, o_ptr, lse_ptr, q_batch, q_head, k_page, k_step, k_head, v_page,
          v_step, v_head, table_batch, o_batch, o_head, o_part, lse_batch, lse_head, heads, group, parts, page, width,
          scale2, cap, window, WINDOW: tl.constexpr, CAPPED: tl.constexpr, GROUP: tl.constexpr, PRODUCT: tl.constexpr,
          TILE: tl.constexpr, D: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    program = tl.program_id(0)
    part, head = program % parts, (program // parts % heads).to(tl.int64)
    batch = (program // parts // heads).to(tl.int64)
    length = tl.load(lengths_ptr + batch).to(tl.int32)
    begin = tl.maximum(length - window, 0) // TILE if WINDOW else 0
    many = tl.maximum((length + TILE - 1) // TILE - begin, 0)
    each = (many + parts - 1) // parts
    member, d = tl.arange(0, GROUP), tl.arange(0, D)
    ours = (member < group)[:, None] & (d < width)[None, :]
    row = head * group + member
    q = tl.load(q_ptr + batch * q_batch + row[:, None] * q_head + d[None, :], mask=ours, other=0.0)  # (G, D)
    acc = tl.zeros((GROUP, D), tl.float32)
    top, total = tl.full((GROUP,), float("-inf"), tl.float32), tl.zeros((GROUP,), tl.float32)
    for tile in range(begin + part * each, begin + tl.minimum(part * each + each, many)):
        j = tile * TILE + tl.arange(0, TILE)
        there = (j < length)[:, None] & (d < width)[None, :]
        where = tl.load(table_ptr + batch * table_batch + j // page, mask=j < length, other=0).to(tl.int64)
        step = (j % page).to(tl.int64)
        k = tl.load(
            k_ptr + head * k_head + (where * k_page + step * k_step)[:, None] + d[None, :], mask=there, other=0.0
        )
        if PRODUCT:
            s = dot(q, tl.trans(k), tl.zeros((GROUP, TILE), tl.float32), PRECISION)  # (G, N)
        else:
            s = tl.sum(q.to(tl.float32)[:, None, :] * k.to(tl.float32)[None, :, :], axis=2)
        if CAPPED:
            s = cap * 1.4426950408889634 * capped(s * scale2, cap)
        else:
            s *= scale2
        seen = j < length
        if WINDOW:
            seen = seen & (j >= length - window)
        s = tl.where(seen[None, :], s, float("-inf"))
        higher = tl.maximum(top, tl.max(s, axis=1))
        held = tl.where(higher == float("-inf"), 0.0, higher)
        p, fade = tl.exp2(s - held[:, None]), tl.exp2(top - held)
        v = tl.load(
            v_ptr + head * v_head + (where * v_page + step * v_step)[:, None] + d[None, :], mask=there, other=0.0
        )
        if PRODUCT:
            acc = dot(p.to(v.dtype), v, acc * fade[:, None], PRECISION)
        else:
            acc = acc * fade[:, None] + tl.sum(p[:, :, None] * v.to(tl.float32)[None, :, :], axis=1)
        total = total * fade + tl.sum(p, axis=1)
        top = higher
    o = acc / tl.where(total > 0.0, total, 1.0)[:, None]
    at = o_ptr + batch * o_batch + row[:, None] * o_head + part * o_part + d[None, :]
    tl.store(at, o.to(o_ptr.dtype.element_ty), mask=ours)
    if parts > 1:
        lse = top + tl.log2(tl.where(total > 0.0, total, 1.0))  # base 2
        tl.store(lse_ptr + batch * lse_batch + row * lse_head + part, lse, mask=member < group)


@triton.jit
def _join(some_ptr, lse_ptr, o_ptr, some_row, parts, width, PARTS: tl.constexpr, D: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    part, d = tl.arange(0, PARTS), tl.arange(0, D)
    lse = tl.load(lse_ptr + row * parts + part, mask=part < parts, other=float("-inf"))
    top = tl.max(lse, axis=0)
    share = tl.exp2(lse - tl.where(top == float("-inf"), 0.0, top))  # (R,)
    inside = (part < parts)[:, None] & (d < width)[None, :]
    some = tl.load(some_ptr + row * some_row + part[:, None] * width + d[None, :], mask=inside, other=0.0)
    total = tl.sum(share, axis=0)
    o = tl.sum(some * share[:, None], axis=0) / tl.where(total > 0.0, total, 1.0)
    tl.store(o_ptr + row * width + d, o.to(o_ptr.dtype.element_ty), mask=d < width)


def parts(rows: int, keys: int, multiprocessors: int) -> int:
    """Into how many parts each of `rows` (sequences × key heads) of at most `keys` keys is cut: two programs for each
    multiprocessor, as long as a part has SHORTEST keys; at most 64, which the second kernel joins at once.
    """
    wanted = -(-2 * multiprocessors // max(rows, 1))
    return max(1, min(wanted, keys // SHORTEST, 64))


def by_product(capability: tuple[int, int] | None, dtype: torch.dtype, group: int) -> bool:
    """Whether scores are products of matrices, of 16 query heads or zeros: where one head alone reads its keys, only on
    tensor cores. Without them 15 rows of zeros would cost more than sums over lanes.
    """
    return group > 1 or (capability is not None and capability >= MATMUL and dtype != torch.float32)


def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def _launch(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, table: torch.Tensor, lengths: torch.Tensor, rule: Rule,
    cut: int | None = None,
) -> torch.Tensor:  # fmt: skip
    """(B, H, D), (pages, page, Hk, D) twice, (B, N), (B,) → (B, H, D)."""
    batch, heads, width = q.shape
    page, kv_heads = k.shape[1], k.shape[2]
    o = torch.empty((batch, heads, width), dtype=q.dtype, device=q.device)
    if not o.numel():
        return o
    keys = min(table.shape[1] * page, rule.window + TILE if rule.window is not None else table.shape[1] * page)
    cut = cut or parts(batch * kv_heads, keys, _multiprocessors(q.device))
    some = torch.empty((batch, heads, cut, width), dtype=torch.float32, device=q.device) if cut > 1 else o[:, :, None]
    lse = torch.empty((batch, heads, cut), dtype=torch.float32, device=q.device) if cut > 1 else q
    group, block = heads // kv_heads, head_block(width)
    product = by_product(hardware_of(q.device).capability, q.dtype, group)
    scale = rule.scale if rule.scale is not None else width**-0.5
    _part[(batch * kv_heads * cut,)](
        q, k, v, table, lengths, some, lse, q.stride(0), q.stride(1), k.stride(0), k.stride(1), k.stride(2),
        v.stride(0), v.stride(1), v.stride(2), table.stride(0), some.stride(0), some.stride(1), some.stride(2),
        lse.stride(0), lse.stride(1), kv_heads, group, cut, page, width, scale * LOG2E, rule.softcap or 1.0,
        rule.window or 0, WINDOW=rule.window is not None, CAPPED=rule.softcap is not None,
        GROUP=max(16, block_of(group)) if product else 1, PRODUCT=product, TILE=TILE, D=block,
        PRECISION=precision(q), num_warps=4, num_stages=2,
    )  # fmt: skip
    if cut > 1:
        _join[(batch * heads,)](some, lse, o, some.stride(1), cut, width, PARTS=block_of(cut), D=block)
    return o


@on_its_device
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
    """One query (B, H, D) a sequence over the cache (pages, page, Hk, D) of keys and of values → (B, H, D).

    block_table: (B, N) int, where the pages of each sequence lie; lengths: (B,) int, its tokens with the new one, whose
    key and value are in the cache; 0 gives zero. window: keys seen, its own among them. No gradient.
    Raises ValueError for what does not fit, and where a gradient would be asked for.
    """
    name = "paged_attention"
    given = {"q": q, "k_cache": k_cache, "v_cache": v_cache}
    check_same(name, given)
    check_same(name, {"q": q, "block_table": block_table, "lengths": lengths}, floating=False)
    if q.dim() != 3 or k_cache.dim() != 4:
        raise ValueError(f"{name}: q has shape {tuple(q.shape)}, k_cache {tuple(k_cache.shape)}; "
                         "give (B, H, D) and (pages, page, Hk, D)")  # fmt: skip
    if k_cache.dtype != q.dtype or v_cache.dtype != q.dtype:
        raise ValueError(f"{name}: q is {q.dtype}, the cache {k_cache.dtype} and {v_cache.dtype}; give one dtype")
    (batch, heads, width), kv_heads = q.shape, k_cache.shape[2]
    check_shape(name, "k_cache", k_cache, (*k_cache.shape[:3], width))
    check_shape(name, "v_cache", v_cache, k_cache.shape)
    check_shape(name, "lengths", lengths, (batch,))
    if block_table.dim() != 2 or block_table.shape[0] != batch:
        raise ValueError(
            f"{name}: block_table has shape {tuple(block_table.shape)}; wanted ({batch}, pages a sequence)"
        )
    check_values(name, q)
    rule = Rule(False, window, softcap, scale)
    check_rule(name, heads, kv_heads, rule)
    if width > WIDEST_HEAD:
        raise ValueError(f"{name}: heads of {width} values; give at most {WIDEST_HEAD}")
    if torch.is_grad_enabled() and any(x.requires_grad for x in given.values()):
        raise ValueError(f"{name}: has no backward; call it under torch.no_grad(), or flash_attention to train")
    if not use_kernel(name, q, matmul=heads > kv_heads):
        return _definition(q, k_cache, v_cache, block_table, lengths, window=window, softcap=softcap, scale=scale)
    near = [x if x.stride(-1) == 1 else x.contiguous() for x in (q, k_cache, v_cache, block_table)]
    return _launch(near[0], near[1], near[2], near[3], lengths.contiguous(), rule)
