"""Discrete units → a browser in the notebook: choose a unit, hear every stretch of the clips that carries it.

In: clips, their `Units`, and where known their transcripts. Out: a widget, with a table as its twin. What a unit sounds
like is asked for when it is chosen (`{"kind": "audio", "unit": 17, "part": 0}`): where its next 60 stretches are, and
their sound, one after the other with short gaps; when they have been heard the view asks for the next part, until it
has played all. Units that are too many for the list come when they are asked for (`{"kind": "units", "first": 500}`).
So the saved notebook holds names and counts only. Uses only what ipywidgets 7.7 and 8 share. Knows no torch.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anywidget
import numpy as np
import traitlets as t

from speechkit import audio as sound
from speechkit.errors import DataError, SpeechkitError
from speechkit.widgets.palette import LINE, SOFT, card
from speechkit.widgets.player import MIME

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from speechkit.asr.units import Run, Units
    from speechkit.types import Transcript
    from speechkit.widgets.player import Format

__all__ = ["Stretch", "UnitBrowser", "UnitRow", "collect", "unit_browser", "unit_joined", "units_html", "units_text"]

STATIC = Path(__file__).parent / "static"
AROUND_S = 0.06  # a unit lasts a few frames: without some sound around it there is hardly anything to hear
GAP_S = 0.15
FADE_S = 0.005  # a cut would click
NEAR_S = 0.06  # a letter counts as said so far beyond what CTC wrote of it
TOGETHER = 60  # stretches of one unit that are sent at a time: some 20 s of sound
LISTED = 500  # units that are listed at a time; two groups of 320 codes can make a hundred thousand
ROWS = 12  # of the static table


@dataclass(frozen=True, slots=True)
class Stretch:
    """Where a unit is heard: clip (its number) and seconds.

    `said` is the character there, with the word around it; empty in a pause, None where no transcript tells.
    """

    clip: int
    start_s: float
    end_s: float
    said: str | None = None
    before: str = ""
    after: str = ""


@dataclass(frozen=True)
class UnitRow:
    """One unit: its name, its stretches, and what is mostly said in them."""

    name: str
    stretches: tuple[Stretch, ...]

    @property
    def said(self) -> str:
        """`s 54%, z 20%`: the commonest characters; empty without transcripts."""
        known = Counter(stretch.said for stretch in self.stretches if stretch.said)
        total = len(self.stretches)
        return ", ".join(f"{letter} {count / total:.0%}" for letter, count in known.most_common(3))


def collect(units: Sequence[Units], transcripts: Sequence[Transcript | None] = ()) -> list[UnitRow]:
    """Every unit of the clips with its stretches, the commonest unit first."""
    found: dict[tuple[int, ...], list[Stretch]] = defaultdict(list)
    for clip, made in enumerate(units):
        spoken = transcripts[clip] if clip < len(transcripts) else None
        letters = _letters(spoken)
        starts = [letter.start_s for letter in letters]
        for run in made.runs():
            silent = Stretch(clip, run.start_s, run.end_s)
            found[run.codes].append(_heard(clip, run, letters, starts) if spoken else silent)
    ranked = sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))
    return [UnitRow("-".join(map(str, codes)), tuple(stretches)) for codes, stretches in ranked]


def unit_browser(
    sounds: Sequence[Any], units: Sequence[Units], transcripts: Sequence[Transcript | None] = (), title: str = ""
) -> UnitBrowser:
    """A browser for clips (anything `audio.load` takes), their units and, where known, their transcripts.

    The 500 commonest units are listed, the others on demand. Raises DataError for lists of different lengths, or
    without a unit.
    """
    if len(sounds) != len(units) or (transcripts and len(transcripts) != len(units)):
        raise DataError(
            f"{len(sounds)} sounds, {len(units)} clips of units, {len(transcripts)} transcripts: give one of each"
        )
    rows = collect(units, transcripts)
    if not rows:
        raise DataError("no units to show: give at least one clip with a frame")
    return UnitBrowser(list(sounds), rows, title)


class UnitBrowser(anywidget.AnyWidget):
    """The live widget; make it with :func:`unit_browser`. `selected` is the unit last chosen, -1 for none."""

    _esm = STATIC / "unit_browser.js"
    _css = STATIC / "unit_browser.css"
    _ipython_display_ = None  # as in Player: ipywidgets 7 would hide the twins

    title = t.Unicode("").tag(sync=True)
    units = t.List(t.Dict()).tag(sync=True)  # name, count, said; the commonest first
    more = t.Int(0).tag(sync=True)  # units that come when they are asked for
    selected = t.Int(-1).tag(sync=True)

    def __init__(self, sounds: list[Any], rows: list[UnitRow], title: str) -> None:
        self._sounds, self._rows = sounds, rows
        self._html, self._text = units_html(rows, title), units_text(rows, title)
        super().__init__(
            title=title,
            units=_named(rows[:LISTED]),
            more=max(0, len(rows) - LISTED),
        )
        self.on_msg(self._answer)

    def audio_bytes(self, unit: int, form: Format = "opus") -> bytes:
        """All stretches of one unit, joined: what the view plays, part by part, in one piece.

        Raises DataError where there is no such unit, AudioError where a clip cannot be read.
        """
        return sound.encode(unit_joined(self._sounds, self._row(unit))[0], format=form)

    def _row(self, unit: int) -> UnitRow:
        if not 0 <= unit < len(self._rows):
            raise DataError(f"there is no unit {unit} in the list; it has {len(self._rows)}, counted from 0")
        return self._rows[unit]

    def _part(self, unit: int, part: int) -> UnitRow:
        row = self._row(unit)
        parts = -(-len(row.stretches) // TOGETHER)
        if not 0 <= part < parts:
            raise DataError(f"unit {row.name} has no part {part}; it has {parts}, counted from 0")
        return replace(row, stretches=row.stretches[part * TOGETHER : (part + 1) * TOGETHER])

    def _answer(self, _widget: Any, content: dict[str, Any], _buffers: Any) -> None:
        unit, part, first = content.get("unit"), content.get("part", 0), content.get("first")
        if content.get("kind") == "audio" and isinstance(unit, int) and isinstance(part, int):
            self._send_part(unit, part, "opus" if content.get("opus") else "wav")
        elif content.get("kind") == "units" and isinstance(first, int) and first >= 0:
            self.send({"kind": "units", "first": first, "units": _named(self._rows[first : first + LISTED])})

    def _send_part(self, unit: int, part: int, form: Format) -> None:
        about = {"unit": unit, "part": part}
        try:
            row = self._part(unit, part)
            samples, marks = unit_joined(self._sounds, row)
            data = sound.encode(samples, format=form)
        except SpeechkitError as error:  # told where the click was, not in the kernel's log
            self.send({"kind": "failed", **about, "reason": str(error)})
            return
        listed = [_listed(*pair) for pair in zip(row.stretches, marks, strict=True)]
        self.send({"kind": "audio", **about, "mime": MIME[form], "stretches": listed}, buffers=[data])

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The live view, with both twins beside it for whoever opens the saved notebook."""
        data, metadata = super()._repr_mimebundle_(**kwargs) or ({}, {})
        return {**data, "text/html": self._html, "text/plain": self._text}, metadata

    def __repr__(self) -> str:
        return self._text


