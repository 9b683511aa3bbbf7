"""Results, as frozen dataclasses that print well. In: plain values. Out: text, subtitles, JSON. Knows no torch.

Times are seconds from the start of the audio and carry `_s`; confidences are in [0, 1].
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from speechkit.subtitles import cues, srt, vtt

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Char", "Event", "FileResult", "Transcript", "Word"]


@dataclass(frozen=True, slots=True)
class Char:
    """One character as the model emitted it."""

    text: str
    start_s: float
    end_s: float
    confidence: float


@dataclass(frozen=True, slots=True)
class Word:
    """One word; in scripts written without spaces, one character."""

    text: str
    start_s: float
    end_s: float
    confidence: float
    chars: tuple[Char, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Transcript:
    """What was said, when, and how sure the model is.

    `confidence` is the mean of the word confidences (1.0 for an empty transcript: nothing is claimed).
    """

    text: str
    words: tuple[Word, ...] = ()
    language: str | None = None
    duration_s: float = 0.0
    confidence: float = 1.0
    model: str = ""
    warnings: tuple[str, ...] = ()

    def to_srt(self, max_chars: int = 42, max_s: float = 6.0) -> str:
        """SubRip subtitles; a cue holds at most `max_chars` characters and lasts at most `max_s` seconds."""
        return srt(cues(self.words, max_chars=max_chars, max_s=max_s))

    def to_vtt(self, max_chars: int = 42, max_s: float = 6.0) -> str:
        """WebVTT subtitles, cut like :meth:`to_srt`."""
        return vtt(cues(self.words, max_chars=max_chars, max_s=max_s))

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, strings and numbers; the inverse of :meth:`from_dict`."""
        return asdict(self)

    def to_json(self, indent: int | None = 2) -> str:
        """JSON text, non-ASCII kept as it is; the inverse of :meth:`from_json`."""
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=indent)

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> Transcript:
        words = tuple(
            Word(**{**word, "chars": tuple(Char(**char) for char in word.get("chars", ()))})
            for word in row.get("words", ())
        )
        return cls(**{**row, "words": words, "warnings": tuple(row.get("warnings", ()))})

    @classmethod
    def from_json(cls, text: str) -> Transcript:
        return cls.from_dict(json.loads(text))

    def __str__(self) -> str:
        head = f"{self.text or '(no speech)'}"
        tail = f"[{self.duration_s:.1f} s, {self.model}, mean confidence {self.confidence:.2f}]"
        return "\n".join([head, tail, *(f"warning: {line}" for line in self.warnings)])

    def table(self) -> str:
        """One line per word: start, end, confidence, text."""
        rows = (f"{w.start_s:8.2f} {w.end_s:8.2f}  {w.confidence:4.2f}  {w.text}" for w in self.words)
        return "\n".join(["   start      end  conf  word", *rows])

    def _repr_html_(self) -> str:
        words = " ".join(
            f'<span title="{w.start_s:.2f}–{w.end_s:.2f} s, confidence {w.confidence:.2f}">{escape(w.text)}</span>'
            for w in self.words
        )
        notes = "".join(f"<br><small>warning: {escape(line)}</small>" for line in self.warnings)
        small = f"{self.duration_s:.1f} s · {escape(self.model)} · mean confidence {self.confidence:.2f}"
        return f"<div>{words or '(no speech)'}<br><small>{small}</small>{notes}</div>"


@dataclass(frozen=True)
class Event:
    """What a stream says about the utterance that it is hearing.

    A partial may still change, except its first `stable` words, which later partials of the utterance repeat. A final
    closes the utterance and was made from all of it: it may correct even stable words.
    """

    kind: Literal["partial", "final"]
    text: str
    words: tuple[Word, ...] = ()
    stable: int = 0
    start_s: float = 0.0  # of the utterance, from the start of the stream
    heard_s: float = 0.0  # audio that the stream had received when it said this

    def __str__(self) -> str:
        if self.kind == "final":
            return f"{self.start_s:7.2f} s  {self.text}"
        return f"{self.start_s:7.2f} s  {self.text} …  ({self.stable} of {len(self.words)} words stable)"


@dataclass(frozen=True)
class FileResult:
    """What became of one file of a batch: a transcript, or the reason why there is none."""

    path: Path
    status: Literal["ok", "error", "skipped"]
    transcript: Transcript | None = None
    reason: str = ""
    audio_s: float = 0.0
    wall_s: float = 0.0
    outputs: tuple[Path, ...] = ()

    @property
    def ok(self) -> bool:
        return self.status != "error"

    def to_dict(self) -> dict[str, Any]:
        """A manifest row: plain values, paths as strings."""
        row = asdict(self)
        row["path"] = str(self.path)
        row["outputs"] = [str(path) for path in self.outputs]
        return row

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> FileResult:
        spoken = row.get("transcript")
        return cls(
            **{
                **row,
                "path": Path(row["path"]),
                "transcript": Transcript.from_dict(spoken) if spoken else None,
                "outputs": _paths(row.get("outputs", ())),
            }
        )


def _paths(names: Iterable[str]) -> tuple[Path, ...]:
    return tuple(Path(name) for name in names)
