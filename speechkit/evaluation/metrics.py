"""References and hypotheses (texts) → error rates. Edit distances by jiwer, normalisation by `speechkit.text`.

In: lists of texts. Out: plain rates (`wer`, `cer`) or a `Rate` with its interval. Every rate is of the corpus: all
edits of all utterances over all units of all references, never a mean of the rates of utterances. Knows no audio.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from speechkit import text
from speechkit.device import Choice
from speechkit.errors import DataError
from speechkit.evaluation import bootstrap
from speechkit.evaluation.families import bare_code

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike

__all__ = ["GAP", "Kind", "Rate", "Unit", "align", "cer", "error_rate", "first_figure", "units_of", "wer"]

Unit = Literal["word", "char", "jamo"]
Kind = Literal["equal", "substitute", "delete", "insert"]
Counted = Literal["word", "char", "jamo", "sound"]  # what a rate may count; sounds are those of `evaluation.romanize`
NAMES: dict[str, str] = {"word": "WER", "char": "CER", "jamo": "jamo error rate", "sound": "romanised error rate"}
NOUNS: dict[str, str] = {"word": "word", "char": "character", "jamo": "letter", "sound": "sound"}
BY_CHARACTER = {
    **dict.fromkeys(["zh", "cmn", "yue", "ja", "th", "lo", "km", "my", "bo"], "written without spaces between words"),
    "ko": "the spacing of Korean words differs from writer to writer",
}
KINDS: dict[str, Kind] = {kind: kind for kind in get_args(Kind)}
GAP = "␣"  # stands for the space between words in a row of characters; a symbol, so no normalised text holds it


@dataclass(frozen=True, repr=False)
class Rate:
    """An error rate of a whole corpus with its 95 % interval: all edits over all reference units.

    `value` 0.1 is 10 %; above 1 is possible. `low` and `high` come from `blocks` utterances (or speakers) drawn anew
    (see `evaluation.bootstrap`); from fewer than about twenty they come out too narrow, and NaN below two. `value` is
    NaN where nothing was said and something was heard.
    """

    value: float
    low: float
    high: float
    errors: int
    count: int  # units in the references
    unit: Counted = "word"
    blocks: int = 0  # what was drawn anew for the interval
    drawn: str = "utterances"  # what a block is

    @classmethod
    def of(
        cls,
        errors: ArrayLike,
        counts: ArrayLike,
        unit: Counted = "word",
        groups: Sequence[Any] | None = None,
        drawn: str = "",
    ) -> Rate:
        """Errors and reference units of N utterances, (N,) each → the rate; `groups` (N,) are drawn whole.

        `drawn` names what the groups are, say "speakers". Raises DataError unless there is one of each per utterance.
        """
        wrong, said = (np.atleast_1d(np.asarray(row, np.int64)) for row in (errors, counts))
        if wrong.shape != said.shape or wrong.ndim != 1:
            raise DataError(f"errors of shape {wrong.shape} and counts of shape {said.shape}; give one per utterance")
        blocks = bootstrap.pooled(np.stack([wrong, said]), groups)
        total, count = int(wrong.sum()), int(said.sum())
        value = total / count if count else (math.nan if total else 0.0)
        low, high = bootstrap.interval(*blocks)
        what = drawn or ("utterances" if groups is None else "groups")
        return cls(value, low, high, total, count, unit, blocks.shape[1], what)

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        shown = "–" if math.isnan(self.value) else f"{100 * self.value:.1f} %"
        ends = "–" if math.isnan(self.low) else f"{100 * self.low:.1f}, {100 * self.high:.1f}"
        return f"{shown} [{ends}]"

    def __repr__(self) -> str:
        source = f"{self.blocks:,} {self.drawn} drawn anew"
        if math.isnan(self.low):
            source = f"no interval: {self.blocks:,} {self.drawn} with words in the reference are too few"
        return (
            f"{NAMES[self.unit]} {self}: {self.errors:,} edits over {self.count:,} reference {NOUNS[self.unit]}s of "
            f"the whole corpus; 95 % interval, {source}"
        )


def wer(references: str | Sequence[str], hypotheses: str | Sequence[str], language: str | None = None) -> float:
    """Word error rate over all pairs together: (substitutions + deletions + insertions) / words in the references.

    Both sides are first normalised (lower case, no punctuation). In scripts written without spaces every character is a
    word. 0.0 is perfect; more than 1.0 is possible. Where the references hold no word at all, 0.0 if the hypotheses
    hold none either.

    Raises DataError when the two lists differ in length or are empty, or when words were heard where the references
    have none: a rate over nothing is not a number.
    """
    return _plain(references, hypotheses, "word", language)


def cer(references: str | Sequence[str], hypotheses: str | Sequence[str], language: str | None = None) -> float:
    """Character error rate over all pairs together, otherwise like :func:`wer`.

    A character is a code point of the normalised text, as in jiwer: a combining mark is one of its own, and so is the
    space between two words.
    """
    return _plain(references, hypotheses, "char", language)


def error_rate(
    references: str | Sequence[str],
    hypotheses: str | Sequence[str],
    unit: Unit | None = None,
    *,
    language: str | None = None,
    groups: Sequence[Any] | None = None,
    normalize: bool = True,
) -> Rate:
    """Texts → `Rate`. `unit` None takes the first figure of the language (:func:`first_figure`): words, or characters.

    groups: one label per pair (its speaker), drawn whole for the interval. normalize=False scores the texts as written
    (NFC, single spaces). "jamo" takes Korean syllables apart into letters. Raises what :func:`wer` raises, save that a
    rate over nothing is NaN here.
    """
    wanted, heard = _pairs(references, hypotheses)
    chosen: Unit = unit or first_figure(language, wanted).value
    said, found = ([units_of(row, chosen, language, normalize) for row in rows] for rows in (wanted, heard))
    rows = align(said, found)
    errors = [sum(kind != "equal" for kind, _, _ in row) for row in rows]
    return Rate.of(errors, [len(row) for row in said], chosen, groups)


def first_figure(language: str | None, texts: Sequence[str] = ()) -> Choice[Unit]:
    """Which rate to quote first for a language (ISO 639, a region may follow), and why.

    Characters where words cannot be told apart without a segmenter of one's own choice, whose errors would then be
    counted too; words elsewhere. Without a language the script of `texts` decides.
    """
    code = bare_code(language)
    if code in BY_CHARACTER:
        return Choice("char", f"{code}: {BY_CHARACTER[code]}")
    if code:
        return Choice("word", f"{code}: written with spaces between words")
    letters = "".join(texts)
    if 2 * sum(map(text.has_unspaced_script, letters)) > len(letters):
        return Choice("char", "most characters belong to a script without spaces")
    return Choice("word", "no language given, and the script has spaces between words")


def units_of(line: str, unit: Unit, language: str | None = None, normalize: bool = True) -> list[str]:
    """A text → the units that are compared: words, characters (a space is `GAP`), or jamo.

    Raises DataError for another unit.
    """
    if unit not in get_args(Unit):
        raise DataError(f'unit is {unit!r}; it can be "word", "char" or "jamo"')
    level = text.normalize(line, language) if normalize else text.as_written(line)
    if unit == "word":
        return text.split_words(level)
    letters = text.to_jamo(level) if unit == "jamo" else level
    return [GAP if char == " " else char for char in letters]


def align(said: Sequence[list[str]], heard: Sequence[list[str]]) -> list[list[tuple[Kind, int, int]]]:
    """Units of N references and hypotheses → per pair its columns (kind, place in said, place in heard); -1 for none.

    The alignment with the fewest edits, by jiwer; kinds are "equal", "substitute", "delete" and "insert". Units hold no
    space.
    """
    rows: list[list[tuple[Kind, int, int]]] = [[] for _ in said]
    full = [at for at in range(len(said)) if said[at] or heard[at]]
    if not full:
        return rows

    import jiwer  # here, not above: a listing or a help text must not pay for it

    found = jiwer.process_words([" ".join(said[at]) for at in full], [" ".join(heard[at]) for at in full])
    for at, chunks in zip(full, found.alignments, strict=True):
        for chunk in chunks:
            length = max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
            for step in range(length):
                left = -1 if chunk.type == "insert" else chunk.ref_start_idx + step
                right = -1 if chunk.type == "delete" else chunk.hyp_start_idx + step
                rows[at].append((KINDS[chunk.type], left, right))
    return rows


def _plain(references: str | Sequence[str], hypotheses: str | Sequence[str], unit: Unit, language: str | None) -> float:
    wanted, heard = _pairs(references, hypotheses)
    said, found = ([units_of(line, unit, language) for line in rows] for rows in (wanted, heard))
    count = sum(map(len, said))
    if not count:
        if any(found):
            name = "word" if unit == "word" else "character"
            raise DataError(f"the references hold no word after normalisation, so a {name} error rate is not defined")
        return 0.0

    import jiwer

    return float(jiwer.process_words([" ".join(row) for row in said], [" ".join(row) for row in found]).wer)


def _pairs(references: str | Sequence[str], hypotheses: str | Sequence[str]) -> tuple[list[str], list[str]]:
    wanted = [references] if isinstance(references, str) else list(references)
    heard = [hypotheses] if isinstance(hypotheses, str) else list(hypotheses)
    if len(wanted) != len(heard) or not wanted:
        raise DataError(
            f"{len(wanted)} references and {len(heard)} hypotheses; give one hypothesis per reference, at least one"
        )
    for name, rows in (("reference", wanted), ("hypothesis", heard)):
        for number, row in enumerate(rows, 1):
            if not isinstance(row, str):
                raise DataError(f'{name} {number} is {type(row).__name__}; give texts, "" where nothing was heard')
    return wanted, heard
