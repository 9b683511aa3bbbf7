"""Word error rate on clips, corpus-level. In: anything that turns sounds into texts. Out: a `Score`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import jiwer
import numpy as np
import torch

from speechkit.demo.recipes.batches import normalized
from speechkit.text import split_words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import Wav2Vec2ForCTC

Transcribe = Callable[[list[np.ndarray]], list[str]]

__all__ = ["Score", "greedy", "score", "training_model"]

SHORTEST = 1000  # samples: a few frames, so that the shortest real clip has one


@dataclass(frozen=True)
class Score:
    """Corpus-level error rates: all edits over all reference words (characters)."""

    wer: float
    cer: float
    clips: int
    pairs: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        return f"WER {self.wer:.1%}, CER {self.cer:.1%} over {self.clips} clips"


def score(transcribe: Transcribe, clips: list[np.ndarray], texts: list[str]) -> Score:
    """Transcribe the clips (float32 (T,), 16 kHz) and compare with their texts.

    In scripts written without spaces every character is a word, and the two rates are one.
    """
    heard = transcribe(clips)
    words = [[" ".join(split_words(text)) for text in side] for side in (texts, heard)]
    return Score(
        jiwer.wer(words[0], words[1]), jiwer.cer(texts, heard), len(texts), tuple(zip(texts, heard, strict=True))
    )


def greedy(ids: np.ndarray, tokens: Sequence[str]) -> str:
    """Frame-wise best ids (F,) → text: repeats merged, blanks dropped. `tokens` in the order of their ids."""
    kept = ids[np.flatnonzero(np.diff(ids, prepend=-1))]
    text = "".join(tokens[number] for number in kept if number > 3)
    return " ".join(text.replace("|", " ").split())


def training_model(model: Wav2Vec2ForCTC, tokens: Sequence[str]) -> Transcribe:
    """The model in training as it stands, clip by clip: for the curve. Published figures come from a `Recognizer`."""

    def transcribe(clips: list[np.ndarray]) -> list[str]:
        training = model.training
        model.eval()
        heard = []
        with torch.inference_mode():
            for samples in clips:
                padded = np.pad(samples, (0, max(0, SHORTEST - len(samples))))
                logits = model(torch.from_numpy(normalized(padded))[None].to(model.device)).logits
                heard.append(greedy(logits[0].argmax(-1).cpu().numpy(), tokens))
        model.train(training)
        return heard

    return transcribe
