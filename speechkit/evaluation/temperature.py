"""One temperature for a CTC model's frames, fitted so that word confidences come nearest to the truth. The text stays.

In: (F, V) natural-log probabilities of clips, and their texts. Out: `FrameTemperature`, or `FrameCalibration`, which
puts a curve behind it. Knows no torch.

A temperature divides the logits, so it needs all V numbers of a frame; a saved transcript has none left, and takes a
`calibration.ConfidenceMap` alone. The two do different things: a curve keeps the order of the words, a temperature
changes it, because it sees what stood beside the winner of each frame. So where the frames are at hand, take both.

What to fit it to? Guo et al. 2017 (arXiv:1706.04599) take the log loss of the softmax against its labels. CTC has no
label per frame: its loss sums over alignments, and would calibrate the probability of whole transcripts. People are
shown the confidence of a word, so the log loss of "this word is right" is minimised (as Oneață et al. 2021,
arXiv:2101.05525, learn theirs). It is a proper score, smooth in T. The calibration error is neither: it jumps where a
word changes bins, and is 0 for giving every word the average accuracy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from speechkit.asr.decode import BestPath, best_path, decode, runs, text_of
from speechkit.asr.frames import FrameGrid
from speechkit.errors import DataError
from speechkit.evaluation import fitted
from speechkit.evaluation.calibration import BeforeAfter, ConfidenceMap, compare
from speechkit.evaluation.fitted import Fit
from speechkit.evaluation.judge import Judged, judge
from speechkit.evaluation.reliability import Binning, log_loss
from speechkit.types import Transcript, Word

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from speechkit.asr.decode import Alphabet

__all__ = ["FrameCalibration", "FrameTemperature", "frames_before_and_after", "judge_frames"]

COLDEST, HOTTEST = 0.05, 20.0  # temperatures searched: beyond, every confidence is 1 or 1/V


@dataclass(frozen=True)
class FrameTemperature:
    """Confidences of log_softmax(logits / T) for one T: above 1 less sure, below 1 surer, and the same words.

    The winner of a frame stays the winner, so the greedy path stays; a word's confidence is computed anew from its
    frames as `asr.decode` does. Frames err together and a word needs all of its characters, so one T need not bring
    the words onto the diagonal: a `ConfidenceMap` after it can.
    """

    temperature: float
    fit_on: Fit | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise DataError(f"temperature is {self.temperature}; it is a finite number above 0 (1 changes nothing)")

    @classmethod
    def fit(
        cls,
        log_probs: Sequence[NDArray[np.float32]],
        references: Sequence[str],
        alphabet: Alphabet,
        language: str | None = None,
    ) -> Self:
        """(F, V) per clip and its text → the temperature with the least log loss over the words.

        Holds the frames of the emitted characters, (K, V) float32. Raises DataError for lists of different length, for
        arrays that are not (F, V) log-probabilities, and unless some words are right and some are wrong.
        """
        judged = judge_frames(log_probs, references, alphabet, language=language)
        confidence = _by_temperature(judged, log_probs, alphabet)

        def loss(temperature: float) -> float:
            return log_loss(confidence(temperature), judged.correct)

        best = _best_temperature(loss)
        return cls(best, Fit.of(judged, loss(1.0), loss(best), _edge(best)))

    def apply(self, log_probs: NDArray[np.float32]) -> NDArray[np.float32]:
        """(F, V) natural log → (F, V) at this temperature; the inverse of :meth:`undo`. Logits serve as well."""
        return _log_softmax(_checked(log_probs) / self.temperature)

    def undo(self, log_probs: NDArray[np.float32]) -> NDArray[np.float32]:
        """(F, V) at this temperature → (F, V) natural log at temperature 1."""
        return _log_softmax(_checked(log_probs) * self.temperature)

    def path(self, log_probs: NDArray[np.float32]) -> BestPath:
        """(F, V) at temperature 1 → the path that greedy decoding takes there, with the scores of this temperature.

        The path is found before scaling, so that rounding cannot change a word.
        """
        ids = best_path(_checked(log_probs)).ids
        return BestPath(ids, np.take_along_axis(self.apply(log_probs), ids[:, None], axis=1)[:, 0])

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write JSON; the inverse of :meth:`load`. Raises OutputError where that cannot be done."""
        return fitted.save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what :meth:`save` wrote. Raises DataError for anything else."""
        return cls(**fitted.load(cls.__name__, ("temperature",), path))


@dataclass(frozen=True)
class FrameCalibration:
    """A `FrameTemperature`, and behind it a `ConfidenceMap` over the words' confidences at that temperature."""

    temperature: float
    slope: float
    offset: float
    fit_on: Fit | None = None

    def __post_init__(self) -> None:
        _ = self.heat, self.curve  # their checks

    @property
    def heat(self) -> FrameTemperature:
        return FrameTemperature(self.temperature)

    @property
    def curve(self) -> ConfidenceMap:
        return ConfidenceMap(self.slope, self.offset)

    @classmethod
    def fit(
        cls,
        log_probs: Sequence[NDArray[np.float32]],
        references: Sequence[str],
        alphabet: Alphabet,
        language: str | None = None,
    ) -> Self:
        """(F, V) per clip and its text → the temperature whose best curve has the least log loss, and that curve.

        Fitted together, because a temperature that must also hit the diagonal by itself stops short of where it orders
        the words best. Raises what :meth:`FrameTemperature.fit` raises.
        """
        judged = judge_frames(log_probs, references, alphabet, language=language)
        confidence = _by_temperature(judged, log_probs, alphabet)

        def curve(temperature: float) -> ConfidenceMap:
            return ConfidenceMap.fit(judged.with_confidence(confidence(temperature)))

        def loss(temperature: float) -> float:
            record = curve(temperature).fit_on
            assert record is not None
            return record.log_loss_after

        best = _best_temperature(loss)
        found = curve(best)
        record = Fit.of(judged, log_loss(confidence(1.0), judged.correct), loss(best), _edge(best))
        return cls(best, found.slope, found.offset, record)

    def words(
        self, log_probs: NDArray[np.float32], alphabet: Alphabet, grid: FrameGrid, duration_s: float
    ) -> tuple[Word, ...]:
        """(F, V) of a clip → its greedy words at calibrated confidence; their characters are at the temperature's."""
        words = decode(self.heat.path(_fits(log_probs, alphabet)), alphabet, grid, duration_s)
        return self.curve.apply(Transcript(text_of(words), words)).words

    def judge(
        self,
        log_probs: Sequence[NDArray[np.float32]],
        references: Sequence[str],
        alphabet: Alphabet,
        language: str | None = None,
    ) -> Judged:
        """(F, V) per clip and its text → the words at calibrated confidence, judged."""
        warm = judge_frames(log_probs, references, alphabet, self.temperature, language)
        return warm.with_confidence(self.curve(warm.confidence))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write JSON; the inverse of :meth:`load`. Raises OutputError where that cannot be done."""
        return fitted.save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what :meth:`save` wrote. Raises DataError for anything else."""
        return cls(**fitted.load(cls.__name__, ("temperature", "slope", "offset"), path))


