"""How each candidate of the dispatcher is called, and which of them this process has. In: q, k, v, Call. Out: o.

Torch's fused kernels know no documents: packed, they run once for each; they take a window, or fewer queries than
keys, as a table. What depends on the batch alone (lengths, block masks) hangs on `Packing`, for all layers.
"""

from __future__ import annotations

import importlib.util
import inspect
import warnings
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from speechkit_kernels.launch import Support, hardware_of, support
from speechkit_kernels.reference import attention as definition

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from speechkit_kernels.attention_rule import Rule

__all__ = ["RUN", "Call", "Packing", "Pages", "available"]

Tensor = torch.Tensor
RULES_COMPILED = 64  # each rule is compiled by itself; past torch's 8 FlexAttention would write the whole table
SDPA = {
    "cudnn": (SDPBackend.CUDNN_ATTENTION, "can_use_cudnn_attention"),
    "sdpa_flash": (SDPBackend.FLASH_ATTENTION, "can_use_flash_attention"),
    "sdpa_efficient": (SDPBackend.EFFICIENT_ATTENTION, "can_use_efficient_attention"),
}


@dataclass(frozen=True, eq=False)
class Packing:
    """Where the documents of one packed batch lie: on the device for kernels, on the host for calls by document."""

    cu_seqlens: Tensor  # (documents + 1,) int32
    lengths: tuple[int, ...]
    tokens: int = field(init=False)
    longest: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", sum(self.lengths))
        object.__setattr__(self, "longest", max(self.lengths, default=0))

    @classmethod
    def of(cls, lengths: Sequence[int] | Tensor, device: torch.device | str | None = None) -> Packing:
        """From lengths, or from cu_seqlens, which costs one wait for the device."""
        if isinstance(lengths, Tensor):
            ends = lengths.tolist()
            if lengths.dim() != 1 or not ends or ends[0] != 0 or sorted(ends) != ends:
                raise ValueError(f"Packing: cu_seqlens is {ends}; give (documents + 1,) from 0 on, rising")
            return cls(lengths.to(torch.int32), tuple(b - a for a, b in pairwise(ends)))
        starts = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
        return cls(starts.to(device or "cpu"), tuple(int(n) for n in lengths))


@dataclass(frozen=True, eq=False)
class Pages:
    """Where a cache of keys and values lies."""

    block_table: Tensor  # (B, N) int
    lengths: Tensor  # (B,) int


@dataclass(frozen=True, eq=False)
class Call:
    """What is asked, beside q, k, v."""

    rule: Rule
    packing: Packing | None = None
    pages: Pages | None = None
    mask: Tensor | None = None  # True where seen


