"""Speech that demo/en has never heard, for measuring: held-out sentences by held-out voices, with noise as asked.

In: how many, and a seed. Out: samples, texts and voices. Needs the extra `synth`. The same seed gives the
same sentences, voices, rates and pitches; espeak-ng's breath and flutter differ from run to run.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from speechkit.demo.recipes.corpus import render, sentences
from speechkit.demo.recipes.grammar import Grammar

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Spoken", "other_sentences", "spoken", "with_noise"]


@dataclass(frozen=True)
class Spoken:
    """One clip: `samples` (T,) float32 at 16 kHz, what is said in it, and by which voice."""

    samples: NDArray[np.float32]
    text: str
    voice: str


def spoken(count: int, seed: int, language: str = "en") -> list[Spoken]:
    """`count` different sentences kept out of the training of the embedded model, by voices kept out of it."""
    texts = sentences(Grammar(language), random.Random(f"measured {seed}"), count, test=True)
    return [
        Spoken(samples, text, voice) for samples, text, voice, _ in render(texts, test=True, seed=seed, code=language)
    ]


def other_sentences(count: int, language: str = "en") -> list[str]:
    """`count` sentences of the same grammar, none of which :func:`spoken` says: text for a language model."""
    return sentences(Grammar(language), random.Random("text"), count, test=False)


def with_noise(samples: NDArray[np.float32], snr_db: float, seed: int = 0) -> NDArray[np.float32]:
    """White noise of a power `snr_db` below that of the clip, (T,) → (T,) float32."""
    level = 10 ** (-snr_db / 20) * float(np.sqrt(np.mean(np.square(samples))))
    noise = np.random.default_rng(seed).standard_normal(len(samples)).astype(np.float32)
    return np.asarray(samples + np.float32(level) * noise, np.float32)
