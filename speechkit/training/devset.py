"""A development set and how a model does on it: corpus-level rates, as a `Recognizer` would reach them.

In: clips with texts, a CTC model in training. Out: a `DevScore`. Only the winning token of each frame leaves a batch,
so memory does not grow with the set or with the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from speechkit.asr import batch as batching
from speechkit.asr import decode
from speechkit.asr.masks import lengths_known
from speechkit.errors import DataError
from speechkit.evaluation import metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from speechkit.asr.decode import Alphabet
    from speechkit.asr.frames import FrameGrid
    from speechkit.training.collate import Clips

    Row = tuple[int, str, float]  # index, text, CTC loss

__all__ = ["DevScore", "DevSet"]


@dataclass(frozen=True)
class DevScore:
    """All edits over all reference words (characters), and the mean CTC loss per label, in nats."""

    wer: float
    cer: float
    loss: float
    clips: int
    texts: tuple[str, ...] = field(default=(), repr=False)  # what was heard, in the order of the set

    def __str__(self) -> str:
        return f"WER {self.wer:.1%}, CER {self.cer:.1%} over {self.clips} clips"


@dataclass
class DevSet:
    """Clips to score, in batches of neighbours in length. Raises DataError when there are none, or none has a word."""

    clips: Clips
    alphabet: Alphabet
    grid: FrameGrid
    budget: int  # padded frames per batch
    ragged: bool = True
    language: str | None = None

    def __post_init__(self) -> None:
        if not len(self.clips):
            raise DataError(
                "the development set is empty: give some clips that are not trained on (split_examples makes them), "
                "at least a few minutes for a rate that means something"
            )
        if not any(self.clips.labels):
            raise DataError("no text of the development set has a character of the vocabulary: nothing can be scored")
        frames = [self.grid.frames(round((one.seconds or 0.0) * self.grid.rate)) for one in self.clips.examples]
        self.batches = batching.plan(frames, self.budget, self.ragged)

    def __len__(self) -> int:
        return len(self.clips)

    def hear(
        self, model: Any, context: Callable[[], AbstractContextManager[Any]], rank: int = 0, world: int = 1
    ) -> list[Row]:
        """Every `world`-th batch from `rank` on through a CTC model → index, text and loss of each clip."""
        training = model.training
        model.eval()
        rows: list[Row] = []
        try:
            for indices in self.batches[rank::world]:
                with torch.inference_mode(), context():
                    rows += self._heard(model, indices)
        finally:
            model.train(training)
        return rows

    def score(self, rows: Sequence[Row]) -> DevScore:
        """Rows of all processes together → rates. A clip that two processes heard counts once."""
        heard = {index: (text, loss) for index, text, loss in rows}
        texts = tuple(heard[index][0] for index in range(len(self)))
        said = [one.text for one in self.clips.examples]
        return DevScore(
            wer=metrics.wer(said, texts, self.language),
            cer=metrics.cer(said, texts, self.language),
            loss=float(np.mean([loss for _, loss in heard.values()])),
            clips=len(self),
            texts=texts,
        )

    def _heard(self, model: Any, indices: Sequence[int]) -> list[Row]:
        inputs = self.clips.batch(indices)
        samples, labels = inputs.pop("samples"), inputs.pop("labels")
        mask = inputs.get("attention_mask")
        device = next(model.parameters()).device
        values = {name: tensor.to(device) for name, tensor in inputs.items()}
        with lengths_known(model, samples if mask is not None else None):
            logits = model(**values).logits  # (B, F, V)
        frames = [self.grid.frames(count) for count in samples]
        losses = ctc_per_clip(logits, labels, frames, self.alphabet.blank).tolist()
        winners = logits.argmax(dim=-1).to("cpu", torch.int32).numpy()  # (B, F)
        texts = [self._text(row[:count]) for row, count in zip(winners, frames, strict=True)]
        return list(zip(indices, texts, losses, strict=True))

    def _text(self, ids: Any) -> str:
        path = decode.BestPath(ids, np.zeros(len(ids), np.float32))
        return decode.text_of(decode.decode(path, self.alphabet, self.grid, float("inf")))


def ctc_per_clip(logits: torch.Tensor, labels: torch.Tensor, frames: Sequence[int], blank: int) -> torch.Tensor:
    """logits (B, F, V), labels (B, L) padded with -100 → CTC loss of each clip per label (B,), nats; 0 where none fits.

    Graves et al. 2006; always in float32.
    """
    log_probs = logits.float().log_softmax(-1).transpose(0, 1)  # (F, B, V)
    kept = labels >= 0
    counts = kept.sum(-1)
    losses = torch.nn.functional.ctc_loss(
        log_probs, labels.clamp(min=0).to(logits.device), torch.tensor(frames), counts,
        blank=blank, reduction="none", zero_infinity=True,
    )  # fmt: skip
    return losses.cpu() / counts.clamp(min=1)