def _math(q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    rule = call.rule
    some: dict[str, Any] = {"window": rule.window, "softcap": rule.softcap, "scale": rule.scale}
    if call.pages is not None:
        return definition.paged_attention(q, k, v, call.pages.block_table, call.pages.lengths, **some)
    if call.packing is None:
        return definition.attention(q, k, v, causal=rule.causal, mask=call.mask, **some)
    return _by_document(lambda *x: definition.attention(*x, causal=rule.causal, **some), q, k, v, call.packing)


def _by_document(one: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, packing: Packing) -> Tensor:
    """(S, H, D) → (S, H, D), each document by itself; no document sees another, by construction."""
    rows = zip(*(x.split(packing.lengths) for x in (q, k, v)), strict=True)
    parts = [one(*(x[None] for x in row))[0] for row in rows if row[0].shape[0]]
    return torch.cat(parts) if parts else torch.zeros_like(q)


def _flash(q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    from speechkit_kernels.flash_attention import flash_attention

    rule, cu = call.rule, call.packing.cu_seqlens if call.packing is not None else None
    return flash_attention(q, k, v, causal=rule.causal, window=rule.window, softcap=rule.softcap, scale=rule.scale,
                           cu_seqlens=cu)  # fmt: skip


def _paged(q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    from speechkit_kernels.paged_attention import paged_attention

    assert call.pages is not None
    rule = call.rule
    return paged_attention(q, k, v, call.pages.block_table, call.pages.lengths, window=rule.window,
                           softcap=rule.softcap, scale=rule.scale)  # fmt: skip


def _sdpa(name: str) -> Callable[[Tensor, Tensor, Tensor, Call], Tensor]:
    def run(q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
        if call.packing is not None:
            return _by_document(lambda a, b, c: _sdpa_dense(name, a, b, c, call.rule, None), q, k, v, call.packing)
        return _sdpa_dense(name, q, k, v, call.rule, call.mask)

    return run


def _sdpa_dense(name: str, q: Tensor, k: Tensor, v: Tensor, rule: Rule, mask: Tensor | None) -> Tensor:
    """(B, S, H, D), (B, N, Hk, D) twice → (B, S, H, D)."""
    causal, (queries, keys) = rule.causal and q.shape[1] > 1, (q.shape[1], k.shape[1])
    window = rule.window if rule.window is not None and rule.window < max(queries, keys) else None
    if window is not None or mask is not None or (causal and queries != keys):
        seen = definition.attention_mask(queries, keys, causal=rule.causal, window=window, device=q.device)
        mask, causal = (seen if mask is None else seen & mask), False
    backend, can_use = SDPA[name]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    shared = q.shape[1] != k.shape[1]
    if shared and q.device.type == "cuda":
        asked = torch.backends.cuda.SDPAParams(q, k, v, mask, 0.0, causal, True)
        if not getattr(torch.backends.cuda, can_use)(asked, False):
            k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
            shared = False
    with sdpa_kernel(backend):
        o = scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=rule.scale, enable_gqa=shared)
    return o.transpose(1, 2)


def _varlen(q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    rule, packing, shape = call.rule, call.packing, q.shape
    if packing is not None:
        starts, starts_k, queries, keys = packing.cu_seqlens, packing.cu_seqlens, packing.longest, packing.longest
    else:
        queries, keys = q.shape[1], k.shape[1]
        starts, starts_k = _even(shape[0], queries, q.device), _even(shape[0], keys, q.device)
        q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    far = -1 if rule.window is None else rule.window - 1
    sides = (far, 0 if rule.causal else far)
    more: dict[str, Any] = {"scale": rule.scale, "window_size": sides}
    if "enable_gqa" in inspect.signature(varlen_attn).parameters:
        more["enable_gqa"] = q.shape[1] != k.shape[1]
    else:  # of older torch
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    o: Any = varlen_attn(q, k, v, starts, starts_k, queries, keys, **more)
    return o.reshape(shape)


def _even(documents: int, tokens: int, device: torch.device) -> Tensor:
    """(documents + 1,) int32. Not kept: made while a CUDA graph is captured it would hold nothing until a replay."""
    return torch.arange(documents + 1, dtype=torch.int32, device=device) * tokens


def _flex(q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    rule, packing = call.rule, call.packing
    q, k, v = (x[None] if packing is not None else x for x in (q, k, v))
    blocks = _block_mask(rule.causal, rule.window, q.shape[1], k.shape[1], q.device, packing)
    cap = None if rule.softcap is None else _score_cap(rule.softcap)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    more: dict[str, Any] = {"scale": rule.scale, "enable_gqa": q.shape[1] != k.shape[1]}
    with warnings.catch_warnings(), torch._dynamo.config.patch(recompile_limit=RULES_COMPILED):
        warnings.filterwarnings("ignore", "flex_attention called without torch.compile")  # on a CPU that is meant
        o = _flex_attention(q.device.type)(q, k, v, score_mod=cap, block_mask=blocks, **more)
    o = o.transpose(1, 2)
    return o[0] if packing is not None else o


@lru_cache
def _flex_attention(kind: str) -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention) if kind == "cuda" else flex_attention  # type: ignore[return-value]


@lru_cache(maxsize=16)
def _score_cap(cap: float) -> Callable[..., Tensor]:
    """One function object for each cap: another one would be compiled again."""
    return lambda score, b, h, i, j: cap * torch.tanh(score / cap)


@lru_cache(maxsize=16)
def _block_mask(
    causal: bool, window: int | None, queries: int, keys: int, device: torch.device, packing: Packing | None
) -> Any:
    """Which blocks of 128 by 128 scores are needed; None: all."""
    if packing is None and not causal and window is None:
        return None
    with torch.inference_mode(False):  # kept for all layers; made in that mode it could not serve training
        return _block_mask_of(causal, window, queries, keys, device, packing)


def _block_mask_of(
    causal: bool, window: int | None, queries: int, keys: int, device: torch.device, packing: Packing | None
) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    lead = keys - queries
    document = None
    if packing is not None:
        lengths = torch.tensor(packing.lengths, device=device)
        document = torch.arange(len(packing.lengths), device=device).repeat_interleave(lengths)

    def seen(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        found = j >= 0
        if document is not None:
            found = found & (document[i] == document[j])
        if causal:
            found = found & (j <= i + lead)
        if window is not None:
            found = found & (j < i + lead + window) & (j > i + lead - window)
        return found

    return create_block_mask(seen, None, None, queries, keys, device=device, _compile=device.type == "cuda")


RUN: dict[str, Callable[[Tensor, Tensor, Tensor, Call], Tensor]] = {
    "flash": _flash,
    "cudnn": _sdpa("cudnn"),
    "sdpa_flash": _sdpa("sdpa_flash"),
    "sdpa_efficient": _sdpa("sdpa_efficient"),
    "varlen": _varlen,
    "flex": _flex,
    "paged": _paged,
    "math": _math,
}


@lru_cache
def available(device: torch.device) -> dict[str, Support]:
    """Of each candidate whether this process can call it at all on `device`, and why not."""
    yes, hardware = Support(True, ""), hardware_of(device)
    found = dict.fromkeys(RUN, yes)
    found["flash"] = found["paged"] = support(hardware, torch.float16)
    if not hardware.triton:
        found["flex"] = Support(device.type == "cpu", "triton is not installed")
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        found["varlen"] = Support(False, f"torch {torch.__version__} has no torch.nn.attention.varlen")
    if device.type == "cuda":
        q = torch.empty(1, 2, 64, 64, dtype=torch.float16, device=device)
        asked = torch.backends.cuda.SDPAParams(q, q, q, None, 0.0, False, False)
        for name, (_, can_use) in SDPA.items():
            if not getattr(torch.backends.cuda, can_use)(asked, False):
                found[name] = Support(False, "this build of torch, or its settings, leave it out")
    return found
