"""How much of the table of scores one program of flash_attention holds at a time. In: what the GPU is. Out: sizes.

Pure functions. A tile must fit three limits: the shared memory of the card (keys and values in flight, `stages` times,
beside the tile that stays), the registers (accumulators and scores in float32 with at most 160 of 255 a thread), and
`tl.dot`, which wants 16 of everything. Of those that fit the widest is taken: each key read serves more queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["Tile", "Tiles", "head_block", "shared_bytes", "shared_limit", "tiles"]

KIB = 1024
SHARED_KIB = {(8, 0): 163, (8, 6): 99, (8, 7): 163, (8, 9): 99, (9, 0): 227, (10, 0): 227, (10, 3): 227,
              (12, 0): 99, (12, 1): 99}  # fmt: skip
ELSEWHERE_KIB = 99  # unknown cards: what all since sm_80 have

# ptxas -v for sm_80 and sm_90, bfloat16, causal, bytes that a thread spills: forward and dq none, but 92 forward at
# heads of 256 on sm_80; dk and dv 60 to 430. Whether narrower tiles, which read more, are faster was not measured.
MOST_REGISTERS = 160


@dataclass(frozen=True)
class Tile:
    """Of one kernel."""

    queries: int
    keys: int
    warps: int
    stages: int  # loads in flight


@dataclass(frozen=True)
class Tiles:
    """Of the three kernels."""

    forward: Tile
    backward_keys: Tile
    backward_queries: Tile


INTERPRETED = Tiles(Tile(32, 16, 4, 1), Tile(16, 32, 4, 1), Tile(32, 16, 4, 1))  # small: tests cross many tiles

# From wide to narrow; Hopper's warp groups multiply 64 rows each and read both operands from shared memory.
FORWARD = {
    True: [Tile(128, 128, 8, 2), Tile(128, 64, 8, 3), Tile(128, 64, 8, 2), Tile(64, 64, 4, 2), Tile(64, 32, 4, 2)],
    False: [Tile(128, 64, 4, 3), Tile(128, 64, 8, 3), Tile(128, 32, 8, 3), Tile(64, 64, 4, 2), Tile(64, 32, 4, 2)],
}
SINGLE = [Tile(32, 32, 8, 1)]  # float32: without TF32 its products are single multiplications, wide tiles spill
NARROW = [Tile(32, 32, 4, 2), Tile(32, 32, 4, 1), Tile(16, 32, 4, 1), Tile(16, 16, 4, 1)]
BACKWARD_KEYS = {
    True: [Tile(64, 128, 8, 2), Tile(32, 128, 8, 2), Tile(64, 64, 8, 2), Tile(64, 64, 4, 1), Tile(32, 64, 4, 1)],
    # heads of 128: 128 keys, or 64 with four warps, spill some 300 bytes a thread; packed under a soft cap, 128 keys
    # are given 32 registers on sm_80, and spill 3,400
    False: [Tile(64, 128, 8, 2), Tile(32, 64, 8, 2), Tile(32, 64, 4, 1)],
}
# Heads of 256: dk and dv fill the registers. On sm_90 64 by 64 spills 600 bytes a thread, with a soft cap up to 1,400;
# half the queries 430 to 480. Fewer keys would spill least, but lose the warp groups and read q and do twice as often.
BACKWARD_KEYS_256 = {True: [Tile(32, 64, 8, 2)], False: [Tile(32, 64, 8, 1), Tile(32, 32, 8, 2)]}
BACKWARD_QUERIES = {
    True: [Tile(128, 64, 8, 2), Tile(64, 64, 8, 2), Tile(64, 64, 4, 1), Tile(64, 32, 4, 1)],
    False: [Tile(128, 64, 8, 2), Tile(128, 32, 8, 2), Tile(64, 32, 4, 2), Tile(64, 32, 4, 1)],
}


def head_block(head_dim: int) -> int:
    """The power of two that a head is padded to."""
    return max(16, 1 << max(0, head_dim - 1).bit_length())


def shared_limit(capability: tuple[int, int]) -> int:
    """Bytes of shared memory that one program can have."""
    return SHARED_KIB.get(capability, ELSEWHERE_KIB) * KIB


def shared_bytes(tile: Tile, kernel: str, head: int, size: int) -> int:
    """Bytes that the tile takes, from above: what stays, what is in flight, and the table on its way into a product."""
    stays, moves = (tile.keys, tile.queries) if kernel == "backward_keys" else (tile.queries, tile.keys)
    resident = stays * head * size * (1 if kernel == "forward" else 2)
    tables = 4 if tile.stages == 1 and kernel != "forward" else 1  # unpipelined, ptxas has both there, in float32
    table = tables * tile.queries * tile.keys * size
    return resident + tile.stages * 2 * moves * head * size + table


def registers(tile: Tile, kernel: str, head: int) -> int:
    """Registers a thread for the float32 accumulators: the output's, and the tables of scores."""
    rows = tile.keys if kernel == "backward_keys" else tile.queries
    sums = rows * head * (2 if kernel == "backward_keys" else 1)
    tables = tile.queries * tile.keys * (1 if kernel == "forward" else 2)
    return (sums + tables) // (tile.warps * 32)


@lru_cache
def tiles(capability: tuple[int, int] | None, head_dim: int, dtype: torch.dtype) -> Tiles:
    """Of a card (None: Triton's interpreter) and heads of `head_dim` values of `dtype`."""
    if capability is None:
        return INTERPRETED
    head, size, groups = head_block(head_dim), dtype.itemsize, capability[0] in (9, 10)

    def widest(kernel: str, wishes: list[Tile]) -> Tile:
        for tile in [*(wishes if size < 4 else SINGLE), *NARROW]:
            fits = shared_bytes(tile, kernel, head, size) <= shared_limit(capability)
            if fits and registers(tile, kernel, head) <= MOST_REGISTERS:
                return tile
        return NARROW[-1]

    return Tiles(
        widest("forward", FORWARD[groups]),
        widest("backward_keys", (BACKWARD_KEYS if head < 256 else BACKWARD_KEYS_256)[groups]),
        widest("backward_queries", BACKWARD_QUERIES[groups]),
    )
