"""Batched matrix products whose result is float32, whatever the factors are: nothing is rounded before it is summed."""

from __future__ import annotations

import torch

__all__ = ["wide_bmm"]


def wide_bmm(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """(B, M, K) · (B, K, N) → (B, M, N) float32, under autocast too; on a GPU half stays on the tensor cores."""
    with torch.autocast(a.device.type, enabled=False):
        if a.is_cuda and a.dtype == b.dtype and a.itemsize == 2:
            return torch.bmm(a, b, out_dtype=torch.float32)
        return torch.bmm(a.float(), b.float())
