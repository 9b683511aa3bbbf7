"""What launchers tell the kernels of flash_attention, forward and backward. In: tensors and the rule. Out: numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from speechkit_kernels.attention_parts import LOG2E, precision
from speechkit_kernels.attention_tiles import head_block
from speechkit_kernels.launch import block_of

if TYPE_CHECKING:
    import torch

    from speechkit_kernels.attention_rule import Rule
    from speechkit_kernels.attention_tiles import Tile

__all__ = ["constants_of", "count_of", "readable", "sizes_of", "strides_of"]

LOOKED_UP = 1024  # documents at a time
FARTHEST = 1 << 23  # elements from row to row; rows of one tile are addressed in int32 from the tile's start


def strides_of(x: torch.Tensor) -> tuple[int, int, int]:
    """Of (B, S, H, D): from batch to batch, row to row, head to head."""
    return x.stride(0), x.stride(1), x.stride(2)


def readable(x: torch.Tensor) -> torch.Tensor:
    """Itself if the kernels can read it where it lies: elements of a head side by side, rows not absurdly far apart."""
    lies = (x.stride(-1) == 1 or x.shape[-1] == 1) and x.stride(1) < FARTHEST
    return x if lies else x.contiguous()


def constants_of(q: torch.Tensor, k: torch.Tensor, cu_q: torch.Tensor | None, rule: Rule) -> tuple[list[Any], Any, Any]:
    """Numbers that every kernel takes after its strides, compile-time constants, and scale."""
    documents = 0 if cu_q is None else cu_q.numel() - 1
    scale = rule.scale if rule.scale is not None else q.shape[-1] ** -0.5
    block = head_block(q.shape[-1])
    numbers = [documents, q.shape[1], k.shape[1], q.shape[-1]]
    window = min(rule.window or 0, max(q.shape[1], k.shape[1]))  # a wider one sees no more, and int32 holds its sums
    rest = [scale * LOG2E, rule.softcap or 1.0, window]
    constants = {
        "PACKED": cu_q is not None, "CAUSAL": rule.causal, "WINDOW": rule.window is not None,
        "CAPPED": rule.softcap is not None, "D": block, "EXACT": block == q.shape[-1],
        "MANY": block_of(min(max(documents, 1), LOOKED_UP)),
        "PRECISION": precision(q),
    }  # fmt: skip
    return [numbers, rest], constants, scale


def count_of(size: int, cu: torch.Tensor | None, block: int) -> int:
    """Tile numbers for `size` positions: of packed ones one more for each document (see the head)."""
    return -(-size // block) if cu is None else size // block + cu.numel() - 1


def sizes_of(tile: Tile) -> dict[str, int]:
    return {"BLOCK_M": tile.queries, "BLOCK_N": tile.keys, "num_warps": tile.warps, "num_stages": tile.stages}
