"""Transcripts beside their references → which heard word (or character) was right, and how sure the model was of it.

In: `Transcript`s and texts. Out: `Judged`, one row per heard unit. Alignment by jiwer, normalisation by
`speechkit.text`. Knows no model.

A unit is right when the alignment with the fewest edits pairs it with an equal unit of the reference. Where several
alignments have equally few edits (a word said once and heard twice) jiwer's choice decides which copy is wrong; the
confidences have no say. What was said and not heard has no confidence: `missed` counts it, and no calibration, queue or
threshold can find it.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from speechkit import text
from speechkit.errors import DataError
from speechkit.subtitles import join_words
from speechkit.types import Transcript

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import ArrayLike, NDArray

__all__ = ["Judged", "check_confidences", "judge"]

Kind = Literal["word", "char"]
_GAP = "␣"  # stands for the space between words in a row of characters; a symbol, so no normalised text holds it


class _Unit(NamedTuple):
    """One heard word or character as the alignment sees it: `pieces` of normalised text, all to be right."""

    pieces: tuple[str, ...]
    confidence: float
    place: int  # which word, or which first character, of its transcript; -1 for a space


@dataclass(frozen=True, eq=False, repr=False)
class Judged:
    """N heard units of C clips. Raises DataError when a confidence is outside [0, 1] or the lengths differ."""

    confidence: NDArray[np.float64]  # (N,) in [0, 1]
    correct: NDArray[np.bool_]  # (N,)
    clip: NDArray[np.int64]  # (N,) the clip of each unit, 0..C-1
    index: NDArray[np.int64]  # (N,) which word (or first character) of its clip
    missed: NDArray[np.int64]  # (C,) reference units for which nothing was heard
    unit: Kind = "word"

    def __post_init__(self) -> None:
        sizes = {len(self.confidence), len(self.correct), len(self.clip), len(self.index)}
        if len(sizes) != 1:
            raise DataError(
                f"{len(self.confidence)} confidences, {len(self.correct)} verdicts, {len(self.clip)} clips and "
                f"{len(self.index)} positions; give one of each per {self.unit}"
            )
        if len(self.clip) and not 0 <= self.clip.min() <= self.clip.max() < self.clips:
            raise DataError(
                f"clips are numbered {self.clip.min()} to {self.clip.max()}; {self.clips} clips count from 0"
            )
        check_confidences(self.confidence, self.unit)

    @classmethod
    def of(
        cls, confidence: ArrayLike, correct: ArrayLike, clip: ArrayLike | None = None, unit: Kind = "word"
    ) -> Judged:
        """Plain lists (N,) → rows. `clip` (N,) counts from 0; without it every unit is a clip of its own."""
        sure = np.atleast_1d(np.asarray(confidence, np.float64))
        right = np.atleast_1d(np.asarray(correct, bool))
        home = np.arange(len(sure)) if clip is None else np.atleast_1d(np.asarray(clip, np.int64))
        missed = np.zeros(int(home.max(initial=-1)) + 1, np.int64)
        return cls(sure, right, home, np.arange(len(sure)), missed, unit)

    @property
    def clips(self) -> int:
        return len(self.missed)

    def __len__(self) -> int:
        return len(self.confidence)

    def __repr__(self) -> str:
        head = f"{len(self):,} {self.unit}s of {self.clips:,} clips"
        if len(self):
            head += f", {self.correct.mean():.1%} right, mean confidence {self.confidence.mean():.3f}"
        return f"Judged({head}; {int(self.missed.sum()):,} missed)"

    def with_confidence(self, confidence: ArrayLike) -> Judged:
        """The same verdicts beside other confidences (N,)."""
        sure = np.asarray(confidence, np.float64)
        return Judged(sure, self.correct, self.clip, self.index, self.missed, self.unit)

    def pick(self, clips: ArrayLike) -> Judged:
        """The rows of some clips, which are numbered anew from 0 in the order given."""
        chosen = np.asarray(clips, np.int64)
        number = np.full(self.clips, -1)
        number[chosen] = np.arange(len(chosen))
        kept = number[self.clip] >= 0
        home = number[self.clip[kept]]
        rows = (self.confidence[kept], self.correct[kept], home, self.index[kept])
        return Judged(*rows, self.missed[chosen], self.unit)

    def split(
        self, share: float = 0.5, seed: int = 0, groups: Sequence[Any] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Clip numbers of two random parts that share no clip: about `share` of the clips, and the rest.

        `groups` holds a label per clip (speaker, recording): clips of one label stay together. Never splits by word:
        words of one clip share its noise and its speaker, so a fit on half of them has seen the other half. Raises
        DataError unless 0 < share < 1 and there are two clips (labels) to part.
        """
        labels = list(range(self.clips)) if groups is None else list(groups)
        if len(labels) != self.clips:
            raise DataError(f"{len(labels)} groups for {self.clips} clips; give one label per clip")
        names = sorted(set(labels), key=str)
        if not 0 < share < 1 or len(names) < 2:
            raise DataError(
                f"share {share} of {len(names)} {'clips' if groups is None else 'groups'} cannot be split off: "
                "share is between 0 and 1, and two or more are needed"
            )
        order = np.random.default_rng(seed).permutation(len(names))
        taken = {names[i] for i in order[: min(max(round(share * len(names)), 1), len(names) - 1)]}
        inside = np.array([label in taken for label in labels])
        return np.flatnonzero(inside), np.flatnonzero(~inside)


