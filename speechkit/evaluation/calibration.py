"""Confidences → probabilities of being right, by a rising curve over finished confidences; and what that is worth.

In: `Judged` rows, or transcripts, saved ones too. Out: `ConfidenceMap`, `BeforeAfter`. The text stays. Where the (F, V)
log-probabilities are still at hand, `temperature.FrameTemperature` works on those, and a map may follow it.

The fit minimises the log loss of "this word is right". It is a proper score: true probabilities, and nothing else,
minimise it. The calibration error itself would not do: it jumps where a word changes bins, and giving every word the
average accuracy makes it 0. `before_and_after` shows the error on clips that had no part in the fit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from speechkit.errors import DataError
from speechkit.evaluation import fitted
from speechkit.evaluation.fitted import Fit
from speechkit.evaluation.judge import check_confidences
from speechkit.evaluation.reliability import SMALLEST, Binning, Reliability, bin_numbers, log_loss, reliability

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import ArrayLike, NDArray

    from speechkit.evaluation.judge import Judged
    from speechkit.types import Transcript

__all__ = ["BeforeAfter", "ConfidenceMap", "before_and_after", "compare"]

FLATTEST = 1e-3  # least slope of a map: below, the order of the words would be lost
FINEST = 1e-15  # what a map gives may come nearer to 0 and 1 than what it takes; its inverse must see that
RESAMPLES = 1000


@dataclass(frozen=True)
class ConfidenceMap:
    """p → σ(slope · logit p + offset): Platt scaling (Platt 1999) of the logit; slope 1 and offset 0 change nothing.

    Rising, so the order of the words and with it AUROC, queue and coverage stay. `unit` says what it was fitted on and
    therefore maps: the words of a transcript, or its characters. Confidences are held within 1e-6 of 0 and 1.
    """

    slope: float
    offset: float
    unit: str = "word"
    fit_on: Fit | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.slope) and math.isfinite(self.offset) and self.slope > 0):
            raise DataError(
                f"slope is {self.slope} and offset is {self.offset}; both are finite numbers, the slope above 0"
            )

    @classmethod
    def fit(cls, judged: Judged, offset: bool = True) -> Self:
        """Rows → the curve with the least log loss; `offset=False` fits the slope alone (1/slope is a temperature).

        Targets are drawn in from 0 and 1 by the counts of right and wrong, as Platt does, so the fit is finite where
        confidences part right from wrong without fail. Raises DataError unless some units are right and some wrong.
        """
        fitted.check_both_kinds(judged)
        x, target = _logit(judged.confidence), _platt_targets(judged.correct)
        ones = np.ones_like(x)
        notes: tuple[str, ...] = ()
        slope, shift = _logistic([x, ones], target) if offset else (*_logistic([x], target), 0.0)
        if slope < FLATTEST:
            notes = (f"confidence tells nothing here: wrong {judged.unit}s are as sure as right ones",)
            slope = FLATTEST
            shift = _logistic([ones], target, slope * x)[0] if offset else 0.0
        found = cls(slope, shift, judged.unit)
        losses = log_loss(judged.confidence, judged.correct), log_loss(found(judged.confidence), judged.correct)
        return replace(found, fit_on=Fit.of(judged, *losses, notes))

    def __call__(self, confidence: ArrayLike) -> NDArray[np.float64]:
        """Raw confidences (N,) in [0, 1] → probabilities of being right (N,); the inverse of :meth:`inverse`."""
        return _sigmoid(self.slope * _logit(confidence) + self.offset)

    def inverse(self, probability: ArrayLike) -> NDArray[np.float64]:
        """Probabilities (N,) that the map gave → the raw confidences (N,)."""
        return _sigmoid((_logit(probability, FINEST) - self.offset) / self.slope)

    def apply(self, transcript: Transcript) -> Transcript:
        """The same transcript with its words (or characters) at their calibrated confidence; undone by :meth:`undo`."""
        return _mapped(transcript, self, self.unit)

    def undo(self, transcript: Transcript) -> Transcript:
        """Back to the confidences before :meth:`apply`."""
        return _mapped(transcript, self.inverse, self.unit)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write JSON; the inverse of :meth:`load`. Raises OutputError where that cannot be done."""
        return fitted.save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what :meth:`save` wrote. Raises DataError for anything else."""
        return cls(**fitted.load(cls.__name__, ("slope", "offset", "unit"), path))


@dataclass(frozen=True, repr=False)
class BeforeAfter:
    """Reliability of the same units before and after a calibration; printing it gives one line.

    `low` to `high` is the 95 % interval of the change of ECE, from whole clips drawn anew 1,000 times, since words of a
    clip err together (basic bootstrap, Davison & Hinkley 1997: drawing anew inflates an ECE, most of all a small one,
    and the basic interval takes that off again). NaN for fewer than two clips.
    """

    before: Reliability
    after: Reliability
    low: float
    high: float
    clips: int
    fit_on: Fit | None = None

    @property
    def change(self) -> float:
        """ECE after minus ECE before: negative is better."""
        return self.after.ece - self.before.ece

    def __repr__(self) -> str:
        b, a = self.before, self.after
        span = "" if math.isnan(self.low) else f", change {self.change:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"
        fit = self.fit_on
        source = f"; fitted on {fit.count:,} {fit.unit}s of {fit.clips:,} other clips" if fit else ""
        return (
            f"ECE {b.ece:.3f} → {a.ece:.3f} in {a.binned} ({a.ece_by_chance:.3f} by chance{span}), "
            f"Brier {b.brier:.3f} → {a.brier:.3f}: {a.count:,} {a.unit}s of {self.clips:,} clips{source}"
        )


def before_and_after(
    judged: Judged,
    share: float = 0.5,
    seed: int = 0,
    groups: Sequence[Any] | None = None,
    bins: int = 15,
    binning: Binning = "width",
) -> BeforeAfter:
    """Fit a `ConfidenceMap` on a random `share` of the clips and measure it on the others.

    `groups` (a label per clip, such as the speaker) keeps clips of one label on one side. Raises DataError where there
    is nothing to split, where the fitting side lacks right or wrong units, and where the other side has none.
    """
    fitting, others = judged.split(share, seed, groups)
    found, shown = ConfidenceMap.fit(judged.pick(fitting)), judged.pick(others)
    return compare(shown, shown.with_confidence(found(shown.confidence)), found.fit_on, bins, binning)


def compare(
    before: Judged, after: Judged, fit_on: Fit | None = None, bins: int = 15, binning: Binning = "width"
) -> BeforeAfter:
    """The same units under two sets of confidences, both measured. Raises DataError when the units differ."""
    same = (before.clip, after.clip), (before.index, after.index), (before.correct, after.correct)
    if before.unit != after.unit or not all(np.array_equal(one, other) for one, other in same):
        raise DataError(
            f"before is {before!r} and after is {after!r}, not the same units with the same verdicts: judge the same "
            "transcripts against the same references"
        )
    first, second = reliability(before, bins, binning), reliability(after, bins, binning)
    sums = [_clip_sums(rows, bins, binning) for rows in (before, after)]
    rng, home = np.random.default_rng(0), np.unique(before.clip)
    changes = []
    for _ in range(RESAMPLES if len(home) > 1 else 0):
        drawn = np.bincount(rng.integers(0, len(home), len(home)), minlength=len(home))
        old, new = (np.abs(drawn @ gaps).sum() / (drawn @ counts) for gaps, counts in sums)
        changes.append(new - old)
    high, low = np.percentile(changes, [2.5, 97.5]) if changes else (math.nan, math.nan)
    twice = 2 * (second.ece - first.ece)
    return BeforeAfter(first, second, float(twice - low), float(twice - high), before.clips, fit_on)


def _logit(p: ArrayLike, closest: float = SMALLEST) -> NDArray[np.float64]:
    """ln(p / (1 - p)), p held within `closest` of 0 and 1."""
    values = np.asarray(p, np.float64)
    check_confidences(np.atleast_1d(values))
    held = np.clip(values, closest, 1 - closest)
    return np.log(held) - np.log1p(-held)


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.exp(-np.logaddexp(0.0, -x))  # overflows at neither end


def _platt_targets(correct: NDArray[np.bool_]) -> NDArray[np.float64]:
    right, wrong = int(correct.sum()), int((~correct).sum())
    return np.where(correct, (right + 1) / (right + 2), 1 / (wrong + 2))


def _logistic(
    columns: list[NDArray[np.float64]], target: NDArray[np.float64], fixed: NDArray[np.float64] | float = 0.0
) -> list[float]:
    """Weights (K,) of `columns` (N,) each that minimise the log loss of σ(columns · weights + `fixed`) to `target`.

    Newton's method with step halving (Lin, Lin & Weng 2007): the loss is convex and, with targets inside (0, 1), its
    minimum is finite.
    """
    x = np.stack(columns, axis=1)  # (N, K)
    weights = np.zeros(x.shape[1])

    def loss(w: NDArray[np.float64]) -> float:
        z = x @ w + fixed
        return float(np.sum(np.logaddexp(0, z) - target * z))

    now = loss(weights)
    for _ in range(100):
        p = _sigmoid(x @ weights + fixed)
        slope = x.T @ (p - target)
        # a ridge far below the data's own curvature, for confidences that are all alike
        curve = (x * (p * (1 - p))[:, None]).T @ x + 1e-9 * np.eye(len(weights))
        step, size = np.linalg.solve(curve, slope), 1.0
        while (then := loss(weights - size * step)) > now and size > 1e-10:
            size /= 2
        if now - then <= 1e-12 * max(now, 1.0):
            break
        weights, now = weights - size * step, then
    return [float(w) for w in weights]


def _mapped(transcript: Transcript, change: Callable[[list[float]], NDArray[np.float64]], unit: str) -> Transcript:
    words = transcript.words
    if transcript.text and not words:
        raise DataError("the transcript has a text and no words, so no confidences: transcribe with words=True")
    if unit == "char":
        fresh = iter(change([char.confidence for word in words for char in word.chars]).tolist())
        chars = [tuple(replace(char, confidence=next(fresh)) for char in word.chars) for word in words]
        return replace(transcript, words=tuple(replace(w, chars=c) for w, c in zip(words, chars, strict=True)))
    levels = change([word.confidence for word in words]).tolist()
    words = tuple(replace(word, confidence=level) for word, level in zip(words, levels, strict=True))
    return replace(transcript, words=words, confidence=float(np.mean(levels)) if levels else transcript.confidence)


def _clip_sums(judged: Judged, bins: int, binning: Binning) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Per clip with units: the sum of (right - confidence) in each bin (C, bins), and its number of units (C,)."""
    _, clip = np.unique(judged.clip, return_inverse=True)
    clips = int(clip.max(initial=-1)) + 1
    places = clip * bins + bin_numbers(judged.confidence, bins, binning)
    gaps = np.zeros(clips * bins)
    np.add.at(gaps, places, judged.correct - judged.confidence)
    return gaps.reshape(clips, bins), np.bincount(clip, minlength=clips).astype(np.float64)
