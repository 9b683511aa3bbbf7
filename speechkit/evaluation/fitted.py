"""What every fitted calibration carries and shares: the record of its fit, its checks, its file.

In: `Judged` rows, frozen dataclasses. Out: `Fit`, JSON. Knows no curve and no temperature.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechkit.errors import DataError
from speechkit.evaluation.written import write_text

if TYPE_CHECKING:
    import os

    from speechkit.evaluation.judge import Judged

__all__ = ["Fit", "check_both_kinds", "load", "save"]

FEW = 20  # right or wrong units below which one or two numbers are fitted to accidents


@dataclass(frozen=True)
class Fit:
    """What a calibration was fitted on, and what it gained there."""

    count: int
    wrong: int
    clips: int
    unit: str
    log_loss_before: float
    log_loss_after: float
    warnings: tuple[str, ...] = ()

    @classmethod
    def of(cls, judged: Judged, before: float, after: float, notes: tuple[str, ...] = ()) -> Fit:
        """The record of a fit on `judged`; too few right or wrong units become a warning beside `notes`."""
        wrong = int((~judged.correct).sum())
        counts = [(len(judged) - wrong, "right"), (wrong, "wrong")]
        few = [f"only {count} {judged.unit}s are {kind}: a weak fit" for count, kind in counts if count < FEW]
        return cls(len(judged), wrong, judged.clips, judged.unit, before, after, (*few, *notes))

    def __str__(self) -> str:
        gain = f"log loss {self.log_loss_before:.3f} → {self.log_loss_after:.3f}"
        head = f"{self.count:,} {self.unit}s of {self.clips:,} clips, {self.wrong:,} wrong, {gain}"
        return "; ".join([head, *(f"warning: {line}" for line in self.warnings)])


def check_both_kinds(judged: Judged) -> None:
    """Raises DataError unless some units are right and some are wrong."""
    right = int(judged.correct.sum())
    if 0 < right < len(judged):
        return
    verdict = f"all {len(judged)} {judged.unit}s are {'right' if right else 'wrong'}"
    raise DataError(
        f"{verdict if len(judged) else 'nothing was heard'} in {judged.clips} clips: a calibration learns from right "
        f"and wrong {judged.unit}s; give more clips, of the kind the model will meet"
    )


def save(calibration: Any, path: str | os.PathLike[str]) -> Path:
    """Write a calibration (a frozen dataclass of plain values) as JSON; the inverse of :func:`load`.

    Raises OutputError where that cannot be done.
    """
    from speechkit import __version__

    row = {"kind": type(calibration).__name__, "speechkit": __version__, **asdict(calibration)}
    return write_text(path, json.dumps(row, indent=2, ensure_ascii=False) + "\n")


def load(kind: str, names: tuple[str, ...], path: str | os.PathLike[str]) -> dict[str, Any]:
    """The fields `names` and `fit_on` of a saved calibration of this kind. Raises DataError for any other file."""
    try:
        row = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a saved {kind}: {error}") from error
    found = row.get("kind", "something else") if isinstance(row, dict) else "something else"
    if found != kind or not {*names, "fit_on"} <= set(row):
        wanted = f"{kind} with {', '.join(names)} and fit_on"
        raise DataError(f"{path} holds {found}, wanted {wanted}: give a file that {kind}.save wrote")
    fit = row["fit_on"]
    try:
        record = Fit(**{**fit, "warnings": tuple(fit["warnings"])}) if fit is not None else None
    except (TypeError, KeyError) as error:
        raise DataError(f"{path} holds a {kind} whose fit_on cannot be read: {error}") from error
    return {**{name: row[name] for name in names}, "fit_on": record}
