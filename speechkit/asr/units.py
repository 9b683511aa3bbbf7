"""Discrete units: speech as a sequence of code numbers. What they are, and how to count, write and judge them.

In: code indices (F, G) of one clip, from `codebook.py` (a pretraining checkpoint's own quantiser, G groups) or from
`kmeans.py` (clusters of a hidden layer, one group). Out: `Units`: runs, strings, bitrate, usage, purity. Knows no
model.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from speechkit.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from speechkit.asr.frames import FrameGrid
    from speechkit.types import Transcript

__all__ = ["Purity", "Run", "Units", "Usage", "bitrate", "purity", "usage"]

PAUSE = ""  # what a frame says that belongs to no character


@dataclass(frozen=True, slots=True)
class Run:
    """The same code in consecutive frames."""

    codes: tuple[int, ...]  # one per group
    start_s: float
    end_s: float

    @property
    def name(self) -> str:
        """`17`, or with several groups `17-302`."""
        return "-".join(map(str, self.codes))


@dataclass(frozen=True, eq=False)
class Units:
    """Code indices (F, G) of one clip, frame by frame; group g has `sizes[g]` codes."""

    ids: NDArray[np.int32] = field(repr=False)
    sizes: tuple[int, ...]
    grid: FrameGrid = field(repr=False)
    duration_s: float
    model: str

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        sizes = " x ".join(map(str, self.sizes))
        return (
            f"Units({len(self)} frames, {len(self.runs())} runs, codes {sizes}, {self.duration_s:.2f} s, {self.model})"
        )

    def runs(self) -> tuple[Run, ...]:
        """Frames collapsed: neighbours with the same codes are one run. Its times are the frames' hops, end to end."""
        if not len(self.ids):
            return ()
        changes = np.flatnonzero((self.ids[1:] != self.ids[:-1]).any(axis=1)) + 1
        edges = [0, *changes.tolist(), len(self.ids)]
        hop_s = self.grid.hop / self.grid.rate
        return tuple(
            Run(tuple(self.ids[first].tolist()), first * hop_s, min(stop * hop_s, self.duration_s))
            for first, stop in pairwise(edges)
        )

    def __str__(self) -> str:
        """The runs' names, parted by spaces: what a language model over units reads."""
        return " ".join(run.name for run in self.runs())


@dataclass(frozen=True, slots=True)
class Usage:
    """How evenly one group's codes are used: perplexity is `size` when all are used alike, 1 when only one is."""

    size: int
    used: int
    perplexity: float

    def __str__(self) -> str:
        return f"{self.used} of {self.size} codes used, perplexity {self.perplexity:.1f}"


@dataclass(frozen=True, slots=True)
class Purity:
    """How far units and characters agree, frame by frame (Hsu et al. 2021, HuBERT, arXiv:2106.07447, section IV-A).

    `unit`: share of frames whose unit's commonest character is theirs. `character`: share of frames whose character's
    commonest unit is theirs. `information`: mutual information over the entropy of the characters, 0 to 1 (PNMI).
    """

    unit: float
    character: float
    information: float
    frames: int

    def __str__(self) -> str:
        return (
            f"unit purity {self.unit:.1%}, character purity {self.character:.1%}, "
            f"{self.information:.1%} of the characters' entropy known, over {self.frames:,} frames"
        )


def bitrate(clips: Sequence[Units]) -> float:
    """Bits per second of the collapsed runs: entropy of their names, times runs per second (Dunbar et al. 2019, the
    Zero Resource Speech Challenge, arXiv:1904.11469, section 3.2). Raises DataError without a clip.
    """
    names = Counter(run.codes for clip in clips for run in clip.runs())
    seconds = sum(clip.duration_s for clip in clips)
    if not names or seconds <= 0:
        raise DataError("no units to count: give at least one clip with a frame")
    return names.total() / seconds * _entropy(np.array(list(names.values()))) / math.log(2)


def usage(clips: Sequence[Units]) -> tuple[Usage, ...]:
    """Per group, how many of its codes the frames of these clips use, and their perplexity. Raises DataError."""
    if not clips or not any(map(len, clips)):
        raise DataError("no units to count: give at least one clip with a frame")
    if len({clip.sizes for clip in clips}) > 1:
        raise DataError("the clips have units of different codebooks: count each by itself")
    ids = np.concatenate([clip.ids for clip in clips])
    found = []
    for group, size in enumerate(clips[0].sizes):
        counts = np.bincount(ids[:, group], minlength=size)
        found.append(Usage(size, int((counts > 0).sum()), math.exp(_entropy(counts))))
    return tuple(found)


def purity(clips: Sequence[Units], transcripts: Sequence[Transcript]) -> Purity:
    """Units against aligned characters (`Recognizer.align`, or a transcript); a frame without one says "pause".

    Raises DataError for lists of different lengths, without a frame, or for words without the times of characters.
    """
    if len(clips) != len(transcripts):
        raise DataError(f"{len(clips)} clips of units and {len(transcripts)} transcripts; give one for each")
    pairs = Counter(
        pair
        for clip, transcript in zip(clips, transcripts, strict=True)
        for pair in zip(map(tuple, clip.ids.tolist()), _characters(clip, transcript), strict=True)
    )
    if not pairs:
        raise DataError("no units to count: give at least one clip with a frame")
    units = {name: row for row, name in enumerate(dict.fromkeys(unit for unit, _ in pairs))}
    letters = {name: column for column, name in enumerate(dict.fromkeys(letter for _, letter in pairs))}
    table = np.zeros((len(units), len(letters)))
    for (unit, letter), count in pairs.items():
        table[units[unit], letters[letter]] = count
    total = table.sum()
    known = _entropy(table.sum(0)) + _entropy(table.sum(1)) - _entropy(table.ravel())
    entropy = _entropy(table.sum(0))
    return Purity(
        float(table.max(axis=1).sum() / total),
        float(table.max(axis=0).sum() / total),
        float(known / entropy) if entropy > 0 else 1.0,
        int(total),
    )


def _characters(clip: Units, transcript: Transcript) -> list[str]:
    """The character heard in the middle of each frame."""
    if transcript.text and not any(word.chars for word in transcript.words):
        raise DataError("the transcript has no character times; take one of Recognizer.align or transcribe, with words")
    said = [PAUSE] * len(clip)
    hop_s, middle_s = clip.grid.hop / clip.grid.rate, clip.grid.field / clip.grid.rate / 2
    for char in (char for word in transcript.words for char in word.chars):
        first = max(0, math.ceil((char.start_s - middle_s) / hop_s))
        stop = min(len(clip), math.ceil((char.end_s - middle_s) / hop_s))
        said[first:stop] = [char.text] * max(0, stop - first)
    return said


def _entropy(counts: NDArray[np.number]) -> float:
    """Natural-log entropy of counts."""
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())
