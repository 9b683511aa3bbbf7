"""Rotary position embedding by its definition."""

from __future__ import annotations

import torch

__all__ = ["per_pair", "rope"]


def rope(
    q: torch.Tensor,
    k: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    *,
    positions: torch.Tensor | None = None,
    rotary_dim: int | None = None,
    interleaved: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pair i of each head turns by the angle whose cosine and sine are given; the columns from R on stay.

        (a, b) → (a cos - b sin, b cos + a sin)
        half layout: a = x[i], b = x[i + R/2]; interleaved: a = x[2i], b = x[2i + 1]

    q: (B, Hq, S, D); k: (B, Hk, S, D). cos, sin: ([B or 1,] S, R) as transformers gives them, or one column a pair
    (…, R/2); with positions ([B or 1,] S) they are tables (P, …) and position p reads row p.
    Method: Su et al. 2021, arXiv:2104.09864, equation 34.
    """
    rotary = rotary_dim or cos.shape[-1]
    pairs = [per_pair(x, rotary, interleaved).float() for x in (cos, sin)]
    if positions is not None:
        pairs = [x[positions] for x in pairs]
    c, s = (x[..., None, :, :] for x in pairs)  # ([B,] 1, S, R/2)
    return _turned(q, c, s, rotary, interleaved), _turned(k, c, s, rotary, interleaved)


def per_pair(x: torch.Tensor, rotary: int, interleaved: bool) -> torch.Tensor:
    """(…, R) in which both columns of a pair say the same, or (…, R/2) → (…, R/2)."""
    if x.shape[-1] * 2 == rotary:
        return x
    return x[..., ::2] if interleaved else x[..., : rotary // 2]


def _turned(x: torch.Tensor, c: torch.Tensor, s: torch.Tensor, rotary: int, interleaved: bool) -> torch.Tensor:
    turning, rest = x[..., :rotary].float(), x[..., rotary:]
    half = (*x.shape[:-1], 2, rotary // 2)
    if interleaved:
        a, b = turning.unflatten(-1, (rotary // 2, 2)).unbind(-1)
        turned = torch.stack([a * c - b * s, b * c + a * s], dim=-1).flatten(-2)
    else:
        a, b = turning.reshape(half).unbind(-2)
        turned = torch.cat([a * c - b * s, b * c + a * s], dim=-1)
    return torch.cat([turned.to(x.dtype), rest], dim=-1)
