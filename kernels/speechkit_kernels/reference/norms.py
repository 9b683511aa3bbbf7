"""Norms by their definitions: masked group norm, root mean square."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["masked_group_norm", "rms_norm"]


def masked_group_norm(
    x: torch.Tensor,
    lengths: Sequence[int] | torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    num_groups: int,
    eps: float = 1e-5,
) -> torch.Tensor:
    """Group norm whose mean and variance see only each row's own frames, so that padding cannot change the result.

    For row b and group g, over the C/G channels of g and the frames f < lengths[b]:
        y = (x - mean) / sqrt(variance + eps) * weight + bias,  variance biased (divided by the count)
    Frames from lengths[b] on are not read (they may hold NaN) and come out as zero.

    x: (B, C, F) any float dtype; lengths: (B,) in 1..F, a list where possible (a CUDA tensor costs a wait for the
    device); weight, bias: (C,). Returns (B, C, F) in the dtype of x.
    Raises ValueError when a length is outside 1..F, or C is not divisible by `num_groups`.
    Method: Wu & He 2018, arXiv:1803.08494, restricted to the frames that exist.
    """
    counts = [int(n) for n in (lengths.tolist() if isinstance(lengths, torch.Tensor) else lengths)]
    rows, channels, frames = x.shape
    if len(counts) != rows or not all(1 <= n <= frames for n in counts):
        raise ValueError(f"lengths {counts} do not fit x of shape {tuple(x.shape)}: give {rows} values in 1..{frames}")
    if channels % num_groups:
        raise ValueError(
            f"{channels} channels cannot be split into {num_groups} groups: choose a divisor of {channels}"
        )
    scale, shift = weight.float()[:, None], bias.float()[:, None]
    out = torch.zeros_like(x)
    # row by row: the row's frames are the only memory touched, and the largest temporary is one row
    for row, n in enumerate(counts):
        part = x[row, :, :n].float().reshape(num_groups, -1)  # (G, C/G * n)
        variance, mean = torch.var_mean(part, dim=1, correction=0, keepdim=True)
        normed = ((part - mean) * torch.rsqrt(variance + eps)).view(channels, n)
        out[row, :, :n] = (normed * scale + shift).to(x.dtype)
    return out


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float = 1e-6,
    *,
    offset: float = 0.0,
    residual: torch.Tensor | None = None,
) -> Any:
    """y = s / sqrt(mean(s²) + eps) · (offset + weight) with s = x + residual, over the last axis.

    x, residual: (…, H); weight: (H,). Returns y, or (y, s) with a residual. Method: arXiv:1910.07467, equation 4.
    """
    s = x if residual is None else (x.float() + residual.float()).to(x.dtype)
    wide = s.float()
    scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    y = (wide * scale * (offset + weight.float())).to(x.dtype)
    return y if residual is None else (y, s)
