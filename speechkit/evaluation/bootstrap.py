"""Errors and reference units per utterance → how far a corpus-level rate may be off. Numbers in, numbers out.

In: counts (N,). Out: replicates (R,) and intervals. Knows no text. Utterances are drawn anew with replacement and all
edits divided by all reference units each time (Bisani & Ney 2004, "Bootstrap estimates for confidence intervals in ASR
performance evaluation"); words of one utterance err together, so words are never drawn by themselves. Utterances of one
speaker err together too: with `groups`, whole speakers are drawn (blockwise; Liu & Peng 2020), which widens the
interval and needs a dozen speakers or more to mean much.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from speechkit.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]

__all__ = ["LEVEL", "REPLICATES", "interval", "paired_replicates", "pooled", "replicates"]

REPLICATES = 2000
LEVEL = 0.95
DRAWS = 1 << 21  # numbers drawn at a time: 16 MB, however many utterances there are


def pooled(counts: ArrayLike, groups: Sequence[Any] | None = None) -> NDArray[np.int64]:
    """Counts (K, N) of N utterances → (K, B) of B blocks: the sums by group, or the utterances themselves.

    Raises DataError unless there is one group per utterance.
    """
    table = np.atleast_2d(np.asarray(counts, np.int64))
    if groups is None:
        return table
    names = [str(group) for group in groups]
    if len(names) != table.shape[1]:
        raise DataError(f"{len(names)} groups for {table.shape[1]} utterances; give one per utterance")
    if not names:
        return table
    home = np.unique(names, return_inverse=True)[1]
    return np.stack([np.bincount(home, row).astype(np.int64) for row in table])


def replicates(errors: ArrayLike, counts: ArrayLike, draws: int = REPLICATES, seed: int = 0) -> Floats:
    """Errors and reference units of B blocks, (B,) each → rates (R,) of `draws` sets of B blocks drawn anew.

    Sets without a reference unit have no rate and are left out, so R may be less than `draws`. Raises DataError for
    less than one draw.
    """
    if draws < 1:
        raise DataError(f"draws is {draws}; draw one set or more, {REPLICATES:,} for an interval")
    table = np.stack([np.asarray(errors, np.float64), np.asarray(counts, np.float64)])
    sums = np.concatenate(list(_drawn(table, draws, seed)), axis=1)
    kept = sums[1] > 0
    return sums[0, kept] / sums[1, kept]


def paired_replicates(a: ArrayLike, b: ArrayLike, counts: ArrayLike, draws: int = REPLICATES, seed: int = 0) -> Floats:
    """Errors of two systems on the same B blocks → differences b - a of their rates (R,), both on the same draws."""
    gap = np.asarray(b, np.float64) - np.asarray(a, np.float64)
    return replicates(gap, counts, draws, seed)


def interval(errors: ArrayLike, counts: ArrayLike, draws: int = REPLICATES, seed: int = 0) -> tuple[float, float]:
    """(low, high) of the rate: the percentiles that leave 2.5 % of the replicates on each side.

    NaN for fewer than two blocks with a reference, from which nothing can be drawn anew. Without a single error every
    replicate is 0 and the percentiles would claim certainty, so `high` is then the rate at which no error in that many
    independent units is still seen one time in twenty (the "rule of three", Hanley & Lippman-Hand 1983).
    """
    wrong, said = np.asarray(errors), np.asarray(counts)
    total = int(said.sum())
    if np.count_nonzero(said) < 2:
        return math.nan, math.nan
    if not wrong.any():
        return 0.0, 1 - (1 - LEVEL) ** (1 / total)
    low, high = np.quantile(replicates(wrong, said, draws, seed), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _drawn(table: Floats, draws: int, seed: int) -> Iterator[Floats]:
    """(K, B) → sums (K, r) over B blocks drawn with replacement, in portions that fit in memory."""
    rng, blocks = np.random.default_rng(seed), table.shape[1]
    portion = max(1, DRAWS // max(blocks, 1))
    for done in range(0, draws, portion):
        chosen = rng.integers(0, blocks, (min(portion, draws - done), blocks))
        yield table[:, chosen].sum(axis=2)
