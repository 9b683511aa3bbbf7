"""Features kept from window to window, against plain transformers on each window; random weights, published shapes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from speechkit import load_asr
from speechkit.asr.frontend import FeatureCache, reusable

if TYPE_CHECKING:
    from pathlib import Path

    from speechkit import Recognizer


@pytest.fixture(scope="module")
def layered(folders: dict[str, Path]) -> Recognizer:
    """In the shape of XLSR: layer norm after every convolution, normalised input."""
    return load_asr(folders["pt"], device="cpu")


def utterance(seconds: float = 6.0) -> np.ndarray:
    from asr_shapes import noise

    return noise(seconds)


def plainly(recognizer: Recognizer, heard: np.ndarray, first: int, measured: int) -> torch.Tensor:
    """The window's log-probabilities by transformers alone, normalised by the first `measured` samples."""
    known = heard[:measured].astype(np.float64)
    ready = (heard - known.mean()) / np.sqrt(known.var() + 1e-7)
    window = torch.from_numpy(ready[first * 320 :].astype(np.float32))[None]
    with torch.inference_mode():
        return recognizer.model(window).logits[0].log_softmax(-1)


def test_kept_features_give_what_every_window_anew_gives(layered: Recognizer) -> None:
    sound, cache, measured = utterance(), FeatureCache(layered), 0
    for end, first in ((3_000, 0), (5_111, 2), (9_000, 2), (30_000, 20), (31_000, 20), (64_000, 95), (96_000, 250)):
        heard = sound[:end]
        measured = len(heard) if len(heard) >= 2 * measured else measured
        path, truth = cache.best_path(heard, first), plainly(layered, heard, first, measured)
        assert len(path) == len(truth) == layered.grid.frames(end) - first
        chosen = truth[torch.arange(len(path)), torch.from_numpy(path.ids).long()].numpy()
        assert path.scores == pytest.approx(chosen, abs=1e-4)
        assert chosen == pytest.approx(truth.max(dim=-1).values.numpy(), abs=1e-4), "the winners, but for ties"


def test_features_themselves_are_those_of_the_whole_window(layered: Recognizer) -> None:
    sound, cache = utterance(2.0), FeatureCache(layered)
    cache.best_path(sound[:20_000], 0)
    for end in (20_401, 24_000, 31_999):
        cache.best_path(sound[:end], 3)
    known = sound[:20_000].astype(np.float64)
    ready = ((sound[:31_999] - known.mean()) / np.sqrt(known.var() + 1e-7)).astype(np.float32)
    with torch.inference_mode():
        whole = layered.model.wav2vec2.feature_extractor(torch.from_numpy(ready[3 * 320 :])[None])
    assert cache._features is not None and cache._features.shape == whole.shape
    assert float((cache._features - whole).abs().max()) <= 1e-6 * float(whole.abs().max())


def test_a_frame_goes_through_the_convolutions_at_most_twice_on_average(layered: Recognizer) -> None:
    sound, cache = utterance(12.0), FeatureCache(layered)
    windows = 0
    for end in range(3_200, len(sound), 1_600):
        first = max(0, layered.grid.frames(end) - 100)
        windows += layered.grid.frames(end) - first
        cache.best_path(sound[:end], first)
    assert cache.computed <= 2 * layered.grid.frames(len(sound)) < windows / 5


def test_what_is_kept_does_not_outgrow_the_window(layered: Recognizer) -> None:
    sound, cache = utterance(8.0), FeatureCache(layered)
    for end in range(16_000, len(sound), 3_200):
        cache.best_path(sound[:end], layered.grid.frames(end) - 40)
        assert cache._features is not None
        assert cache._features.untyped_storage().nbytes() == 24 * 40 * 4, "24 channels, 40 frames, float32"


def test_the_model_has_its_own_front_end_back_even_after_an_error(layered: Recognizer) -> None:
    front, cache = layered.model.wav2vec2.feature_extractor, FeatureCache(layered)
    cache.best_path(utterance(1.0), 0)
    assert layered.model.wav2vec2.feature_extractor is front
    broken = layered.model.lm_head
    layered.model.lm_head = torch.nn.Linear(7, 7)
    try:
        with pytest.raises(RuntimeError):
            cache.best_path(utterance(1.0), 0)
    finally:
        layered.model.lm_head = broken
    assert layered.model.wav2vec2.feature_extractor is front


def test_group_norm_is_told_as_the_reason_to_compute_anew(folders: dict[str, Path], recognizer: Recognizer) -> None:
    for model in (load_asr(folders["en"], device="cpu").model, recognizer.model):
        choice = reusable(model)
        assert not choice.value and "group norm: every frame depends on the whole window" in choice.reason


def test_layer_norm_is_told_as_the_reason_to_keep(layered: Recognizer) -> None:
    assert reusable(layered.model).value and "layer norm" in reusable(layered.model).reason


def test_a_front_end_of_another_make_is_not_trusted() -> None:
    choice = reusable(torch.nn.Linear(2, 2))
    assert not choice.value and "no convolutional front-end" in choice.reason
