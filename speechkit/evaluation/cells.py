"""One model on one language: the report, its rates, and the same words as sounds. In: texts. Out: a `Cell`.

The romanised rate compares both sides as Latin letters (`evaluation.romanize`): the reference read by the rules of the
set's language, the hypothesis by those of the model's. Spaces do not count, because Mandarin has none. Knows no model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from speechkit.errors import DataError, SpeechkitError
from speechkit.evaluation.errors import ErrorReport, ScoreOptions, score
from speechkit.evaluation.families import bare_code
from speechkit.evaluation.metrics import Rate, align
from speechkit.evaluation.romanize import Scheme, romanize
from speechkit.types import Transcript

if TYPE_CHECKING:
    from collections.abc import Sequence

    from speechkit.evaluation.metrics import Kind

__all__ = ["Cell", "Clip", "Figure", "check_figure", "counts_of", "from_row", "scored", "sound_columns", "to_row"]

Figure = Literal["wer", "cer", "romanized"]
KEPT = ("model", "model_language", "language", "reason", "note", "audio_s", "wall_s")  # of a cell in a file


@dataclass(frozen=True, slots=True)
class Clip:
    """One clip of a set: what is said in it, and where it came from."""

    name: str
    text: str
    speaker: str = ""
    seconds: float = 0.0
    audio: Path | None = None


@dataclass(frozen=True, repr=False)
class Cell:
    """One model on one language: its report with every hypothesis, or the reason why there is none."""

    model: str
    model_language: str | None
    language: str
    reason: str = ""  # why there is no report
    note: str = ""  # what else one should know: clips left out, clips on which the model failed
    audio_s: float = 0.0
    wall_s: float = 0.0
    report: ErrorReport | None = None
    romanized: Rate | None = None  # None where a script has no table
    unread: str = ""  # why it is not romanised: which script, or what is not installed here

    @property
    def native(self) -> bool:
        """Whether the model was made for this language, whatever the region."""
        return bool(self.language) and bare_code(self.model_language) == bare_code(self.language)

    @property
    def remark(self) -> str:
        """`note` and `unread` in one line."""
        return "; ".join(filter(None, [self.note, self.unread]))

    def rate(self, figure: Figure) -> Rate | None:
        """WER, CER or the romanised rate; None where the cell has none. Raises DataError for another figure."""
        check_figure(figure)
        if self.report is None:
            return None
        return {"romanized": self.romanized, "wer": self.report.wer, "cer": self.report.cer}[figure]

    def __repr__(self) -> str:
        head = f"{self.model} on {self.language}"
        if self.report is None:
            return f"{head}: {self.reason}"
        romanized = f", romanised {self.romanized}" if self.romanized else ""
        note = f" ({self.remark})" if self.remark else ""
        return f"{head}: WER {self.report.wer}, CER {self.report.cer}{romanized}; {len(self.report):,} clips{note}"


def check_figure(figure: str) -> None:
    """Raises DataError unless `figure` is one of `Figure`."""
    if figure not in get_args(Figure):
        raise DataError(f'figure is {figure!r}; it can be "wer", "cer" or "romanized"')


def scored(cell: Cell, clips: Sequence[Clip], heard: Sequence[Transcript], scheme: Scheme) -> Cell:
    """The cell with its report and, where both scripts have a table, its romanised rate."""
    report = score(
        [clip.text for clip in clips],
        heard,
        names=[clip.name for clip in clips],
        speakers=[clip.speaker for clip in clips],
        language=cell.language,
        options=ScoreOptions(name=cell.model),
    )
    rows = tuple(
        replace(row, audio=clip.audio, seconds=clip.seconds or row.seconds)
        for row, clip in zip(report.utterances, clips, strict=True)
    )
    found = replace(cell, report=replace(report, utterances=rows))
    try:
        return replace(found, romanized=Rate.of(*counts_of(found, "romanized", scheme), "sound"))
    except SpeechkitError as error:  # a script without a table, or pypinyin is not installed
        return replace(found, unread=str(error))


def sound_columns(cell: Cell, scheme: Scheme) -> list[list[tuple[Kind, str, str]]]:
    """Per clip of a cell the alignment of its romanised signs: (kind, said or "", heard or "").

    Raises what `romanize` raises.
    """
    rows = cell.report.utterances if cell.report else ()
    said, heard = (
        [list(romanize(line, language, scheme).replace(" ", "")) for line in lines]
        for lines, language in (
            ([row.raw_reference for row in rows], cell.language),
            ([row.raw_hypothesis for row in rows], cell.model_language),
        )
    )
    return [
        [(kind, a[i] if i >= 0 else "", b[j] if j >= 0 else "") for kind, i, j in row]
        for a, b, row in zip(said, heard, align(said, heard), strict=True)
    ]


def counts_of(cell: Cell, figure: Figure, scheme: Scheme) -> tuple[list[int], list[int]]:
    """Errors and reference units of every clip of a cell; empty without a report."""
    if cell.report is None:
        return [], []
    if figure != "romanized":
        return cell.report.counts("word" if figure == "wer" else "char")
    columns = sound_columns(cell, scheme)
    errors = [sum(kind != "equal" for kind, _, _ in row) for row in columns]
    return errors, [sum(bool(said) for _, said, _ in row) for row in columns]


def to_row(cell: Cell) -> dict[str, Any]:
    """Plain values with every text and hypothesis; the inverse of :func:`from_row`. Times of words are not kept."""
    row: dict[str, Any] = {name: getattr(cell, name) for name in KEPT}
    if cell.report is not None:
        row["clips"] = [
            {
                "name": one.name,
                "text": one.raw_reference,
                "heard": one.raw_hypothesis,
                "speaker": one.speaker,
                "seconds": one.seconds,
                "audio": None if one.audio is None else str(one.audio),
            }
            for one in cell.report.utterances
        ]
    return row


def from_row(row: dict[str, Any], scheme: Scheme) -> Cell:
    """The cell of :func:`to_row`, scored anew. Raises KeyError, TypeError or ValueError for another row."""
    cell = Cell(**{name: row[name] for name in KEPT})
    if "clips" not in row:
        return cell
    clips = [
        Clip(one["name"], one["text"], one["speaker"], one["seconds"], Path(one["audio"]) if one["audio"] else None)
        for one in row["clips"]
    ]
    # why it is not romanised is found anew, on this machine
    return scored(cell, clips, [Transcript(one["heard"]) for one in row["clips"]], scheme)
