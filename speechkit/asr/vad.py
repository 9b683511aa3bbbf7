"""Is anybody speaking? Silero VAD's probabilities, and the gate that makes utterances of them.

In: samples at 16 kHz. Out: where utterances begin and end, in samples. Knows no recogniser. Everything depends on the
audio alone: probabilities are computed for whole blocks of 512 samples, however the audio arrives.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from speechkit.errors import PlanError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["BLOCK", "Gate", "GateOptions", "Turn", "Vad"]

BLOCK = 512  # samples per probability: the one size that the network takes at 16 kHz (32 ms)
RATE = 16_000


class Vad:
    """The network of the package silero-vad with its recurrent state: one per stream."""

    def __init__(self) -> None:
        self._network = _load()

    def __call__(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N * BLOCK,) float32 → (N,) probability of speech; goes on from where the last call stopped."""
        blocks = torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32)).reshape(-1, BLOCK)
        with torch.inference_mode():
            return np.array([float(self._network(block, RATE)) for block in blocks], dtype=np.float32)


def _load() -> Any:
    threads = torch.get_num_threads()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # notes to the developers of the package and of torch
            import silero_vad

            return silero_vad.load_silero_vad()
    finally:
        torch.set_num_threads(threads)  # its import and its loader set the whole process to one thread


@dataclass(frozen=True)
class GateOptions:
    """When an utterance begins and ends."""

    open_at: float = 0.5  # probability at which speech begins
    close_at: float = 0.35  # below it, silence is counted
    silence_s: float = 0.6  # so much silence ends an utterance
    before_s: float = 0.3  # audio kept before the first speech block: quiet onsets
    after_s: float = 0.3  # and after the last one

    def __post_init__(self) -> None:
        """Raises PlanError for a gate that could not open or close, or would keep audio that it has not heard."""
        rules = [
            (0 < self.close_at <= self.open_at <= 1, "0 < close_at <= open_at <= 1"),
            (0 < self.silence_s < float("inf"), "0 < silence_s, and finite"),
            (0 <= self.before_s < float("inf"), "0 <= before_s, and finite"),
            (0 <= self.after_s <= self.silence_s, "0 <= after_s <= silence_s"),
        ]
        broken = [rule for holds, rule in rules if not holds]
        if broken:
            raise PlanError(f"{self} cannot be: it must hold that {'; '.join(broken)}")


@dataclass(frozen=True, slots=True)
class Turn:
    """An utterance begins or ends at `sample`."""

    kind: Literal["open", "close"]
    sample: int


class Gate:
    """Probabilities, one per block → turns. Utterances never overlap."""

    def __init__(self, options: GateOptions | None = None) -> None:
        self.options = options or GateOptions()
        self.is_open = False
        self._blocks = 0  # seen so far
        self._spoken = 0  # sample after the last block with speech
        self._free = 0  # sample from which the next utterance may begin

    def step(self, probability: float) -> Turn | None:
        """The next block's probability → the turn it brings, if any."""
        start, how = self._blocks * BLOCK, self.options
        self._blocks += 1
        if not self.is_open:
            if probability < how.open_at:
                return None
            self.is_open, self._spoken = True, start + BLOCK
            return Turn("open", max(self._free, start - round(how.before_s * RATE)))
        if probability >= how.close_at:
            self._spoken = start + BLOCK
            return None
        if start + BLOCK - self._spoken < how.silence_s * RATE:
            return None
        self.is_open = False
        self._free = min(start + BLOCK, self._spoken + round(how.after_s * RATE))
        return Turn("close", self._free)