def judge(
    transcripts: Transcript | Sequence[Transcript],
    references: str | Sequence[str],
    unit: Kind = "word",
    language: str | None = None,
) -> Judged:
    """Pair every heard word ("char": every heard character) with its reference.

    Both sides are normalised as for the word error rate (lower case, no punctuation). A heard word that normalisation
    splits is right when all of its pieces are; one of which nothing is left (a comma) is not counted. A character is
    one with its combining marks; spaces count for the alignment only. `language` matters for casing; None asks each
    transcript.

    Raises DataError when the lists differ in length or are empty, for a transcript without its words (or a word without
    its characters), and for confidences outside [0, 1], NaN included.
    """
    heard = [transcripts] if isinstance(transcripts, Transcript) else list(transcripts)
    wanted = [references] if isinstance(references, str) else list(references)
    if len(heard) != len(wanted) or not heard:
        raise DataError(
            f"{len(heard)} transcripts and {len(wanted)} references; give one reference per transcript, at least one"
        )
    if unit not in ("word", "char"):
        raise DataError(f'unit is {unit!r}; it can be "word" or "char"')
    tongues = [language or transcript.language for transcript in heard]
    take, cut = (_words, _said_words) if unit == "word" else (_chars, _said_chars)
    units = [take(row, tongue, at) for at, (row, tongue) in enumerate(zip(heard, tongues, strict=True), 1)]
    said = [cut(text.normalize(line, tongue)) for line, tongue in zip(wanted, tongues, strict=True)]
    right, missed = _align(said, [[piece for one in row for piece in one.pieces] for row in units])
    rows = [
        (one.confidence, verdict, clip, one.place)
        for clip, (row, marks) in enumerate(zip(units, right, strict=True))
        for one, verdict in zip(row, _verdicts(row, marks), strict=True)
        if one.place >= 0 and one.pieces
    ]
    table = np.array(rows, np.float64).reshape(-1, 4)
    home, index = table[:, 2].astype(np.int64), table[:, 3].astype(np.int64)
    return Judged(table[:, 0], table[:, 1] > 0, home, index, np.array(missed, np.int64), unit)


def check_confidences(confidence: NDArray[np.float64], unit: str = "word") -> None:
    """Raises DataError that names the first value outside [0, 1], NaN included."""
    wrong = np.flatnonzero(~((confidence >= 0) & (confidence <= 1)))
    if len(wrong):
        at = int(wrong[0])
        raise DataError(
            f"the confidence of {unit} {at + 1} of {len(confidence)} is {confidence[at]}; confidences are numbers from "
            f"0 to 1 ({len(wrong)} of {len(confidence)} are not)"
        )


