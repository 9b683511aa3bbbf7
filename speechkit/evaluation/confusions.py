"""An `ErrorReport` → which words and which characters are mistaken for which. Counts, no rates of error.

In: aligned utterances. Out: `Confusions` of words, `Characters` as a matrix. Knows no audio.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from speechkit.terminal import width

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from speechkit.evaluation.errors import ErrorReport
    from speechkit.evaluation.metrics import Kind

__all__ = [
    "NOTHING",
    "Characters",
    "Confusion",
    "Confusions",
    "character_confusions",
    "count_matrix",
    "count_pairs",
    "shown",
    "word_confusions",
]

NOTHING = "∅"  # the row of what was inserted, the column of what was deleted; a symbol, so no normalised text holds it


@dataclass(frozen=True, slots=True)
class Confusion:
    """One kind of error and how often it happened; `said` counts the reference unit in all, 0 for an insertion."""

    reference: str  # "" for an insertion
    hypothesis: str  # "" for a deletion
    count: int
    said: int = 0

    @property
    def share(self) -> float:
        """Of the times the reference unit was said, the share that went this way; NaN for an insertion."""
        return self.count / self.said if self.said else float("nan")

    def __str__(self) -> str:
        told = f"{self.count:4d}  {self.reference or NOTHING} → {self.hypothesis or NOTHING}"
        return f"{told}  ({self.share:.0%} of {self.said:,})" if self.said else told


@dataclass(frozen=True, repr=False)
class Confusions:
    """The most frequent errors of each kind, most frequent first, equals in the order of the alphabet."""

    substitutions: tuple[Confusion, ...] = ()
    deletions: tuple[Confusion, ...] = ()
    insertions: tuple[Confusion, ...] = ()
    totals: tuple[int, int, int] = (0, 0, 0)  # of all errors of the three kinds, shown or not

    def __repr__(self) -> str:
        return self.table()

    def table(self) -> str:
        """Three lists: what was heard for what, what was missed, what was made up."""
        parts = zip(
            ("substitutions", "deletions", "insertions"),
            (self.substitutions, self.deletions, self.insertions),
            self.totals,
            strict=True,
        )
        return "\n".join("\n".join([f"{total:,} {name}", *(str(row) for row in rows)]) for name, rows, total in parts)


@dataclass(frozen=True, eq=False, repr=False)
class Characters:
    """Which character was heard for which, (L, L) counts: rows the reference, columns the hypothesis.

    `labels[0]` is `NOTHING`: its row counts insertions, its column deletions, and [0, 0] is 0. `␣` is the space between
    two words. The others stand by how often they were said, then by code point.
    """

    labels: tuple[str, ...]
    counts: NDArray[np.int64]  # (L, L)

    @property
    def right(self) -> int:
        """Characters heard as they were said."""
        return int(np.trace(self.counts))

    def row(self, label: str) -> dict[str, int]:
        """What a character of the reference was heard as, most often first; empty for one that was never said."""
        if label not in self.labels:
            return {}
        counts = self.counts[self.labels.index(label)]
        order = np.argsort(-counts, kind="stable")
        return {self.labels[at]: int(counts[at]) for at in order if counts[at]}

    def top(self, n: int = 10) -> tuple[Confusion, ...]:
        """The `n` most frequent pairs that differ; `""` stands for nothing said or nothing heard."""
        off = self.counts - np.diag(np.diag(self.counts))
        order = np.argsort(-off, axis=None, kind="stable")[: max(n, 0)]
        pairs = [(int(at) // len(self.labels), int(at) % len(self.labels)) for at in order]
        names = ("", *self.labels[1:])
        said = [0, *self.counts[1:].sum(axis=1).tolist()]
        return tuple(Confusion(names[i], names[j], int(off[i, j]), said[i]) for i, j in pairs if off[i, j])

    def __repr__(self) -> str:
        total = int(self.counts[1:].sum())
        worst = ", ".join(f"{c.reference or NOTHING}→{c.hypothesis or NOTHING} {c.count}" for c in self.top(5))
        told = f"; most often {worst}" if worst else ""
        return f"{self.right:,} of {total:,} characters of {len(self.labels) - 1:,} kinds heard as said{told}"

    def table(self, most: int = 24) -> str:
        """The matrix of the `most` commonest characters as text, a dot for none."""
        labels = range(min(len(self.labels), most + 1))
        names = [shown(self.labels[at]) for at in labels]
        cells = [[str(self.counts[i, j] or "·") for j in labels] for i in labels]
        wide = [max(map(width, [names[j], *(row[j] for row in cells)])) for j in labels]
        rows = [names, *cells]
        lines = (" ".join(" " * (w - width(x)) + x for x, w in zip(row, wide, strict=True)) for row in rows)
        return "\n".join(f"{head:<2} {line}" for head, line in zip([" ", *names], lines, strict=True))


def word_confusions(report: ErrorReport, n: int = 10) -> Confusions:
    """The `n` most frequent substitutions, deletions and insertions of words."""
    pairs = [(edit.kind, edit.reference, edit.hypothesis) for row in report.utterances for edit in row.edits]
    return count_pairs(pairs, n)


def count_pairs(columns: Iterable[tuple[Kind, str, str]], n: int = 10) -> Confusions:
    """Columns of an alignment (kind, reference, hypothesis) → the `n` most frequent of each kind."""
    found = Counter(columns)
    said: Counter[str] = Counter()
    for (_, reference, _), count in found.items():
        said[reference] += count
    said.pop("", None)
    lists, totals = [], []
    for kind in ("substitute", "delete", "insert"):
        rows = [(left, right, count) for (name, left, right), count in found.items() if name == kind]
        rows.sort(key=lambda row: (-row[2], row[0], row[1]))
        lists.append(tuple(Confusion(a, b, count, said[a]) for a, b, count in rows[: max(n, 0)]))
        totals.append(sum(count for *_, count in rows))
    return Confusions(lists[0], lists[1], lists[2], (totals[0], totals[1], totals[2]))


def character_confusions(report: ErrorReport) -> Characters:
    """The character alignment of every utterance, summed."""
    return count_matrix([(said, heard) for row in report.columns("char") for _, said, heard in row])


def count_matrix(pairs: Sequence[tuple[str, str]]) -> Characters:
    """(said, heard) pairs, "" for none → the matrix."""
    said = Counter(left for left, _ in pairs if left)
    heard = {right for _, right in pairs if right}
    labels = (NOTHING, *sorted(said | dict.fromkeys(heard - set(said), 0), key=lambda name: (-said[name], name)))
    place = {name: at for at, name in enumerate(labels)} | {"": 0}
    counts = np.zeros((len(labels), len(labels)), np.int64)
    for (left, right), count in Counter(pairs).items():
        counts[place[left], place[right]] += count
    return Characters(labels, counts)


def shown(label: str) -> str:
    """A combining mark stands on a dotted circle: alone it would sit on its neighbour."""
    return f"◌{label}" if unicodedata.category(label[0])[0] == "M" else label
