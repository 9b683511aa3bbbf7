"""A result → a file. In: a path and text. Out: the path, or an error that says what to do. Knows no result."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from speechkit.errors import OutputError

if TYPE_CHECKING:
    import os

__all__ = ["write_text"]


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write `text` as UTF-8. Raises OutputError where that cannot be done."""
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}; give a file in a folder that exists") from error
    return Path(path)
