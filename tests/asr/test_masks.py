"""Attach and detach as a round trip on a real model, and the proof that padding moves plain transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from transformers import Wav2Vec2ForCTC

from speechkit.asr import masks

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def model(folders: dict[str, Path]) -> Wav2Vec2ForCTC:
    return Wav2Vec2ForCTC.from_pretrained(folders["en"]).eval()


def test_attach_then_detach_restores_the_model_exactly(model: Wav2Vec2ForCTC) -> None:
    names, x = list(model.state_dict()), torch.randn(1, 8000)
    before = model(x).logits
    assert masks.attach(model) == 1 and masks.attach(model) == 0
    assert list(model.state_dict()) == names
    assert torch.equal(model(x).logits, before), "without lengths the replaced module is the old one, bit for bit"
    assert masks.detach(model) == 1
    norm = model.wav2vec2.feature_extractor.conv_layers[0].layer_norm
    assert type(norm) is torch.nn.GroupNorm and list(model.state_dict()) == names
    assert torch.equal(model(x).logits, before)


def test_the_class_and_other_models_are_untouched(model: Wav2Vec2ForCTC, folders: dict[str, Path]) -> None:
    masks.attach(model)
    other = Wav2Vec2ForCTC.from_pretrained(folders["en"])
    assert type(other.wav2vec2.feature_extractor.conv_layers[0].layer_norm) is torch.nn.GroupNorm


def test_layer_norm_models_have_nothing_to_replace(folders: dict[str, Path]) -> None:
    assert masks.attach(Wav2Vec2ForCTC.from_pretrained(folders["pl"])) == 0


def test_lengths_are_forgotten_even_after_an_error(model: Wav2Vec2ForCTC) -> None:
    masks.attach(model)
    norm = model.wav2vec2.feature_extractor.conv_layers[0].layer_norm
    with pytest.raises(ZeroDivisionError), masks.lengths_known(model, [8000, 400]):
        assert norm.lengths == [1599, 79], "(n - 10) // 5 + 1 frames after the first convolution"
        raise ZeroDivisionError
    assert norm.lengths is None


def test_padding_moves_plain_transformers_and_not_the_masked_model(model: Wav2Vec2ForCTC) -> None:
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 8000)).astype(np.float32))
    padded = torch.nn.functional.pad(x, (0, 8000)).repeat(2, 1)
    mask = torch.zeros(2, 16_000, dtype=torch.long)
    mask[0, :8000], mask[1] = 1, 1
    with torch.no_grad():
        alone = model(x).logits[0]
        plain = model(padded, attention_mask=mask).logits[0, : len(alone)]
        masks.attach(model)
        with masks.lengths_known(model, [8000, 16_000]):
            masked = model(padded, attention_mask=mask).logits[0, : len(alone)]
    assert (plain - alone).abs().max() > 1e-2
    torch.testing.assert_close(masked, alone, atol=1e-4, rtol=0)
