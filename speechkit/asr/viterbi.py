"""The best CTC path through a given token sequence: frames × tokens → which token each frame belongs to. NumPy.

In: (B, F, U) natural-log emissions and (B, L) columns to pass through in order. Out: `Paths`. Knows no text and no
seconds.

A target of L tokens has 2L + 1 states: blank, token, blank, …, blank (Graves et al. 2006, section 4.1). They are held
as L + 1 *pairs*: pair i is the blank before token i, and token i; the last pair's token is never reached. One frame is
one step over the pairs of a whole batch, and a step has three planes of back-pointer bits: a blank was entered from the
token before it; a token was entered from its blank; a token was entered from the token before it. Three bits per pair
are one and a half per state, packed eight to the byte: 0.19 of one int8 per state.

**The result is that of the full search, always**: there is no beam and no band. Where the table of back-pointers would
pass `ONE_PASS` bytes, the scores alone are swept over the frames first, and kept every `SEGMENT` frames. Then, from the
last segment to the first, the table of one segment is filled from its kept scores. In n frames a path moves at most n
pairs on, so what is left of that reach cannot matter, and is left out: the second sweep costs a sliver of the first.
(Hirschberg's trade of a repeated sweep for memory, CACM 18(6), 1975, with kept rows in place of his halving.) Scores
are summed in float64, in the same order in both sweeps, so the second repeats the first one's decisions, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

__all__ = ["ONE_PASS", "SEGMENT", "Paths", "frames_needed", "search"]

ONE_PASS = 16 * 2**20  # bytes of back-pointers up to which filling them at once is faster than sweeping twice
SEGMENT = 1024  # frames between kept scores: an hour of 50,000 tokens keeps 141 MB
CHUNK = 2**17  # back-pointers unpacked at a time while tracing


@dataclass(frozen=True, slots=True)
class Paths:
    """The best path of each item of a batch.

    `owners` (B, F) int32: the position in the target of the token that a frame belongs to, -1 for blank and for frames
    past the item's own. `scores` (B,): the path's log-probability, -inf where no path has any. `pointer_bytes` and
    `score_bytes`: the most that back-pointers and kept scores took.
    """

    owners: NDArray[np.int32]
    scores: Floats
    pointer_bytes: int
    score_bytes: int


def frames_needed(target: NDArray[Any]) -> int:
    """The fewest frames that (L,) tokens fit into: one each, and a blank between equal neighbours."""
    return len(target) + int(np.count_nonzero(target[1:] == target[:-1]))


def search(
    emissions: NDArray[Any],
    targets: NDArray[Any],
    frames: NDArray[Any] | None = None,
    tokens: NDArray[Any] | None = None,
    blank: int = 0,
    one_pass: int = ONE_PASS,
) -> Paths:
    """(B, F, U) natural log, (B, L) columns of U → the most probable path through each target, blanks between.

    frames (B,), tokens (B,): how much of each row is meant, default all; what lies beyond may be anything but NaN.
    blank: its column. one_pass: bytes of back-pointers beyond which scores are kept instead (see the file's head).
    Of equal paths the one that stays longer in a state wins, as in torchaudio's `forced_align`. The caller sees to it
    that no emission is NaN and that every item has at least `frames_needed` frames.
    """
    count, most, _ = emissions.shape
    frames = np.full(count, most) if frames is None else np.asarray(frames)
    tokens = np.full(count, targets.shape[1]) if tokens is None else np.asarray(tokens)
    rows = _Rows(emissions, blank)
    trellis = _Trellis.start(rows, targets, tokens)
    width = trellis.blank.shape[1]
    whole = most * count * _row_bytes(width) <= one_pass
    length = most if whole else min(SEGMENT, most)
    starts = list(range(0, most, length))
    kept = _sweep(trellis, rows, starts, int((tokens - frames).min()))
    owners = np.full((count, most), -1, np.int32)
    end = _End(2 * tokens.astype(np.int64), np.full(count, -np.inf))
    pointers = np.empty((length, count, _row_bytes(min(width, length + 2))), np.uint8)
    for start, scores in zip(reversed(starts), reversed(kept), strict=True):
        stop = min(start + length, most)
        # a path moves one pair per frame, and may end in the last blank or in the token of the pair before it
        window = trellis.window(scores, end.state // 2 - (stop - start) - 1, min(width, length + 2))
        _fill(window, rows, start, pointers[: stop - start], frames, tokens, end)
        states = _trace(pointers[: stop - start], window, np.arange(start, stop)[:, None] < frames, end)
        inside = (states & 1).astype(bool) & (np.arange(start, stop)[:, None] < frames)
        owners[:, start:stop] = np.where(inside, states >> 1, -1).T
    held = sum(part.nbytes for scores in kept[1:] for part in scores)
    return Paths(owners, end.score, pointers.nbytes, held)


@dataclass(slots=True)
class _End:
    """Where the part of each path that is still to be traced ends: `state` (B,); and the `score` (B,) of the whole."""

    state: Ints
    score: Floats


class _Rows:
    """One frame of the batch at a time: (B, U + 1) float64, whose last column no path can afford."""

    def __init__(self, emissions: NDArray[Any], blank: int) -> None:
        self.emissions, self.width = emissions, emissions.shape[2] + 1
        self.row = np.full((len(emissions), self.width), -np.inf)
        self.flat = self.row.ravel()
        self.blank = self.row[:, blank : blank + 1]  # (B, 1), a view

    def load(self, frame: int) -> None:
        self.row[:, :-1] = self.emissions[:, frame]


class _Trellis:
    """The score of the best path into each state after some frame, for a window of pairs; scratch space beside it.

    `columns` (B, P): where a pair's token stands in the flat row. `repeated` (B, P): -inf where a token equals the one
    before it, so that a blank has to come between, else 0. `first` (B,): the window's first pair.
    """

    def __init__(self, columns: Ints, repeated: Floats, blank: Floats, token: Floats, first: Ints) -> None:
        self.columns, self.repeated, self.first = columns, repeated, first
        self.blank = blank  # (B, P)
        self.token = token  # (B, P + 1): column i + 1 is pair i's, column 0 the token before the window: none
        self.best, self.other = np.empty_like(blank), np.empty_like(blank)
        self.bits = np.empty((len(blank), 3 * blank.shape[1]), bool)

    @classmethod
    def start(cls, rows: _Rows, targets: NDArray[Any], tokens: NDArray[Any]) -> _Trellis:
        """All pairs before the first frame: in the first blank, at no cost."""
        count, length = targets.shape
        columns = np.full((count, length + 1), rows.width - 1, np.int64)
        meant = np.arange(length) < tokens[:, None]
        columns[:, :length][meant] = targets[meant]
        repeated = np.zeros(columns.shape)
        repeated[:, 1:][columns[:, 1:] == columns[:, :-1]] = -np.inf
        columns += rows.width * np.arange(count)[:, None]
        blank, token = np.full(columns.shape, -np.inf), np.full((count, length + 2), -np.inf)
        blank[:, 0] = 0.0
        return cls(columns, repeated, blank, token, np.zeros(count, np.int64))

    def window(self, scores: tuple[Floats, Floats], first: Ints, width: int) -> _Trellis:
        """`width` pairs from about `first` (B,) on, with the kept scores of all pairs."""
        first = np.clip(first, 0, self.blank.shape[1] - width)
        at = first[:, None] + np.arange(width)
        blank, token = (np.take_along_axis(part, at, axis=1) for part in scores)
        nothing = np.full((len(at), 1), -np.inf)
        columns = np.take_along_axis(self.columns, at, axis=1)
        repeated = np.take_along_axis(self.repeated, at, axis=1)
        return _Trellis(columns, repeated, blank, np.concatenate([nothing, token], axis=1), first)

    def scores(self) -> tuple[Floats, Floats]:
        return self.blank.copy(), self.token[:, 1:].copy()

    def advance(self, rows: _Rows, lo: int, hi: int) -> None:
        """One frame, for the pairs lo..hi-1."""
        blank, before, token = self.blank[:, lo:hi], self.token[:, lo:hi], self.token[:, lo + 1 : hi + 1]
        best, emitted = self.best[:, lo:hi], self.other[:, lo:hi]
        np.add(before, self.repeated[:, lo:hi], out=best)
        np.maximum(best, blank, out=best)
        np.maximum(best, token, out=best)
        np.maximum(blank, before, out=blank)
        np.add(blank, rows.blank, out=blank)
        np.take(rows.flat, self.columns[:, lo:hi], out=emitted, mode="clip")
        np.add(best, emitted, out=token)

    def advance_noting(self, rows: _Rows) -> NDArray[np.uint8]:
        """One frame, for all pairs → the packed back-pointers (B, bytes)."""
        width, blank, before, token = self.blank.shape[1], self.blank, self.token[:, :-1], self.token[:, 1:]
        best, other, bits = self.best, self.other, self.bits
        np.greater(before, blank, out=bits[:, :width])
        np.greater(blank, token, out=bits[:, width : 2 * width])
        np.maximum(blank, token, out=best)
        np.add(before, self.repeated, out=other)
        np.greater(other, best, out=bits[:, 2 * width :])
        np.maximum(best, other, out=best)
        np.maximum(blank, before, out=blank)
        np.add(blank, rows.blank, out=blank)
        np.take(rows.flat, self.columns, out=other, mode="clip")
        np.add(best, other, out=token)
        return np.packbits(bits, axis=1)


def _row_bytes(width: int) -> int:
    return (3 * width + 7) // 8


def _sweep(trellis: _Trellis, rows: _Rows, starts: list[int], behind: int) -> list[tuple[Floats, Floats]]:
    """Scores before each of the frames `starts`. `behind`: the fewest tokens that an item has more than frames.

    After frame t no path is past pair t, and one before pair t + tokens - frames can no longer reach the end in time.
    """
    kept, wanted, width = [trellis.scores()], set(starts[1:]), trellis.blank.shape[1]
    for frame in range(starts[-1]):
        rows.load(frame)
        trellis.advance(rows, max(0, frame + behind), min(width, frame + 1))
        if frame + 1 in wanted:
            kept.append(trellis.scores())
    return kept


def _fill(
    window: _Trellis,
    rows: _Rows,
    start: int,
    pointers: NDArray[np.uint8],
    frames: NDArray[Any],
    tokens: NDArray[Any],
    end: _End,
) -> None:
    """Back-pointers of the segment that begins at `start`; notes where items end whose last frame lies in it."""
    used = _row_bytes(window.blank.shape[1])
    last = {int(frame) - 1 for frame in frames}
    for offset in range(len(pointers)):
        rows.load(start + offset)
        pointers[offset, :, :used] = window.advance_noting(rows)
        if start + offset in last:
            here = np.flatnonzero(frames == start + offset + 1)
            pair = tokens[here] - window.first[here]
            blank, token = window.blank[here, pair], window.token[here, pair]
            end.state[here] = 2 * tokens[here] - (blank <= token)
            end.score[here] = np.maximum(blank, token)


def _trace(pointers: NDArray[np.uint8], window: _Trellis, meant: NDArray[np.bool_], end: _End) -> Ints:
    """Follow the pointers of a segment back from `end.state` → the state of each frame (n, B); moves `end.state`."""
    count, width = window.blank.shape
    states = np.empty((len(pointers), count), np.int64)
    state, items = end.state - 2 * window.first, np.arange(count)
    step = max(1, CHUNK // (3 * width * count))
    for low in reversed(range(0, len(pointers), step)):
        bits = np.unpackbits(pointers[low : low + step], axis=2, count=3 * width)  # (n, B, 3 W)
        moves = bits[:, :, : 2 * width]
        np.copyto(moves[:, :, width:], 2, where=bits[:, :, 2 * width :].view(bool))
        moves *= meant[low : low + step, :, None]  # an item whose frames are over stands still
        for offset in reversed(range(len(moves))):
            states[low + offset] = state
            state = state - moves[offset, items, (state >> 1) + (state & 1) * width]
    end.state = state + 2 * window.first
    return states + 2 * window.first
