"""An `ErrorReport` → a card of static HTML for a notebook: its rates, and the worst utterances with their edits marked.

Pure functions, no script; everything that comes from a text is escaped. Errors are told by the element (`<del>`,
`<ins>`), by an arrow and by a line, never by colour alone. The live view is the error board in `widgets`.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from speechkit.widgets.palette import LEVELS, SOFT, card

if TYPE_CHECKING:
    from collections.abc import Sequence

    from speechkit.evaluation.errors import Edit, ErrorReport, Scored

__all__ = ["page"]

RED = LEVELS[2].shade
WRONG = f"color:{RED.light};color:{RED.css}"


def page(report: ErrorReport, shown: Sequence[Scored]) -> str:
    """HTML of the report's rates and of the utterances `shown`."""
    soft = f"font-size:13px;color:{SOFT.light};color:{SOFT.css}"
    rows = "".join(
        f'<tr><td style="text-align:right">{one.errors}</td><td style="text-align:right">{one.wer:.0%}</td>'
        f'<td style="text-align:left">{escape(one.name)}</td><td style="text-align:left" dir="auto"'
        f"{_lang(one)}>{''.join(f'{_edit(edit)} ' for edit in one.edits)}</td></tr>"
        for one in shown
    )
    head = "".join(f"<th>{name}</th>" for name in ("errors", "WER", "utterance", "what was said, and heard"))
    return (
        f'<section aria-label="Errors" style="{card()}"><strong>{escape(repr(report))}</strong>'
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        f'<div style="{soft}">The {len(shown)} utterances with most errors. <del>deleted</del>, '
        "<ins>inserted</ins>, <del>said</del>→<ins>heard</ins> for a substitution.</div></section>"
    )


def _edit(edit: Edit) -> str:
    said = f'<del style="{WRONG}"><bdi>{escape(edit.reference)}</bdi></del>' if edit.reference else ""
    heard = f'<ins style="{WRONG}"><bdi>{escape(edit.hypothesis)}</bdi></ins>' if edit.hypothesis else ""
    if edit.kind == "equal":
        return f"<bdi>{escape(edit.reference)}</bdi>"
    return f"{said}→{heard}" if said and heard else said or heard


def _lang(one: Scored) -> str:
    return f' lang="{escape(one.language)}"' if one.language else ""
