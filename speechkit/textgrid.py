"""Transcript → Praat TextGrid: the text file in which phoneticians correct word boundaries by hand. Pure text.

The long format of Praat's manual ("TextGrid file formats"), UTF-8, as Praat itself saves it. Interval tiers: `words`,
and `characters` where the transcript has them. Praat wants the intervals of a tier to cover the whole time without gap
or overlap, each longer than nothing, so pauses are intervals with empty text.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from speechkit.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from speechkit.subtitles import Timed
    from speechkit.types import Transcript

__all__ = ["textgrid"]

DIGITS = 6  # of a second: finer than a sample at any rate of audio


def textgrid(transcript: Transcript) -> str:
    """A transcript with word times → the text of a TextGrid file, from 0 to its duration; write it as UTF-8.

    Raises DataError for a transcript without a length, and for a word or character that lasts no time, or none after
    what overlaps it is cut off.
    """
    end_s = round(max([transcript.duration_s, *(word.end_s for word in transcript.words)]), DIGITS)
    if not 0 < end_s < math.inf:
        raise DataError(f"the transcript lasts {end_s} s, and a TextGrid needs a length: give it its duration_s")
    chars = [char for word in transcript.words for char in word.chars]
    tiers = {"words": _intervals(transcript.words, end_s)}
    if chars:
        tiers["characters"] = _intervals(chars, end_s)
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", *_range(end_s), "tiers? <exists> "]
    lines += [f"size = {len(tiers)} ", "item []: "]
    for number, (name, intervals) in enumerate(tiers.items(), 1):
        lines += [f"    item [{number}]:", '        class = "IntervalTier" ', f"        name = {_quoted(name)} "]
        lines += [f"        {line}" for line in [*_range(end_s), f"intervals: size = {len(intervals)} "]]
        for index, (start, stop, text) in enumerate(intervals, 1):
            lines += [f"        intervals [{index}]:"]
            lines += [f"            {line}" for line in (*_range(stop, start), f"text = {_quoted(text)} ")]
    return "\n".join([*lines, ""])


def _intervals(items: Iterable[Timed], end_s: float) -> list[tuple[float, float, str]]:
    """Spoken items → intervals that cover 0..end_s; an item that begins before the last one ended is cut."""
    intervals: list[tuple[float, float, str]] = []
    at = 0.0
    for item in items:
        start, stop = max(round(item.start_s, DIGITS), at), round(item.end_s, DIGITS)
        if not start < stop < math.inf:  # a NaN start passes `max` in this order, and is refused here
            raise DataError(
                f"{item.text!r} lasts from {item.start_s} to {item.end_s} s, and {at} s are taken before it: "
                "an interval of a TextGrid has to last"
            )
        if start > at:
            intervals.append((at, start, ""))
        intervals.append((start, stop, item.text))
        at = stop
    if at < end_s:
        intervals.append((at, end_s, ""))
    return intervals


def _range(stop: float, start: float = 0.0) -> list[str]:
    return [f"xmin = {_number(start)} ", f"xmax = {_number(stop)} "]


def _number(seconds: float) -> str:
    return f"{seconds:.{DIGITS}f}".rstrip("0").rstrip(".")


def _quoted(text: str) -> str:
    """In double quotes, those inside doubled; on one line."""
    return '"' + " ".join(text.split()).replace('"', '""') + '"'
