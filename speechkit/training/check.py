"""Examples → which of them can be trained on, and why the others cannot: before anything trains, and never fatal.

In: examples, and the vocabulary and frame grid of the model to be trained. Out: `DataReport`. Every recording is
decoded once, as training will decode it, in pieces: memory does not grow with its length. Several are read at a time.

CTC needs a frame for every label and one more blank between two equal ones (Graves et al. 2006), so a clip of F frames
fits L labels with R repeats only where F ≥ L + R; otherwise its loss is infinite.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

import speechkit.audio as audio_in
from speechkit.asr.frames import FrameGrid
from speechkit.decoders import decode
from speechkit.errors import DataError, SpeechkitError
from speechkit.text import normalize
from speechkit.training.data_report import DataReport, Problem
from speechkit.training.scripts import described, scripts, scripts_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from speechkit.training.data import Example
    from speechkit.training.vocabulary import Vocabulary

__all__ = ["DataReport", "Problem", "check_examples", "frames_needed"]

WORKERS = 8
SILENT_PEAK = 1e-3  # -60 dBFS, as in `audio.inspect`
# Sound that was upsampled from 8 kHz has nothing above 4 kHz but rounding, 80 dB below the loudest speech and more;
# soft words recorded at 16 kHz stay above -73 dB. (Resampling without a filter leaves mirror images and goes unseen.)
NARROW_DB = -76.0
WINDOW = 512  # samples of one spectrum: 32 ms
SPEECH, ABOVE = slice(10, 110), slice(141, 245)  # its bins from 0.3 to 3.4 kHz, and from 4.4 to 7.6 kHz
MOSTLY = 0.5  # share of unknown characters above which a label says nothing


def check_examples(
    examples: Iterable[Example],
    *,
    vocabulary: Vocabulary | None = None,
    min_s: float = 0.1,
    max_s: float = 30.0,
    grid: FrameGrid | None = None,
    trained_on: DataReport | None = None,
    progress: Callable[[int], Any] | None = None,
) -> DataReport:
    """Read every recording and judge every row; the kept rows carry their measured `seconds`.

    vocabulary: the labels are those of the model; without it, the characters of the normalised text. min_s, max_s:
    seconds of audio, bounds included. grid: the model's frames, `FrameGrid.from_config(model.config)`; None is the
    stock 20 ms. trained_on: the report of the training data, where these rows are to judge what learns from it.
    progress: called with the number of rows done.

    Left out are rows that are malformed, without text, unreadable, too short or long, mostly in characters that the
    vocabulary lacks, longer in labels than in frames, or a repetition of an earlier row (same sound, same text). Kept
    with a remark: a rate other than the row claims or below 16 kHz, characters that the vocabulary lacks, one sound
    with two texts, a sound that is trained on, silence.

    Raises DataError when no row can be used, with the counts and an example of each reason, or when there is no row.
    """
    if not 0 <= min_s <= max_s:
        raise DataError(f"min_s is {min_s} and max_s {max_s}; they are seconds, 0 ≤ min_s ≤ max_s")
    others = zip(trained_on.sounds, trained_on.kept, strict=True) if trained_on is not None else ()
    known = {sound: example.name for sound, example in others}
    judge = _Judge(vocabulary, min_s, max_s, grid or FrameGrid(), known)
    for done, (example, heard) in enumerate(_measured(examples), 1):
        judge.row(example, heard)
        if progress is not None:
            progress(done)
    report = DataReport(tuple(judge.kept), tuple(judge.left_out), tuple(judge.warnings), tuple(judge.sounds))
    if not report.kept:
        raise DataError(_nothing(report))
    return report


def frames_needed(labels: Sequence[Any]) -> int:
    """The fewest frames in which CTC can emit `labels`: one each, and a blank between two equal neighbours."""
    return len(labels) + sum(left == right for left, right in pairwise(labels))


@dataclass
class _Judge:
    """Rows in order → kept, left out, remarks. Remembers of every sound a digest and the texts it came with."""

    vocabulary: Vocabulary | None
    min_s: float
    max_s: float
    grid: FrameGrid
    trained: dict[str, str]  # digest → name of what is trained on
    kept: list[Example] = field(default_factory=list)
    left_out: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    sounds: list[str] = field(default_factory=list)
    heard: dict[str, list[tuple[str, str]]] = field(default_factory=dict)  # digest → (text, name)

    def row(self, example: Example, heard: _Heard) -> None:
        number = len(self.kept) + len(self.left_out)
        plain = normalize(example.text, example.language)
        fault = self._fault(example, heard, plain)
        if fault is not None:
            self.left_out.append(Problem(number, example.name, *fault))
            return
        for kind, detail in self._remarks(example, heard, plain):
            self.warnings.append(Problem(number, example.name, kind, detail))
        self.heard.setdefault(heard.digest, []).append((plain, example.name))
        self.sounds.append(heard.digest)
        self.kept.append(replace(example, seconds=heard.samples / self.grid.rate))

    def _fault(self, example: Example, heard: _Heard, plain: str) -> tuple[str, str] | None:
        """Kind and detail of the first thing that keeps a row from being used."""
        if example.fault:
            return "malformed row", example.fault
        if not plain:
            said = f"nothing is left of {example.text!r} without punctuation" if example.text else "there is no text"
            return "empty text", said
        if heard.reason:
            return "unreadable", heard.reason
        seconds, frames = heard.samples / self.grid.rate, self.grid.frames(heard.samples)
        if seconds < self.min_s or not frames:
            least = max(self.min_s, self.grid.samples(1) / self.grid.rate)
            return "too short", f"{seconds:.3f} s, at least {least:.3g} s are needed"
        if seconds > self.max_s:
            return "too long", f"{seconds:.1f} s, at most {self.max_s:g} s are allowed: cut it where nobody speaks"
        foreign = self._foreign(example.text)
        if foreign:
            return "unexpected script", foreign
        labels: Sequence[Any] = plain if self.vocabulary is None else self.vocabulary.encode(example.text)
        needed = frames_needed(labels)
        if not labels or needed > frames:
            return (
                "label longer than frames",
                f"{len(labels)} labels need {needed} frames, {seconds:.2f} s have {frames}",
            )
        earlier = [name for text, name in self.heard.get(heard.digest, ()) if text == plain]
        return ("duplicate", f"the same sound and text as {earlier[0]}") if earlier else None

    def _foreign(self, text: str) -> str:
        """What to say of a text that the vocabulary can hardly write, "" for others."""
        if self.vocabulary is None:
            return ""
        missing, plain = self.vocabulary.missing(text), self.vocabulary.prepare(text)
        letters = len(plain.replace(" ", ""))
        if missing.total() <= MOSTLY * letters:
            return ""
        written, known = scripts_of(missing), scripts(self.vocabulary.letters)
        if set(written) <= set(known):
            return (
                f"{missing.total()} of {letters} characters are not in the vocabulary: {' '.join(sorted(missing)[:12])}"
            )
        return f"{text[:40]!r} is {described(scripts([text]))}, the vocabulary {described(known)}"

    def _remarks(self, example: Example, heard: _Heard, plain: str) -> Iterator[tuple[str, str]]:
        if example.rate is not None and heard.rate is not None and abs(example.rate - heard.rate) >= 1:
            yield "wrong rate", f"the row says {example.rate:g} Hz, the file is {heard.rate:g} Hz; the file's is used"
        elif heard.rate is not None and heard.rate < self.grid.rate:
            yield "wrong rate", f"recorded at {heard.rate:g} Hz: nothing above {heard.rate / 2000:g} kHz can be heard"
        elif heard.narrow:
            yield (
                "wrong rate",
                f"{heard.rate or self.grid.rate:g} Hz, and nothing above 4 kHz: it was recorded at 8 kHz",
            )
        missing = self.vocabulary.missing(example.text) if self.vocabulary is not None else None
        if missing:
            yield "characters not in the vocabulary", " ".join(sorted(missing))
        others = [name for text, name in self.heard.get(heard.digest, ()) if text != plain]
        if others:
            yield "same audio, another text", f"the same sound as {others[0]}, which has another text: one is wrong"
        if heard.digest in self.trained:
            same = self.trained[heard.digest]
            yield "in the training data too", f"the same sound as {same}: it makes the rates look better than they are"
        if heard.peak < SILENT_PEAK:
            yield "silent", "the peak is below -60 dBFS"


@dataclass(frozen=True, slots=True)
class _Heard:
    """One recording, decoded to mono at 16 kHz; `reason` says why it could not be."""

    samples: int = 0
    digest: str = ""
    rate: float | None = None  # of the file, where it has one
    peak: float = 0.0
    narrow: bool = False  # nothing above 4 kHz
    reason: str = ""


def _measured(examples: Iterable[Example]) -> Iterator[tuple[Example, _Heard]]:
    """Each example with its measures, in order; a few are read ahead, on threads: decoding holds no Python lock."""
    workers = min(WORKERS, _cores())
    waiting: deque[tuple[Example, Any]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="check")
    try:
        for example in examples:
            waiting.append((example, pool.submit(_hear, example)))
            if len(waiting) > 4 * workers:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _hear(example: Example) -> _Heard:
    if example.fault or not example.text.strip():
        return _Heard()  # left out anyway
    try:
        source = example.source()
        digest, count, peak = hashlib.blake2b(digest_size=16), 0, 0.0
        band = _Band()
        for block in audio_in.blocks(source):
            digest.update(block.tobytes())
            count += len(block)
            peak = max(peak, float(np.abs(block).max()))
            band.add(block)
        rate = _rate_of(source)
    except SpeechkitError as error:
        return _Heard(reason=" ".join(str(error).split()))
    except Exception as error:  # a data set may raise anything: a bad row costs only itself
        return _Heard(reason=f"{type(error).__name__}: {' '.join(str(error).split())}")
    return _Heard(count, digest.hexdigest(), rate, peak, band.narrow)


def _rate_of(source: Any) -> float | None:
    """The sample rate of a file or of `(array, rate)`; None for samples that state none."""
    if isinstance(source, dict):
        if source.get("array") is not None:
            return float(source["sampling_rate"])
        source = source.get("bytes") or source.get("path")
    if isinstance(source, tuple) and len(source) == 2:
        return float(source[0] if np.isscalar(source[0]) else source[1])  # type: ignore[arg-type]
    if isinstance(source, (bytes, bytearray)):
        return decode(io.BytesIO(source), "bytes").rate
    if isinstance(source, str) or hasattr(source, "__fspath__"):
        with open(os.path.expanduser(os.fspath(source)), "rb") as file:
            return decode(file, str(source)).rate
    return None


class _Band:
    """The loudest spectrum of a sound in two bands: whether there is anything above 4 kHz."""

    def __init__(self) -> None:
        self.speech = self.above = 0.0
        self.shape = np.hanning(WINDOW).astype(np.float32)

    def add(self, block: NDArray[np.float32]) -> None:
        whole = len(block) - len(block) % WINDOW
        if not whole:
            return
        power = np.abs(np.fft.rfft(block[:whole].reshape(-1, WINDOW) * self.shape)) ** 2  # (N, 257)
        self.speech = max(self.speech, float(power[:, SPEECH].sum(axis=1).max()))
        self.above = max(self.above, float(power[:, ABOVE].sum(axis=1).max()))

    @property
    def narrow(self) -> bool:
        return self.speech > 0 and self.above < self.speech * 10 ** (NARROW_DB / 10)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _nothing(report: DataReport) -> str:
    if not report.left_out:
        return "the data set has no rows; give at least one recording with its text"
    parts = []
    for kind, count in report.counts.items():
        parts.append(f"{count} {kind} (such as {report.of_kind(kind)[0]})")
    return f"none of the {report.rows:,} rows can be trained on: " + "; ".join(parts)
