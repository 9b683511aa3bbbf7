"""Audio of any length → overlapping windows whose inner frames join into the frame grid of the whole. Constant memory.

A window starts at a multiple of the hop, so its frame j is frame start + j of the whole file: seams need no search and
no rounding. `context` frames at each inner edge are computed and thrown away, because the model there saw only one
side. What is left to differ from a whole-file run: attention reaches no further than the window, and input
normalisation (with group norm: its statistics) is per window. `check.windows_agree` measures it. Knows no model and no
text.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from speechkit.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from speechkit.asr.frames import FrameGrid

__all__ = ["Piece", "Windows", "cut"]


@dataclass(frozen=True, slots=True)
class Windows:
    """`length` frames per window, of which `context` at each inner edge are thrown away."""

    length: int
    context: int

    @classmethod
    def of(cls, window_s: float, overlap_s: float, grid: FrameGrid) -> Windows:
        """Seconds → frames. `overlap_s` is thrown away on each side of a seam, so windows share twice as much.

        Raises PlanError unless 0 <= 2 x overlap < window.
        """
        if not (math.isfinite(window_s) and math.isfinite(overlap_s)):
            raise PlanError(f"window_s is {window_s} and overlap_s is {overlap_s}; both are finite numbers of seconds")
        length, context = grid.frames(round(window_s * grid.rate)), round(overlap_s * grid.rate / grid.hop)
        if not 0 <= 2 * context < length:
            raise PlanError(
                f"windows of {window_s} s with {overlap_s} s of overlap on each side leave nothing to keep: "
                "the overlap must be less than half of the window"
            )
        return cls(length, context)

    @property
    def step(self) -> int:
        """Frames from one window's start to the next."""
        return self.length - 2 * self.context


@dataclass(frozen=True, slots=True)
class Piece:
    """One window: its samples (T,), the frame of the whole at which it starts, and which of its frames to keep."""

    samples: NDArray[np.float32]
    start: int
    first: int
    stop: int


def cut(blocks: Iterable[NDArray[np.float32]], windows: Windows, grid: FrameGrid) -> Iterator[Piece]:
    """Blocks of any sizes → pieces; the kept frames, joined, are frames 0, 1, … of the blocks joined.

    Audio of at most one window is one piece with all of its frames. Holds one window and one block at a time.
    """
    held = np.zeros(0, dtype=np.float32)
    start = 0
    size, more = grid.samples(windows.length), grid.samples(windows.length + 1)
    for block in blocks:
        held = np.concatenate([held, block])
        while len(held) >= more:  # at least one frame follows this window, so it is not the last
            first = windows.context if start else 0
            yield Piece(held[:size].copy(), start, first, windows.length - windows.context)
            held = held[windows.step * grid.hop :]
            start += windows.step
    first = windows.context if start else 0
    yield Piece(held, start, first, grid.frames(len(held)))
