"""Where rows for language models come from: .jsonl, .json and .csv, `datasets`, lists. In: a place. Out: `Rows`.

    rows = read_rows("train.jsonl")
    print(rows)          # how many of which kind; what is broken, with line numbers
    tokenize(rows, …)    # `Rows` is a sequence of the good ones

A broken row is reported and the others are usable; only a source without a single good row is an error. The shapes of
records stand in `row_shapes`. Knows no tokenizer.
"""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from speechkit.errors import DataError
from speechkit.llm.row_shapes import KINDS, SHAPES, Fault, Message, Row, order_fault, row_of

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Broken", "Message", "Row", "Rows", "order_fault", "read_rows"]

SHOWN = 5  # broken rows that are printed
UTF16 = (b"\xff\xfe", b"\xfe\xff")  # how such files begin
WIDEST = 64 * 2**20  # characters of one cell of a CSV file
Found = tuple[str, Any]  # where; the record, or a Fault


@dataclass(frozen=True, slots=True)
class Broken:
    """A row that cannot be used."""

    where: str  # "line 17", "row 3"
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


@dataclass(frozen=True)
class Rows(Sequence[Row]):
    """The good rows of a source, and the broken ones."""

    rows: tuple[Row, ...]
    broken: tuple[Broken, ...]
    source: str  # file name, or what it was

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Row, ...]: ...

    def __getitem__(self, index: int | slice) -> Row | tuple[Row, ...]:
        return self.rows[index]

    def __str__(self) -> str:
        kinds = Counter(row.kind for row in self.rows)
        counted = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
        lines = [f"{self.source}: {len(self.rows):,} rows ({counted})"]
        if self.broken:
            lines.append(f"left out as broken: {len(self.broken):,}")
            lines += [f"  {one}" for one in self.broken[:SHOWN]]
            lines += [f"  and {len(self.broken) - SHOWN:,} more"] if len(self.broken) > SHOWN else []
        return "\n".join(lines)

    __repr__ = __str__


def read_rows(source: Any, *, kind: str | None = None) -> Rows:
    """Rows of a .jsonl, .json or .csv file, of a `datasets.Dataset`, or of any iterable of mappings.

    kind: "chat", "completion", "preference" or "prompt", where it is not to be guessed from the fields: question and
    answer, say, are a chat, and with "prompt" a question with the answer as a column for the reward function.

    Raises DataError: no such file, another kind of file, not one usable row (the first reasons are named).
    """
    if kind is not None and kind not in KINDS:
        raise DataError(f"kind is {kind!r}; it can be {', '.join(KINDS)}, or None to guess it from the fields")
    name, found = _records(source)
    rows, broken = [], []
    for where, record in found:
        try:
            if isinstance(record, Fault):
                raise record
            rows.append(row_of(record, where, kind))
        except Fault as fault:
            broken.append(Broken(where, str(fault)))
    if not rows:
        said = "; ".join(map(str, broken[:3])) or "it is empty"
        shapes = "" if SHAPES in said else f". Shapes that are understood: {SHAPES}"
        raise DataError(f"{name} has no usable row: {said}{shapes}")
    return Rows(tuple(rows), tuple(broken), name)


def _records(source: Any) -> tuple[str, Iterator[Found]]:
    if isinstance(source, str | os.PathLike):
        path = Path(os.path.expanduser(os.fspath(source)))
        read = {".jsonl": _lines, ".json": _document, ".csv": _table}.get(path.suffix.lower())
        if path.is_dir():
            raise DataError(f"{path} is a folder; give one .jsonl, .json or .csv file")
        if not path.is_file():
            raise DataError(f"there is no file {path}; give a .jsonl, .json or .csv file, a data set or a list of rows")
        if read is None:
            raise DataError(f"{path.name} is no .jsonl, .json or .csv file; a data set of `datasets` is taken too")
        with path.open("rb") as file:
            if file.read(2) in UTF16:
                raise DataError(f"{path.name} is UTF-16; save it as UTF-8 (in Excel: CSV UTF-8)")
        return path.name, read(path)
    if hasattr(source, "keys"):
        parts = ", ".join(map(str, source))
        raise DataError(f"this holds {parts}: give one of its parts (data['train']), or a list of rows")
    if not isinstance(source, Iterable) or isinstance(source, bytes | bytearray):
        raise DataError(f"rows are a {type(source).__name__}; give a file, a data set or a list of rows")
    name = "data set" if hasattr(source, "column_names") else "list"
    return name, ((f"row {number}", record) for number, record in enumerate(source))


def _lines(path: Path) -> Iterator[Found]:
    """Decoded one by one: a line in another encoding is one broken row."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield f"line {number}", _parsed(line.rstrip(b"\r\n"), "utf-8-sig" if number == 1 else "utf-8")


def _parsed(line: bytes, encoding: str) -> Any:
    try:
        return json.loads(line.decode(encoding))
    except UnicodeDecodeError as error:
        return Fault(f"is not UTF-8 at byte {error.start + 1}")
    except json.JSONDecodeError as error:
        return Fault(f"is not JSON at column {error.colno}: {error.msg}")
    except RecursionError:
        return Fault("is nested too deeply")
    except ValueError as error:  # a number of thousands of digits
        return Fault(f"cannot be read as JSON: {error}")


def _document(path: Path) -> Iterator[Found]:
    """A list of rows, an object that holds one list, or, as some name them, JSON lines."""
    try:
        whole = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError):
        yield from _lines(path)
        return
    if isinstance(whole, dict):
        lists = [one for one in whole.values() if isinstance(one, list) and one and isinstance(one[0], dict)]
        alone = len(lists) == 1 and not any(name in whole for name in ("messages", "conversations", "conversation"))
        whole = lists[0] if alone else [whole]
    for number, record in enumerate(whole if isinstance(whole, list) else [whole]):
        yield f"row {number}", record


def _table(path: Path) -> Iterator[Found]:
    before = csv.field_size_limit(WIDEST)
    try:
        # bytes that are not UTF-8 become surrogates, so that they cost one row and not what follows
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            for record in _records_of(reader):
                lines = 0 if isinstance(record, Fault) else sum(cell.count("\n") for cell in record.values())
                yield f"line {max(reader.line_num - lines, 1)}", record
    finally:
        csv.field_size_limit(before)


def _records_of(reader: csv.DictReader[str]) -> Iterator[Any]:
    """A row with more or fewer cells than the head is a Fault, and so is what ends the file before its time."""
    checked = False
    while True:
        try:
            record: dict[Any, Any] = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Fault(f"what follows this line cannot be read ({error}); is a quotation mark missing there?")
            return
        width = len(reader.fieldnames or ())
        if not checked:
            names = [name.strip() for name in reader.fieldnames or ()]
            if twice := next((name for name in names if name and names.count(name) > 1), ""):
                raise DataError(f"two columns are named {twice!r}, so that one would be lost; name them otherwise")
            checked = True
        if None in record:
            yield Fault(f"has {width + len(record[None])} cells, the head {width}")
        elif None in record.values():
            yield Fault(f"has {sum(cell is not None for cell in record.values())} cells, the head {width}")
        else:
            yield {key.strip(): cell for key, cell in record.items()}
