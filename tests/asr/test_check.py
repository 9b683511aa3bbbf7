"""The proofs must be able to fail: each is run on a model that keeps its promise and on one that does not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from asr_shapes import noise

from speechkit.asr import masks
from speechkit.asr.check import Check, batches_equal_singles, ragged_clips, windows_agree
from speechkit.asr.model import load_asr
from speechkit.errors import AudioError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("name", ["en", "zh"])
def test_self_check_of_a_sound_model_is_one_line_that_ends_in_ok(folders: dict[str, Path], name: str) -> None:
    check = load_asr(folders[name]).self_check()
    assert check.ok and 0 <= check.difference <= 1e-4
    assert str(check).startswith("batched == single: max |Δ log p| ")
    assert str(check).endswith("over 8 clips, 0.3–20.0 s (bound 1e-04): ok")


def test_self_check_finds_padding_that_leaks(folders: dict[str, Path]) -> None:
    recognizer = load_asr(folders["en"])
    masks.detach(recognizer.model)  # what plain transformers does
    check = recognizer.self_check()
    assert not check.ok and str(check).endswith("DIFFERENT")


def test_a_nan_is_not_ok() -> None:
    assert not Check(float("nan"), 1e-4, 8, 0.3, 20.0).ok


def test_models_that_are_never_padded_pass_because_only_equal_lengths_share_a_batch(folders: dict[str, Path]) -> None:
    recognizer = load_asr(folders["en"])
    masks.detach(recognizer.model)
    recognizer.batcher.ragged = False
    clips = [noise(seconds, k) for k, seconds in enumerate((1.0, 0.5, 1.0))]
    assert batches_equal_singles(recognizer, clips).ok


def test_half_precision_compares_probabilities_with_a_bound_of_its_own(folders: dict[str, Path]) -> None:
    check = batches_equal_singles(load_asr(folders["pl"], dtype="bfloat16"), ragged_clips(4, longest_s=4.0))
    assert check.quantity == "p" and check.bound == 0.1


def test_the_test_signals_span_the_lengths_and_are_the_same_every_time() -> None:
    first, second = ragged_clips(), ragged_clips()
    assert [len(clip) for clip in first][:: len(first) - 1] == [4800, 320_000]
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_windows_agree_with_the_whole_where_the_model_listens_locally(folders: dict[str, Path]) -> None:
    recognizer = load_asr(folders["pl"])
    for layer in recognizer.model.wav2vec2.encoder.layers:
        layer.attention.out_proj.weight.zero_()  # convolutions alone: their reach is inside the overlap
    recognizer.extractor.do_normalize = False
    result = windows_agree(recognizer, noise(12.0), window_s=5.0, overlap_s=1.5)
    assert (result.equal, result.frames, result.windows, result.same_text) == (1.0, 599, 5, True)
    assert str(result) == "windows == whole: 100.00% of 599 frames equal over 5 windows, same text"


def test_windows_disagree_visibly_where_it_listens_far(folders: dict[str, Path]) -> None:
    assert windows_agree(load_asr(folders["pl"]), noise(12.0), window_s=3.0, overlap_s=0.1).equal < 1


def test_a_clip_of_one_window_has_no_seam_to_measure(folders: dict[str, Path]) -> None:
    with pytest.raises(AudioError, match=r"4\.0 s and fits into one window of 10\.0 s"):
        windows_agree(load_asr(folders["pl"]), noise(4.0))
