"""Two systems on the same clips → which is better, by how much, how sure that is, and on which clips.

In: two `ErrorReport`s. Out: a `Comparison`. Both are drawn anew on the same clips each time (paired bootstrap: Bisani &
Ney 2004), so what makes a clip hard for both cancels out and a difference shows that two intervals side by side would
hide. Knows no model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from speechkit.errors import DataError
from speechkit.evaluation import bootstrap
from speechkit.evaluation.metrics import NAMES, Rate, Unit
from speechkit.terminal import width

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from speechkit.evaluation.errors import ErrorReport, Scored

__all__ = ["Changed", "Comparison", "compare"]

SHOWN = 5
DRAWS = 10_000  # a probability near 0 or 1 wants more than an interval does


@dataclass(frozen=True, slots=True)
class Changed:
    """One clip on which the two systems made a different number of errors."""

    name: str
    reference: str
    hypothesis_a: str
    hypothesis_b: str
    errors_a: int
    errors_b: int
    names: tuple[str, str] = ("a", "b")  # of the systems

    @property
    def gain(self) -> int:
        """Errors that b saves; negative where b makes more."""
        return self.errors_a - self.errors_b

    def __str__(self) -> str:
        """What was said and what each system heard, in three lines under the change."""
        lines = zip(("said", *self.names), (self.reference, self.hypothesis_a, self.hypothesis_b), strict=True)
        room = 5 + max(map(width, ("said", *self.names)))
        told = (f"{' ' * (room - width(head))}{head}  {line}" for head, line in lines)
        return "\n".join([f"{self.errors_a} → {self.errors_b} errors  {self.name}", *told])


@dataclass(frozen=True, repr=False)
class Comparison:
    """b against a. `difference` is b's rate minus a's: negative is better; printing it gives one line.

    `probability` is the share of the draws in which b has the lower rate, draws with equal rates counted half; 0.5 says
    nothing is known. `wins`, `ties` and `losses` count clips on which b makes fewer, as many and more errors.
    """

    names: tuple[str, str]
    a: Rate
    b: Rate
    difference: float
    low: float  # 95 % interval of the difference; NaN for fewer than two blocks
    high: float
    probability: float  # that b is better
    wins: int
    ties: int
    losses: int
    changed: tuple[Changed, ...]  # b's greatest gain first

    @property
    def sure(self) -> bool:
        """Whether the interval leaves out 0: a difference that drawing other clips would hardly turn round."""
        return not math.isnan(self.low) and (self.low > 0 or self.high < 0)

    def better(self, n: int = SHOWN) -> tuple[Changed, ...]:
        """The `n` clips on which b gains most."""
        return tuple(row for row in self.changed if row.gain > 0)[: max(n, 0)]

    def worse(self, n: int = SHOWN) -> tuple[Changed, ...]:
        """The `n` clips on which b loses most, the greatest loss first."""
        return tuple(row for row in reversed(self.changed) if row.gain < 0)[: max(n, 0)]

    def __repr__(self) -> str:
        ends = "no interval" if math.isnan(self.low) else f"[{100 * self.low:+.1f}, {100 * self.high:+.1f}]"
        verdict = "beyond chance" if self.sure else "within chance"
        return (
            f"{NAMES[self.a.unit]} {100 * self.a.value:.1f} % ({self.names[0]}) → {100 * self.b.value:.1f} % "
            f"({self.names[1]}): {100 * self.difference:+.1f} points {ends}, {verdict}; {self.names[1]} is better with "
            f"probability {_probability(self.probability)}; fewer errors in {self.wins:,} clips, as many in "
            f"{self.ties:,}, more in {self.losses:,} (paired bootstrap, {self.a.blocks:,} {self.a.drawn})"
        )

    def table(self, n: int = SHOWN) -> str:
        """The line, then the `n` clips with the greatest gain and the `n` with the greatest loss."""
        parts = [(f"{self.names[1]} gains:", self.better(n)), (f"{self.names[1]} loses:", self.worse(n))]
        shown = ["\n".join([head, *map(str, rows)]) for head, rows in parts if rows]
        return "\n".join([repr(self), *shown])


def compare(
    a: ErrorReport, b: ErrorReport, unit: Unit | None = None, *, by_speaker: bool = False, draws: int = DRAWS
) -> Comparison:
    """Two reports on the same clips (any order, where names tell them apart) → `Comparison`.

    unit: "word", "char" or "jamo"; None takes the first figure of the language. by_speaker draws whole speakers.
    Raises DataError when the clips or their references differ, and for less than one draw.
    """
    other = _matched(a, b)
    kind = unit or a.first_unit.value
    errors_a, counts = a.counts(kind)
    errors_b, _ = replace(b, utterances=other).counts(kind)
    speakers = [row.speaker or f"\0{at}" for at, row in enumerate(a.utterances)] if by_speaker else None
    drawn = "speakers" if by_speaker else ""
    one, two = (Rate.of(errors, counts, kind, speakers, drawn) for errors in (errors_a, errors_b))
    blocks = bootstrap.pooled(np.array([errors_a, errors_b, counts]), speakers)
    low, high, probability = _spread(blocks, draws)
    gains = np.array(errors_a) - np.array(errors_b)
    names = (a.name or "a", b.name or "b")
    names = names if names[0] != names[1] else (f"{names[0]} (a)", f"{names[1]} (b)")
    changed = [
        Changed(x.name, x.reference, x.hypothesis, y.hypothesis, before, after, names)
        for x, y, before, after in zip(a.utterances, other, errors_a, errors_b, strict=True)
        if before != after
    ]
    changed.sort(key=lambda row: -row.gain)
    return Comparison(
        names,
        one,
        two,
        difference=two.value - one.value,
        low=low,
        high=high,
        probability=probability,
        wins=int((gains > 0).sum()),
        ties=int((gains == 0).sum()),
        losses=int((gains < 0).sum()),
        changed=tuple(changed),
    )


def _spread(blocks: NDArray[np.int64], draws: int) -> tuple[float, float, float]:
    """Blocks (3, B): errors of a, of b, reference units → ends of the interval of b - a, and how often b is lower."""
    if np.count_nonzero(blocks[2]) < 2:
        return math.nan, math.nan, math.nan
    a, b, counts = blocks
    found = bootstrap.paired_replicates(a, b, counts, draws)
    low, high = np.quantile(found, [(1 - bootstrap.LEVEL) / 2, (1 + bootstrap.LEVEL) / 2])
    return float(low), float(high), float((found < 0).mean() + (found == 0).mean() / 2)


def _matched(a: ErrorReport, b: ErrorReport) -> tuple[Scored, ...]:
    """b's utterances in the order of a's."""
    ours, theirs = [row.name for row in a.utterances], [row.name for row in b.utterances]
    if sorted(ours) != sorted(theirs):
        raise DataError(f"the two reports are not on the same clips: {_differing(ours, theirs)}; score both on one set")
    rows: Sequence[Scored] = b.utterances
    if len(set(ours)) == len(ours):
        place = {row.name: row for row in rows}
        rows = [place[name] for name in ours]
    elif ours != theirs:
        raise DataError("names occur twice and the order differs, so clips cannot be matched; give each its own name")
    for x, y in zip(a.utterances, rows, strict=True):
        if x.reference != y.reference:
            raise DataError(
                f"the references of {x.name} differ: {x.reference!r} and {y.reference!r}; score both against one text"
            )
    return tuple(rows)


def _differing(ours: list[str], theirs: list[str]) -> str:
    sides = (("first", set(ours) - set(theirs)), ("second", set(theirs) - set(ours)))
    only = [f"only the {which} has {min(names)}" for which, names in sides if names]
    return f"{len(ours)} and {len(theirs)} clips" + "".join(f", {row}" for row in only)


def _probability(value: float) -> str:
    """Never 0 or 1: a finite number of draws cannot tell that."""
    if math.isnan(value):
        return "unknown"
    return "> 0.999" if value > 0.999 else "< 0.001" if value < 0.001 else f"{value:.3f}"
