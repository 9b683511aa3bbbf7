"""Rows with audio for `store.embed_rows`, from files, a manifest or `datasets`. In: paths. Out: dicts, one at a time.

Knows no model. The audio itself is not read here: a row holds what `audio.load` takes.
"""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechkit.asr.files import find
from speechkit.errors import DataError
from speechkit.extras import require

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from typing import TextIO

__all__ = ["file_rows", "manifest_rows", "undecoded"]


def file_rows(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], column: str = "audio"
) -> list[dict[str, str]]:
    """Audio files, folders (all audio below them) and patterns → rows with the absolute path in `column`, in order.

    Raises DataError for no paths.
    """
    return [{column: os.path.abspath(job.path)} for job in find(paths)]


def manifest_rows(manifest: str | os.PathLike[str], path: str = "path") -> Iterator[dict[str, Any]]:
    """A manifest (.tsv, .csv or .jsonl; one clip a line) → its rows, with the audio file as "audio".

    path: the column that names the file, seen from the manifest's folder unless absolute. Raises DataError for a
    manifest that cannot be read, another suffix, a missing column, or a line that is not JSON (with its number).
    """
    file = Path(manifest)
    readers: dict[str, Callable[[TextIO], Iterable[dict[Any, Any]]]]
    readers = {".tsv": _tabs, ".csv": csv.DictReader, ".jsonl": _json_lines}
    if file.suffix.lower() not in readers:
        raise DataError(f"{file} ends in {file.suffix!r}; a manifest is one of {', '.join(readers)}")
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            for number, row in enumerate(readers[file.suffix.lower()](lines), 1):
                if None in row:  # where csv puts what is left over
                    raise DataError(f"row {number} of {file} has more fields than its first line has names")
                if not isinstance(row.get(path), str) or not row[path]:
                    raise DataError(f"row {number} of {file} names no file in {path!r}; it has {', '.join(row)}")
                yield {**row, "audio": str(file.parent / row[path])}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file} cannot be read: {error}") from error


def undecoded(rows: Iterable[Mapping[str, Any]], column: str) -> Any:
    """A `datasets` dataset or stream that hands out files as they are, for our decoder; any other rows unchanged."""
    kind = (getattr(rows, "features", None) or {}).get(column)
    if not hasattr(rows, "cast_column") or type(kind).__name__ != "Audio" or not getattr(kind, "decode", False):
        return rows
    datasets = require("datasets", extra="train", purpose="a stream of rows with audio")
    return rows.cast_column(column, datasets.Audio(decode=False))


def _tabs(lines: TextIO) -> Iterator[dict[str, Any]]:
    # a quotation mark in a transcript is a quotation mark
    yield from csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)


def _json_lines(lines: TextIO) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"line {number} of {lines.name} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f"line {number} of {lines.name} is a {type(row).__name__}; give one JSON object per clip")
        yield row
