"""Which words of a growing transcript will not change any more? Rules on frames; knows no audio and no model.

In: the best path of a window and the frames at which its words start. Out: how many words are settled, and the frame
from which on the next window's words count. A frame belongs to one side of that seam only, and the seam lies in the gap
between two words, so nothing is lost or said twice when the next window sees a letter a frame earlier or later.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from speechkit.asr.decode import Alphabet, BestPath

__all__ = ["Span", "agreeing", "passed", "seam", "settled", "spans", "widest_pause"]

PAUSE_FRAMES = 15  # so many frames without a letter end a word even where no delimiter is written (0.3 s)


@dataclass(frozen=True, slots=True)
class Span:
    """One word: frames `first` to `last`, both included, and the first frame after its delimiter, if it has one."""

    first: int
    last: int
    closed: int | None


def spans(path: BestPath, starts: Sequence[int], alphabet: Alphabet) -> list[Span]:
    """Frames at which the words of `path` start → their spans."""
    written = np.array([bool(symbol.strip()) for symbol in alphabet.symbols])[path.ids]  # (F,) letters, not blanks
    ends = [*starts[1:], len(path)] if len(starts) else []
    found = []
    for start, end in zip(starts, ends, strict=True):
        inside = np.flatnonzero(written[start:end])
        last = start + int(inside[-1]) if len(inside) else start
        after = path.ids[last + 1 : end]
        delimiters = np.flatnonzero(after == (-1 if alphabet.delimiter is None else alphabet.delimiter))
        found.append(Span(start, last, last + 2 + int(delimiters[-1]) if len(delimiters) else None))
    return found


def settled(found: Sequence[Span], frames: int, lag: int) -> int:
    """How many leading words have ended, and at least `lag` frames before the edge of the `frames` heard."""
    count = 0
    for index, span in enumerate(found):
        followed = index + 1 < len(found) or span.closed is not None
        quiet = frames - 1 - span.last
        if quiet < lag or not (followed or quiet >= PAUSE_FRAMES):
            break
        count += 1
    return count


def agreeing(before: Sequence[str], now: Sequence[str]) -> int:
    """How many leading words two transcripts share (local agreement: Liu et al. 2020, arXiv:2005.11185)."""
    for count, (old, new) in enumerate(zip(before, now, strict=False)):
        if old != new:
            return count
    return min(len(before), len(now))


def seam(found: Sequence[Span], count: int, frames: int) -> int:
    """The frame between the first `count` ≥ 1 words and what follows: the middle of the gap."""
    last = found[count - 1]
    if count < len(found):
        return (last.last + 1 + found[count].first) // 2
    return last.closed if last.closed is not None else min(frames, last.last + 1 + PAUSE_FRAMES // 2)


def passed(found: Sequence[Span], frames: int, lag: int) -> int:
    """How many leading frames of a pause no window needs again: all but the last 0.3 s before a word or the edge."""
    ahead = found[0].first if found else frames - lag
    return max(0, ahead - PAUSE_FRAMES)


def widest_pause(found: Sequence[Span], frames: int) -> int:
    """The middle of the widest gap between words in the later half of `frames`; without any, the last frame."""
    gaps = [
        (after.first - before.last, (before.last + 1 + after.first) // 2)
        for before, after in pairwise(found)
        if (before.last + 1 + after.first) // 2 >= frames // 2
    ]
    return max(gaps)[1] if gaps else frames
