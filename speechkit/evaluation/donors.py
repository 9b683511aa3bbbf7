"""Cells of a cross-lingual matrix → which model to start from for a language, and which families hear which.

In: `Cell`s. Out: `Donor`s in order, rates by pair of families. A zero-shot rate says how much a model hears of a
language before it has seen any of it; what fine-tuning makes of that is the data-efficiency curve's to say.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from speechkit.errors import DataError
from speechkit.evaluation import bootstrap
from speechkit.evaluation.cells import counts_of
from speechkit.evaluation.families import UNKNOWN, family_of
from speechkit.evaluation.metrics import Rate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from speechkit.evaluation.cells import Cell, Figure
    from speechkit.evaluation.metrics import Counted
    from speechkit.evaluation.romanize import Scheme

__all__ = ["Donor", "FamilyRate", "pooled_by_family", "ranked"]


@dataclass(frozen=True, repr=False)
class Donor:
    """One model as a starting point for a target language: the lower its rate there, the more of it gets through."""

    model: str
    language: str | None
    family: str
    kin: bool  # of the target's family
    rate: Rate
    probability: float  # that it is truly better than the next in the ranking; NaN for the last

    def __repr__(self) -> str:
        sure = "" if math.isnan(self.probability) else f", better than the next with probability {self.probability:.2f}"
        return f"{self.model} ({self.family}{', kin' if self.kin else ''}) {self.rate}{sure}"


@dataclass(frozen=True, repr=False)
class FamilyRate:
    """How models of one family hear languages of another (or of their own), all such cells taken together."""

    model_family: str
    language_family: str
    rate: Rate

    def __repr__(self) -> str:
        return f"{self.model_family} models on {self.language_family} languages: {self.rate!r}"


def ranked(
    cells: Sequence[Cell], target: str, figure: Figure, scheme: Scheme, families: Mapping[str, str]
) -> tuple[Donor, ...]:
    """The cells of `target` by models of other languages, the lowest rate first.

    `probability` comes from drawing the target's clips anew, both models on the same draws. Raises DataError where no
    such cell has the figure.
    """
    found = [cell for cell in cells if cell.language == target and not cell.native and cell.rate(figure) is not None]
    rated = [(rate, cell) for cell in found if (rate := cell.rate(figure)) is not None and not math.isnan(rate.value)]
    if not rated:
        why = "; ".join(repr(cell) for cell in cells if cell.language == target) or "no set of that language"
        raise DataError(f"no model of another language has a {figure} rate on {target!r}, so none can be ranked: {why}")
    rated.sort(key=lambda pair: (pair[0].value, pair[1].model))
    counts = [counts_of(cell, figure, scheme) for _, cell in rated]
    kin = family_of(target, families)
    donors = []
    for at, (rate, cell) in enumerate(rated):
        family = family_of(cell.model_language, families)
        probability = _better(counts[at], counts[at + 1]) if at + 1 < len(rated) else math.nan
        donors.append(Donor(cell.model, cell.model_language, family, family == kin != UNKNOWN, rate, probability))
    return tuple(donors)


def pooled_by_family(
    cells: Sequence[Cell], figure: Figure, scheme: Scheme, families: Mapping[str, str]
) -> tuple[FamilyRate, ...]:
    """Every pair of families → the rate over all its cells together, native cells left out, the lowest rate first.

    A clip that several models heard is drawn whole for the interval.
    """
    gathered: dict[tuple[str, str], list[tuple[int, int, str]]] = {}
    for cell in cells:
        if cell.native or cell.rate(figure) is None:
            continue
        pair = family_of(cell.model_language, families), family_of(cell.language, families)
        errors, counts = counts_of(cell, figure, scheme)
        clips = [f"{cell.language} {at}" for at in range(len(errors))]
        gathered.setdefault(pair, []).extend(zip(errors, counts, clips, strict=True))
    unit: Counted = {"wer": "word", "cer": "char", "romanized": "sound"}[figure]  # type: ignore[assignment]
    found = []
    for (ours, theirs), rows in gathered.items():
        wrong, said, names = zip(*rows, strict=True)
        found.append(FamilyRate(ours, theirs, Rate.of(wrong, said, unit, names, "clips")))
    return tuple(sorted(found, key=lambda row: (row.rate.value, row.model_family, row.language_family)))


def _better(first: tuple[list[int], list[int]], second: tuple[list[int], list[int]]) -> float:
    """The share of draws in which the first has the lower rate, equal ones counted half."""
    if np.count_nonzero(first[1]) < 2:
        return math.nan
    gaps = bootstrap.paired_replicates(first[0], second[0], first[1])
    return float((gaps > 0).mean() + (gaps == 0).mean() / 2)
