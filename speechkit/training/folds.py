"""Examples → folds by speaker: whom to train on, whom to be judged by. In: rows with speakers. Out: `Fold`s.

How well will people be understood whom nobody recorded? Some speakers are kept out, a model is trained on the others
and scored on those; every fold keeps out other ones. A development set is cut from the training speakers, never from
those kept out: it says when to stop, and choosing a model by the test speakers would flatter it. Knows no model.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from speechkit.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from speechkit.training.data import Example

__all__ = ["Fold", "folds_by_speaker", "take_per_text"]


@dataclass(frozen=True)
class Fold:
    """One division of the rows; no speaker of `test` stands in `train` or `dev`."""

    name: str  # the speakers kept out, joined by "+"
    speakers: tuple[str, ...]  # kept out
    train: tuple[Example, ...] = field(repr=False)
    dev: tuple[Example, ...] = field(repr=False)  # other clips of the training speakers
    test: tuple[Example, ...] = field(repr=False)

    def __str__(self) -> str:
        trained = len({row.speaker for row in self.train})
        return (
            f"{self.name}: {len(self.train):,} clips of {trained} speakers to train on, {len(self.dev):,} more of them "
            f"for development, {len(self.test):,} clips of {len(self.speakers)} other speaker"
            f"{'s' * (len(self.speakers) != 1)} to be judged by"
        )


def folds_by_speaker(
    examples: Sequence[Example],
    kept_out: Sequence[Sequence[str]] | None = None,
    *,
    dev: float = 0.05,
    seed: int = 0,
) -> tuple[Fold, ...]:
    """One fold for each group of speakers in `kept_out`; None keeps out every speaker in turn, in sorted order.

    dev: share of the training clips, at least one, drawn the same way by the same seed whatever the order of the rows.
    Raises DataError: rows without a speaker, fewer than two speakers, a speaker to keep out who says nothing here, a
    group that leaves nobody to train on, or a share outside (0, 1).
    """
    if not 0 < dev < 1:
        raise DataError(f"dev is {dev}, a share of the training clips: it should lie between 0 and 1")
    known = _speakers(examples)
    groups = [tuple(group) for group in kept_out] if kept_out is not None else [(speaker,) for speaker in known]
    return tuple(_fold(examples, known, group, dev, seed) for group in groups)


def take_per_text(examples: Sequence[Example], takes: int) -> tuple[Example, ...]:
    """The first `takes` clips of each text by each speaker, in the order given: a smaller set of the same make-up.

    Raises DataError for fewer than one take.
    """
    if takes < 1:
        raise DataError(f"takes is {takes}; give 1 or more clips of each text by each speaker")
    seen: Counter[tuple[str, str]] = Counter()
    kept = []
    for row in examples:
        seen[row.speaker, row.text] += 1
        if seen[row.speaker, row.text] <= takes:
            kept.append(row)
    return tuple(kept)


def _speakers(examples: Sequence[Example]) -> list[str]:
    nameless = [row.name for row in examples if not row.speaker]
    if nameless:
        raise DataError(
            f"{len(nameless)} of {len(examples)} rows name no speaker (first: {nameless[0]}); name their column when "
            "reading (speaker='…'), or leave these rows out: their voices could stand on both sides"
        )
    known = sorted({row.speaker for row in examples})
    if len(known) < 2:
        raise DataError(f"{len(known)} speaker{'s' * (len(known) != 1)} in {len(examples)} rows; a fold needs two")
    return known


def _fold(examples: Sequence[Example], known: list[str], group: tuple[str, ...], dev: float, seed: int) -> Fold:
    strangers = sorted(set(group) - set(known))
    if strangers or not group:
        raise DataError(
            f"{', '.join(strangers) or 'nobody'} cannot be kept out: the speakers here are {', '.join(known)}"
        )
    rest = [row for row in examples if row.speaker not in group]
    if len(rest) < 2:
        raise DataError(
            f"keeping {', '.join(group)} out leaves {len(rest)} clips; two are needed, to train and to stop"
        )
    order = sorted(rest, key=lambda row: (row.speaker, row.name))
    drawn = random.Random(f"{seed} {group}").sample(order, max(1, round(dev * len(order))))
    aside = {id(row) for row in drawn}
    return Fold(
        "+".join(group),
        group,
        tuple(row for row in rest if id(row) not in aside),
        tuple(row for row in rest if id(row) in aside),
        tuple(row for row in examples if row.speaker in group),
    )
