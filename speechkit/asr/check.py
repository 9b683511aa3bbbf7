"""Proofs that a user can call: batched equals single, windows agree with the whole. In: a recogniser. Out: one line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from speechkit import audio as audio_in
from speechkit.asr.longform import Windows
from speechkit.errors import AudioError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from speechkit.asr.model import Recognizer

__all__ = ["Agreement", "Check", "batches_equal_singles", "ragged_clips", "windows_agree"]

BOUND = 1e-4  # float32, natural-log units
# half precision rounds differently in every batch shape, and a log-probability near -20 magnifies that: probabilities
# are compared instead. The bounds are estimates from eleven and eight bits of mantissa; bfloat16 ran on a CPU only.
HALF_BOUNDS = {"float16": 2e-2, "bfloat16": 1e-1}


@dataclass(frozen=True)
class Check:
    """The largest difference between clips run alone and run in ragged batches."""

    difference: float
    bound: float
    clips: int
    shortest_s: float
    longest_s: float
    quantity: str = "log p"

    @property
    def ok(self) -> bool:
        return self.difference <= self.bound  # False for NaN

    def __str__(self) -> str:
        return (
            f"batched == single: max |Δ {self.quantity}| {self.difference:.1e} over {self.clips} clips, "
            f"{self.shortest_s:.1f}–{self.longest_s:.1f} s (bound {self.bound:.0e}): {'ok' if self.ok else 'DIFFERENT'}"
        )


@dataclass(frozen=True)
class Agreement:
    """How far windowed transcription agrees with one pass over the whole clip."""

    equal: float  # share of frames with the same winning token, [0, 1]
    frames: int
    windows: int
    same_text: bool

    def __str__(self) -> str:
        text = "same text" if self.same_text else "different text"
        return f"windows == whole: {self.equal:.2%} of {self.frames} frames equal over {self.windows} windows, {text}"


def ragged_clips(count: int = 8, shortest_s: float = 0.3, longest_s: float = 20.0) -> list[NDArray[np.float32]]:
    """Voice-like test signals (T,) of geometrically spaced lengths: gliding harmonics, pauses, a little noise."""
    rng = np.random.default_rng(0)
    clips = []
    for seconds in np.geomspace(shortest_s, longest_s, count):
        time = np.arange(round(seconds * audio_in.SAMPLE_RATE)) / audio_in.SAMPLE_RATE
        pitch = rng.uniform(90, 220) * (1 + 0.2 * np.sin(2 * np.pi * rng.uniform(0.3, 1.5) * time))
        phase = 2 * np.pi * np.cumsum(pitch) / audio_in.SAMPLE_RATE
        voice = sum(rng.uniform(0.2, 1) / k * np.sin(k * phase) for k in range(1, 12))
        syllables = np.clip(np.sin(2 * np.pi * rng.uniform(2, 5) * time) + 0.4, 0, None)
        level = rng.uniform(0.02, 0.3)  # loudness must not matter either
        clips.append((level * (voice * syllables + 0.02 * rng.standard_normal(len(time)))).astype(np.float32))
    return clips


def batches_equal_singles(recognizer: Recognizer, clips: Sequence[NDArray[np.float32]] | None = None) -> Check:
    """Run each clip alone, then all in batches as ragged as possible, and compare every log-probability.

    clips: (T,) each, default :func:`ragged_clips`. Sorting by length is left out on purpose: a batch here has short
    clips beside long ones. Architectures whose batches are never padded are checked as they are used.
    """
    chosen = list(ragged_clips() if clips is None else clips)
    singles = [recognizer.forward([clip])[0] for clip in chosen]
    if recognizer.batcher.ragged:
        batched: list[Any] = [None] * len(chosen)
        for group in (range(0, len(chosen), 2), range(1, len(chosen), 2)):
            for index, row in zip(group, recognizer.forward([chosen[i] for i in group]) if group else (), strict=True):
                batched[index] = row
    else:
        batched = recognizer.batcher.run(chosen, recognizer.forward)
    half = HALF_BOUNDS.get(recognizer.dtype)
    if half is not None:
        singles, batched = [np.exp(row) for row in singles], [np.exp(row) for row in batched]
    # np.max hands a NaN on, so a broken batch cannot pass
    worst = float(np.max([np.max(np.abs(a - b)) for a, b in zip(singles, batched, strict=True)]))
    lengths = [len(clip) / audio_in.SAMPLE_RATE for clip in chosen]
    return Check(worst, half or BOUND, len(chosen), min(lengths), max(lengths), "p" if half else "log p")


def windows_agree(recognizer: Recognizer, audio: Any, window_s: float = 10.0, overlap_s: float = 2.0) -> Agreement:
    """Transcribe `audio` in one pass and in windows of `window_s`, and compare the winning token of every frame.

    Needs memory for the whole clip at once. Raises AudioError when the clip fits into one window.
    """
    samples = audio_in.load(audio)
    windows = Windows.of(window_s, overlap_s, recognizer.grid)
    if recognizer.grid.frames(len(samples)) <= windows.length:
        raise AudioError(
            f"the clip is {len(samples) / audio_in.SAMPLE_RATE:.1f} s and fits into one window of {window_s} s: "
            "give a longer clip or a shorter window"
        )
    whole = recognizer.best_path([samples], windows=None)[0]
    parts = recognizer.best_path([samples], windows=windows)[0]
    count = -(-(len(whole) - windows.length) // windows.step) + 1
    words = [recognizer.words_of(path, len(samples)) for path in (whole, parts)]
    same = [w.text for w in words[0]] == [w.text for w in words[1]]
    return Agreement(float(np.mean(whole.ids == parts.ids)), len(whole), count, same)
