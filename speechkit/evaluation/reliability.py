"""How far confidences can be taken at their word: reliability bins, expected calibration error, Brier, NCE, AUROC.

In: `Judged` rows (confidence, correct). Out: `Reliability`. NumPy only.

Two questions, two kinds of figure. *Calibrated*: of the words with confidence 0.8, are 80 % right? ECE answers.
*Sharp*: do wrong words get lower confidences than right ones? AUROC answers, and no rising calibration changes it.
Brier and NCE are proper scores: they reward both at once, and depend on no bins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from speechkit.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from speechkit.evaluation.judge import Judged

__all__ = ["Bin", "Binning", "Reliability", "auroc", "bin_numbers", "log_loss", "reliability"]

Binning = Literal["width", "mass"]
SMALLEST = 1e-6  # a confidence of exactly 0 or 1 would make one mistake cost infinitely much


@dataclass(frozen=True, slots=True)
class Bin:
    """The units whose confidence lies in (`low`, `high`]; the lowest bin holds 0 too."""

    low: float
    high: float
    count: int
    confidence: float  # their mean
    accuracy: float  # share that is right
    spread: float  # standard deviation that `accuracy` would have by chance, were every confidence true


@dataclass(frozen=True, repr=False)
class Reliability:
    """Calibration of `count` units; printing it gives one line, `table()` one per bin. Empty bins are left out."""

    bins: tuple[Bin, ...]
    asked: int  # how many bins were asked for
    binning: Binning
    count: int
    unit: str
    confidence: float  # mean
    accuracy: float
    ece: float
    ece_by_chance: float  # about what true confidences would show on this many units
    brier: float
    nce: float  # 1 perfect, 0 no better than giving every unit the accuracy, negative worse; NaN without both verdicts
    auroc: float  # 1 perfect, 0.5 blind; NaN where all are right or all are wrong

    @property
    def binned(self) -> str:
        return f"{self.asked} equal-{self.binning} bin{'s' if self.asked > 1 else ''}"

    def __repr__(self) -> str:
        return (
            f"ECE {self.ece:.3f} in {self.binned} ({self.ece_by_chance:.3f} by chance), Brier {self.brier:.3f}, "
            f"NCE {_figure(self.nce)}, AUROC {_figure(self.auroc)}: {self.count:,} {self.unit}s, "
            f"{self.accuracy:.1%} right, mean confidence {self.confidence:.3f}"
        )

    def table(self) -> str:
        """One line per bin: its range, how many units, their mean confidence, the share that is right, the gap."""
        rows = (
            f"{b.low:.2f}–{b.high:.2f} {b.count:8,}   {b.confidence:.3f}  {b.accuracy:.3f}  "
            f"{b.accuracy - b.confidence:+.3f}{'' if abs(b.accuracy - b.confidence) <= 1.96 * b.spread else ' *'}"
            for b in self.bins
        )
        note = "* more than chance explains (1.96 standard deviations)"
        return "\n".join([f"confidence {self.unit + 's':>7}    mean  right     gap", *rows, note])


def reliability(judged: Judged, bins: int = 15, binning: Binning = "width") -> Reliability:
    """Measure how well confidences match reality.

    `ece`, expected calibration error (Guo et al. 2017, arXiv:1706.04599, eq. 3): the mean over units of
    |accuracy - mean confidence| of their bin, in `bins` bins of equal width as there (15), or of equal mass: as many
    units in each, equal confidences never parted (Nixon et al. 2019, arXiv:1904.01685). It depends on the binning, so
    name it beside the number. It is never 0 on finite data either: `ece_by_chance` is its expectation were every
    confidence true and every unit drawn alone (normal approximation of each bin); words of one clip err together, so
    real data may show somewhat more.

    `brier`: mean of (confidence - correct)². `nce`, normalised cross entropy (Siu, Gish & Richardson 1997): the share
    of the log loss of a constant guess at the accuracy that the confidences save. `auroc`: chance that a wrong unit has
    a lower confidence than a right one, ties counting half.

    Raises DataError for no units, fewer than one bin, or an unknown binning.
    """
    _check_some(judged)
    sure, right = judged.confidence, judged.correct
    places = bin_numbers(sure, bins, binning)
    found = tuple(_bin(places == place, place, sure, right, bins, binning) for place in np.unique(places))
    base = float(right.mean())
    flat = log_loss(np.full(len(sure), base), right) if 0 < base < 1 else float("nan")
    return Reliability(
        bins=found,
        asked=bins,
        binning=binning,
        count=len(judged),
        unit=judged.unit,
        confidence=float(sure.mean()),
        accuracy=base,
        ece=sum(b.count * abs(b.accuracy - b.confidence) for b in found) / len(judged),
        # E|x| of a normal variable is √(2/π) of its standard deviation
        ece_by_chance=sum(b.count * b.spread for b in found) / len(judged) * float(np.sqrt(2 / np.pi)),
        brier=float(np.mean((sure - right) ** 2)),
        nce=1 - log_loss(sure, right) / flat,
        auroc=auroc(sure, right),
    )


def bin_numbers(confidence: NDArray[np.float64], bins: int, binning: Binning = "width") -> NDArray[np.int64]:
    """The bin of each confidence (N,) → (N,) in 0..bins-1. Raises DataError for a wrong number or kind of bins."""
    if bins < 1:
        raise DataError(f"bins is {bins}; it is 1 or more (15 is usual)")
    if binning == "width":
        return np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence, side="left")
    if binning != "mass":
        raise DataError(f'binning is {binning!r}; it can be "width" or "mass"')
    order = np.argsort(confidence, kind="stable")
    ranked = confidence[order]
    place = np.arange(len(ranked)) * bins // max(len(ranked), 1)
    # equal confidences share the bin of the first of them, or the result would hang on the order of the rows
    first = np.searchsorted(ranked, ranked, side="left")
    numbers = np.empty(len(ranked), np.int64)
    numbers[order] = place[first]
    return numbers


def log_loss(confidence: NDArray[np.float64], correct: NDArray[np.bool_]) -> float:
    """Mean of -ln(the probability given to what happened), confidences held within 1e-6 of 0 and 1."""
    p = np.clip(confidence, SMALLEST, 1 - SMALLEST)
    return -float(np.mean(np.where(correct, np.log(p), np.log1p(-p))))


def auroc(confidence: NDArray[np.float64], correct: NDArray[np.bool_]) -> float:
    """P(confidence of a wrong unit < confidence of a right one), ties half (Mann-Whitney); NaN without both kinds."""
    good, bad = np.sort(confidence[correct]), confidence[~correct]
    if not len(good) or not len(bad):
        return float("nan")
    below = np.searchsorted(good, bad, side="left") + np.searchsorted(good, bad, side="right")
    return 1 - float(np.mean(below)) / (2 * len(good))


def _bin(
    inside: NDArray[np.bool_],
    place: int,
    sure: NDArray[np.float64],
    right: NDArray[np.bool_],
    bins: int,
    binning: Binning,
) -> Bin:
    own = sure[inside]
    low, high = (place / bins, (place + 1) / bins) if binning == "width" else (float(own.min()), float(own.max()))
    spread = float(np.sqrt(np.sum(own * (1 - own)))) / len(own)
    return Bin(low, high, len(own), float(own.mean()), float(right[inside].mean()), spread)


def _check_some(judged: Judged) -> None:
    if not len(judged):
        raise DataError(
            f"no {judged.unit}s were heard in {judged.clips} clips, so there is nothing to measure: give clips in "
            "which the model hears something"
        )


def _figure(value: float) -> str:
    return "undefined" if np.isnan(value) else f"{value:.3f}"