def frames_before_and_after(
    log_probs: Sequence[NDArray[np.float32]],
    references: Sequence[str],
    alphabet: Alphabet,
    *,
    language: str | None = None,
    share: float = 0.5,
    seed: int = 0,
    groups: Sequence[Any] | None = None,
    bins: int = 15,
    binning: Binning = "width",
) -> BeforeAfter:
    """Fit a `FrameCalibration` on a random `share` of the clips and measure it on the others.

    `groups` (a label per clip, such as the speaker) keeps clips of one label on one side. Raises what
    `calibration.before_and_after` and :meth:`FrameTemperature.fit` raise.
    """
    before = judge_frames(log_probs, references, alphabet, language=language)
    fitting, others = before.split(share, seed, groups)

    def pick(clips: NDArray[np.int64]) -> tuple[list[NDArray[np.float32]], list[str]]:
        return [log_probs[clip] for clip in clips], [references[clip] for clip in clips]

    found = FrameCalibration.fit(*pick(fitting), alphabet, language)
    after = found.judge(*pick(others), alphabet, language)
    return compare(before.pick(others), after, found.fit_on, bins, binning)


def judge_frames(
    log_probs: Sequence[NDArray[np.float32]],
    references: Sequence[str],
    alphabet: Alphabet,
    temperature: float = 1.0,
    language: str | None = None,
) -> Judged:
    """(F, V) per clip → its greedy words at a temperature, judged. Times play no part, so no frame grid is asked for.

    Raises DataError for lists of different length and for arrays that are not (F, V) of this alphabet.
    """
    warm = FrameTemperature(temperature)
    clips = [decode(warm.path(_fits(row, alphabet)), alphabet, FrameGrid(), math.inf) for row in log_probs]
    return judge([Transcript(text_of(words), words) for words in clips], references, "word", language)


