"""What labelled minutes buy: WER against minutes of training data, a curve for each start. In: points. Out: factors.

A start is what training begins with: "multilingual encoder", "English model", "scratch". Points are measured by a
training function that is passed in, or come from a file; each carries its date, command and versions, so that fresh and
stored ones can stand in one curve and be told apart. Knows no training and no torch.
"""

from __future__ import annotations

import json
import math
import platform
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechkit.errors import DataError
from speechkit.evaluation.errors import ErrorReport
from speechkit.evaluation.metrics import Rate
from speechkit.evaluation.savings import Figure, Saving, saving
from speechkit.evaluation.written import write_text

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

__all__ = ["Efficiency", "EfficiencyPoint", "Origin", "Trained", "efficiency_curve"]

KIND = "data-efficiency curve"
PACKAGES = ("torch", "transformers", "numpy", "jiwer")  # whose versions a point carries


@dataclass(frozen=True)
class Origin:
    """Where a figure comes from: enough to judge it, and to make it again."""

    date: str = ""  # ISO 8601, UTC
    command: str = ""
    machine: str = ""
    versions: dict[str, str] = field(default_factory=dict)

    @classmethod
    def now(cls, command: str = "") -> Origin:
        """Today, this machine's kind and the installed versions; `command` is what would repeat it."""
        from speechkit import __version__

        found = {"python": platform.python_version(), "speechkit": __version__}
        for name in PACKAGES:
            try:
                found[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                continue
        date = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(date, command, f"{platform.system()} {platform.machine()}", found)


@dataclass(frozen=True)
class EfficiencyPoint:
    """One training run: from which start, on how many labelled minutes, and what came of it on held-out speech."""

    start: str
    minutes: float  # of labelled speech trained on
    wer: Rate
    cer: Rate | None = None
    train_s: float = math.nan  # seconds that training took
    clips: int = 0  # trained on
    seed: int = 0
    note: str = ""
    origin: Origin = field(default_factory=Origin)
    fresh: bool = field(default=False, compare=False)  # measured in this session, not read from a file

    def __post_init__(self) -> None:
        if not (self.minutes > 0 and math.isfinite(self.minutes)):
            raise DataError(f"minutes is {self.minutes}; labelled minutes are a finite number above 0")
        if math.isnan(self.wer.value):
            raise DataError(f"{self.start}, {self.minutes:g} min has no WER: the held-out texts hold no word")

    def rate(self, figure: Figure) -> Rate:
        """Raises DataError for a CER that was not measured."""
        found = self.wer if figure == "WER" else self.cer
        if found is None:
            raise DataError(f"{self.start}, {self.minutes:g} min has no {figure}: it was not measured")
        return found

    def __str__(self) -> str:
        took = "" if math.isnan(self.train_s) else f", {self.train_s:,.0f} s of training"
        source = "measured now" if self.fresh else f"stored, {self.origin.date[:10] or 'no date'}"
        return f"{self.start}, {self.minutes:g} min: WER {self.wer}{took} ({source})"


@dataclass(frozen=True)
class Trained:
    """What a training function gives back: the held-out report of the trained model, and what it cost."""

    report: ErrorReport
    train_s: float = math.nan  # NaN: the call is timed
    minutes: float = math.nan  # of speech really trained on; NaN: as many as asked for
    clips: int = 0
    note: str = ""


@dataclass(frozen=True, repr=False)
class Efficiency:
    """Points of several starts on one language; printing it gives the table and what the best start saves."""

    points: tuple[EfficiencyPoint, ...]
    language: str | None = None
    name: str = ""  # of the held-out set

    @property
    def starts(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(point.start for point in self.points))

    @property
    def minutes(self) -> tuple[float, ...]:
        return tuple(sorted({point.minutes for point in self.points}))

    def curve(self, start: str) -> tuple[EfficiencyPoint, ...]:
        """The points of one start by minutes. Raises DataError, naming the starts, where there are none."""
        found = sorted((point for point in self.points if point.start == start), key=lambda point: point.minutes)
        if not found:
            raise DataError(f"no points for start {start!r}; there are {', '.join(map(repr, self.starts)) or 'none'}")
        return tuple(found)

    def merge(self, other: Efficiency | Sequence[EfficiencyPoint]) -> Efficiency:
        """These points and others; of the same start, minutes and seed the other's stand, for they are the newer.

        Raises DataError when both know their language, or their set, and these differ.
        """
        more = other.points if isinstance(other, Efficiency) else tuple(other)
        if isinstance(other, Efficiency):
            for what, ours, theirs in (("language", self.language, other.language), ("set", self.name, other.name)):
                if ours and theirs and ours != theirs:
                    raise DataError(
                        f"these points are of {what} {ours!r}, the others of {theirs!r}: one curve holds one"
                    )
        table = {(point.start, point.minutes, point.seed): point for point in (*self.points, *more)}
        language, name = (
            (self.language or other.language, self.name or other.name)
            if isinstance(other, Efficiency)
            else (self.language, self.name)
        )
        return Efficiency(tuple(table.values()), language, name)

    def saving(self, start: str, against: str, rate: float | None = None, figure: Figure = "WER") -> Saving:
        """How many times less labelled data `start` needs than `against` for the same rate; see `savings.saving`.

        `rate` None takes the lowest that both reach. CER tells two poor starts apart where neither gets a word right.
        Raises DataError for a start without points, and for a point without that rate.
        """
        curves = [[(p.minutes, p.rate(figure).value) for p in self.curve(name)] for name in (start, against)]
        return saving((start, against), (curves[0], curves[1]), rate, figure)

    def table(self) -> str:
        """Starts down, minutes across, WER with its interval; * marks what was measured in this session."""
        rows = [["WER, 95 %", *(f"{minutes:g} min" for minutes in self.minutes)]]
        for start in self.starts:
            held: dict[float, list[str]] = {}
            for point in self.curve(start):
                held.setdefault(point.minutes, []).append(f"{'*' if point.fresh else ''}{point.wer}")
            rows.append([start, *(" / ".join(held.get(minutes, ["–"])) for minutes in self.minutes)])
        wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(cell.rjust(w) for cell, w in zip(row, wide, strict=True)) for row in rows)

    def __repr__(self) -> str:
        if not self.points:
            return "no points of a data-efficiency curve"
        first, *others = self.starts
        savings = [repr(self.saving(first, other)) for other in others]
        return "\n".join([self.table(), *savings])

    def save(self, path: str | os.PathLike[str]) -> Path:
        """JSON with date, command and versions of every point; the inverse of :meth:`load`. Raises OutputError."""
        rows = [{key: value for key, value in asdict(point).items() if key != "fresh"} for point in self.points]
        held = {"kind": KIND, "language": self.language, "name": self.name, "points": _plain(rows)}
        return write_text(path, json.dumps(held, ensure_ascii=False, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Efficiency:
        """Read what :meth:`save` wrote; no point is `fresh` any more. Raises DataError for another file."""
        try:
            held = json.loads(Path(path).read_text(encoding="utf-8"))
            if held["kind"] != KIND:
                raise ValueError(f"it holds a {held['kind']}")
            return cls(tuple(_point(row) for row in held["points"]), held["language"], held["name"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is no file that Efficiency.save wrote: {error!r}") from error


def efficiency_curve(
    train: Callable[[str, float], Trained | ErrorReport],
    starts: Sequence[str],
    minutes: Sequence[float],
    *,
    command: str = "",
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Efficiency:
    """Every start on every number of minutes: `train(start, minutes)` trains a model and scores it on held-out speech.

    The held-out speech must be the same for all, or the points say nothing about one another. command: what repeats the
    measurement, kept with every point. Raises DataError without a start or minutes, for a `train` that gives something
    else, and when the held-out references differ between runs or hold no word.
    """
    if not starts or not minutes:
        raise DataError(f"{len(starts)} starts and {len(minutes)} numbers of minutes; give at least one of each")
    points: list[EfficiencyPoint] = []
    said: tuple[str, ...] | None = None
    report: ErrorReport | None = None
    for start in starts:
        for amount in sorted(minutes):
            begun = time.perf_counter()
            result = train(start, amount)
            took = time.perf_counter() - begun
            got = Trained(result) if isinstance(result, ErrorReport) else result
            if not isinstance(got, Trained):
                raise DataError(
                    f"train({start!r}, {amount:g}) gave {type(got).__name__}; it gives Trained or ErrorReport"
                )
            report = got.report
            references = tuple(row.reference for row in report.utterances)
            if said is not None and references != said:
                raise DataError(f"train({start!r}, {amount:g}) was scored on other held-out texts than the runs before")
            said = references
            points.append(_measured(start, amount, got, took, Origin.now(command), seed))
            if progress:
                progress(str(points[-1]))
    assert report is not None
    return Efficiency(tuple(points), report.language)


def _measured(start: str, asked: float, got: Trained, took: float, origin: Origin, seed: int) -> EfficiencyPoint:
    return EfficiencyPoint(
        start,
        asked if math.isnan(got.minutes) else got.minutes,
        got.report.wer,
        got.report.cer,
        took if math.isnan(got.train_s) else got.train_s,
        got.clips,
        seed,
        got.note,
        origin,
        fresh=True,
    )


def _point(row: dict[str, Any]) -> EfficiencyPoint:
    """The inverse of a row of the file."""
    rates = {name: None if row[name] is None else Rate(**_numbers(row[name])) for name in ("wer", "cer")}
    if rates["wer"] is None:
        raise ValueError("a point without a WER")
    return EfficiencyPoint(**_numbers(row) | rates | {"origin": Origin(**row["origin"])})


def _plain(value: Any) -> Any:
    """NaN, which JSON does not have, as the text "nan"."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return "nan" if isinstance(value, float) and math.isnan(value) else value


def _numbers(row: dict[str, Any]) -> dict[str, Any]:
    """The inverse of :func:`_plain` for one level."""
    return {key: math.nan if value == "nan" else value for key, value in row.items()}
