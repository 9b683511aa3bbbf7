"""`ErrorReport` ⇄ CSV: one row per utterance, for a spreadsheet and back. Edits are not stored but lined up anew.

UTF-8 with a byte order mark, without which spreadsheets take it for another encoding. Times and confidences of the
words stand as JSON in one column; the confidences of single characters are not kept.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING

from speechkit.errors import DataError, OutputError
from speechkit.evaluation.errors import ErrorReport, Scored, lined_up, owners_of
from speechkit.types import Word

if TYPE_CHECKING:
    import os

__all__ = ["COLUMNS", "read", "write"]

COLUMNS = (
    "system", "name", "language", "speaker", "reference", "hypothesis", "errors", "reference_words", "wer", "seconds",
    "snr_db", "confidence", "audio", "raw_reference", "raw_hypothesis", "words",
)  # fmt: skip
NUMBERS = {"errors", "reference_words", "wer", "seconds", "snr_db", "confidence"}
NEEDED = {"name", "reference", "hypothesis"}  # a table made elsewhere needs no more
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet would run; a leading ' keeps it text


def write(report: ErrorReport, path: str | os.PathLike[str]) -> Path:
    """One row per utterance; the inverse of :func:`read`. Raises OutputError where the file cannot be written."""
    try:
        with Path(path).open("w", encoding="utf-8-sig", newline="") as file:
            table = csv.DictWriter(file, COLUMNS)
            table.writeheader()
            for one in report.utterances:
                table.writerow({name: _safe(name, value) for name, value in _row(one, report.name).items()})
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}; give a file in a folder that exists") from error
    return Path(path)


def read(path: str | os.PathLike[str]) -> ErrorReport:
    """Rows → report. Raises DataError for a file without rows or without the columns name, reference, hypothesis."""
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a table of errors: {error}") from error
    found = set(rows[0]) if rows else set()
    if not rows or not found >= NEEDED:
        held = ", ".join(sorted(str(name) for name in found)) or "no rows"
        raise DataError(f"{path} holds {held}; a table of errors has rows with {', '.join(sorted(NEEDED))}")
    scored = []
    for number, row in enumerate(rows, 2):
        try:
            scored.append(_scored({key: _unsafe(value or "") for key, value in row.items() if isinstance(key, str)}))
        except (TypeError, ValueError, KeyError) as error:
            raise DataError(f"{path}, line {number} cannot be read as an utterance: {error}") from error
    languages = {one.language for one in scored}
    name = _unsafe(rows[0].get("system") or "")
    return ErrorReport(tuple(scored), languages.pop() if len(languages) == 1 else None, name)


def _row(one: Scored, system: str) -> dict[str, str]:
    words = [[word.text, word.start_s, word.end_s, word.confidence] for word in one.words]
    known = {name: getattr(one, name) for name in COLUMNS if name not in ("system", "words")}
    row = {"system": system, **known, "words": json.dumps(words, ensure_ascii=False) if words else ""}
    return {name: "" if value is None else str(value) for name, value in row.items()}


def _scored(row: dict[str, str]) -> Scored:
    listed = json.loads(row.get("words") or "[]")
    words = tuple(Word(str(text), float(start), float(end), float(sure)) for text, start, end, sure in listed)
    language = row.get("language") or None
    owners = owners_of(row["hypothesis"], words, language)
    if None in owners:  # scored without the vowel signs, which the words still have
        owners = owners_of(row["hypothesis"], words, language, vowels=False)
    return Scored(
        name=row["name"],
        reference=row["reference"],
        hypothesis=row["hypothesis"],
        edits=lined_up(row["reference"], row["hypothesis"], owners),
        words=words,
        audio=Path(row["audio"]) if row.get("audio") else None,
        speaker=row.get("speaker", ""),
        language=language,
        seconds=float(row.get("seconds") or 0),
        snr_db=float(row["snr_db"]) if row.get("snr_db") else None,
        confidence=float(row["confidence"]) if row.get("confidence") else None,
        raw_reference=row.get("raw_reference", ""),
        raw_hypothesis=row.get("raw_hypothesis", ""),
    )


def _safe(name: str, value: str) -> str:
    """Numbers stay as they are; a negative one is no formula."""
    return f"'{value}" if name not in NUMBERS and value.startswith((*FORMULA, "'")) else value


def _unsafe(value: str) -> str:
    return value[1:] if value.startswith("'") and value[1:].startswith((*FORMULA, "'")) else value
