"""Where a listener's time is best spent: which words to check first, and which to trust without checking.

In: transcripts, or `Judged` rows. Out: `ReviewQueue`, `Rejection`. Every count of errors here is an expectation: it is
as true as the confidences, so calibrate them first. What was said and not heard is in no queue.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from speechkit.errors import DataError
from speechkit.evaluation.judge import check_confidences
from speechkit.subtitles import join_words

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from speechkit.evaluation.judge import Judged
    from speechkit.types import Transcript, Word

    Calibration = Callable[[list[float]], NDArray[np.float64]]

__all__ = ["Doubt", "Rejection", "ReviewQueue", "errors_found", "rejection_threshold", "review_queue"]

BESIDE = 3  # words of context on each side of a doubtful one
SHOWN = 10  # rows of a printed queue
Z95 = 1.959963984540054  # two-sided 95 % of a normal variable


@dataclass(frozen=True, slots=True)
class Doubt:
    """One word to check: `words[index]` of transcript number `transcript`, both from 0."""

    name: str
    transcript: int
    index: int
    word: Word
    error: float  # probability that it is wrong
    context: str  # the word in [brackets] among its neighbours


@dataclass(frozen=True, eq=False, repr=False)
class ReviewQueue:
    """All words, likeliest errors first; equals keep their order in the audio. `found[k]`, (N + 1,), is the share of
    all expected errors that checking the first k words finds."""

    items: tuple[Doubt, ...]
    expected_errors: float
    found: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.items)

    def words_for(self, share: float) -> int:
        """The fewest words to check to find `share` (0 to 1) of the expected errors."""
        if not 0 <= share <= 1:
            raise DataError(f"share is {share}; it is a number from 0 (nothing) to 1 (every expected error)")
        # a hair below, for shares that rounding keeps just short of 1
        return int(np.searchsorted(self.found, min(share, float(self.found[-1])) - 1e-12))

    def __repr__(self) -> str:
        head = f"{len(self):,} words, {self.expected_errors:.1f} expected errors"
        if not self.expected_errors:
            return head
        checks = ((share, self.words_for(share)) for share in (0.5, 0.8))
        parts = (f"{share:.0%} of them in the first {k:,} words ({k / len(self):.0%})" for share, k in checks)
        return "; ".join([head, *parts])

    def table(self, rows: int = SHOWN) -> str:
        """The first `rows` words: chance of being wrong, where, and in which context."""
        shown = self.items[:rows]
        wide = max((len(item.name) for item in shown), default=0)
        lines = (f"{x.error:6.1%}  {x.name:<{wide}}  {x.word.start_s:8.2f} s  {x.context}" for x in shown)
        return "\n".join([repr(self), *lines])


@dataclass(frozen=True)
class Rejection:
    """Trust words of confidence ≥ `threshold`, reject the rest. `reached` tells whether `wanted` is met."""

    wanted: float
    threshold: float
    coverage: float  # share of the words that is kept
    error_rate: float  # of the kept words; NaN where none is kept
    upper: float  # what the error rate may be in truth: 95 % Wilson bound
    kept: int
    count: int
    reached: bool

    def keeps(self, word: Word) -> bool:
        """Whether the word may be trusted; never at a threshold that missed its aim, nor with a NaN confidence."""
        return self.reached and word.confidence >= self.threshold

    def on(self, judged: Judged) -> Rejection:
        """The same threshold on other words: what it is worth where it was not chosen."""
        return _rejection(judged, self.threshold, self.wanted)

    def __str__(self) -> str:
        rate = f"{self.error_rate:.1%} of {self.kept:,} kept words are wrong (at most {self.upper:.1%} at 95 %)"
        if not self.kept:
            return f"no word of {self.count:,} has a confidence of {self.threshold:.3f} or more"
        if self.reached:
            return f"confidence ≥ {self.threshold:.3f} keeps {self.coverage:.1%} of {self.count:,} words; {rate}"
        return (
            f"{self.wanted:.1%} errors are not reached: at confidence ≥ {self.threshold:.3f}, {rate}, "
            f"coverage {self.coverage:.1%} of {self.count:,}"
        )


def review_queue(
    transcripts: Sequence[Transcript], calibration: Calibration | None = None, names: Sequence[str] | None = None
) -> ReviewQueue:
    """Every word of every transcript, by its chance of being wrong: 1 - confidence.

    `calibration` (a `ConfidenceMap` of words) turns the confidences into probabilities; None takes them for such
    already. `names` (say, file names) stand beside the words; the default is the transcript's number from 1.

    Raises DataError for a number of names that is not that of the transcripts, for a transcript without its words, and
    for confidences outside [0, 1], NaN included.
    """
    titles = [str(number) for number in range(1, len(transcripts) + 1)] if names is None else list(names)
    if len(titles) != len(transcripts):
        raise DataError(f"{len(titles)} names for {len(transcripts)} transcripts; give one each")
    bare = [name for name, row in zip(titles, transcripts, strict=True) if row.text and not row.words]
    if bare:
        raise DataError(f"transcript {bare[0]} has a text and no words, so no confidences: transcribe with words=True")
    places = [(at, index) for at, row in enumerate(transcripts) for index in range(len(row.words))]
    raw = [transcripts[at].words[index].confidence for at, index in places]
    check_confidences(np.array(raw, np.float64))
    error = 1 - np.asarray(raw if calibration is None or not raw else calibration(raw), np.float64)
    order = np.argsort(-error, kind="stable").tolist()
    items = tuple(_doubt(transcripts[places[i][0]], titles, places[i], float(error[i])) for i in order)
    return ReviewQueue(items, float(error.sum()), _cumulative(error[order]))


def errors_found(judged: Judged) -> NDArray[np.float64]:
    """(N + 1,): the share of the real errors among the k least sure words: what `ReviewQueue.found` promises."""
    order = np.argsort(judged.confidence, kind="stable")
    return _cumulative((~judged.correct[order]).astype(np.float64))


def rejection_threshold(judged: Judged, error_rate: float) -> Rejection:
    """The threshold that keeps most words while at most `error_rate` of them are wrong (Geifman & El-Yaniv 2017).

    Words of equal confidence are kept or rejected together. Where no threshold reaches the rate, `reached` is False and
    the threshold is that of the lowest rate there is. The rate was measured where it was chosen and is flattered by
    that: read `upper`, and `Rejection.on` other clips. Raises DataError for a rate outside [0, 1) and for no words.
    """
    if not 0 <= error_rate < 1:
        raise DataError(f"error_rate is {error_rate}; it is a share of wrong words, from 0 to below 1, 0.05 for 5 %")
    if not len(judged):
        raise DataError(f"no {judged.unit}s were heard in {judged.clips} clips, so no threshold can be chosen")
    order = np.argsort(-judged.confidence, kind="stable")
    sure = judged.confidence[order]
    ends = np.flatnonzero(np.append(sure[1:] < sure[:-1], True))  # last word of each run of equal confidences
    rates = np.cumsum(~judged.correct[order])[ends] / (ends + 1)
    fine = np.flatnonzero(rates <= error_rate)
    # the lowest rate, and of several the one that keeps most
    best = fine[-1] if len(fine) else np.flatnonzero(rates == rates.min())[-1]
    return _rejection(judged, float(sure[ends[best]]), error_rate)


def _rejection(judged: Judged, threshold: float, wanted: float) -> Rejection:
    keep = judged.confidence >= threshold
    kept, count = int(keep.sum()), len(judged)
    rate = float((~judged.correct[keep]).mean()) if kept else math.nan
    coverage = kept / count if count else 0.0
    return Rejection(wanted, threshold, coverage, rate, _wilson_upper(rate, kept), kept, count, rate <= wanted)


def _wilson_upper(rate: float, count: int) -> float:
    """Upper end of the 95 % interval of a share measured on `count` draws (Wilson 1927); 1 for none."""
    if not count:
        return 1.0
    square = Z95**2 / count
    half = Z95 * math.sqrt((rate * (1 - rate) + square / 4) / count)
    return min((rate + square / 2 + half) / (1 + square), 1.0)


def _doubt(transcript: Transcript, names: Sequence[str], place: tuple[int, int], error: float) -> Doubt:
    number, index = place
    words = transcript.words
    before, after = words[max(index - BESIDE, 0) : index], words[index + 1 : index + 1 + BESIDE]
    texts = [*(word.text for word in before), f"[{words[index].text}]", *(word.text for word in after)]
    return Doubt(names[number], number, index, words[index], error, join_words(texts))


def _cumulative(errors: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) → (N + 1,) share of the total in the first k; all ones where there is nothing to find."""
    total = float(errors.sum())
    if not total:
        return np.ones(len(errors) + 1)
    return np.concatenate([[0.0], np.cumsum(errors) / total])
