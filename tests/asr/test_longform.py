"""Windows: the kept frames are 0, 1, 2, … of the whole, whatever the lengths and however the blocks are cut."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.asr.frames import FrameGrid
from speechkit.asr.longform import Windows, cut
from speechkit.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Iterator

GRID = FrameGrid(hop=4, field=6, rate=400)


@settings(max_examples=150, deadline=None)
@given(st.integers(6, 900), st.integers(3, 40), st.integers(0, 10), st.integers(1, 300))
def test_kept_frames_join_into_the_grid_of_the_whole(samples: int, length: int, context: int, block: int) -> None:
    if 2 * context >= length:
        context = (length - 1) // 2
    windows, whole = Windows(length, context), np.arange(samples, dtype=np.float32)
    kept = []
    for piece in cut((whole[at : at + block] for at in range(0, samples, block)), windows, GRID):
        count = GRID.frames(len(piece.samples))
        assert count <= length and piece.stop <= count
        assert piece.samples[0] == piece.start * GRID.hop, "a window starts on the hop"
        # each frame's own first sample says where in the whole it lies
        kept += [piece.samples[j * GRID.hop] / GRID.hop for j in range(piece.first, piece.stop)]
        assert piece.first >= context or piece.start == 0, "a seam has its context on the left"
    assert kept == list(range(GRID.frames(samples)))


def test_audio_of_one_window_is_one_piece_with_all_frames() -> None:
    windows = Windows.of(30.0, 2.0, FrameGrid())
    (piece,) = cut([np.zeros(30 * 16_000, np.float32)], windows, FrameGrid())
    assert (piece.start, piece.first, piece.stop) == (0, 0, 1499)


def test_memory_holds_one_window_and_one_block() -> None:
    held = []

    def blocks() -> Iterator[np.ndarray]:
        for _ in range(200):
            yield np.zeros(1000, np.float32)

    for piece in cut(blocks(), Windows(100, 10), GRID):
        held.append(len(piece.samples))
    assert max(held) <= GRID.samples(101) and len(held) > 500


@pytest.mark.parametrize(("window_s", "overlap_s"), [(4.0, 2.0), (1.0, 3.0), (2.0, -1.0)])
def test_windows_with_nothing_to_keep_are_refused(window_s: float, overlap_s: float) -> None:
    with pytest.raises(PlanError, match="less than half of the window"):
        Windows.of(window_s, overlap_s, FrameGrid())


@pytest.mark.parametrize(("window_s", "overlap_s"), [(float("inf"), 2.0), (30.0, float("nan"))])
def test_windows_of_no_finite_length_are_refused(window_s: float, overlap_s: float) -> None:
    with pytest.raises(PlanError, match="finite numbers of seconds"):
        Windows.of(window_s, overlap_s, FrameGrid())
