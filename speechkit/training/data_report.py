"""What a check of training data found, row by row. In: kept rows, problems. Out: text, HTML, JSON. Reads no audio."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechkit.asr.manifest import write_atomic
from speechkit.errors import DataError, OutputError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    from speechkit.training.data import Example

__all__ = ["KINDS", "REMARKS", "DataReport", "Problem"]

# why a row is left out, in the order in which a row is asked
KINDS = (
    "malformed row",
    "empty text",
    "unreadable",
    "too short",
    "too long",
    "unexpected script",
    "label longer than frames",
    "duplicate",
)
# what is worth knowing of a row that is kept
REMARKS = (
    "wrong rate",
    "characters not in the vocabulary",
    "same audio, another text",
    "in the training data too",
    "silent",
)
SHOWN = 3  # examples of each kind
# notebooks put all cells to the right; words belong to the left
LEFT, RIGHT = '<td style="text-align:left">', '<td style="text-align:right">'
FORMAT = "speechkit data report 1"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing about one row: its number (from 0), its name, the kind, and what exactly."""

    row: int
    name: str
    kind: str
    detail: str

    def __str__(self) -> str:
        return f"row {self.row} ({self.name}): {self.detail}"


@dataclass(frozen=True, repr=False)
class DataReport:
    """The rows that can be trained on, with their measured length, and why the others cannot.

    sounds: a digest of each kept row's samples, by which two sets can be compared.
    """

    kept: tuple[Example, ...]
    left_out: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()  # about rows that are kept
    sounds: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        return len(self.kept) + len(self.left_out)

    @property
    def seconds(self) -> float:
        """Of the kept rows together."""
        return sum(example.seconds or 0.0 for example in self.kept)

    @property
    def speakers(self) -> int:
        """How many are known by name among the kept rows."""
        return len({example.speaker for example in self.kept} - {""})

    @property
    def characters(self) -> int:
        """Of the kept texts, as written."""
        return sum(len(example.text) for example in self.kept)

    @property
    def counts(self) -> dict[str, int]:
        """How many rows of each kind, left out and remarked on, in the order of `KINDS` and `REMARKS`."""
        found = Counter(problem.kind for problem in (*self.left_out, *self.warnings))
        return {kind: found[kind] for kind in (*KINDS, *REMARKS) if found[kind]}

    def of_kind(self, kind: str) -> tuple[Problem, ...]:
        """Every row of one kind."""
        return tuple(problem for problem in (*self.left_out, *self.warnings) if problem.kind == kind)

    def __repr__(self) -> str:
        known = f"{self.speakers} speaker{'s' * (self.speakers != 1)}" if self.speakers else "speakers not known"
        return (
            f"{len(self.kept):,} of {self.rows:,} rows can be used: {_hours(self.seconds)}, {known}, "
            f"{self.characters:,} characters"
        )

    def __str__(self) -> str:
        blocks = [("left out", self.left_out), ("kept, with a remark", self.warnings)]
        lines = [
            line
            for title, problems in blocks
            if problems
            for line in (f"{title}: {_rows(problems)}", *_summary(problems, self.counts))
        ]
        return "\n".join([repr(self), *lines])

    def _repr_html_(self) -> str:
        body = "".join(
            f"<tr>{LEFT}{title}</td>{LEFT}{escape(kind)}</td>{RIGHT}{count:,}</td>"
            f"{LEFT}{'<br>'.join(escape(str(problem)) for problem in some)}{'<br>…' * (count > SHOWN)}</td></tr>"
            for title, problems in (("left out", self.left_out), ("kept", self.warnings))
            for kind, count, some in _kinds(problems, self.counts)
        )
        left, right = LEFT.replace("<td", "<th"), RIGHT.replace("<td", "<th")
        titles = f"<tr>{left}row is</th>{left}why</th>{right}rows</th>{left}for example</th></tr>"
        return f"<p>{escape(repr(self))}</p>" + (f"<table>{titles}{body}</table>" if body else "")

    def save(self, path: str | os.PathLike[str]) -> Path:
        """JSON; the inverse of :meth:`load`. Raises OutputError where it cannot be written.

        Audio that was in memory or in a data set is not written: such rows come back without it.
        """
        target = Path(path)
        rows = [{**_plain(example), "audio": _named(example.audio)} for example in self.kept]
        found = {"left_out": [asdict(p) for p in self.left_out], "warnings": [asdict(p) for p in self.warnings]}
        whole = {
            "format": FORMAT,
            "summary": repr(self),
            "counts": self.counts,
            **found,
            "kept": rows,
            "sounds": self.sounds,
        }
        try:
            write_atomic(target, json.dumps(whole, ensure_ascii=False, indent=1) + "\n")
        except OSError as error:
            raise OutputError(f"cannot write {target}: {error.strerror or error}; choose another folder") from error
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> DataReport:
        """Raises DataError for a file that is no such report."""
        from speechkit.training.data import Example

        try:
            whole = json.loads(Path(path).read_text(encoding="utf-8"))
            if whole["format"] != FORMAT:
                raise ValueError(f"its format is {whole['format']!r}, not {FORMAT!r}")
            return cls(
                tuple(Example(**row) for row in whole["kept"]),
                tuple(Problem(**row) for row in whole["left_out"]),
                tuple(Problem(**row) for row in whole["warnings"]),
                tuple(whole.get("sounds", ())),
            )
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DataError(f"{path} is no report of `check_examples`: {type(error).__name__}: {error}") from error


def _summary(problems: Sequence[Problem], counts: dict[str, int]) -> Iterator[str]:
    for kind, count, some in _kinds(problems, counts):
        yield f"  {count:>6,}  {kind}"
        yield from (f"          {problem}" for problem in some)
        if count > len(some):
            yield "          …"


def _kinds(problems: Sequence[Problem], counts: dict[str, int]) -> Iterator[tuple[str, int, list[Problem]]]:
    """Kind, how many, and the first few."""
    grouped: dict[str, list[Problem]] = {}
    for problem in problems:
        grouped.setdefault(problem.kind, []).append(problem)
    yield from ((kind, len(grouped[kind]), grouped[kind][:SHOWN]) for kind in counts if kind in grouped)


def _rows(problems: Sequence[Problem]) -> str:
    count = len({problem.row for problem in problems})
    return f"{count:,} row{'s' * (count != 1)}"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.2f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


def _plain(example: Example) -> dict[str, Any]:
    """The fields of an example but its audio, which `asdict` would copy."""
    names = ("text", "name", "speaker", "language", "seconds", "rate")
    return {name: getattr(example, name) for name in names}


def _named(audio: Any) -> str | None:
    return str(audio) if isinstance(audio, str) or hasattr(audio, "__fspath__") else None
