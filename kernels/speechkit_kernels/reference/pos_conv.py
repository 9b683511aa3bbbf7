"""The convolutional position embedding of wav2vec 2.0, by its definition: a grouped convolution, bias, GELU."""

from __future__ import annotations

import torch
from torch.nn.functional import conv1d, gelu

__all__ = ["fold_weight_norm", "pos_conv"]


def pos_conv(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, groups: int) -> torch.Tensor:
    """y = GELU(conv(x) + bias), padded by K/2 on both sides; an even K gives a frame too many, which is cut off.

    x: (B, F, H); weight: (H, H/G, K), weight norm folded in; bias: (H,). Shape and dtype of x.
    """
    if not x.numel():
        return x * 1.0
    taps = weight.shape[2]
    wide = None if bias is None else bias.float()
    y = conv1d(x.float().transpose(1, 2), weight.float(), wide, padding=taps // 2, groups=groups)
    return gelu(y[:, :, : x.shape[1]]).transpose(1, 2).to(x.dtype)


def fold_weight_norm(direction: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    """weight = magnitude · direction / |direction|, each tap's length over all channels (weight norm, dim 2).

    direction: (H, H/G, K), `original1` of PyTorch's parametrization; magnitude: (1, 1, K), its `original0`.
    Method: Salimans & Kingma 2016, arXiv:1602.07868.
    """
    length = torch.linalg.vector_norm(direction.float(), dim=(0, 1), keepdim=True)
    return (direction.float() * (magnitude.float() / length)).to(direction.dtype)
