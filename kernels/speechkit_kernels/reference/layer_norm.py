"""Layer norm by its definition."""

from __future__ import annotations

import torch

__all__ = ["layer_norm"]


def layer_norm(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, eps: float = 1e-5
) -> torch.Tensor:
    """y = (x - mean) / sqrt(variance + eps) · weight + bias over the last axis, the variance divided by the count.

    x: (…, H); weight, bias: (H,). Returns (…, H) in the dtype of x. Method: Ba et al. 2016, arXiv:1607.06450.
    """
    wide = x.float()
    variance, mean = torch.var_mean(wide, dim=-1, correction=0, keepdim=True)
    y = (wide - mean) * torch.rsqrt(variance + eps) * weight.float()
    return (y if bias is None else y + bias.float()).to(x.dtype)
