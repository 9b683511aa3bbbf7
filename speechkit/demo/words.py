"""Single words by many voices, spoken by espeak-ng while you wait: labelled material for probes and maps.

In: words and the names of voices. Out: `SpokenWord`s. Needs the extra `synth`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["VOICES", "SpokenWord", "spoken_words"]

VOICES = ("f2", "f5", "m3", "m7", "klatt4", "grandma", "robert", "anika")


@dataclass(frozen=True, slots=True)
class SpokenWord:
    """One word by one voice; `samples` (T,) float32, 16 kHz."""

    samples: NDArray[np.float32] = field(repr=False)
    text: str
    voice: str


def spoken_words(
    words: Sequence[str], voices: Sequence[str] = VOICES, takes: int = 2, language: str = "en-us", seed: int = 0
) -> list[SpokenWord]:
    """Every word by every voice, `takes` times at rates and pitches that `seed` fixes; espeak-ng's breath stays random.

    voices: espeak-ng variants. Raises DataError for one that it does not have, MissingExtra without espeak-ng.
    """
    from speechkit.demo.recipes.espeak import EspeakVoice, synthesize

    rng = random.Random(seed)
    found = []
    for word in words:
        for name in voices:
            for _ in range(takes):
                samples = synthesize(word, EspeakVoice(language, name, rng.randint(130, 190), rng.randint(30, 70)))
                loudest = float(np.abs(samples).max()) or 1.0
                found.append(SpokenWord(samples * np.float32(0.7 / loudest), word, name))
    return found
