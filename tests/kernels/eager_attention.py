"""Attention as models compute it without a fused kernel: the measure of one in half precision."""

from __future__ import annotations

from typing import Any

import torch
from speechkit_kernels.reference.attention import attention_mask


def eager(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool = False, **rule: Any) -> torch.Tensor:
    """Every step in the dtype of q, the softmax in float32. q: (B, S, H, D); k, v: (B, N, Hk, D), Hk a divisor of H."""
    k, v = (x.repeat_interleave(q.shape[2] // k.shape[2], dim=2) for x in (k, v))
    scores = torch.einsum("bshd,bnhd->bhsn", q, k) * (rule.get("scale") or q.shape[-1] ** -0.5)
    if "softcap" in rule:
        scores = rule["softcap"] * torch.tanh(scores / rule["softcap"])
    seen = attention_mask(q.shape[1], k.shape[1], causal=causal, window=rule.get("window"), device=q.device)
    share = scores.float().masked_fill(~seen, float("-inf")).softmax(-1).to(q.dtype)
    return torch.einsum("bhsn,bnhd->bshd", share, v)
