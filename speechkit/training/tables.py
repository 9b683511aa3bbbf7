"""CSV, TSV and JSON lines as people save them → columns and rows. In: a path. Out: `Fields`. Knows nothing of audio."""

from __future__ import annotations

import codecs
import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechkit.asr.files import SUFFIXES
from speechkit.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Fields", "table_fields"]

SEPARATORS = {".csv": ",;\t|", ".tsv": "\t,;|", ".txt": "\t|,;"}  # equally frequent in the first line: the first counts


@dataclass(frozen=True, slots=True)
class Fields:
    """A table whose columns are known and whose rows are read as they are asked for."""

    path: Path
    columns: tuple[str, ...]
    separator: str  # "" for JSON lines
    encoding: str
    head: bool  # whether the first line names the columns
    spaced: bool = False  # whether a space follows each separator, even before a quotation mark

    def rows(self, text: str) -> Iterator[tuple[int, dict[str, Any], str]]:
        """(line number, row, fault) of every row that is not blank. `text` is the column that may hold separators.

        Raises DataError where the file is no text in its encoding.
        """
        try:
            with self.path.open(encoding=self.encoding, newline="") as file:
                yield from self._json(file) if not self.separator else self._separated(file, text)
        except (UnicodeError, csv.Error) as error:
            raise DataError(_unreadable(self.path, error)) from error

    def _separated(self, file: Any, text: str) -> Iterator[tuple[int, dict[str, Any], str]]:
        reader = _reader(file, self.separator, self.spaced)
        width, named, above = len(self.columns), not self.head, 0
        for cells in reader:
            first, above = above + 1, reader.line_num
            if not any(cell.strip() for cell in cells):
                continue
            if not named:
                named = True
                continue
            fault = _swallowed(cells, self.separator)
            if fault:
                fault = f"lines {first} to {above} of {self.path.name} are read as one row: {fault}"
            elif len(cells) > width and self.columns[-1] == text:  # commas in a text that nobody quoted
                cells = [*cells[: width - 1], self.separator.join(cells[width - 1 :])]
            elif len(cells) > width:
                fault = f"line {reader.line_num} of {self.path.name} has {len(cells)} fields for {width} columns"
            yield reader.line_num, dict(zip(self.columns, cells, strict=False)), fault

    def _json(self, file: Any) -> Iterator[tuple[int, dict[str, Any], str]]:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                yield number, {}, f"line {number} of {self.path.name} is not JSON: {error}"
                continue
            whole = isinstance(row, dict)
            fault = "" if whole else f"line {number} of {self.path.name} is no JSON object but a {type(row).__name__}"
            yield number, row if whole else {}, fault


def table_fields(path: Path, headless: bool = False) -> Fields:
    """Look at the start of a table. A first line that already names an audio file is a row: columns are "1", "2", ….

    `headless` says so where it cannot be seen. Raises DataError for another suffix, an empty file, no text.
    """
    suffix = path.suffix.lower()
    if suffix not in (*SEPARATORS, ".jsonl"):
        known = ", ".join((*SEPARATORS, ".jsonl"))
        raise DataError(f"{path} ends in {path.suffix!r}; a table of recordings is one of {known}")
    encoding = _encoding(path)
    try:
        with path.open(encoding=encoding, newline="") as file:
            if suffix == ".jsonl":
                return Fields(path, _json_columns(path, file), "", encoding, head=False)
            first = next((line for line in file if line.strip()), "")
            marks = SEPARATORS[suffix]
            separator = max(marks, key=lambda mark: (first.count(mark), -marks.index(mark)))
            cells = [cell.strip() for cell in next(iter(_reader(iter([first]), separator, True)), [])]
    except (OSError, UnicodeError, csv.Error) as error:
        raise DataError(_unreadable(path, error)) from error
    if not cells:
        raise DataError(f"{path} is empty; a table begins with the names of its columns, as path{marks[0]}text")
    spaced = f"{separator} " in first
    head = not headless and not any(Path(cell).suffix.lower() in SUFFIXES for cell in cells)
    columns = tuple(cells) if head else tuple(str(number) for number in range(1, len(cells) + 1))
    return Fields(path, columns if headless else _guessed(columns, cells), separator, encoding, head, spaced)


def _swallowed(cells: list[str], separator: str) -> str:
    """What to say of a cell that runs over further rows, told by the audio files that those name; "" for others."""
    below = [line for cell in cells for line in cell.splitlines()[1:]]
    names = (part.strip(' "') for line in below for part in line.split(separator))
    if not any(Path(name).suffix.lower() in SUFFIXES for name in names):
        return ""
    return 'a quotation mark is not closed; close it, or write "" for one inside a quoted text'


def _guessed(columns: tuple[str, ...], cells: list[str]) -> tuple[str, ...]:
    """Two columns without a head, one of which names an audio file, can only be one thing."""
    sounds = [at for at, cell in enumerate(cells) if Path(cell).suffix.lower() in SUFFIXES]
    if columns == ("1", "2") and len(sounds) == 1:
        return ("path", "text") if sounds[0] == 0 else ("text", "path")
    return columns


def _reader(lines: Any, separator: str, spaced: bool) -> Any:
    if separator in "\t|":  # a quotation mark in a transcript is a quotation mark
        return csv.reader(lines, delimiter=separator, quoting=csv.QUOTE_NONE)
    return csv.reader(lines, delimiter=separator, skipinitialspace=spaced)


def _json_columns(path: Path, file: Any) -> tuple[str, ...]:
    """Names in the first row that is an object."""
    for line in file:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            return tuple(row)
    raise DataError(f'{path} holds no JSON object; give one a line, as {{"path": "a.wav", "text": "…"}}')


def _encoding(path: Path) -> str:
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; check that this user may read it") from error
    return "utf-16" if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"


def _unreadable(path: Path, error: Exception) -> str:
    return f"{path} cannot be read as a table in UTF-8: {error}; save it again as UTF-8 text"
