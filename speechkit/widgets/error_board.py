"""An error report → a board in the notebook: sort, filter, see each difference, hear each word, find what is confused.

In: `evaluation.errors.ErrorReport`. Out: a widget, with static HTML and text as its twins. The report stays in Python,
however many utterances it has: the view asks for a page of them (`{"kind": "rows", "query": …, "first": 20}`), for the
rest of a long one (`columns`), for the sound of a word (`audio`), for a grid of confusions (`grid`), for the whole as a
table (`csv`). The saved notebook holds the first page and no sound. Uses only what ipywidgets 7.7 and 8 share. Knows no
torch.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anywidget
import traitlets as t

from speechkit import audio as sound
from speechkit.errors import DataError, SpeechkitError
from speechkit.evaluation.metrics import NAMES
from speechkit.widgets.error_html import board_text, error_board_html
from speechkit.widgets.error_rows import Index, Query, columns_of, grid, row_of, stretch
from speechkit.widgets.player import MIME

if TYPE_CHECKING:
    import os

    from speechkit.evaluation.errors import ErrorReport, Scored
    from speechkit.widgets.player import Format

__all__ = ["ErrorBoard", "error_board_html"]

STATIC = Path(__file__).parent / "static"
PAGE = 20  # utterances on a page
ECHOED = ("seq", "row", "column", "unit", "first")  # parts of a question that its answer repeats
WHOLE_S = 60.0  # of an utterance that is sent to be heard in one piece


class ErrorBoard(anywidget.AnyWidget):
    """The live view of a report; `selected` is the number of the utterance last heard, -1 for none.

    Raises DataError for a report without an utterance.
    """

    _esm = STATIC / "error_board.js"
    _css = STATIC / "error_board.css"
    _ipython_display_ = None  # as in Player: ipywidgets 7 would hide the twins

    title = t.Unicode("").tag(sync=True)
    figures = t.List(t.Dict()).tag(sync=True)  # name, value
    rows = t.List(t.Dict()).tag(sync=True)  # error_rows.row_of: the first page, by errors
    total = t.Int(0).tag(sync=True)
    page = t.Int(PAGE).tag(sync=True)
    kinds = t.List(t.Int()).tag(sync=True)  # how many substituted, deleted, inserted
    known = t.List(t.Unicode()).tag(sync=True)  # of speaker, confidence, seconds, audio: what any utterance has
    selected = t.Int(-1).tag(sync=True)

    def __init__(self, report: ErrorReport, title: str = "") -> None:
        if not report.utterances:
            raise DataError("the report has no utterance; score at least one")
        self._report, self._index = report, Index(report)
        self._heard: tuple[int, sound.Samples] | None = None  # the file last read: its next word is a click away
        name = title or report.name
        self._html, self._text = error_board_html(report, name), board_text(report, name)
        kinds = report.kinds
        super().__init__(
            title=name,
            figures=_figures(report),
            rows=self._rows(Query(), 0)[1],
            total=len(report.utterances),
            kinds=[kinds[kind] for kind in ("substitute", "delete", "insert")],
            known=_known(report.utterances),
        )
        self.on_msg(self._message)

    @property
    def report(self) -> ErrorReport:
        return self._report

    def to_csv(self, path: str | os.PathLike[str]) -> Path:
        """What the view's button saves, one row per utterance. Raises OutputError where that cannot be done."""
        return self._report.to_csv(path)

    def audio_bytes(self, row: int, column: int | None = None, form: Format = "opus") -> bytes:
        """The sound of one column of the alignment, or of the utterance's first minute, as the view gets it.

        Raises DataError where there is no such utterance or column, or it has no audio or no times; AudioError where
        the file cannot be read.
        """
        return sound.encode(self._samples(row, column), format=form)

    def answer(self, content: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
        """One message of the view → the answer, its binary part. A mistake is an answer too: `failed`, a `reason`."""
        acts = {"rows": self._page, "columns": self._more, "audio": self._play, "grid": self._grid, "csv": self._csv}
        asked: dict[str, Any] = {name: content[name] for name in ECHOED if name in content}
        act = acts.get(str(content.get("kind")))
        try:
            if act is None:
                raise DataError(f"the view sent {content.get('kind')!r}; known are {', '.join(acts)}")
            told, data = act(content)
        except SpeechkitError as error:  # told where the click was, not in the kernel's log
            return {**asked, "kind": "failed", "of": content.get("kind"), "reason": str(error)}, []
        return {**asked, "kind": content["kind"], **told}, data

    def _page(self, content: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
        total, rows = self._rows(Query.parse(content.get("query", {})), _number(content, "first"))
        return {"total": total, "rows": rows}, []

    def _rows(self, query: Query, first: int) -> tuple[int, list[dict[str, Any]]]:
        found = self._index.chosen(query)
        return len(found), [row_of(self._report.utterances[at], at) for at in found[first : first + PAGE]]

    def _more(self, content: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
        return {"columns": columns_of(self._utterance(_number(content, "row")), _number(content, "first"))}, []

    def _play(self, content: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
        form: Format = "opus" if content.get("opus") else "wav"
        row = _number(content, "row")
        column = None if content.get("column") is None else _number(content, "column")
        samples = self._samples(row, column)
        seconds = len(samples) / sound.SAMPLE_RATE
        cut = column is None and self._heard is not None and len(self._heard[1]) > len(samples)
        return {"mime": MIME[form], "seconds": round(seconds, 2), "cut": cut}, [sound.encode(samples, format=form)]

    def _samples(self, row: int, column: int | None) -> sound.Samples:
        scored = self._utterance(row)
        if column is not None and column >= len(scored.edits):
            raise DataError(f"{scored.name} has no column {column}; it has {len(scored.edits)}, counted from 0")
        if scored.audio is None:
            raise DataError(f"{scored.name} has no audio: give `audio=` to `evaluation.errors.score`")
        span = (0.0, WHOLE_S) if column is None else stretch(scored, column)
        if span is None:
            raise DataError(f"nobody knows where {scored.name} says this: give `transcripts=` with their words' times")
        if self._heard is None or self._heard[0] != row:
            self._heard = (row, sound.load(scored.audio))
        first, last = (round(second * sound.SAMPLE_RATE) for second in span)
        samples = self._heard[1][first:last]
        if not len(samples):
            length_s = len(self._heard[1]) / sound.SAMPLE_RATE
            raise DataError(
                f"the word begins at {span[0]:.2f} s, but {scored.audio} ends at {length_s:.2f} s: another recording?"
            )
        return samples

    def _utterance(self, row: int) -> Scored:
        if not row < len(self._report.utterances):
            raise DataError(f"there is no utterance {row}; there are {len(self._report.utterances)}, counted from 0")
        return self._report.utterances[row]

    def _grid(self, content: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
        unit = Query.parse({"unit": content.get("unit", "word")}).unit
        return asdict(grid(self._index.pairs(unit))), []

    def _csv(self, _content: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
        with tempfile.TemporaryDirectory() as folder:
            data = self._report.to_csv(Path(folder) / "errors.csv").read_bytes()
        name = "".join(char if char.isalnum() or char in "-_" else "-" for char in self.title or "errors").strip("-")
        return {"name": f"{name or 'errors'}.csv", "mime": "text/csv"}, [data]

    def _message(self, _widget: Any, content: dict[str, Any], _buffers: Any) -> None:
        told, data = self.answer(content)
        self.send(told, buffers=data)

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The live view, with both twins beside it for whoever opens the saved notebook."""
        data, metadata = super()._repr_mimebundle_(**kwargs) or ({}, {})
        return {**data, "text/html": self._html, "text/plain": self._text}, metadata

    def __repr__(self) -> str:
        return self._text


def _number(content: dict[str, Any], name: str) -> int:
    value = content.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise DataError(f"{name} is {value!r}; it counts from 0")
    return value


def _figures(report: ErrorReport) -> list[dict[str, Any]]:
    """The two rates, the one to quote first in front."""
    return [{"name": NAMES[rate.unit], "value": str(rate), "told": repr(rate)} for rate in report.rates]


def _known(rows: tuple[Scored, ...]) -> list[str]:
    asked = {
        "speaker": any(row.speaker for row in rows),
        "confidence": any(row.confidence is not None for row in rows),
        "seconds": any(row.seconds for row in rows),
        "audio": any(row.audio is not None for row in rows),
    }
    return [name for name, there in asked.items() if there]
