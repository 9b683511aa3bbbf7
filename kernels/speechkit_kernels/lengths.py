"""How much of each padded row is meant: lists or tensors of lengths → one checked tensor beside the data."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["counts_of"]


def counts_of(
    name: str,
    label: str,
    lengths: Sequence[int] | torch.Tensor | None,
    rows: int,
    limit: int,
    device: torch.device,
    least: int = 0,
) -> torch.Tensor:
    """Lengths of B rows → (B,) int64 on `device`; None means all of `limit`.

    Raises ValueError for a wrong number of them, and for one outside least..limit. Those that already lie on a GPU are
    cut to that range instead: to look at them would be a wait for the device.
    """
    if lengths is None:
        return torch.full((rows,), limit, dtype=torch.int64, device=device)
    given = torch.as_tensor(lengths)
    if not given.numel() and not isinstance(lengths, torch.Tensor):
        given = given.to(torch.int64)  # an empty list has no dtype of its own
    if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
        raise ValueError(f"{name}: {label} are {given.dtype}; give whole numbers")
    if tuple(given.shape) != (rows,):
        raise ValueError(f"{name}: {label} have shape {tuple(given.shape)}; wanted ({rows},), one for each row")
    given = given.to(torch.int64)
    if given.device.type != "cpu":
        return given.to(device).clamp(least, limit)
    wrong = given[(given < least) | (given > limit)]
    if len(wrong):
        raise ValueError(f"{name}: {label} hold {int(wrong[0])}; give values in {least}..{limit}")
    return given.to(device)
