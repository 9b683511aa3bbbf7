"""Same or different speaker? Utterance vectors and who spoke → how well their cosine tells, as an equal error rate.

In: vectors (N, D) and names. Out: `Verification`. Nothing is trained: the vectors are centred and compared.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from speechkit.errors import DataError
from speechkit.evaluation.probe import labelled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.floating]

__all__ = ["Verification", "equal_error_rate", "verify"]

MOST_PAIRS = 2_000_000  # of each kind; above, about as many by chance: an EER of 5 % is then known to 0.02 points
ROWS = 512  # vectors compared with all others at a time


@dataclass(frozen=True)
class Verification:
    """At `threshold` (cosine) as many pairs of one speaker are refused as pairs of two are accepted: `eer` of each."""

    eer: float
    threshold: float
    same: int
    different: int
    scores_same: NDArray[np.float32] = field(repr=False)
    scores_different: NDArray[np.float32] = field(repr=False)

    def __str__(self) -> str:
        return (
            f"equal error rate {self.eer:.1%} at cosine {self.threshold:.3f} "
            f"({self.same:,} pairs of one speaker, {self.different:,} of two)"
        )


def verify(vectors: Floats, speakers: Sequence[Any], apart: Sequence[Any] | None = None) -> Verification:
    """All pairs of vectors (N, D), cosine after the common mean is taken off.

    apart: one name per clip (its text, its session); pairs of one name are left out, so that saying the same word is
    not taken for being the same person. Raises DataError: sizes that differ, or no pair of one kind.
    """
    flat = np.asarray(vectors, np.float32)
    names = labelled(flat, speakers)
    if flat.ndim != 2:
        raise DataError(f"vectors have shape {flat.shape}; verification compares one vector per clip (N, D)")
    if apart is not None and len(apart) != len(flat):
        raise DataError(f"{len(apart)} names to keep apart and {len(flat)} vectors; give one per clip")
    kinds = None if apart is None else _numbers([str(kind) for kind in apart])
    centred = flat - flat.mean(axis=0)
    unit = centred / (np.linalg.norm(centred, axis=1, keepdims=True) + 1e-12)
    same, different = _pairs(unit, _numbers(names), kinds)
    if not len(same) or not len(different):
        what = "one speaker" if not len(same) else "two speakers"
        raise DataError(f"no pair of {what} among {len(flat)} clips: an equal error rate needs both kinds")
    eer, threshold = equal_error_rate(same, different)
    return Verification(eer, threshold, len(same), len(different), same, different)


def equal_error_rate(same: Floats, different: Floats) -> tuple[float, float]:
    """Scores of pairs that belong together and of pairs that do not → (rate, threshold) where both errors are equal.

    Between two thresholds the errors are taken as linear. Raises DataError for an empty kind.
    """
    if not len(same) or not len(different):
        raise DataError(
            "scores of one kind only: an equal error rate needs pairs that belong together and pairs that do not"
        )
    levels = np.unique(np.concatenate([same, different]))
    missed = np.searchsorted(np.sort(same), levels, side="left") / len(same)  # refused: below the threshold
    accepted = 1 - np.searchsorted(np.sort(different), levels, side="left") / len(different)
    missed, accepted = np.append(missed, 1.0), np.append(accepted, 0.0)
    levels = np.append(levels, levels[-1])
    at = int(np.argmax(missed >= accepted))
    if at == 0:
        return float(missed[0] + accepted[0]) / 2, float(levels[0])
    before, after = accepted[at - 1] - missed[at - 1], missed[at] - accepted[at]
    share = before / (before + after)
    rate = missed[at - 1] + share * (missed[at] - missed[at - 1])
    return float(rate), float(levels[at - 1] + share * (levels[at] - levels[at - 1]))


def _numbers(names: Sequence[str] | NDArray[Any]) -> NDArray[np.int64]:
    return np.unique(names, return_inverse=True)[1]


def _pairs(
    unit: Floats, who: NDArray[np.int64], kinds: NDArray[np.int64] | None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosines of all pairs of unit vectors (N, D) of one speaker, and of two; of very many a random share."""
    counts = np.bincount(who).astype(np.float64)
    most_same = (counts * (counts - 1) / 2).sum()
    most = {True: most_same, False: len(who) * (len(who) - 1) / 2 - most_same}
    rng = np.random.default_rng(0)
    kept: dict[bool, list[NDArray[np.float32]]] = {True: [], False: []}
    for start in range(0, len(unit), ROWS):  # all pairs at once would not fit
        rows = slice(start, start + ROWS)
        cosine = unit[rows] @ unit[start:].T  # (rows, N - start); only what is above the diagonal counts
        wanted = np.triu(np.ones(cosine.shape, bool), 1)
        if kinds is not None:
            wanted &= kinds[rows, None] != kinds[None, start:]
        alike = who[rows, None] == who[None, start:]
        for kind, found in ((True, cosine[wanted & alike]), (False, cosine[wanted & ~alike])):
            if most[kind] > MOST_PAIRS:
                found = found[rng.random(len(found)) < MOST_PAIRS / most[kind]]
            kept[kind].append(found)
    return np.concatenate(kept[True]), np.concatenate(kept[False])
