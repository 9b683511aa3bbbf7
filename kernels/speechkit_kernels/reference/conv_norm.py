"""What follows the convolutions of a feature encoder, by definition: norm over channels or frames, then GELU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn.functional import gelu, layer_norm

from speechkit_kernels.reference.norms import masked_group_norm

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

__all__ = ["conv_norm_gelu", "group_norm_gelu"]


def conv_norm_gelu(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float = 1e-5,
    *,
    channels: int = 1,
    conv_bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """y = GELU(LayerNorm over channels of (x + conv_bias)), with the exact GELU, z · Φ(z).

    x: (B, C, F) with channels=1, or (B, F, C) with channels=2; weight, bias, conv_bias: (C,). Shape and dtype of x.
    """
    last = x.float() if channels == 2 else x.float().transpose(1, 2)
    if conv_bias is not None:
        last = last + conv_bias.float()
    y = gelu(layer_norm(last, last.shape[-1:], weight.float(), bias.float(), eps))
    return (y if channels == 2 else y.transpose(1, 2)).to(x.dtype)


def group_norm_gelu(
    x: torch.Tensor,
    lengths: Sequence[int] | torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    num_groups: int,
    eps: float = 1e-5,
) -> torch.Tensor:
    """y = GELU(masked group norm of x): each row as if it were alone; zero behind its end. x: (B, C, F)."""
    if not x.numel():
        return x * 1.0
    return gelu(masked_group_norm(x.float(), lengths, weight, bias, num_groups, eps)).to(x.dtype)