def unit_joined(sounds: Sequence[Any], row: UnitRow) -> tuple[NDArray[np.float32], list[tuple[float, float]]]:
    """All of a unit's stretches, with some sound around each and gaps between → samples (T,), and from where to where
    (s) each of them lies. Holds one clip at a time.

    Raises AudioError where a clip cannot be read, DataError where a clip ends before its units do.
    """
    clip, samples = -1, np.zeros(0, np.float32)
    gap = np.zeros(round(GAP_S * sound.SAMPLE_RATE), np.float32)
    pieces: list[NDArray[np.float32]] = []
    marks, length = [], 0
    for stretch in row.stretches:
        if stretch.clip != clip:
            clip, samples = stretch.clip, sound.load(sounds[stretch.clip])
        first = max(0, round((stretch.start_s - AROUND_S) * sound.SAMPLE_RATE))
        piece = samples[first : round((stretch.end_s + AROUND_S) * sound.SAMPLE_RATE)]
        if not len(piece):
            raise DataError(
                f"unit {row.name} is heard in clip {stretch.clip + 1} at {stretch.start_s:.2f} s, but that clip ends "
                f"at {len(samples) / sound.SAMPLE_RATE:.2f} s; give the clips that the units come from, in their order"
            )
        marks.append((length / sound.SAMPLE_RATE, (length + len(piece)) / sound.SAMPLE_RATE))
        pieces += [_faded(piece), gap]
        length += len(piece) + len(gap)
    return np.concatenate(pieces), marks


