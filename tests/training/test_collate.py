"""Batches: every clip once an epoch, under the budget, the same on every machine; padded so that nothing changes."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Wav2Vec2FeatureExtractor

sys.path.insert(0, str(Path(__file__).parent))

from tiny_ctc import tiny
from tiny_runs import examples

from speechkit.asr import masks
from speechkit.errors import DataError
from speechkit.training.batches import JITTER, BatchPlan, plan_epoch
from speechkit.training.collate import Batches, Clips, collate

LENGTHS = st.lists(st.integers(1, 500), min_size=1, max_size=60)


@given(LENGTHS, st.integers(1, 1500), st.integers(0, 5), st.booleans())
def test_an_epoch_holds_every_clip_once_within_the_budget(
    frames: list[int], budget: int, seed: int, ragged: bool
) -> None:
    batches = plan_epoch(frames, budget, np.random.default_rng(seed), ragged)
    assert sorted(index for batch in batches for index in batch) == list(range(len(frames)))
    for batch in batches:
        sizes = [frames[index] for index in batch]
        assert len(batch) == 1 or len(batch) * max(sizes) <= budget
        assert len(batch) * max(sizes) - sum(sizes) <= len(batch) * max(sizes) / 6
        assert ragged or len(set(sizes)) == 1


@given(LENGTHS, st.integers(1, 1500), st.integers(1, 4))
def test_processes_that_take_every_nth_batch_share_an_epoch_without_meeting_a_clip_twice(
    frames: list[int], budget: int, processes: int
) -> None:
    plan = BatchPlan(tuple(frames), budget, seed=3)
    count = plan.count(1)
    shares = [
        [clip for index in range(rank, count, processes) for clip in plan[index].clips] for rank in range(processes)
    ]
    assert Counter(clip for share in shares for clip in share) == Counter(range(len(frames)))


def test_any_batch_can_be_asked_for_first_and_is_the_same() -> None:
    frames = tuple(np.random.default_rng(0).integers(20, 400, 200).tolist())
    plan, late = BatchPlan(frames, 1200, seed=5), BatchPlan(frames, 1200, seed=5)
    expected = [plan[index] for index in range(300)]
    assert [late[index] for index in (250, 3, 299, 120)] == [expected[index] for index in (250, 3, 299, 120)]
    assert BatchPlan(frames, 1200, seed=6)[0] != expected[0]
    assert expected[0].epoch == 0 and expected[-1].epoch > 0


def test_epochs_differ_in_order_and_in_company_and_little_is_padded() -> None:
    frames = tuple(np.random.default_rng(0).integers(20, 800, 1000).tolist())
    plan = BatchPlan(frames, 2400)
    count = plan.count(1)
    first = {frozenset(plan[index].clips) for index in range(count)}
    second = {frozenset(plan[index].clips) for index in range(count, plan.count(2))}
    assert len(first & second) < 0.2 * len(first)
    lengths = [plan[index].frames for index in range(count)]
    assert abs(np.corrcoef(lengths, range(count))[0, 1]) < 0.3, "long and short batches alternate"
    assert plan.padding(count) < 1.5 * JITTER


def test_a_part_of_an_epoch_is_counted_in_batches() -> None:
    plan = BatchPlan((10,) * 40, 50)
    assert (plan.count(1), plan.count(0.5), plan.count(2.25), plan.count(0.01)) == (8, 4, 18, 1)
    with pytest.raises(DataError, match="no clips"):
        BatchPlan((), 100)


def test_a_clip_longer_than_the_budget_goes_alone() -> None:
    assert sorted(map(len, plan_epoch([300, 10, 10], 100, np.random.default_rng(0)))) == [1, 2]


@pytest.mark.parametrize("sizes", [(4000, 8000, 6001), (5000, 5000)], ids=["of different lengths", "of one length"])
def test_values_and_mask_are_those_of_the_feature_extractor(sizes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    clips = [rng.normal(0.1, 0.3, size).astype(np.float32) for size in sizes]
    rows = Clips([_Sound(clip) for clip in clips], [[1, 2], [3], [4, 5, 6]][: len(sizes)])  # type: ignore[list-item]
    batch = rows.batch(range(len(sizes)))
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    expected = extractor(clips, sampling_rate=16_000, padding=True, return_tensors="pt")
    torch.testing.assert_close(batch["input_values"], expected.input_values, atol=1e-5, rtol=1e-5)
    if len(set(sizes)) > 1:
        assert torch.equal(batch["attention_mask"], expected.attention_mask.long())
    else:
        assert "attention_mask" not in batch
    assert batch["samples"] == list(sizes)
    assert batch["labels"].tolist()[0] == ([1, 2, -100] if len(sizes) == 3 else [1, 2])


def test_a_batch_without_any_text_has_a_column_of_ignored_labels() -> None:
    assert collate([np.ones(500, np.float32)] * 2, [[], []])["labels"].tolist() == [[-100], [-100]]


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_the_loss_of_a_batch_is_the_mean_of_the_losses_of_its_clips(norm: str) -> None:
    model = tiny(feat_extract_norm=norm, do_stable_layer_norm=norm == "layer")
    masks.attach(model)
    rows = examples(5)
    clips = Clips(rows, [[3, 4, 5], [6, 7], [8], [9, 10, 11], [3]])
    with torch.no_grad():
        alone = []
        for index in range(5):
            single = clips.batch([index])
            alone.append(float(model(single["input_values"], labels=single["labels"]).loss))
        batch = clips.batch(range(5))
        samples = batch.pop("samples")
        with masks.lengths_known(model, samples):
            together = float(model(**batch).loss)
    assert together == pytest.approx(np.mean(alone), rel=1e-5)


def test_augmentation_is_the_same_for_a_clip_in_an_epoch_and_another_in_the_next() -> None:
    def louder(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return samples[: len(samples) // 2] + rng.normal(0, 1, len(samples) // 2).astype(np.float32)

    rows = examples(2)
    clips = Clips(rows, [[3], [4]], augment=louder, seed=1, cache=True)
    first = clips.samples(0, epoch=0)
    clips.samples(1, epoch=0)
    assert np.array_equal(clips.samples(0, epoch=0), first)
    assert not np.array_equal(clips.samples(0, epoch=1), first)
    assert len(first) == len(rows[0].audio) // 2


def test_a_clip_that_augmentation_made_too_short_for_a_frame_is_padded_to_one() -> None:
    clips = Clips(examples(1), [[3]], augment=lambda samples, rng: samples[:50])
    assert len(clips.samples(0)) == 400


def test_cached_audio_is_decoded_once() -> None:
    sound = _Sound(np.ones(600, np.float32))
    for cache, times in ((True, 1), (False, 2)):
        sound.decoded = 0
        clips = Clips([sound], [[1]], cache=cache)  # type: ignore[list-item]
        assert np.array_equal(clips.samples(0), clips.samples(0)) and sound.decoded == times


def test_seconds_of_a_stretch_of_batches_leave_padding_out() -> None:
    from dataclasses import replace

    rows = [replace(row, seconds=len(row.audio) / 16_000) for row in examples(30)]
    plan = BatchPlan(tuple(len(row.audio) // 320 for row in rows), 300)
    batches = Batches(Clips(rows, [[3]] * 30), plan, plan.count(2))
    assert batches.seconds(0, plan.count(1)) == pytest.approx(sum(row.seconds or 0 for row in rows))
    assert len(batches) == plan.count(2) and len(batches[0]["samples"]) == len(plan[0].clips)


class _Sound:
    """An example that counts how often it is decoded."""

    def __init__(self, samples: np.ndarray) -> None:
        self.array, self.decoded = samples, 0

    def samples(self) -> np.ndarray:
        self.decoded += 1
        return self.array
