"""An `ErrorReport` → its rates by speaker, language, length, duration, noise or confidence, each with its interval.

In: scored utterances. Out: a `Breakdown`. What an utterance does not know (no speaker, no SNR) stands under "unknown".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from speechkit.errors import DataError
from speechkit.evaluation.metrics import NAMES, NOUNS, Rate, Unit
from speechkit.terminal import width

if TYPE_CHECKING:
    from collections.abc import Callable

    from speechkit.evaluation.errors import ErrorReport, Scored

__all__ = ["Breakdown", "Key", "Part", "breakdown"]

Key = Literal["speaker", "language", "length", "seconds", "snr", "confidence"]
UNKNOWN = "unknown"
# upper ends of the bins, each bin from the end before up to but not including its own; the last one is open
EDGES: dict[str, tuple[float, ...]] = {
    "length": (2, 4, 8, 16, 32),
    "seconds": (1, 2, 4, 8, 16),
    "snr": (0, 5, 10, 20, 30),
    "confidence": (0.5, 0.7, 0.8, 0.9, 0.95),
}
UNITS = {"length": "words", "seconds": "s", "snr": "dB", "confidence": ""}


@dataclass(frozen=True, slots=True)
class Part:
    """The utterances of one speaker, one language or one bin."""

    label: str
    rate: Rate
    utterances: int
    seconds: float


@dataclass(frozen=True, repr=False)
class Breakdown:
    """The parts of one report: names by their rate, the highest first; bins in their order; the unknown last."""

    key: Key
    parts: tuple[Part, ...]

    def __getitem__(self, label: str) -> Part:
        for part in self.parts:
            if part.label == label:
                return part
        raise KeyError(f"{label!r}; there are {', '.join(repr(part.label) for part in self.parts)}")

    def __repr__(self) -> str:
        return self.table()

    def table(self) -> str:
        """One line per part: rate with interval, reference units, utterances."""
        if not self.parts:
            return f"by {self.key}: no utterances"
        unit = self.parts[0].rate.unit
        wide = max(width(part.label) for part in self.parts)
        rows = (
            f"{part.label}{' ' * (wide - width(part.label))}  {part.rate!s:>22}  {part.rate.count:6,} "
            f"{NOUNS[unit]}s  {part.utterances:5,} utterances"
            for part in self.parts
        )
        return "\n".join([f"{NAMES[unit]} by {self.key}, 95 % intervals", *rows])


def breakdown(report: ErrorReport, key: Key, unit: Unit = "word") -> Breakdown:
    """Rates of the parts of a report. Raises DataError for a key that is not one of `Key`."""
    if key not in get_args(Key):
        allowed = ", ".join(repr(name) for name in get_args(Key))
        raise DataError(f"by is {key!r}; it can be {allowed}")
    errors, counts = (np.array(row, np.int64) for row in report.counts(unit))
    label = _labels(key)
    home: dict[tuple[int, str], list[int]] = {}
    for at, row in enumerate(report.utterances):
        home.setdefault(label(row), []).append(at)
    parts = [
        (
            rank,
            Part(
                name,
                Rate.of(errors[rows], counts[rows], unit),
                len(rows),
                sum(report.utterances[at].seconds for at in rows),
            ),
        )
        for (rank, name), rows in home.items()
    ]
    # a NaN rate (nothing said) would make the order of the others depend on where it stands
    order = sorted(parts, key=lambda pair: (pair[0], -np.nan_to_num(pair[1].rate.value), pair[1].label))
    return Breakdown(key, tuple(part for _, part in order))


def _labels(key: Key) -> Callable[[Scored], tuple[int, str]]:
    """Utterance → (rank among the parts, label)."""
    if key == "speaker":
        return lambda row: (0, row.speaker) if row.speaker else (1, UNKNOWN)
    if key == "language":
        return lambda row: (0, row.language) if row.language else (1, UNKNOWN)
    value: Callable[[Scored], float | None] = {
        "length": lambda row: float(row.reference_words),
        "seconds": lambda row: row.seconds or None,
        "snr": lambda row: row.snr_db,
        "confidence": lambda row: row.confidence,
    }[key]
    edges = EDGES[key]

    def label(row: Scored) -> tuple[int, str]:
        found = value(row)
        if found is None or found != found:
            return len(edges) + 1, UNKNOWN
        at = int(np.searchsorted(edges, found, side="right"))
        return at, _bin(edges, at, UNITS[key], whole=key == "length")

    return label


def _bin(edges: tuple[float, ...], at: int, unit: str, whole: bool) -> str:
    """`< 0 dB`, `0 to 5 dB`, `≥ 30 dB`; of whole numbers `4–7 words`."""
    if whole:
        low, high = (int(edges[at - 1]) if at else 0), (int(edges[at]) - 1 if at < len(edges) else 0)
        told = f"≥ {low}" if at == len(edges) else f"{low}–{high}"
    elif at == 0:
        told = f"< {edges[0]:g}"
    elif at == len(edges):
        told = f"≥ {edges[-1]:g}"
    else:
        told = f"{edges[at - 1]:g} to {edges[at]:g}"
    return f"{told} {unit}".rstrip()
