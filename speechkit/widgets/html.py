"""Transcript → one piece of static HTML, the player's twin for GitHub, nbconvert and mail. Pure functions.

No script, no audio, no style sheet: everything is inline, and what GitHub strips (style attributes) is said again by
elements: `<u>` for a sure word, `<em>` for a middling one, `<mark>` for a doubtful one, the last two with their figure.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from speechkit.widgets.palette import ACCENT, INK, LEVELS, LINE, PANEL, PAPER, SOFT, Level, Shade
from speechkit.widgets.rows import about, clock, word_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from speechkit.types import Transcript

__all__ = ["transcript_html"]

NOTE = "Audio plays in a live notebook."
FONT = "system-ui,-apple-system,'Segoe UI',sans-serif"
TAGS = {"high": "u", "mid": "em", "low": "mark"}
BARS, WIDE, TALL = 150, 1000, 54  # bars and viewBox of the waveform


def transcript_html(
    transcript: Transcript, peaks: Sequence[float] = (), title: str = "", duration_s: float | None = None
) -> str:
    """Static HTML of a transcript; `peaks` in [0, 1] draw the waveform above the words (none: no waveform).

    Every text that comes from the transcript or the title is escaped.
    """
    length_s = transcript.duration_s if duration_s is None else duration_s
    rows = word_rows(transcript, length_s)
    gaps = ("", " ")
    words = "".join(gaps[row["spaced"]] + _word(row) for row in rows)
    card = (
        f"color-scheme:light dark;{_paint('color', INK)}{_paint('background', PAPER)}"
        f"{_border('border')}border-radius:10px;overflow:hidden;max-width:860px;font:15px/1.55 {FONT}"
    )
    return (
        f'<section aria-label="Transcript" style="{card}">{_head(transcript, title, length_s)}'
        f"{_wave(peaks, rows, length_s)}{_words(words, transcript.language)}{_legend()}</section>"
    )


def _head(transcript: Transcript, title: str, length_s: float) -> str:
    style = f"padding:10px 14px;{_paint('background', PANEL)}{_border('border-bottom')}"
    name = f"<strong>{escape(title)}</strong> &nbsp;" if title else ""
    soft = f"font-size:13px;{_paint('color', SOFT)}"
    return f'<div style="{style}">{name}<span style="{soft}">{escape(about(transcript, length_s))}</span></div>'


def _words(words: str, language: str | None) -> str:
    lang = f' lang="{escape(language)}"' if language else ""
    body = words or "(no speech)"
    return f'<p dir="auto"{lang} style="margin:0;padding:8px 14px 14px;font-size:18px;line-height:2.1">{body}</p>'


def _word(row: dict[str, Any]) -> str:
    kind = _level(row["level"])
    hint = f"{clock(row['start_s'])}–{clock(row['end_s'])}, confidence {row['confidence']:.2f}"
    style = f"{_underline(kind)}color:inherit;background:none;font-style:normal;padding:1px 3px"
    tag = TAGS[kind.name]
    figure = ""
    if kind.name != "high":  # the figure survives where styles do not
        figure = f'<small style="font-size:11px;{_paint("color", SOFT)}">{row["confidence"]:.2f}</small>'
    return f'<{tag} title="{hint}" style="{style}">{escape(row["text"])}</{tag}>{figure}'


def _wave(peaks: Sequence[float], rows: Sequence[dict[str, Any]], length_s: float) -> str:
    if not peaks or length_s <= 0:
        return ""
    step = max(1, len(peaks) // BARS)
    tops = [max(peaks[i : i + step]) for i in range(0, len(peaks), step)]
    middle, reach = TALL / 2 - 3, TALL / 2 - 5
    path = "".join(
        f"M{(i + 0.5) * WIDE / len(tops):.1f} {middle - max(top * reach, 0.6):.1f}V{middle + max(top * reach, 0.6):.1f}"
        for i, top in enumerate(tops)
    )
    ticks = "".join(
        f'<rect x="{row["start_s"] / length_s * WIDE:.1f}" y="{TALL - 5}" height="4" rx="2" '
        f'width="{max(row["end_s"] - row["start_s"], 0.02) / length_s * WIDE:.1f}" '
        f'style="{_paint("fill", _level(row["level"]).shade)}"/>'
        for row in rows
        if row["level"] != "high"
    )
    return (
        f'<svg viewBox="0 0 {WIDE} {TALL}" preserveAspectRatio="none" role="img" aria-label="Waveform" '
        f'style="display:block;width:calc(100% - 28px);height:{TALL}px;margin:12px 14px 0">'
        f'<path d="{path}" fill="none" stroke-width="2.4" stroke-linecap="round" vector-effect="non-scaling-stroke" '
        f'style="{_paint("stroke", ACCENT)}"/>{ticks}</svg>'
    )


def _legend() -> str:
    style = f"padding:8px 14px 11px;font-size:12.5px;{_border('border-top')}{_paint('color', SOFT)}"
    keys = " &nbsp; ".join(
        f'<{TAGS[kind.name]} style="{_underline(kind)}color:inherit;background:none;font-style:normal">'
        f"{kind.line}</{TAGS[kind.name]}> {escape(kind.meaning)}"
        for kind in LEVELS
    )
    return f'<div style="{style}">{keys} &nbsp; · &nbsp; {NOTE}</div>'


def _level(name: str) -> Level:
    return next(kind for kind in LEVELS if kind.name == name)


def _paint(name: str, shade: Shade) -> str:
    """Twice, so that a browser without `light-dark()` keeps the light colour."""
    return f"{name}:{shade.light};{name}:{shade.css};"


def _border(side: str) -> str:
    return f"{side}:1px solid {LINE.light};{side}-color:{LINE.css};"


def _underline(kind: Level) -> str:
    thick = 2 if kind.line == "wavy" else 3  # browsers draw a wave taller than its thickness
    return (
        f"text-decoration:underline {kind.line} {kind.shade.light};text-decoration-color:{kind.shade.css};"
        f"text-decoration-thickness:{thick}px;text-underline-offset:5px;"
    )
