"""What a beam search needs of the frames, and no more: the tokens that matter in each, a few dozen bytes a frame.

In: (F, V) natural-log probabilities. Out: `Emissions`, which slice and join along frames, so an hour of audio is held
sparsely while its log-probabilities are computed window by window.

Two things are left out, both as if the model had said zero:

- tokens below `token_threshold` in a frame, the blank and the frame's best token excepted;
- in a frame whose blank is above `blank_skip`, every other token. Such a frame multiplies all prefixes alike and ends
  every run, so the search does not visit it: its log-probability is added once, and a letter said before and after it
  is two letters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from speechkit.asr.decode import BestPath
from speechkit.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["Emissions"]

ABOVE = 1e-3  # a log-probability may round to this much above zero


@dataclass(frozen=True, eq=False)
class Emissions:
    """`blank` (F,) log-probability of the blank; frames `kept` (M,) have the tokens `ids[starts[m] : starts[m + 1]]`
    beside it, with log-probabilities `scores`. In the other frames there is nothing but the blank.
    """

    blank: NDArray[np.float64]
    kept: NDArray[np.int64]
    starts: NDArray[np.int64]
    ids: NDArray[np.int32]
    scores: NDArray[np.float64]

    @classmethod
    def of(cls, log_probs: NDArray[np.floating], blank: int, token_threshold: float, blank_skip: float) -> Emissions:
        """(F, V) natural log → emissions; thresholds are probabilities.

        Raises DataError for another shape, a blank outside V, NaN, log-probabilities above zero, or a frame in which
        every token is impossible.
        """
        logp = np.asarray(log_probs)
        _check(logp, blank)
        best = logp.max(axis=1, initial=-np.inf)
        skipped = logp[:, blank] > _log(blank_skip)
        wanted = logp >= np.maximum(_log(token_threshold), np.finfo(float).min)
        wanted |= logp == best[:, None]
        wanted[skipped] = False
        wanted[:, blank] = False
        counts = wanted.sum(axis=1)
        frames, ids = np.nonzero(wanted)
        kept = np.flatnonzero(counts)
        starts = np.concatenate([[0], np.cumsum(counts[kept])])
        scores = logp[frames, ids].astype(np.float64)
        return cls(logp[:, blank].astype(np.float64), kept, starts, ids.astype(np.int32), scores)

    @classmethod
    def silence(cls, frames: int) -> Emissions:
        """`frames` frames of certain blank."""
        none = np.zeros(0)
        return cls(np.zeros(frames), none.astype(int), np.zeros(1, int), none.astype(np.int32), none)

    @classmethod
    def join(cls, parts: Sequence[Emissions]) -> Emissions:
        """Emissions of consecutive frames → one."""
        if not parts:
            return cls.silence(0)
        before = np.cumsum([0, *map(len, parts)])
        filled = np.cumsum([0, *(len(part.ids) for part in parts)])
        return cls(
            np.concatenate([part.blank for part in parts]),
            np.concatenate([part.kept + first for part, first in zip(parts, before, strict=False)]),
            np.concatenate([[0], *(part.starts[1:] + first for part, first in zip(parts, filled, strict=False))]),
            np.concatenate([part.ids for part in parts]),
            np.concatenate([part.scores for part in parts]),
        )

    def __len__(self) -> int:
        return len(self.blank)

    def __getitem__(self, frames: slice) -> Emissions:
        first, stop, _ = frames.indices(len(self))
        low, high = np.searchsorted(self.kept, [first, max(first, stop)])
        held = slice(self.starts[low], self.starts[high])
        starts = self.starts[low : high + 1] - self.starts[low]
        return Emissions(self.blank[first:stop], self.kept[low:high] - first, starts, self.ids[held], self.scores[held])

    def __repr__(self) -> str:
        return f"Emissions({len(self)} frames, {len(self.kept)} of them with {len(self.ids)} tokens beside the blank)"

    def path(self, labels: NDArray[np.integer], blank: int) -> BestPath:
        """The token (or blank) of each kept frame (M,) → the token of every frame, with its log-probability."""
        ids, scores = np.full(len(self), blank, np.int32), self.blank.astype(np.float32)
        ids[self.kept] = labels
        row = np.repeat(np.arange(len(self.kept)), np.diff(self.starts))
        said = np.flatnonzero(self.ids == labels[row])
        scores[self.kept[row[said]]] = self.scores[said]
        return BestPath(ids, scores)


def _log(probability: float) -> float:
    return float(np.log(probability)) if probability > 0 else -np.inf


def _check(logp: NDArray[np.floating], blank: int) -> None:
    if logp.ndim != 2 or not 0 <= blank < logp.shape[1]:
        raise DataError(f"log-probabilities have the shape {logp.shape}; (frames, tokens) with token {blank} is needed")
    highest = logp.max(axis=1, initial=-np.inf)  # a NaN wins
    for frame in np.flatnonzero(np.isnan(highest))[:1].tolist():
        raise DataError(f"frame {frame} has a NaN among its log-probabilities: the model's output is broken")
    for frame in np.flatnonzero(highest == -np.inf)[:1].tolist():
        raise DataError(f"in frame {frame} every token has the log-probability -inf: at least one must be possible")
    for frame in np.flatnonzero(highest > ABOVE)[:1].tolist():
        raise DataError(
            f"frame {frame} has a log-probability of {highest[frame]:.3g}, above 0: these look like logits; "
            "pass them through log_softmax first"
        )
