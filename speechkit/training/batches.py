"""Clip lengths → an endless, repeatable sequence of batches under a frame budget. Integers in, integers out.

Batch i of a run depends on the lengths, the budget, the seed and i alone: a run that goes on after a crash meets the
batches it would have met, and N processes that take every Nth batch share the work without meeting a clip twice.

Within an epoch every clip occurs once. Clips are sorted by their length as it is changed by up to `JITTER` (drawn anew
in each epoch, so that the same clips do not stay together), cut where the padded size would pass the budget, and the
batches shuffled. Knows no audio and no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from speechkit.asr.batch import PADDING
from speechkit.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["JITTER", "Batch", "BatchPlan", "plan_epoch"]

JITTER = 0.05  # 5 % either way: neighbours change from epoch to epoch, and padding grows by less than that


@dataclass(frozen=True, slots=True)
class Batch:
    """Clips that are computed together."""

    clips: tuple[int, ...]  # indices
    epoch: int
    frames: int  # of the longest clip: the padded size is this times the number of clips


def plan_epoch(
    frames: Sequence[int], budget: int, rng: np.random.Generator, ragged: bool = True
) -> list[tuple[int, ...]]:
    """Frames of each clip (N,) → its indices in batches; every clip once, the batches in random order.

    The padded size of a batch (clips x longest, in frames) stays within `budget` unless it is one clip, and at most a
    sixth of it is padding. `ragged=False` puts only clips of equal length together.
    """
    sizes = np.asarray(frames, dtype=np.float64)
    spread = JITTER if ragged else 0.0
    keys = sizes * rng.uniform(1 - spread, 1 + spread, len(sizes))
    batches: list[list[int]] = []
    longest = useful = 0
    for index in np.lexsort((rng.random(len(sizes)), keys)).tolist():
        size = int(frames[index])
        if batches:
            most = max(longest, size)
            padded = (len(batches[-1]) + 1) * most
            waste = 1 - (useful + size) / padded if padded else 0.0
            if padded <= budget and waste <= (PADDING if ragged else 0.0):
                batches[-1].append(index)
                longest, useful = most, useful + size
                continue
        batches.append([index])
        longest = useful = size
    rng.shuffle(batches)
    return [tuple(batch) for batch in batches]


@dataclass
class BatchPlan:
    """The batches of a run, in order and without end; `plan[i]` is batch i.

    `frames`: of each clip (N,); `budget`: padded frames of a batch. Raises DataError when there are no clips.
    """

    frames: tuple[int, ...] = field(repr=False)
    budget: int
    seed: int = 0
    ragged: bool = True
    _starts: list[int] = field(
        default_factory=lambda: [0], init=False, repr=False
    )  # number of each epoch's first batch
    _held: tuple[int, list[tuple[int, ...]]] = field(default=(-1, []), init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.frames:
            raise DataError("there are no clips to make batches of")

    def __getitem__(self, index: int) -> Batch:
        if index < 0:
            raise IndexError(index)
        while self._starts[-1] <= index:
            self._starts.append(self._starts[-1] + len(self._epoch(len(self._starts) - 1)))
        epoch = int(np.searchsorted(self._starts, index, side="right")) - 1
        clips = self._epoch(epoch)[index - self._starts[epoch]]
        return Batch(clips, epoch, max(self.frames[clip] for clip in clips))

    def count(self, epochs: float) -> int:
        """Batches in the first `epochs` epochs; of a part of an epoch that part, rounded up."""
        whole = int(epochs)
        while len(self._starts) <= whole:
            self._starts.append(self._starts[-1] + len(self._epoch(len(self._starts) - 1)))
        rest = epochs - whole
        return self._starts[whole] + (int(np.ceil(rest * len(self._epoch(whole)))) if rest else 0)

    def padding(self, batches: int) -> float:
        """Share of the frames of the first `batches` batches that is padding."""
        chosen = [self[index] for index in range(batches)]
        padded = sum(len(batch.clips) * batch.frames for batch in chosen)
        return 1 - sum(self.frames[clip] for batch in chosen for clip in batch.clips) / padded if padded else 0.0

    def _epoch(self, epoch: int) -> list[tuple[int, ...]]:
        if self._held[0] != epoch:
            rng = np.random.default_rng([self.seed, epoch])
            self._held = (epoch, plan_epoch(self.frames, self.budget, rng, self.ragged))
        return self._held[1]
