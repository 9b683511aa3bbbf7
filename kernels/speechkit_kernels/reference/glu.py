"""Gated linear units by their definitions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn.functional import gelu, silu

if TYPE_CHECKING:
    import torch

__all__ = ["geglu", "swiglu"]


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) · up, elementwise, in the dtype of gate. Method: Shazeer 2020, arXiv:2002.05202, equation 6."""
    return (silu(gate.float()) * up.float()).to(gate.dtype)


def geglu(gate: torch.Tensor, up: torch.Tensor, approximate: str = "none") -> torch.Tensor:
    """gelu(gate) · up, elementwise, in the dtype of gate; exact, or "tanh". Method: ibidem."""
    return (gelu(gate.float(), approximate=approximate) * up.float()).to(gate.dtype)
