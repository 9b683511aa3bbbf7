"""What is heard of one input while it passes: its length, peak and clipped samples, and the warnings that follow."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    Samples = NDArray[np.float32]

__all__ = ["SILENT_PEAK", "Meter"]

SILENT_PEAK = 1e-4  # -80 dBFS, three steps of 16-bit audio: below it is dither, which normalisation would blow up
CLIPPED_LEVEL, CLIPPED_SHARE = 0.99, 0.01
SHORT_S = 0.3  # a syllable; below it there is hardly anything to hear a word in


class Meter:
    """Counts what passes: length, peak and clipped samples of one input, for its transcript's warnings.

    pad: samples of silence put before and after what passes, uncounted.
    """

    def __init__(self, pad: int = 0) -> None:
        self.pad = pad
        self.samples = self.clipped = 0
        self.peak = 0.0

    def watch(self, blocks: Iterable[Samples]) -> Iterator[Samples]:
        silence = np.zeros(self.pad, np.float32)
        for block in blocks:
            if self.pad and not self.samples:
                yield silence
            size = np.abs(block)
            self.samples += len(block)
            self.peak = max(self.peak, float(size.max(initial=0.0)))
            self.clipped += int((size >= CLIPPED_LEVEL).sum())
            yield block
        if self.pad and self.samples:
            yield silence

    def warnings(self, rate: int) -> tuple[str, ...]:
        notes = []
        if self.peak < SILENT_PEAK:
            notes.append(f"silent: the loudest sample is {self.peak:.1e} of full scale")
        if self.samples < SHORT_S * rate:
            notes.append(f"very short: {self.samples / rate:.2f} s, less than a syllable")
        if self.clipped > CLIPPED_SHARE * self.samples:
            notes.append(f"clipped: {self.clipped / self.samples:.0%} of the samples are at full scale")
        return tuple(notes)
