"""Plain values → text for a terminal: colour, columns, a progress bar. Knows no audio, no model and no torch.

Colour goes to terminals only, and never where NO_COLOR is set (no-color.org); nothing is told by colour alone.
"""

from __future__ import annotations

import os
import shutil
import sys
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from speechkit.widgets.palette import HIGH, LOW

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from speechkit.asr.files import Progress
    from speechkit.types import Word

__all__ = ["Bar", "Paint", "clock", "columns", "heading", "width", "words", "wrap"]

_CODES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}


@dataclass(frozen=True, slots=True)
class Paint:
    """Colours text, or leaves it as it is."""

    on: bool

    @classmethod
    def of(cls, stream: TextIO) -> Paint:
        """On for a terminal, unless NO_COLOR is set (to anything but the empty string) or TERM is dumb."""
        return cls(stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb")

    def __call__(self, text: str, style: str) -> str:
        return f"\x1b[{_CODES[style]}m{text}\x1b[0m" if self.on and style and text else text

    def sure(self, text: str, confidence: float) -> str:
        return self(text, "green" if confidence >= HIGH else "yellow" if confidence >= LOW else "red")


def columns() -> int:
    """Usable width: that of the terminal, at most 120, and 100 where there is none."""
    return max(40, min(120, shutil.get_terminal_size((100, 24)).columns))


def width(text: str) -> int:
    """Cells that a text takes on screen: two for wide East Asian characters, none for combining marks."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )


def heading(text: str, paint: Paint) -> str:
    return paint(f"{text} ", "bold") + paint("─" * max(3, columns() - width(text) - 1), "dim")


def wrap(label: str, text: str, paint: Paint, indent: int = 14) -> str:
    """`label      text…`, with the following lines under the first word of the text."""
    lines, line = [], ""
    room = columns() - indent
    for word in text.split():
        if line and width(line) + 1 + width(word) > room:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    body = f"\n{' ' * indent}".join([*lines, line])
    return f"  {paint(label.ljust(indent - 2), 'dim')}{body}"


def words(found: Sequence[Word], paint: Paint, indent: int = 14) -> str:
    """Three aligned rows, wrapped to the terminal: the word, its times in seconds, its confidence (`?` when low)."""
    if not found:
        return ""
    cells = [
        (word.text, f"{word.start_s:.2f}–{word.end_s:.2f}", f"{word.confidence:.2f}{_doubt(word.confidence)}")
        for word in found
    ]
    sizes = [max(map(width, cell)) for cell in cells]
    blocks = []
    for chosen in _lines(sizes, columns() - indent):
        rows = [
            "  ".join(_pad(cells[n][part], sizes[n], paint, part, found[n].confidence) for n in chosen).rstrip()
            for part in range(3)
        ]
        labels = ("words", "seconds", "confidence")
        blocks += [f"  {paint(label.ljust(indent - 2), 'dim')}{row}" for label, row in zip(labels, rows, strict=True)]
    return "\n".join(blocks)


def clock(seconds: float) -> str:
    """41 s, 3:05, 2:03:09."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


class Bar:
    """The progress of a batch on stderr, by tqdm; quiet where that is no terminal or SPEECHKIT_PROGRESS is 0.

    SPEECHKIT_PROGRESS=1 shows it on any stream.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        wish = os.environ.get("SPEECHKIT_PROGRESS", "")
        self.on = wish != "0" and (wish == "1" or self.stream.isatty())
        self._bar: Any = None

    def __call__(self, state: Progress) -> None:
        if not self.on:
            return
        if self._bar is None:
            from tqdm import tqdm  # type: ignore[import-untyped,unused-ignore]

            shape = "{percentage:3.0f}% {bar} {desc}"
            # both sizes given: tqdm hides its bar on terminals that say they have no rows, as in some containers
            size = {"ncols": columns() - 1, "nrows": 24}
            self._bar = tqdm(total=max(state.bytes, 1), file=self.stream, bar_format=shape, leave=False, **size)
        self._bar.set_description_str(describe(state), refresh=False)
        self._bar.n = min(state.bytes_done, self._bar.total)
        self._bar.refresh()

    def write(self, line: str, stream: TextIO) -> None:
        """Print a line without tearing the bar. What the stream's encoding lacks is shown as an escape (`\\udcff`)."""
        if self._bar is not None:
            self._bar.clear()
        try:
            print(line, file=stream, flush=True)
        except UnicodeEncodeError:  # nothing of the line is out yet: text is encoded before it is written
            coding = stream.encoding or "utf-8"
            print(line.encode(coding, "backslashreplace").decode(coding), file=stream, flush=True)
        if self._bar is not None:
            self._bar.refresh()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def describe(state: Progress) -> str:
    """`12/40 files, 1 failed, real-time factor 0.041, 2:03 left`."""
    parts = [f"{state.files_done}/{state.files} files"]
    parts += [f"{state.skipped} skipped"] if state.skipped else []
    parts += [f"{state.errors} failed"] if state.errors else []
    parts += [f"real-time factor {state.real_time_factor:.3f}"] if state.audio_s else []
    parts += [f"{clock(state.eta_s)} left"] if state.eta_s is not None else []
    return ", ".join(parts)


def _doubt(confidence: float) -> str:
    return "?" if confidence < LOW else ""


def _pad(text: str, size: int, paint: Paint, part: int, confidence: float) -> str:
    painted = paint.sure(text, confidence) if part != 1 else paint(text, "dim")
    return painted + " " * (size - width(text))


def _lines(sizes: Iterable[int], room: int) -> list[list[int]]:
    """Indices of the cells of each line, as many as fit with two spaces between."""
    lines: list[list[int]] = [[]]
    used = 0
    for number, size in enumerate(sizes):
        if lines[-1] and used + 2 + size > room:
            lines.append([])
            used = 0
        used += size + (2 if lines[-1] else 0)
        lines[-1].append(number)
    return lines
