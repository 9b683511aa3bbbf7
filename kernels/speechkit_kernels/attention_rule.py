"""What attention is asked for, and whether it fits together. For kernels and dispatcher alike; needs no Triton."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from speechkit_kernels.launch import check_same

__all__ = ["Rule", "check_attention", "check_documents", "check_rule", "check_values"]

MULTIPLIED = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Rule:
    """Which keys a query sees, and what becomes of its scores."""

    causal: bool = False
    window: int | None = None  # |i' - j| < window
    softcap: float | None = None  # c · tanh(t / c)
    scale: float | None = None  # of q kᵀ; 1 / sqrt(D) if None


def check_attention(name: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, packed: bool, rule: Rule) -> None:
    """Raise ValueError unless the shapes and numbers fit together."""
    check_same(name, {"q": q, "k": k, "v": v})
    wanted = "(S, H, D) with cu_seqlens" if packed else "(B, S, H, D)"
    for label, x in {"q": q, "k": k, "v": v}.items():
        if x.dim() != (3 if packed else 4):
            raise ValueError(f"{name}: {label} has shape {tuple(x.shape)}; give {wanted}")
        if x.dtype != q.dtype:
            raise ValueError(f"{name}: {label} is {x.dtype}, q {q.dtype}; give one dtype")
    if k.shape != v.shape:
        raise ValueError(f"{name}: v has shape {tuple(v.shape)}; wanted that of k, {tuple(k.shape)}")
    if k.shape[-1] != q.shape[-1] or (not packed and k.shape[0] != q.shape[0]):
        raise ValueError(f"{name}: k has shape {tuple(k.shape)}, q {tuple(q.shape)}; wanted equal batch and head sizes")
    check_rule(name, q.shape[-2], k.shape[-2], rule)


def check_rule(name: str, heads: int, kv_heads: int, rule: Rule) -> None:
    """Raise ValueError for heads that cannot share keys, and for numbers that mean nothing."""
    if not kv_heads or heads % kv_heads:
        raise ValueError(f"{name}: {heads} query heads cannot share {kv_heads} key heads; give a multiple of them")
    if rule.window is not None and rule.window < 1:
        raise ValueError(f"{name}: window is {rule.window}; a query sees at least itself, give 1 or more")
    if rule.softcap is not None and rule.softcap <= 0:
        raise ValueError(f"{name}: softcap is {rule.softcap}; give a number above zero, or None")


def check_values(name: str, x: torch.Tensor) -> None:
    """Raise ValueError for a dtype that no kernel multiplies."""
    if x.dtype not in MULTIPLIED:
        raise ValueError(f"{name}: q is {x.dtype}; give float32, float16 or bfloat16")


def check_documents(name: str, cu: torch.Tensor, x: torch.Tensor) -> None:
    """Raise ValueError unless `cu` can be where documents of x (S, H, D) begin and end; values only on a CPU, where
    reading them costs no wait.
    """
    if cu.dim() != 1 or not cu.numel() or cu.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"{name}: cu_seqlens is {cu.dtype} {tuple(cu.shape)}; give int32 or int64 (documents + 1,)")
    if cu.device != x.device:
        raise ValueError(f"{name}: cu_seqlens is on {cu.device}, the tokens on {x.device}; put them on one device")
    if cu.numel() == 1 and x.shape[0]:
        raise ValueError(f"{name}: cu_seqlens names no document for {x.shape[0]} tokens; give one more end")
    if cu.device.type == "cpu":
        ends, rows = cu.tolist(), x.shape[0]
        if ends[0] != 0 or ends[-1] != rows or sorted(ends) != ends:
            raise ValueError(f"{name}: cu_seqlens runs from {ends[0]} to {ends[-1]}; wanted 0 to {rows}, rising")
