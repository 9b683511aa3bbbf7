"""References and hypotheses → every edit, lined up word by word. In: texts. Out: an `ErrorReport`.

Alignment by jiwer, normalisation by `speechkit.text`. Knows no model and no widget: the error board shows what this returns.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pathlib import Path

    from speechkit.types import Word

__all__ = ["Edit", "ErrorReport", "Scored"]


@dataclass(frozen=True, slots=True)
class Edit:
    """One column of the alignment."""

    kind: Literal["equal", "substitute", "delete", "insert"]
    reference: str  # one word; "" for an insertion
    hypothesis: str  # one word; "" for a deletion
    word: int | None = None  # index into `Scored.words` of the hypothesis word; None for a deletion, or without times


@dataclass(frozen=True)
class Scored:
    """One utterance: what was said, what was heard, and how they differ."""

    name: str  # file name or row id
    reference: str  # normalised
    hypothesis: str  # normalised
    edits: tuple[Edit, ...]
    words: tuple[Word, ...] = field(default=(), repr=False)  # of the hypothesis, with times and confidences
    audio: Path | None = field(default=None, repr=False)
    speaker: str = ""
    language: str | None = None
    seconds: float = 0.0
    snr_db: float | None = None
    confidence: float | None = None

    @property
    def errors(self) -> int:
        """Substitutions, deletions and insertions together."""
        return sum(edit.kind != "equal" for edit in self.edits)

    @property
    def reference_words(self) -> int:
        return sum(edit.kind != "insert" for edit in self.edits)

    @property
    def wer(self) -> float:
        """Errors per reference word; where there is none, 0.0 if nothing was heard and 1.0 if something was."""
        return self.errors / self.reference_words if self.reference_words else float(self.errors > 0)


@dataclass(frozen=True)
class ErrorReport:
    """All utterances of one system on one set."""

    utterances: tuple[Scored, ...]
    language: str | None = None
    name: str = ""  # of the system