@dataclass(frozen=True)
class _WordFrames:
    """The frames of the emitted characters of many clips, laid end to end, ready for any temperature.

    A word's confidence is the least over its characters of the geometric mean over their frames (`asr.decode`).
    """

    gaps: NDArray[np.float32]  # (K, V) log-probability minus the winner's, so never above 0
    run_starts: NDArray[np.int64]  # (R,) first of the K frames of each character
    word_starts: NDArray[np.int64]  # (N,) first of the R characters of each word
    first_word: NDArray[np.int64]  # (C,) first of the N words of each clip

    @classmethod
    def of(cls, log_probs: Sequence[NDArray[np.float32]], alphabet: Alphabet) -> _WordFrames:
        gaps: list[NDArray[np.float32]] = []
        lengths: list[int] = []
        letters: list[int] = []
        first: list[int] = []
        for row in log_probs:
            path = best_path(row)
            written = [run for run in runs(path, alphabet.blank) if _writes(run.token, alphabet)]
            words = decode(path, alphabet, FrameGrid(), math.inf)
            assert sum(len(word.chars) for word in words) == len(written), "decode writes every run that has a symbol"
            first.append(len(letters))
            letters += [len(word.chars) for word in words]
            lengths += [run.last - run.first + 1 for run in written]
            own = np.concatenate([np.zeros(0, np.int64), *(np.arange(run.first, run.last + 1) for run in written)])
            gaps.append(row[own] - row[own, path.ids[own]][:, None])
        starts = [np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64) for sizes in (lengths, letters)]
        return cls(np.concatenate(gaps), starts[0], starts[1], np.array(first, np.int64))

    def confidence(self, temperature: float) -> NDArray[np.float64]:
        """(N,): the confidence of every word at `temperature`."""
        scores = -np.log(np.exp(self.gaps / np.float32(temperature)).sum(axis=1, dtype=np.float64))  # (K,)
        counts = np.diff(np.append(self.run_starts, len(scores)))
        letters = np.add.reduceat(scores, self.run_starts) / counts  # (R,)
        return np.exp(np.minimum.reduceat(letters, self.word_starts))


def _by_temperature(
    judged: Judged, log_probs: Sequence[NDArray[np.float32]], alphabet: Alphabet
) -> Callable[[float], NDArray[np.float64]]:
    """A function from a temperature to the confidence of every judged word (N,)."""
    fitted.check_both_kinds(judged)
    frames = _WordFrames.of(log_probs, alphabet)
    rows = frames.first_word[judged.clip] + judged.index
    return lambda temperature: frames.confidence(temperature)[rows]


def _writes(token: int, alphabet: Alphabet) -> bool:
    return token != alphabet.delimiter and bool(alphabet.symbols[token].strip())


def _checked(log_probs: NDArray[np.float32]) -> NDArray[np.float32]:
    rows = np.asarray(log_probs)
    if rows.ndim != 2 or not rows.shape[1]:
        raise DataError(f"log-probabilities of shape {rows.shape}; give (F, V) natural-log numbers of one clip")
    broken = np.flatnonzero(~np.isfinite(rows.max(axis=1)))  # a maximum hands a NaN on
    if len(broken):
        raise DataError(f"frame {broken[0]} of the log-probabilities holds NaN, infinity or no possible token")
    return rows


def _fits(log_probs: NDArray[np.float32], alphabet: Alphabet) -> NDArray[np.float32]:
    rows = _checked(log_probs)
    if rows.shape[1] != len(alphabet.symbols):
        raise DataError(
            f"log-probabilities of {rows.shape[1]} tokens for an alphabet of {len(alphabet.symbols)}: give both from "
            "one model"
        )
    return rows


def _log_softmax(logits: NDArray[Any]) -> NDArray[np.float32]:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    total = np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return (shifted - total).astype(np.float32)


def _best_temperature(loss: Callable[[float], float]) -> float:
    """The temperature of least loss: the best of a grid over its logarithm, then golden section beside it.

    The least over characters makes the loss bend, so it need not have one valley; the grid finds the deepest.
    """
    grid = np.linspace(math.log(COLDEST), math.log(HOTTEST), 25).tolist()
    at = int(np.argmin([loss(math.exp(x)) for x in grid]))
    a, b = grid[max(at - 1, 0)], grid[min(at + 1, len(grid) - 1)]
    ratio = (math.sqrt(5) - 1) / 2
    left, right = b - ratio * (b - a), a + ratio * (b - a)
    f_left, f_right = loss(math.exp(left)), loss(math.exp(right))
    while b - a > 1e-4:
        if f_left <= f_right:
            b, right, f_right = right, left, f_left
            left = b - ratio * (b - a)
            f_left = loss(math.exp(left))
        else:
            a, left, f_left = left, right, f_right
            right = a + ratio * (b - a)
            f_right = loss(math.exp(right))
    return math.exp((a + b) / 2)


def _edge(temperature: float) -> tuple[str, ...]:
    if COLDEST * 1.01 < temperature < HOTTEST / 1.01:
        return ()
    return (f"the temperature lies at the edge of what was searched ({COLDEST} to {HOTTEST})",)
