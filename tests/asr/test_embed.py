"""Embeddings against transformers' own hidden states; pooling against plain sums; windows, batches, wrong layers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoProcessor

from speechkit import Recognizer, audio, demo, load_asr
from speechkit.asr.embed import Layers, rows, same_weights, speech_frames
from speechkit.asr.frames import FrameGrid
from speechkit.errors import AudioError, DataError, PlanError

CLIPS = [clip.path for clip in demo.clips("en")[:3]]


@pytest.fixture(scope="module", params=["en", "zh"], ids=["group norm", "layer norm"])
def pair(request: pytest.FixtureRequest, folders: dict[str, Path]) -> tuple[Recognizer, object, object]:
    folder = folders[request.param]
    return load_asr(folder, device="cpu"), AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)


def test_every_layer_is_the_hidden_state_of_transformers(pair: tuple[Recognizer, object, object]) -> None:
    recognizer, model, processor = pair
    samples = audio.load(CLIPS[0])
    found = recognizer.embed(samples, layer="all")
    values = processor(samples, sampling_rate=16000, return_tensors="pt").input_values  # type: ignore[operator]
    with torch.inference_mode():
        states = model.eval()(values, output_hidden_states=True).hidden_states  # type: ignore[attr-defined]
    assert found.vectors.shape == (len(states), recognizer.grid.frames(len(samples)), model.config.hidden_size)  # type: ignore[attr-defined]
    for layer, state in enumerate(states):
        np.testing.assert_allclose(found.vectors[layer], state[0].numpy(), atol=2e-5)
        np.testing.assert_array_equal(recognizer.embed(samples, layer=layer).vectors, found.vectors[layer])
    assert recognizer.embed(samples, layer=-1).layers == (len(states) - 1,)


def test_a_list_gives_what_each_clip_gives_alone(pair: tuple[Recognizer, object, object]) -> None:
    recognizer, *_ = pair
    for pool in (None, "mean"):
        for alone, batched in zip(
            [recognizer.embed(path, pool=pool) for path in CLIPS], recognizer.embed(CLIPS, pool=pool), strict=True
        ):
            np.testing.assert_allclose(batched.vectors, alone.vectors, atol=1e-4)


def test_pooling_is_over_speech_and_matches_plain_numpy(recognizer: Recognizer) -> None:
    samples = np.concatenate([np.zeros(8000, np.float32), audio.load(CLIPS[0]), np.zeros(8000, np.float32)])
    frames = recognizer.embed(samples).vectors.astype(np.float64)
    speech = speech_frames(samples, len(frames), recognizer.grid)
    assert 0.3 < speech.mean() < 0.9 and not speech[:20].any() and not speech[-20:].any()
    kept = frames[speech]
    for pool, wanted in {
        "mean": kept.mean(0),
        "max": kept.max(0),
        "mean+std": np.concatenate([kept.mean(0), kept.std(0)]),
    }.items():
        np.testing.assert_allclose(recognizer.embed(samples, pool=pool).vectors, wanted, atol=1e-4)
    whole = recognizer.embed(samples, pool="mean", speech_only=False).vectors
    np.testing.assert_allclose(whole, frames.mean(0), atol=1e-4)


def test_a_weighted_set_of_layers_is_their_weighted_mean(recognizer: Recognizer) -> None:
    both = recognizer.embed(CLIPS[0], layer=[2, 4]).vectors
    mixed = recognizer.embed(CLIPS[0], layer={2: 1.0, 4: 3.0}).vectors
    np.testing.assert_allclose(mixed, 0.25 * both[0] + 0.75 * both[1], atol=1e-5)


def test_long_audio_joins_its_windows(recognizer: Recognizer) -> None:
    long = np.concatenate([audio.load(path) for path in CLIPS] * 5)
    assert len(long) > recognizer.window_s * 16000
    found = recognizer.embed(long)
    assert found.vectors.shape[0] == recognizer.grid.frames(len(long)) == len(found.times_s)
    assert found.times_s[0] == pytest.approx(recognizer.field_samples / 2 / 16000)
    np.testing.assert_allclose(np.diff(found.times_s), 0.02)
    pooled = recognizer.embed(long, pool="mean", speech_only=False).vectors
    np.testing.assert_allclose(pooled, found.vectors.mean(0), atol=1e-4)


def test_a_silent_window_of_long_audio_adds_nothing(recognizer: Recognizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recognizer, "window_s", 6.0)
    long = np.concatenate([audio.load(CLIPS[0]), np.zeros(15 * 16000, np.float32)])  # windows of silence alone
    frames = recognizer.embed(long).vectors.astype(np.float64)
    speech = speech_frames(long, len(frames), recognizer.grid)
    assert speech.mean() < 0.3
    np.testing.assert_allclose(recognizer.embed(long, pool="mean").vectors, frames[speech].mean(0), atol=1e-4)
    np.testing.assert_allclose(recognizer.embed(long, pool="max").vectors, frames[speech].max(0), atol=1e-4)


def test_where_all_is_silent_all_of_it_is_pooled(recognizer: Recognizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recognizer, "window_s", 6.0)
    silence = np.zeros(15 * 16000, np.float32)
    frames = recognizer.embed(silence).vectors.astype(np.float64)
    np.testing.assert_allclose(recognizer.embed(silence, pool="mean").vectors, frames.mean(0), atol=1e-4)


@pytest.mark.parametrize("pool", ["mean", "mean+std", "max"])
@pytest.mark.parametrize("level", [0.015, 0.004])
def test_which_frames_are_speech_is_decided_for_the_clip_and_not_per_window(
    recognizer: Recognizer, monkeypatch: pytest.MonkeyPatch, pool: str, level: float
) -> None:
    """A quieter part: its pauses are none beside its own loudest frame, and are beside the clip's."""
    monkeypatch.setattr(recognizer, "window_s", 6.0)
    said = audio.load(CLIPS[0])
    long = np.concatenate([said, *[level * audio.load(path) for path in CLIPS], said]).astype(np.float32)
    frames = recognizer.embed(long).vectors.astype(np.float64)
    kept = frames[speech_frames(long, len(frames), recognizer.grid)]
    assert 0.1 < len(kept) / len(frames) < 0.9
    wanted = {"mean": kept.mean(0), "mean+std": np.concatenate([kept.mean(0), kept.std(0)]), "max": kept.max(0)}[pool]
    np.testing.assert_allclose(recognizer.embed(long, pool=pool).vectors, wanted, atol=1e-4)