def _words(transcript: Transcript, language: str | None, number: int) -> list[_Unit]:
    if transcript.text and not transcript.words:
        raise DataError(
            f"transcript {number} has a text and no words, so no confidences: transcribe with words=True (the default)"
        )
    return [
        _Unit(tuple(text.split_words(text.normalize(word.text, language))), word.confidence, index)
        for index, word in enumerate(transcript.words)
    ]


def _chars(transcript: Transcript, language: str | None, number: int) -> list[_Unit]:
    _words(transcript, language, number)  # its check
    units: list[_Unit] = []
    first, before = 0, ""
    for word in transcript.words:
        if word.text and not word.chars:
            raise DataError(
                f"the word {word.text!r} of transcript {number} has no characters with confidences; use unit='word'"
            )
        if before and len(join_words([before, word.text])) > len(before + word.text):
            units.append(_Unit((_GAP,), 1.0, -1))
        for piece, owners in _owned(tuple(char.text for char in word.chars), language):
            sure = float(np.min([word.chars[i].confidence for i in owners]))  # hands a NaN on, unlike min()
            units.append(_Unit((piece,), sure, first + owners[0]))
        first, before = first + len(word.chars), word.text
    return units


@lru_cache(maxsize=65536)
def _owned(chars: tuple[str, ...], language: str | None) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """A word's characters → its normalised characters, each with the positions of those that made it.

    Normalising each character alone would not do: a mark joins its letter, a ligature is two letters, an apostrophe
    stays between letters only. So the word is normalised character by character longer, with a letter behind it.
    """
    pieces = _said_chars(text.normalize("".join(chars), language))
    owners: list[list[int]] = [[] for _ in pieces]
    done = 0
    for at in range(len(chars)):
        longer = text.normalize("".join(chars[: at + 1]) + "a", language)
        count = min(len(_said_chars(longer)) - 1, len(pieces))
        for new in range(done, count):
            owners[new].append(at)
        if count <= done and done:
            owners[done - 1].append(at)
        done = max(done, count)
    pairs = zip(pieces, owners, strict=True)
    return tuple((piece, tuple(rows)) for piece, rows in pairs if rows and piece != _GAP)


def _said_words(normal: str) -> list[str]:
    return text.split_words(normal)


def _said_chars(normal: str) -> list[str]:
    """Normalised text → characters, each with its combining marks; `_GAP` for a space."""
    found: list[str] = []
    for char in normal:
        if found and found[-1] != _GAP and unicodedata.category(char).startswith("M"):
            found[-1] += char
        else:
            found.append(_GAP if char == " " else char)
    return found


def _align(said: list[list[str]], heard: list[list[str]]) -> tuple[list[NDArray[np.bool_]], list[int]]:
    """Per clip: which heard piece equals the one it is paired with, and how many said pieces have no partner."""
    right = [np.zeros(len(row), bool) for row in heard]
    missed = [sum(piece != _GAP for piece in row) for row in said]
    full = [clip for clip in range(len(said)) if said[clip] and heard[clip]]
    if not full:
        return right, missed

    import jiwer  # here, not above: a listing or a help text must not pay for it

    output = jiwer.process_words([" ".join(said[clip]) for clip in full], [" ".join(heard[clip]) for clip in full])
    for clip, chunks in zip(full, output.alignments, strict=True):
        gone: Iterable[str] = ()
        for chunk in chunks:
            if chunk.type == "equal":
                right[clip][chunk.hyp_start_idx : chunk.hyp_end_idx] = True
            elif chunk.type == "delete":
                gone = [*gone, *said[clip][chunk.ref_start_idx : chunk.ref_end_idx]]
        missed[clip] = sum(piece != _GAP for piece in gone)
    return right, missed


def _verdicts(row: list[_Unit], marks: NDArray[np.bool_]) -> list[bool]:
    ends = np.cumsum([len(one.pieces) for one in row])
    return [bool(marks[end - len(one.pieces) : end].all()) for one, end in zip(row, ends.tolist(), strict=True)]