def units_text(rows: Sequence[UnitRow], title: str = "") -> str:
    """The commonest units as a plain table."""
    lines = [f"{row.name:>9}  {len(row.stretches):>6}  {row.said}".rstrip() for row in rows[:ROWS]]
    more = [f"and {len(rows) - ROWS} more"] if len(rows) > ROWS else []
    head = [title] if title else []
    return "\n".join([*head, _counted(rows), "     unit   count  said", *lines, *more])


def units_html(rows: Sequence[UnitRow], title: str = "") -> str:
    """The commonest units as a static table; every text is escaped."""
    cell = f"padding:3px 18px 3px 0;border-bottom:1px solid {LINE.light};border-color:{LINE.css}"
    number = f"{cell};text-align:right"
    body = "".join(
        f'<tr><td style="{number}">{escape(row.name)}</td><td style="{number}">{len(row.stretches)}</td>'
        f'<td style="{cell};text-align:left">{escape(row.said)}</td></tr>'
        for row in rows[:ROWS]
    )
    heads = "".join(f'<th style="{number}">{name}</th>' for name in ("unit", "count"))
    soft = f"font-size:12.5px;color:{SOFT.light};color:{SOFT.css}"
    more = f"and {len(rows) - ROWS} more units · " if len(rows) > ROWS else ""
    head = f"<strong>{escape(title)}</strong> &nbsp; " if title else ""
    return (
        f'<section aria-label="Units" style="{card()}">{head}<span style="{soft}">{_counted(rows)}</span>'
        f'<table style="border-collapse:collapse;margin:6px 0;color:inherit"><thead><tr>{heads}'
        f'<th style="{cell};text-align:left">said</th></tr></thead><tbody>{body}</tbody></table>'
        f'<div style="{soft}">{more}Sounds play in a live notebook.</div></section>'
    )


def _named(rows: Sequence[UnitRow]) -> list[dict[str, Any]]:
    return [{"name": row.name, "count": len(row.stretches), "said": row.said} for row in rows]


def _counted(rows: Sequence[UnitRow]) -> str:
    return f"{len(rows)} units, {sum(len(row.stretches) for row in rows)} stretches"


def _listed(stretch: Stretch, mark: tuple[float, float]) -> dict[str, Any]:
    """A stretch as the view shows it: clips count from 1, and `from_s` to `to_s` is where it lies in the sound."""
    return {
        "clip": stretch.clip + 1,
        "start_s": round(stretch.start_s, 2),
        "end_s": round(stretch.end_s, 2),
        "said": stretch.said,
        "before": stretch.before,
        "after": stretch.after,
        "from_s": round(mark[0], 4),
        "to_s": round(mark[1], 4),
    }


def _letters(spoken: Transcript | None) -> list[Stretch]:
    """The characters of a transcript in the order of their starts, each with its word around it."""
    letters = [
        Stretch(
            -1,
            char.start_s,
            char.end_s,
            char.text,
            "".join(other.text for other in word.chars[:at]),
            "".join(other.text for other in word.chars[at + 1 :]),
        )
        for word in (spoken.words if spoken else ())
        for at, char in enumerate(word.chars)
    ]
    return sorted(letters, key=lambda letter: letter.start_s)


def _heard(clip: int, run: Run, letters: Sequence[Stretch], starts: Sequence[float]) -> Stretch:
    """A run with the character in its middle, or the nearest: CTC writes letters shorter than they are."""
    middle = (run.start_s + run.end_s) / 2
    at = bisect_right(starts, middle)
    near = min(letters[max(0, at - 1) : at + 1], key=lambda letter: _away(letter, middle), default=None)
    if near is None or _away(near, middle) > NEAR_S:
        return Stretch(clip, run.start_s, run.end_s, "")
    return Stretch(clip, run.start_s, run.end_s, near.said, near.before, near.after)


def _away(letter: Stretch, time_s: float) -> float:
    return max(letter.start_s - time_s, time_s - letter.end_s, 0.0)


def _faded(piece: NDArray[np.float32]) -> NDArray[np.float32]:
    size = min(round(FADE_S * sound.SAMPLE_RATE), len(piece) // 2)
    out = piece.copy()
    if size:
        ramp = np.linspace(0, 1, size, dtype=np.float32)
        out[:size] *= ramp
        out[-size:] *= ramp[::-1]
    return out
