"""An error report → static HTML and plain text, the error board's twins for GitHub, nbconvert and terminals.

Pure functions. What GitHub strips (style attributes) is said again by elements: `<del>` for a deleted word, `<ins>` for
an inserted one, both for a substitution, and by the signs ≠ − + before them.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from speechkit.evaluation.metrics import NAMES
from speechkit.widgets.error_rows import CUT, direction
from speechkit.widgets.palette import ACCENT, LEVELS, LINE, SOFT, Shade, card

if TYPE_CHECKING:
    from speechkit.evaluation.errors import Edit, ErrorReport, Scored

__all__ = ["SIGNS", "board_text", "confused", "error_board_html"]

SIGNS = {"equal": "", "substitute": "≠", "delete": "−", "insert": "+"}
WORST = 10  # utterances of a twin: it is saved with the notebook
NOTE = "Sorting, filters and sound work in a live notebook."


def error_board_html(report: ErrorReport, title: str = "", most: int = WORST) -> str:
    """The rates, the `most` utterances with most errors, said over heard, and the commonest confusions.

    Every text is escaped; every word stands in a `bdi` of its own, and each line runs in its text's direction.
    """
    cell = f"padding:6px 14px 6px 0;border-top:1px solid {LINE.light};border-color:{LINE.css};vertical-align:top"
    soft = f"font-size:12.5px;{_paint('color', SOFT)}"
    rows = "".join(
        f'<tr><td style="{cell};text-align:left">{escape(one.name)}'
        f'<div style="{soft}">{escape(one.speaker)}</div></td>'
        f'<td style="{cell};text-align:left">{_diff(one)}</td>'
        f'<td style="{cell};text-align:right;white-space:nowrap">{_percent(one.wer)}</td></tr>'
        for one in report.worst(most)
        if one.errors
    )
    keys = " &nbsp; ".join(f"{_marked(kind, word, word)}" for kind, word in LEGEND)
    head = f"<strong>{escape(title)}</strong> &nbsp; " if title else ""
    heads = "".join(f'<th style="text-align:{side};{soft}">{name}</th>' for name, side in HEADS)
    table = (
        f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody>"
        if rows
        else "<tbody><tr><td>No error.</td></tr></tbody>"
    )
    return (
        f'<section aria-label="Errors" style="{card()}">{head}<span style="{soft}">{escape(_about(report))}</span>'
        f'<table style="border-collapse:collapse;margin:6px 0;color:inherit;width:100%">{table}</table>'
        f'<div style="{soft}">{escape(confused(report))}</div>'
        f'<div style="{soft}">{keys} &nbsp; · &nbsp; {NOTE}</div></section>'
    )


HEADS = (("utterance", "left"), ("said over heard", "left"), ("WER", "right"))
LEGEND = (("substitute", "substituted"), ("delete", "deleted"), ("insert", "inserted"))


def board_text(report: ErrorReport, title: str = "", most: int = 3) -> str:
    """The rates and the worst utterances for a terminal."""
    blocks = (
        f"{one.errors:3d} errors, {_percent(one.wer)}  {one.name}{f' ({one.speaker})' if one.speaker else ''}\n"
        f"{one.aligned()}"
        for one in report.worst(most)
        if one.errors
    )
    head = " · ".join(part for part in (title, _about(report)) if part)
    return "\n".join(part for part in (head, *blocks, confused(report)) if part)


def confused(report: ErrorReport, n: int = 5) -> str:
    """`most confused: fourteen → forty 5, …`; empty where nothing was taken for something else."""
    found = report.confusions(n).substitutions
    return "most confused: " + ", ".join(f"{c.reference} → {c.hypothesis} {c.count}" for c in found) if found else ""


def _about(report: ErrorReport) -> str:
    count = len(report.utterances)
    shown = " · ".join(f"{NAMES[rate.unit]} {rate}" for rate in report.rates)
    return f"{count:,} {'utterance' if count == 1 else 'utterances'} · {shown}"


def _diff(one: Scored) -> str:
    """Pairs of words, said over heard, in one line that wraps between them."""
    lang = f' lang="{escape(one.language)}"' if one.language else ""
    pairs = " ".join(_column(edit) for edit in one.edits[:CUT])
    more = f" … and {len(one.edits) - CUT:,} words more" if len(one.edits) > CUT else ""
    return f'<div dir="{direction(one.reference + one.hypothesis)}"{lang} style="line-height:1.5">{pairs}{more}</div>'


def _column(edit: Edit) -> str:
    style = "display:inline-block;vertical-align:top;margin-inline-end:6px"
    if edit.kind == "equal":
        return f'<span style="{style}"><bdi>{escape(edit.reference)}</bdi></span>'
    return f'<span style="{style}">{_marked(edit.kind, edit.reference, edit.hypothesis)}</span>'


def _marked(kind: str, said: str, heard: str) -> str:
    """An error with its sign: what was said struck out, what was heard underlined below it."""
    sign = f"{SIGNS[kind]}&#8239;"
    low, mid = LEVELS[2].shade, LEVELS[1].shade
    gone = f'<del style="{_paint("color", low)}"><bdi>{escape(said)}</bdi></del>'
    line = "dashed" if kind == "substitute" else "solid"
    shade = mid if kind == "substitute" else ACCENT
    new = f'<ins style="text-decoration:underline {line} 2px;{_paint("color", shade)}"><bdi>{escape(heard)}</bdi></ins>'
    if kind == "delete":
        return f"{sign}{gone}"
    return f"{sign}{new}" if kind == "insert" else f"{sign}{gone}<br>{new}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _paint(name: str, shade: Shade) -> str:
    """Twice, so that a browser without `light-dark()` keeps the light colour."""
    return f"{name}:{shade.light};{name}:{shade.css}"
