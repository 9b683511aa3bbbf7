"""What is masked, and what a masked frame is compared with: properties over many lengths."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.wav2vec2.modeling_wav2vec2 import _compute_mask_indices

from speechkit.errors import DataError
from speechkit.training.masking import FEWEST_FRAMES, draw_negatives, span_mask

rows = st.lists(st.integers(FEWEST_FRAMES, 400), min_size=1, max_size=5)


@given(rows, st.integers(0, 10_000), st.floats(0.001, 0.3), st.integers(1, 30))
def test_every_row_has_something_to_guess_and_something_to_guess_it_from(
    frames: list[int], seed: int, probability: float, length: int
) -> None:
    mask = span_mask(frames, probability, length, np.random.default_rng(seed))
    assert mask.shape == (len(frames), max(frames))
    for row, count in zip(mask, frames, strict=True):
        assert 2 <= row[:count].sum() < count
        assert not row[count:].any(), "padding is masked"


@given(rows, st.integers(0, 10_000), st.integers(1, 40))
def test_negatives_are_other_masked_frames_of_the_same_row(frames: list[int], seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    mask = span_mask(frames, 0.065, 10, rng)
    negatives = draw_negatives(mask, count, rng)
    assert negatives.shape == (len(frames), mask.sum(axis=1).max(), count)
    for row, masked in zip(negatives, mask.sum(axis=1), strict=True):
        places = np.arange(masked)[:, None]
        assert ((row[:masked] >= 0) & (row[:masked] < masked)).all(), "points beyond the row's masked frames"
        assert (row[:masked] != places).all(), "a frame is its own negative"


def test_all_other_masked_frames_are_equally_likely_negatives() -> None:
    mask = np.ones((1, 5), dtype=bool)
    mask[0, 4] = False
    drawn = draw_negatives(mask, 30_000, np.random.default_rng(0))[0]  # (4, 30000)
    for place in range(4):
        counts = np.bincount(drawn[place], minlength=4)
        assert counts[place] == 0
        assert np.allclose(counts[counts > 0] / 30_000, 1 / 3, atol=0.015)  # five standard deviations


def test_as_much_is_masked_as_transformers_masks_with_the_published_settings() -> None:
    """Transformers counts the share of frames in spans (0.65) where the paper counts starts (0.065, spans of 10)."""
    rng = np.random.default_rng(0)
    np.random.seed(0)
    ours = np.mean([span_mask([500], 0.065, 10, rng).mean() for _ in range(200)])
    theirs = np.mean([_compute_mask_indices((1, 500), 0.65, 10).mean() for _ in range(200)])
    assert ours == pytest.approx(theirs, abs=0.01)
    assert ours == pytest.approx(0.49, abs=0.02)  # the paper's own figure, section 4.2


def test_masked_frames_come_in_spans_of_at_least_the_asked_length() -> None:
    for row in span_mask([300] * 50, 0.02, 10, np.random.default_rng(1)):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(int), [0]])))
        assert (edges[1::2] - edges[::2]).min() >= 10


@pytest.mark.parametrize("frames", [[], [2], [100, 0]])
def test_rows_too_short_to_mask_are_refused_with_what_to_do(frames: list[int]) -> None:
    with pytest.raises(DataError, match="leave shorter clips out"):
        span_mask(frames, 0.065, 10, np.random.default_rng(0))


def test_a_row_with_one_masked_frame_has_no_negatives() -> None:
    with pytest.raises(DataError, match="fewer than two masked frames"):
        draw_negatives(np.array([[True, False, False]]), 10, np.random.default_rng(0))
