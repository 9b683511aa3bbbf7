"""References and hypotheses → every edit, lined up word by word. In: texts. Out: an `ErrorReport`.

Alignment by jiwer, normalisation by `speechkit.text`. Knows no model and no widget: the error board shows what this
returns. Every rate of a report is of the corpus: all edits of all utterances over all reference words, never a mean.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from speechkit import audio as audio_in
from speechkit import text
from speechkit.errors import DataError
from speechkit.evaluation.metrics import NAMES, Kind, Rate, Unit, align, first_figure, units_of
from speechkit.evaluation.snr import estimate
from speechkit.terminal import width
from speechkit.types import Transcript

if TYPE_CHECKING:
    from collections.abc import Sequence

    from speechkit.device import Choice
    from speechkit.evaluation.breakdown import Breakdown, Key
    from speechkit.evaluation.confusions import Characters, Confusions
    from speechkit.types import Word

__all__ = ["Edit", "ErrorReport", "ScoreOptions", "Scored", "score"]

SHOWN = 5  # utterances of a printed table


@dataclass(frozen=True, slots=True)
class Edit:
    """One column of the alignment."""

    kind: Kind
    reference: str  # one word; "" for an insertion
    hypothesis: str  # one word; "" for a deletion
    word: int | None = None  # index into `Scored.words` of the hypothesis word; None for a deletion, or without times


@dataclass(frozen=True)
class Scored:
    """One utterance: what was said, what was heard, and how they differ.

    In scripts written without spaces a "word" is one character, as in `text.split_words`.
    """

    name: str  # file name or row id
    reference: str  # normalised
    hypothesis: str  # normalised
    edits: tuple[Edit, ...]
    words: tuple[Word, ...] = field(default=(), repr=False)  # of the hypothesis, with times and confidences
    audio: Path | None = field(default=None, repr=False)
    speaker: str = ""
    language: str | None = None
    seconds: float = 0.0
    snr_db: float | None = None
    confidence: float | None = None
    raw_reference: str = field(default="", repr=False)  # as given
    raw_hypothesis: str = field(default="", repr=False)  # as the model wrote it

    @property
    def errors(self) -> int:
        """Substitutions, deletions and insertions together."""
        return sum(edit.kind != "equal" for edit in self.edits)

    @property
    def reference_words(self) -> int:
        return sum(edit.kind != "insert" for edit in self.edits)

    @property
    def wer(self) -> float:
        """Errors per reference word; where there is none, 0.0 if nothing was heard and 1.0 if something was."""
        return self.errors / self.reference_words if self.reference_words else float(self.errors > 0)

    def aligned(self) -> str:
        """Three lines: reference, hypothesis, and S, D or I under each error; words stand in columns."""
        marks = {"equal": "", "substitute": "S", "delete": "D", "insert": "I"}
        columns = [
            (
                edit.reference or "*" * width(edit.hypothesis),
                edit.hypothesis or "*" * width(edit.reference),
                marks[edit.kind],
            )
            for edit in self.edits
        ] or [("(nothing said)", "(nothing heard)", "")]
        wide = [max(map(width, column)) for column in columns]
        rows = [
            " ".join(word + " " * (room - width(word)) for word, room in zip(line, wide, strict=True))
            for line in zip(*columns, strict=True)
        ]
        return "\n".join(f"{head}{row}".rstrip() for head, row in zip(("ref  ", "hyp  ", "     "), rows, strict=True))


@dataclass(frozen=True, repr=False)
class ErrorReport:
    """All utterances of one system on one set. Printing it gives its rates with their intervals."""

    utterances: tuple[Scored, ...]
    language: str | None = None
    name: str = ""  # of the system

    def __len__(self) -> int:
        return len(self.utterances)

    @cached_property
    def wer(self) -> Rate:
        """Word error rate of the corpus, normalised, with its interval from utterances drawn anew."""
        return self.rate("word")

    @cached_property
    def cer(self) -> Rate:
        """Character error rate (code points, a space between words counts as one), otherwise like :attr:`wer`."""
        return self.rate("char")

    @cached_property
    def raw_wer(self) -> Rate:
        """Like :attr:`wer` on the texts as written: case and punctuation count."""
        return self.rate("word", raw=True)

    @cached_property
    def raw_cer(self) -> Rate:
        """Like :attr:`cer` on the texts as written."""
        return self.rate("char", raw=True)

    @property
    def first_unit(self) -> Choice[Unit]:
        """What to quote first, words or characters, and why: see `metrics.first_figure`."""
        return first_figure(self.language, [row.reference for row in self.utterances])

    @property
    def rates(self) -> tuple[Rate, Rate]:
        """:attr:`wer` and :attr:`cer`, the one that :attr:`first_unit` names in front."""
        return (self.wer, self.cer) if self.first_unit.value == "word" else (self.cer, self.wer)

    @property
    def primary(self) -> Rate:
        """:attr:`wer` or :attr:`cer`, whichever :attr:`first_unit` names."""
        return self.rates[0]

    @property
    def kinds(self) -> dict[str, int]:
        """How many columns of the word alignment are "equal", "substitute", "delete" and "insert"."""
        found = Counter(edit.kind for row in self.utterances for edit in row.edits)
        return {kind: found[kind] for kind in ("equal", "substitute", "delete", "insert")}

    @property
    def seconds(self) -> float:
        return math.fsum(row.seconds for row in self.utterances)

    def rate(self, unit: Unit = "word", *, raw: bool = False, by_speaker: bool = False) -> Rate:
        """The corpus's rate in "word", "char" or "jamo"; by_speaker draws whole speakers for the interval.

        raw compares the texts as written. Utterances without a speaker are then speakers of their own.
        """
        errors, counts = self.counts(unit, raw)
        if not by_speaker:
            return Rate.of(errors, counts, unit)
        speakers = [row.speaker or f"\0{at}" for at, row in enumerate(self.utterances)]
        return Rate.of(errors, counts, unit, speakers, "speakers")

    def counts(self, unit: Unit = "word", raw: bool = False) -> tuple[list[int], list[int]]:
        """Errors and reference units of every utterance, (N,) each."""
        if unit == "word" and not raw:
            return [row.errors for row in self.utterances], [row.reference_words for row in self.utterances]
        columns = self.columns(unit, raw)
        errors = [sum(kind != "equal" for kind, _, _ in row) for row in columns]
        return errors, [sum(bool(said) for _, said, _ in row) for row in columns]

    def columns(self, unit: Unit = "char", raw: bool = False) -> list[list[tuple[Kind, str, str]]]:
        """Per utterance the alignment in `unit`: (kind, unit of the reference or "", unit of the hypothesis or "")."""
        as_given = [raw and bool(row.raw_reference or row.raw_hypothesis) for row in self.utterances]
        lines = [
            (row.raw_reference, row.raw_hypothesis) if given else (row.reference, row.hypothesis)
            for row, given in zip(self.utterances, as_given, strict=True)
        ]
        # the texts are normalised already, some with other options than ours
        said, heard = ([units_of(pair[side], unit, normalize=False) for pair in lines] for side in (0, 1))
        return [
            [(kind, a[i] if i >= 0 else "", b[j] if j >= 0 else "") for kind, i, j in row]
            for a, b, row in zip(said, heard, align(said, heard), strict=True)
        ]

    def confusions(self, n: int = 10) -> Confusions:
        """The `n` most frequent substitutions, deletions and insertions of words."""
        from speechkit.evaluation.confusions import word_confusions

        return word_confusions(self, n)

    def characters(self) -> Characters:
        """Which character was heard for which: a matrix with a row for insertions and a column for deletions."""
        from speechkit.evaluation.confusions import character_confusions

        return character_confusions(self)

    def by(self, key: Key, unit: Unit | None = None) -> Breakdown:
        """Rates with intervals by "speaker", "language", "length", "seconds", "snr" or "confidence".

        `unit` None takes :attr:`first_unit`. Raises DataError for another key.
        """
        from speechkit.evaluation.breakdown import breakdown

        return breakdown(self, key, unit or self.first_unit.value)

    def worst(self, n: int = SHOWN) -> tuple[Scored, ...]:
        """The `n` utterances with most errors, of equals those with the higher rate, then in the order given."""
        return tuple(sorted(self.utterances, key=lambda row: (-row.errors, -row.wer)))[: max(n, 0)]

    def to_csv(self, path: str | os.PathLike[str]) -> Path:
        """One row per utterance; the inverse of :meth:`from_csv`. Raises OutputError where that cannot be done."""
        from speechkit.evaluation.report_csv import write

        return write(self, path)

    @classmethod
    def from_csv(cls, path: str | os.PathLike[str]) -> ErrorReport:
        """Read what :meth:`to_csv` wrote; the edits are lined up anew. Raises DataError for another file."""
        from speechkit.evaluation.report_csv import read

        return read(path)

    def __repr__(self) -> str:
        shown = ", ".join(f"{NAMES[rate.unit]} {rate}" for rate in self.rates)
        kinds = self.kinds
        edits = f"{kinds['substitute']:,} substituted, {kinds['delete']:,} deleted, {kinds['insert']:,} inserted"
        title = ", ".join(filter(None, [self.name, self.language])) or "ErrorReport"
        return (
            f"{title}: {shown}; {self.wer.errors:,} edits over {self.wer.count:,} words of {len(self):,} utterances "
            f"taken together ({edits}); 95 % intervals"
        )

    def table(self, rows: int = SHOWN) -> str:
        """The rates, then the `rows` worst utterances with reference and hypothesis in columns."""
        blocks = (
            f"{row.errors:3d} errors, {row.wer:6.1%}  {row.name}{f' ({row.speaker})' if row.speaker else ''}\n"
            f"{row.aligned()}"
            for row in self.worst(rows)
        )
        return "\n".join([repr(self), *blocks])

    def _repr_html_(self) -> str:
        from speechkit.evaluation.report_html import page

        return page(self, self.worst(SHOWN))


@dataclass(frozen=True)
class ScoreOptions:
    """What :func:`score` may be told beyond its lists."""

    name: str = ""  # of the system; "" asks the transcripts for their model
    vowels: bool = True  # False drops the vowel signs that Arabic and Hebrew may leave out
    snr_db: Sequence[float | None] | None = None  # one per utterance, where known
    estimate_snr: bool = True  # else, where there is audio, from the audio (`evaluation.snr`)


def score(
    references: str | Sequence[str],
    hypotheses: str | Transcript | Sequence[str | Transcript] | None = None,
    *,
    names: Sequence[str] | None = None,
    transcripts: Transcript | Sequence[Transcript] | None = None,
    speakers: Sequence[str] | None = None,
    audio: Sequence[Any] | None = None,
    language: str | Sequence[str | None] | None = None,
    options: ScoreOptions | None = None,
) -> ErrorReport:
    """N references and hypotheses (texts or `Transcript`s) → `ErrorReport`; both sides are normalised first.

    transcripts: beside or instead of texts, brings words with times and confidences. audio: paths, or anything
    `audio.load` takes; gives the seconds, and the SNR unless `options` says otherwise. names: the default is the file
    name, or the number from 1. language: one code for all, or one each; None asks the transcripts.

    Raises DataError for lists of different length or without an utterance and for what is neither text nor transcript,
    AudioError for audio that cannot be read.
    """
    chosen = options or ScoreOptions()
    wanted = [references] if isinstance(references, str) else list(references)
    given = transcripts if hypotheses is None else hypotheses
    heard = [given] if isinstance(given, str | Transcript) else list(given or ())
    count = len(wanted)
    tongues = [language] * count if language is None or isinstance(language, str) else list(language)
    _check(wanted, heard)
    spoken = _transcripts(heard if transcripts is None else transcripts)
    beside = {"names": names, "transcripts": spoken, "speakers": speakers, "audio": audio}
    _same_length(count, {**beside, "languages": tongues, "snr_db": chosen.snr_db})
    tongues = [tongue or row.language for tongue, row in zip(tongues, spoken, strict=True)]
    rows = []
    for at, (line, row, tongue) in enumerate(zip(heard, spoken, tongues, strict=True)):
        source = audio[at] if audio is not None else None
        seconds, snr_db = _measured(source, chosen.estimate_snr and chosen.snr_db is None)
        said = line if isinstance(line, str) else line.text
        one = _scored(wanted[at], said, row, tongue, chosen.vowels)
        path = Path(source) if isinstance(source, str | os.PathLike) else None
        one = replace(
            one,
            name=str(names[at]) if names is not None else path.name if path else str(at + 1),
            audio=path,
            speaker=str(speakers[at]) if speakers is not None else "",
            seconds=seconds or row.duration_s,
            snr_db=snr_db if chosen.snr_db is None else chosen.snr_db[at],
        )
        rows.append(one)
    same = tongues[0] if len(set(tongues)) == 1 else None
    models = {row.model for row in spoken}
    return ErrorReport(tuple(rows), same, chosen.name or (models.pop() if len(models) == 1 else ""))


def lined_up(reference: str, hypothesis: str, owners: Sequence[int | None] = ()) -> tuple[Edit, ...]:
    """Two normalised texts → the alignment with the fewest edits; `owners` names the word of each heard piece."""
    said, heard = text.split_words(reference), text.split_words(hypothesis)
    return tuple(
        Edit(kind, said[i] if i >= 0 else "", heard[j] if j >= 0 else "", owners[j] if j >= 0 and owners else None)
        for kind, i, j in align([said], [heard])[0]
    )


def _scored(wanted: str, said: str, spoken: Transcript, language: str | None, vowels: bool) -> Scored:
    reference, hypothesis = (text.normalize(line, language, vowels=vowels) for line in (wanted, said))
    return Scored(
        name="",
        reference=reference,
        hypothesis=hypothesis,
        edits=lined_up(reference, hypothesis, owners_of(hypothesis, spoken.words, language, vowels)),
        words=spoken.words,
        language=language,
        confidence=spoken.confidence if spoken.words else None,
        raw_reference=wanted,
        raw_hypothesis=said,
    )


def owners_of(
    hypothesis: str, words: Sequence[Word], language: str | None = None, vowels: bool = True
) -> list[int | None]:
    """Units of a normalised hypothesis → the word that holds the first character of each; None where the two differ.

    By characters, not by units: an apostrophe or a hyphen may split a text and its words differently.
    """
    heard = text.split_words(hypothesis)
    pieces = ["".join(text.normalize(word.text, language, vowels=vowels).split()) for word in words]
    if "".join(heard) != "".join(pieces):
        return [None] * len(heard)
    letters = [at for at, piece in enumerate(pieces) for _ in piece]
    starts = np.cumsum([0, *(len(unit) for unit in heard)])[:-1]
    return [letters[start] for start in starts.tolist()]


def _measured(source: Any, snr: bool) -> tuple[float, float | None]:
    """Seconds and SNR of what `audio.load` takes; 0.0 and None without audio."""
    if source is None:
        return 0.0, None
    samples = audio_in.load(source)
    return len(samples) / audio_in.SAMPLE_RATE, estimate(samples) if snr else None


def _check(wanted: list[str], heard: list[Any]) -> None:
    if len(wanted) != len(heard) or not wanted:
        raise DataError(
            f"{len(wanted)} references and {len(heard)} hypotheses; give one hypothesis per reference, at least one"
        )
    for number, (line, row) in enumerate(zip(wanted, heard, strict=True), 1):
        if not isinstance(line, str):
            raise DataError(f"reference {number} is {type(line).__name__}; references are texts")
        if not isinstance(row, str | Transcript):
            raise DataError(
                f"hypothesis {number} is {type(row).__name__}; it can be a text or a Transcript, for a clip that could "
                "not be transcribed the empty text"
            )


def _transcripts(given: Transcript | Sequence[Any]) -> list[Transcript]:
    """What knows words and times; a text knows neither."""
    rows = [given] if isinstance(given, str | Transcript) else list(given)
    for number, row in enumerate(rows, 1):
        if not isinstance(row, str | Transcript):
            raise DataError(f"transcript {number} is {type(row).__name__}; give a Transcript, or the text alone")
    return [row if isinstance(row, Transcript) else Transcript(row) for row in rows]


def _same_length(count: int, lists: dict[str, Sequence[Any] | None]) -> None:
    for name, row in lists.items():
        if isinstance(row, str | os.PathLike):
            raise DataError(f"{name} is {os.fspath(row)!r}; give a list with one for each reference")
        if row is not None and len(row) != count:
            raise DataError(f"{len(row)} {name} for {count} references; give one each, or leave them out")
