"""An error report → what the error board shows: rows, their order, filters, stretches to hear, a grid of confusions.

In: `evaluation.errors.ErrorReport`. Out: plain values. Pure functions, but for `Index`, which keeps what a filter looks
through. Knows no widget, no HTML and no audio.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args

from speechkit.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from speechkit.evaluation.errors import ErrorReport, Scored
    from speechkit.evaluation.metrics import Kind

__all__ = ["Grid", "Index", "Query", "Sort", "columns_of", "direction", "grid", "row_of", "stretch"]

Sort = Literal["errors", "wer", "name", "speaker", "confidence", "seconds"]
Unit = Literal["word", "char"]
Direction = Literal["ltr", "rtl"]
WRONG: tuple[Kind, ...] = ("substitute", "delete", "insert")
CUT = 250  # columns of one utterance that are sent at a time: an hour in one piece has ten thousand
LABELS = 14  # rows and columns of a grid of confusions: more cannot be read
BEFORE_S, AFTER_S = 0.06, 0.1  # CTC spans are narrow; this much around a word keeps its edges audible
GAP_S = 0.3  # around the place where a word is missing: its neighbours tell where that is


@dataclass(frozen=True, slots=True)
class Query:
    """Which utterances, in which order. `below` keeps those less sure than that; `pair` those with this confusion."""

    sort: Sort = "errors"
    descending: bool = True
    text: str = ""
    kinds: tuple[str, ...] = ()  # at least one error of one of these; () takes all utterances
    below: float | None = None
    pair: tuple[str, str] | None = None  # said, heard; "" for nothing
    unit: Unit = "word"  # of the pair

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> Query:
        """What a view sent → query. Raises DataError for anything else."""
        try:
            query = cls(
                sort=given.get("sort", "errors"),
                descending=bool(given.get("descending", True)),
                text=str(given.get("text", "")),
                kinds=tuple(map(str, given.get("kinds", ()))),
                below=None if given.get("below") is None else float(given["below"]),
                pair=None if given.get("pair") is None else (str(given["pair"][0]), str(given["pair"][1])),
                unit=given.get("unit", "word"),
            )
        except (AttributeError, TypeError, ValueError, LookupError) as error:
            raise DataError(f"{given!r} is no question to an error board: {error}") from error
        known = {"sort": get_args(Sort), "unit": get_args(Unit)}
        wrong = [name for name, allowed in known.items() if getattr(query, name) not in allowed]
        if wrong or not set(query.kinds) <= set(WRONG):
            raise DataError(
                f"{given!r} is no question to an error board: sort is one of {', '.join(get_args(Sort))}, unit one of "
                f"{', '.join(get_args(Unit))}, kinds are some of {', '.join(WRONG)}"
            )
        return query


class Index:
    """A report, ready to be searched again and again."""

    def __init__(self, report: ErrorReport) -> None:
        self.report = report
        self._last: tuple[Query, list[int]] | None = None  # whoever turns a page asks the same again
        self._keys: dict[Sort, list[Any]] = {}
        self._pairs: dict[Unit, list[list[tuple[str, str]]]] = {}
        self._places: dict[Unit, dict[tuple[str, str], set[int]]] = {}

    def chosen(self, query: Query) -> list[int]:
        """Numbers of the utterances that a query asks for, in its order; equals stay in the order given."""
        if self._last is None or self._last[0] != query:
            self._last = query, self._chosen(query)
        return self._last[1]

    def pairs(self, unit: Unit) -> Counter[tuple[str, str]]:
        """How often each (said, heard) occurs, right ones included; "" for nothing."""
        return Counter(pair for row in self._rows(unit) for pair in row)

    def _chosen(self, query: Query) -> list[int]:
        rows = self.report.utterances
        if query.sort not in self._keys:
            self._keys[query.sort] = [_key(row, query.sort) for row in rows]
        keys, found = self._keys[query.sort], self._fitting(query)
        known = [at for at in found if keys[at] is not None]
        known.sort(key=lambda at: keys[at], reverse=query.descending)  # stable, also in reverse
        return known + [at for at in found if keys[at] is None]  # what is not known comes last either way

    def _fitting(self, query: Query) -> list[int]:
        found: Iterable[int] = range(len(self.report.utterances))
        if query.pair is not None:
            found = sorted(self._where(query.unit).get(query.pair, ()))
        if kinds := set(query.kinds):
            found = [at for at in found if self._kinds[at] & kinds]
        if (below := query.below) is not None:
            sure = {at: _sure(self.report.utterances[at]) for at in found}
            found = [at for at, value in sure.items() if value is not None and value < below]
        wanted = _folded(query.text).split()
        return [at for at in found if all(word in self._texts[at] for word in wanted)] if wanted else list(found)

    def _rows(self, unit: Unit) -> list[list[tuple[str, str]]]:
        """Per utterance its columns (said, heard)."""
        if unit not in self._pairs:
            self._pairs[unit] = (
                [[(edit.reference, edit.hypothesis) for edit in row.edits] for row in self.report.utterances]
                if unit == "word"
                else [[(said, heard) for _, said, heard in row] for row in self.report.columns("char")]
            )
        return self._pairs[unit]

    def _where(self, unit: Unit) -> dict[tuple[str, str], set[int]]:
        """The utterances in which each wrong pair occurs."""
        if unit not in self._places:
            found: dict[tuple[str, str], set[int]] = {}
            for at, row in enumerate(self._rows(unit)):
                for said, heard in row:
                    if said != heard:
                        found.setdefault((said, heard), set()).add(at)
            self._places[unit] = found
        return self._places[unit]

    @cached_property
    def _kinds(self) -> list[set[str]]:
        return [{edit.kind for edit in row.edits} for row in self.report.utterances]

    @cached_property
    def _texts(self) -> list[str]:
        return [
            _folded(f"{row.name}\n{row.speaker}\n{row.reference}\n{row.hypothesis}") for row in self.report.utterances
        ]


@dataclass(frozen=True)
class Grid:
    """A confusion matrix of the labels that matter: `counts[said][heard]`, "" for nothing said or nothing heard.

    `top` are the most frequent confusions (said, heard, count), `left_out` how many errors the grid has no room for.
    """

    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    top: tuple[tuple[str, str, int], ...]
    left_out: int


def grid(pairs: Mapping[tuple[str, str], int], most: int = LABELS) -> Grid:
    """Counts of (said, heard) → the grid of the labels in the most frequent confusions, the commonest label first.

    Of equally frequent errors substitutions come first: they say most.
    """
    wrong = sorted(
        ((said, heard, count) for (said, heard), count in pairs.items() if said != heard),
        key=lambda row: (-row[2], not (row[0] and row[1]), row[0], row[1]),
    )
    named: dict[str, None] = {}
    for said, heard, _ in wrong:
        new = {name for name in (said, heard) if name} - set(named)
        if len(named) + len(new) <= most:
            named.update(dict.fromkeys(name for name in (said, heard) if name))
    often = Counter[str]()
    for (said, _), count in pairs.items():
        often[said] += count
    labels = ("", *sorted(named, key=lambda name: (-often[name], name)))
    counts = tuple(tuple(pairs.get((said, heard), 0) if said or heard else 0 for heard in labels) for said in labels)
    shown = sum(count for said, heard, count in wrong if said in labels and heard in labels)
    return Grid(labels, counts, tuple(wrong[:most]), sum(count for *_, count in wrong) - shown)


def row_of(scored: Scored, number: int) -> dict[str, Any]:
    """One utterance as the view shows it, with its first columns."""
    kinds = Counter(edit.kind for edit in scored.edits)
    return {
        "row": number,
        "name": scored.name,
        "speaker": scored.speaker,
        "language": scored.language or "",
        "dir": direction(scored.reference + scored.hypothesis),
        "wer": round(scored.wer, 4),
        "errors": scored.errors,
        "kinds": [kinds[kind] for kind in WRONG],
        "words": scored.reference_words,
        "confidence": None if (sure := _sure(scored)) is None else round(sure, 3),
        "seconds": round(scored.seconds, 2),
        "audio": scored.audio is not None,
        "columns": columns_of(scored, 0),
        "length": len(scored.edits),
    }


def columns_of(scored: Scored, first: int) -> list[list[Any]]:
    """Columns from `first` on, at most CUT: [kind, said, heard, seconds it starts at or None where nobody knows]."""
    out: list[list[Any]] = []
    for at in range(first, min(first + CUT, len(scored.edits))):
        edit = scored.edits[at]
        span = stretch(scored, at) if scored.audio is not None else None
        out.append([edit.kind, edit.reference, edit.hypothesis, None if span is None else round(span[0], 2)])
    return out


def stretch(scored: Scored, column: int) -> tuple[float, float] | None:
    """From where to where (s) a column is heard; a deleted word, between its neighbours. None without times."""
    words, edit = scored.words, scored.edits[column]
    if edit.word is not None and edit.word < len(words):
        word = words[edit.word]
        return max(0.0, word.start_s - BEFORE_S), word.end_s + AFTER_S
    if edit.kind != "delete":
        return None
    before = _neighbour(scored, range(column - 1, -1, -1))
    after = _neighbour(scored, range(column + 1, len(scored.edits)))
    if before is None and after is None:
        return None
    start = words[before].end_s if before is not None else 0.0
    end = words[after].start_s if after is not None else max(scored.seconds, start)
    return max(0.0, start - GAP_S), max(end, start) + GAP_S


def direction(text: str) -> Direction:
    """The direction in which most letters of a text run; the first one decides a draw."""
    kinds = [kind for char in text if (kind := unicodedata.bidirectional(char)) in ("L", "R", "AL")]
    left = kinds.count("L")
    if 2 * left == len(kinds):
        return "rtl" if kinds and kinds[0] != "L" else "ltr"
    return "ltr" if 2 * left > len(kinds) else "rtl"


def _neighbour(scored: Scored, columns: Iterable[int]) -> int | None:
    """The nearest heard word with times on the way."""
    known = (scored.edits[at].word for at in columns)
    return next((word for word in known if word is not None and word < len(scored.words)), None)


def _key(row: Scored, sort: Sort) -> Any:
    if sort == "errors":
        return (row.errors, row.wer)
    if sort in ("name", "speaker"):
        return _natural(getattr(row, sort)) or None
    return _sure(row) if sort == "confidence" else getattr(row, sort)


def _sure(row: Scored) -> float | None:
    """The confidence; NaN says no more than None."""
    return None if row.confidence is None or math.isnan(row.confidence) else row.confidence


def _natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """clip-9 before clip-10: digits count as numbers."""
    parts: list[str] = []
    for char in _folded(name):
        if parts and parts[-1][-1].isdecimal() == char.isdecimal():
            parts[-1] += char
        else:
            parts.append(char)
    return tuple((0, int(part), "") if part[0].isdecimal() else (1, 0, part) for part in parts)


def _folded(text: str) -> str:
    """What looks the same is found: case and composition do not matter, marks do."""
    return unicodedata.normalize("NFC", text.casefold())