def test_half_precision_is_the_rounded_result(recognizer: Recognizer) -> None:
    full, half = (recognizer.embed(CLIPS[0], dtype=dtype).vectors for dtype in ("float32", "float16"))
    assert half.dtype == np.float16
    np.testing.assert_array_equal(half, full.astype(np.float16))


def test_what_float16_cannot_hold_is_told_and_not_made_infinite() -> None:
    states = np.full((1, 2, 3), 1e5, np.float32)
    with pytest.raises(DataError, match=r"the vectors reach 1e\+05 and float16 ends at 65504: take dtype='float32'"):
        rows(states, np.ones(720, np.float32), FrameGrid(), None, False, "float16")
    assert rows(states, np.ones(720, np.float32), FrameGrid(), None, False, "float32").states.max() == 1e5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": 7}, r"layer 7 does not exist: this model has 6 blocks, so layers 0 to 6"),
        ({"layer": -8}, "layer -8 does not exist"),
        ({"layer": 1.5}, "layer is 1.5; it can be a number"),
        ({"layer": "last"}, "layer is 'last'"),
        ({"layer": []}, "no layer is asked for"),
        ({"layer": {1: 0.0}}, "layer weights are"),
        ({"layer": {1: -1.0, 2: 2.0}}, "layer weights are"),
        ({"layer": {1: "much"}}, "layer weights are"),
        ({"layer": {}}, "layer weights are"),
        ({"layer": {9: 1.0}}, "layer 9 does not exist"),
        ({"layer": np.array([1, 2])}, "a list of numbers"),
        ({"layer": True}, "layer is True"),
        ({"pool": "median"}, "pool is 'median'; it can be None"),
        ({"dtype": "int8"}, "dtype is 'int8'; embeddings are kept as 'float32' or 'float16'"),
    ],
)
def test_what_does_not_exist_is_told(recognizer: Recognizer, options: dict[str, object], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        recognizer.embed(CLIPS[0], **options)


def test_broken_audio_in_a_list_is_named(recognizer: Recognizer) -> None:
    with pytest.raises(AudioError, match="item 2 of 2"):
        recognizer.embed([CLIPS[0], np.zeros(10, np.float32)])


def test_layers_count_from_either_end() -> None:
    assert Layers.of(-1, 12).ids == Layers.of(12, 12).ids == (12,)
    assert Layers.of("all", 2).ids == (0, 1, 2)


def test_speech_frames_follow_the_level_of_each_frame() -> None:
    grid = FrameGrid()
    samples = np.zeros(16000, np.float32)
    samples[4800:8000] = 0.1
    found = speech_frames(samples, grid.frames(len(samples)), grid)
    level = [np.sqrt((samples[f * 320 : f * 320 + 400] ** 2).mean()) for f in range(len(found))]
    np.testing.assert_array_equal(found, np.array(level) > 0.001)


def test_a_model_that_moved_is_the_same_model() -> None:
    assert same_weights("/here/model 0123456789ab", "owner/model 0123456789ab")
    assert not same_weights("owner/model 0123456789ab", "owner/model ba9876543210")
