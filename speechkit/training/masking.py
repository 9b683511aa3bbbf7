"""What a masked model has to guess, and among what: spans of frames, and wrong answers for each masked frame.

In: how many frames each row of a batch has, and a random generator. Out: NumPy arrays that a data-loader process makes
and `objective.py` reads. Knows no model and no sound.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from speechkit.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["FEWEST_FRAMES", "draw_negatives", "span_mask"]

FEWEST_FRAMES = 3  # two to be masked, each the other's wrong answer, and one to guess them from
MOST_MASKED = 0.8  # of a row; what is left is the context


def span_mask(
    frames: Sequence[int], probability: float, length: int, rng: np.random.Generator, width: int | None = None
) -> NDArray[np.bool_]:
    """Frames per row (B,) → masked frames (B, F), True where masked; `width` is F, by default the longest row.

    A share `probability` of a row's frames, drawn without replacement, begin a span of `length` frames; spans may
    overlap (Baevski et al. 2020, arXiv:2006.11477, section 3.1: 0.065 and 10, so that about 49 % are masked). In a row
    too short for that the spans shrink to a third of it. Every row has at least two masked frames and one unmasked, and
    nothing beyond its own frames is masked. Raises DataError for a row of fewer than 3 frames.
    """
    if not frames or min(frames) < FEWEST_FRAMES:
        raise DataError(
            f"a row of {min(frames, default=0)} frames cannot be masked: at least {FEWEST_FRAMES} are needed "
            "(two to guess, one to guess them from); leave shorter clips out"
        )
    mask = np.zeros((len(frames), width or max(frames)), dtype=bool)
    for row, count in enumerate(frames):
        span = max(1, min(length, count // 3))
        starts = count - span + 1
        wanted = int(probability * count + rng.random())  # rounded up as often as its fraction says
        for first in rng.choice(starts, size=min(starts, max(wanted, 2)), replace=False):
            grown = mask[row].copy()
            grown[first : first + span] = True
            if grown.sum() > MOST_MASKED * count:
                break  # the first two spans cover two thirds at most, so they are always kept
            mask[row] = grown
    return mask


def draw_negatives(mask: NDArray[np.bool_], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Masked frames (B, F) → for each the places (B, S, `count`) of its wrong answers among the row's masked frames.

    S is the largest number of masked frames of a row, and place n is the row's n-th masked frame. Negatives come from
    the same row and are masked themselves, drawn evenly with replacement from all but the frame itself (section 3.2 of
    the paper: K = 100). Places beyond a row's masked frames hold 0 and mean nothing. Raises DataError for a row with
    fewer than two masked frames.
    """
    masked = mask.sum(axis=1)
    if not len(masked) or masked.min() < 2:
        raise DataError("a row has fewer than two masked frames, so a masked frame has nothing to be told apart from")
    negatives = np.zeros((len(mask), int(masked.max()), count), dtype=np.int64)
    for row, of_row in enumerate(masked):
        drawn = rng.integers(0, of_row - 1, size=(of_row, count))
        # skipping the frame itself keeps the others equally likely
        negatives[row, :of_row] = drawn + (drawn >= np.arange(of_row)[:, None])
    return negatives
