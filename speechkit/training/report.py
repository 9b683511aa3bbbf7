"""How a run ended, as a frozen result that prints well, and as JSON. In: figures. Out: text. Knows no torch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechkit.errors import DataError
from speechkit.evaluation.metrics import Rate
from speechkit.training.curve import Curve

if TYPE_CHECKING:
    from os import PathLike

__all__ = ["ENDINGS", "FinetuneResult"]

ENDINGS = {
    "steps": "all steps were made",
    "minutes": "the time was up",
    "stopped": "it was asked to stop; the same call goes on from here",
    "patience": "the word error rate had not fallen for as long as it may",
    "diverged": "the loss or the gradient was no number any more",
}


@dataclass(frozen=True)
class FinetuneResult:
    """What came of a run; `load_asr(result.best)` opens the model.

    Rates are of the whole development set (all edits over all reference words or characters), through a `Recognizer`,
    with 95 % intervals. `before` is the model that the run started from, None where it had no head or was not measured.
    """

    folder: Path
    best: Path | None  # None: nothing fit to keep
    strategy: str
    ending: str  # a key of ENDINGS
    steps: int  # made
    best_step: int
    wer: Rate | None
    cer: Rate | None
    wer_before: float | None
    cer_before: float | None
    trainable: int  # numbers that learnt
    total: int  # numbers in the model
    minutes: float  # of training and evaluation, over all sittings
    audio_s: float  # trained on, repeats counted, padding not
    padding: float  # share of the frames computed that was padding
    precision: str  # and why
    train_clips: int
    train_s: float
    dev_clips: int
    dev_s: float
    notes: tuple[str, ...] = ()
    curve: Curve = field(default_factory=Curve, repr=False, compare=False)

    def __str__(self) -> str:
        before = f", from {self.wer_before:.1%}" if self.wer_before is not None else ""
        rates = f"WER {self.wer}, CER {self.cer} on {self.dev_clips} clips" if self.wer else "no rate was measured"
        share = self.trainable / self.total if self.total else 0.0
        lines = [
            f"{rates}{before}",
            f"{self.strategy}: {self.trainable:,} of {self.total:,} numbers learnt ({share:.1%}), {self.precision}",
            f"{self.steps} steps in {self.minutes:.1f} min, {self.audio_s / 60:.1f} min of audio heard (of "
            f"{self.train_s / 60:.1f} min in {self.train_clips} clips), padding {self.padding:.1%}",
            f"ended at step {self.steps}: {ENDINGS[self.ending]}; best at step {self.best_step}",
            f"model: {self.best}" if self.best else "no model was kept",
        ]
        return "\n".join([*lines, *(f"note: {line}" for line in self.notes)])

    def to_dict(self) -> dict[str, Any]:
        """Plain values, without the curve, which has a file of its own."""
        row = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "curve"}
        for name in ("wer", "cer"):
            row[name] = asdict(row[name]) if row[name] is not None else None
        return row | {"folder": str(self.folder), "best": str(self.best) if self.best else None}

    @classmethod
    def load(cls, folder: str | PathLike[str]) -> FinetuneResult:
        """The result of the run in `folder`, wherever that lies now. Raises DataError where no run has ended."""
        path = Path(folder)
        try:
            row = json.loads((path / "result.json").read_text(encoding="utf-8"))
            for name in ("wer", "cer"):
                row[name] = Rate(**row[name]) if row[name] is not None else None
            row |= {"folder": path, "best": path / "best" if row["best"] else None, "notes": tuple(row["notes"])}
            return cls(**row, curve=Curve.load(path / "curve.jsonl"))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DataError(
                f"{path} holds no finished run ({error}); run finetune(config, train, dev) first"
            ) from error
