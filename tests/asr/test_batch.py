"""Batches: the plan's promises, the normalisation against transformers, and what happens when memory runs out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Wav2Vec2FeatureExtractor

from speechkit.asr.batch import (
    CPU_FRAMES,
    PADDING,
    Batcher,
    default_budget,
    default_slack,
    is_out_of_memory,
    normalise,
    pad,
    plan,
)
from speechkit.asr.frames import FrameGrid
from speechkit.errors import PlanError

GRID = FrameGrid()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 1500), max_size=40), st.integers(1, 4000), st.booleans(), st.integers(0, 60) | st.none())
def test_a_plan_has_every_clip_once_within_the_budget_and_with_little_padding(
    frames: list[int], budget: int, ragged: bool, slack: int | None
) -> None:
    batches = plan(frames, budget, ragged, slack)
    assert sorted(i for batch in batches for i in batch) == list(range(len(frames)))
    for sizes in ([frames[i] for i in batch] for batch in batches):
        padded = len(sizes) * max(sizes)
        assert padded <= budget or len(sizes) == 1
        assert 1 - sum(sizes) / padded <= PADDING + 1e-9
        assert ragged or len(set(sizes)) == 1
        assert slack is None or max(sizes) - min(sizes) <= slack


def test_normalisation_is_that_of_the_feature_extractor() -> None:
    samples = (np.random.default_rng(0).standard_normal(16_000) * 0.1 + 0.3).astype(np.float32)
    theirs = Wav2Vec2FeatureExtractor(do_normalize=True)(samples, sampling_rate=16_000, return_tensors="np")
    assert np.array_equal(normalise(samples), theirs["input_values"][0])
    assert not normalise(np.zeros(400, np.float32)).any(), "silence stays silence"


def test_padding_is_zero() -> None:
    assert pad([np.ones(2, np.float32), np.ones(3, np.float32)]).tolist() == [[1, 1, 0], [1, 1, 1]]


def clips_of(*frames: int) -> list[Any]:
    return [np.full(GRID.samples(n), n, np.float32) for n in frames]


def frames_of(batch: list[Any]) -> list[int]:
    return [GRID.frames(len(clip)) for clip in batch]


def test_results_come_back_in_input_order() -> None:
    assert Batcher(GRID, 100).run(clips_of(5, 90, 7, 90, 6, 1), frames_of) == [5, 90, 7, 90, 6, 1]


class SmallDevice:
    """A forward that has memory for `room` padded frames; the errors are those PyTorch and NumPy raise."""

    def __init__(self, room: int, error: BaseException) -> None:
        self.room, self.error, self.sizes = room, error, list[int]()

    def __call__(self, batch: list[Any]) -> list[int]:
        self.sizes.append(len(batch) * max(frames_of(batch)))
        if self.sizes[-1] > self.room:
            raise self.error
        return frames_of(batch)


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory: you tried to allocate"),
    MemoryError(),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_out_of_memory_halves_the_budget_once_says_so_and_loses_nothing(error: BaseException) -> None:
    batcher, device = Batcher(GRID, 80), SmallDevice(40, error)
    with pytest.warns(ResourceWarning, match="out of memory with 8 clips in one batch: frame budget halved to 40"):
        assert batcher.run(clips_of(*[10] * 12, 3), device) == [*[10] * 12, 3]
    assert device.sizes[0] == 80 and max(device.sizes[1:]) == 40
    assert batcher.frame_budget == 40, "the next call starts with what fits"


def test_out_of_memory_again_says_what_to_lower() -> None:
    with (
        pytest.warns(ResourceWarning, match="halved"),
        pytest.raises(PlanError, match=r"with 4 clips \(1 s\) in one batch.*Lower recognizer\.frame_budget"),
    ):
        Batcher(GRID, 80).run(clips_of(*[10] * 8), SmallDevice(5, ERRORS[0]))


def test_one_clip_that_does_not_fit_is_not_tried_twice() -> None:
    device = SmallDevice(5, ERRORS[0])
    with pytest.raises(PlanError, match="with 1 clips"):
        Batcher(GRID, 80).run(clips_of(10), device)
    assert len(device.sizes) == 1


def test_other_errors_pass_untouched() -> None:
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        Batcher(GRID, 80).run(clips_of(10), SmallDevice(5, RuntimeError("shapes")))


def test_a_cpu_takes_ten_seconds_per_batch() -> None:
    assert default_budget("cpu") == CPU_FRAMES == 10 * 50


def test_a_cpu_pads_by_a_few_frames_and_more_of_them_for_a_small_model() -> None:
    assert default_slack("cuda:0", 95_000_000) is None
    large, base, demo = (default_slack("cpu", weights) for weights in (315_000_000, 95_000_000, 3_200_000))
    assert 0 < large < base < demo < CPU_FRAMES and base < 50, "less than a second of padding for base"
    assert plan([40, 30, 10], 500, slack=12) == [[0, 1], [2]]
