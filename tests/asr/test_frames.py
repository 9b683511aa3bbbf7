"""FrameGrid against transformers' own length formula and the published 25 ms / 20 ms."""

from __future__ import annotations

import pytest
from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

from speechkit.asr.frames import FrameGrid


def test_the_stock_front_end_has_a_25_ms_field_and_a_20_ms_hop() -> None:
    grid = FrameGrid.from_config(Wav2Vec2Config())
    assert (grid.field, grid.hop) == (400, 320)
    assert (grid.end_s(0) - grid.start_s(0), grid.start_s(1) - grid.start_s(0)) == (0.025, 0.02)


@pytest.mark.parametrize(
    ("kernels", "strides"), [((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)), ((8, 4, 3), (4, 3, 2))], ids=str
)
def test_frame_counts_are_those_of_the_nested_convolutions(kernels: tuple[int, ...], strides: tuple[int, ...]) -> None:
    config = Wav2Vec2Config(
        conv_kernel=kernels, conv_stride=strides, conv_dim=(8,) * len(kernels), hidden_size=16, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=16, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    model, grid = Wav2Vec2ForCTC(config), FrameGrid.from_config(config)
    for samples in range(grid.field, grid.field + 5 * grid.hop, 7):
        assert grid.frames(samples) == int(model._get_feat_extract_output_lengths(samples))
    assert grid.frames(grid.field - 1) == 0


@pytest.mark.parametrize("frames", [1, 2, 50, 1499])
def test_samples_is_the_fewest_that_give_these_frames(frames: int) -> None:
    grid = FrameGrid()
    assert grid.frames(grid.samples(frames)) == frames
    assert grid.frames(grid.samples(frames) - 1) == frames - 1


def test_the_last_frame_ends_with_the_audio_at_the_latest() -> None:
    assert FrameGrid().end_s(49, duration_s=1.0) == 1.0
    assert FrameGrid().end_s(48, duration_s=1.0) == pytest.approx(0.985)
