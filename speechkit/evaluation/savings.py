"""Two curves of WER or CER against labelled minutes → how many times less data one needs for the same rate.

In: points (minutes, rate). Out: `Saving`. Numbers only. Between two measured points the rate is taken as a straight
line over the logarithm of the minutes, as learning curves of speech recognition nearly are; beyond the measured points
nothing is claimed but a bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from speechkit.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    Points = Sequence[tuple[float, float]]

__all__ = ["Saving", "minutes_for", "saving"]

Bound = Literal["exact", "at least", "at most", "unknown"]
Figure = Literal["WER", "CER"]


@dataclass(frozen=True, repr=False)
class Saving:
    """`start` needs `factor` times less labelled data than `against` to reach `rate`; printing it says so.

    `factor` below 1: it needs more. `bound` tells whether the factor was interpolated between measured points of both
    ("exact"), or is only a bound because a curve has left the level behind at its first point or never reaches it; NaN
    where the two curves share no level at all in a way that bounds it.
    """

    start: str
    against: str
    rate: float
    minutes: float  # that `start` needs, or its bound
    against_minutes: float
    factor: float
    bound: Bound
    figure: Figure = "WER"

    def __repr__(self) -> str:
        level = f"a {self.figure} of {100 * self.rate:.1f} %"
        if self.bound == "unknown":
            return f"{self.start} against {self.against}: no factor, because the curves do not cross {level} both"
        bound: Bound = self.bound
        factor, more = self.factor, "less"
        if factor < 1:  # three times more reads better than 0.33 times less, and its bound is the other one
            flipped: dict[str, Bound] = {"at least": "at most", "at most": "at least"}
            bound, factor, more = flipped.get(bound, bound), 1 / factor, "more"
        head = f"{self.start} reaches {level} with "
        if bound == "exact":
            needs = f"{self.minutes:.2g} min against {self.against_minutes:.2g} min"
            return f"{head}{factor:.1f} times {more} data than {self.against} ({needs})"
        soon, never = (self.start, self.against) if self.bound == "at least" else (self.against, self.start)
        return (
            f"{head}{bound} {factor:.1f} times {more} data than {self.against}: the curves do not cross there, {soon} "
            f"is below that at its first point, or {never} never reaches it"
        )


def saving(
    names: tuple[str, str], curves: tuple[Points, Points], rate: float | None = None, figure: Figure = "WER"
) -> Saving:
    """(start, against) and their points (minutes, rate) → `Saving` at `rate`, or at the lowest rate that both reach.

    Raises DataError for an empty curve, minutes that are not above 0 and a rate that is not a number.
    """
    first, second = (_checked(name, curve) for name, curve in zip(names, curves, strict=True))
    level = max(min(found for _, found in first), min(found for _, found in second)) if rate is None else rate
    if not math.isfinite(level):
        raise DataError(f"rate is {level}; it is a share of errors, 0.1 for 10 %")
    (ours, our_side), (theirs, their_side) = minutes_for(first, level), minutes_for(second, level)
    # below the level at once: no more minutes than the first point; above it to the end: more than the last
    low = {"below": "at least", "above": "at most", "on": "exact"}[our_side]
    high = {"below": "at most", "above": "at least", "on": "exact"}[their_side]
    bounds = {low, high} - {"exact"}
    bound: Bound = "exact" if not bounds else "unknown" if len(bounds) == 2 else bounds.pop()  # type: ignore[assignment]
    factor = math.nan if bound == "unknown" else theirs / ours
    return Saving(*names, level, ours, theirs, factor, bound, figure)


def minutes_for(curve: Points, level: float) -> tuple[float, Literal["on", "below", "above"]]:
    """Points (minutes, rate) by minutes → (fewest minutes at which the rate is down to `level`, where that was found).

    "on": between two points or at one. "below": the first point is below already, its minutes are the most that are
    needed. "above": no point gets there, the last one's minutes are fewer than needed.
    """
    if curve[0][1] <= level:
        return curve[0][0], "on" if curve[0][1] == level else "below"
    for (left, worse), (right, better) in pairwise(curve):
        if better <= level < worse:
            share = (worse - level) / (worse - better)
            return left ** (1 - share) * right**share, "on"
    return curve[-1][0], "above"


def _checked(name: str, curve: Points) -> list[tuple[float, float]]:
    """Sorted by minutes; of several runs with equal minutes the mean."""
    if not curve:
        raise DataError(f"no points for {name!r}: a curve needs one or more")
    for minutes, rate in curve:
        if not minutes > 0 or not math.isfinite(rate):
            raise DataError(f"{name!r} has rate {rate} at {minutes} minutes; a rate is finite, minutes are above 0")
    runs: dict[float, list[float]] = {}
    for minutes, rate in curve:
        runs.setdefault(minutes, []).append(rate)
    return [(minutes, math.fsum(rates) / len(rates)) for minutes, rates in sorted(runs.items())]
