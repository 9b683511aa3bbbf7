"""A student is cut where it says. Oracles: the teacher itself, and its convolution on sounds with silent channels."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from transformers import Data2VecAudioConfig, Data2VecAudioForCTC, WavLMConfig, WavLMForCTC

sys.path.insert(0, str(Path(__file__).parent))

from tiny_ctc import config, sound, tiny

from speechkit.errors import PlanError
from speechkit.training.student import student_of


@pytest.mark.parametrize("norm", ["layer", "group"])
def test_with_the_teachers_layers_and_width_it_is_a_copy(norm: str) -> None:
    teacher = tiny(feat_extract_norm=norm, conv_bias=True)
    student = student_of(teacher, 2, 16)
    with torch.no_grad():
        assert torch.equal(student(sound()).logits, teacher(sound()).logits)
        student.lm_head.weight.zero_()
        assert bool(teacher.lm_head.weight.any())


@pytest.mark.parametrize(("layers", "want"), [(1, [6]), (2, [0, 6]), (3, [0, 3, 6]), (4, [0, 2, 4, 6])])
def test_layers_are_taken_evenly_spaced(layers: int, want: list[int]) -> None:
    teacher = tiny(num_hidden_layers=7)
    student = student_of(teacher, layers)
    assert student.config.num_hidden_layers == layers == len(student.wav2vec2.encoder.layers)
    for layer, origin in zip(student.wav2vec2.encoder.layers, want, strict=True):
        source = teacher.wav2vec2.encoder.layers[origin].state_dict()
        assert all(torch.equal(weight, source[name]) for name, weight in layer.state_dict().items())


def test_the_strongest_heads_neurons_and_channels_stay_and_do_what_they_did() -> None:
    teacher = tiny()
    with torch.no_grad():
        for layer in teacher.wav2vec2.encoder.layers:
            layer.attention.out_proj.weight[:, :8] = 0  # the first head says nothing
            layer.feed_forward.output_dense.weight[:, ::2] = 0  # every second neuron neither
            for module in (layer.attention.q_proj, layer.attention.k_proj, layer.attention.v_proj):
                module.weight[:, 1::2] = 0  # nobody reads the odd channels
            layer.feed_forward.intermediate_dense.weight[:, 1::2] = 0
        teacher.lm_head.weight[:, 1::2] = 0
    student = student_of(teacher, 2, 8)
    assert (student.config.hidden_size, student.config.num_attention_heads) == (8, 1)
    even = torch.arange(0, 16, 2)
    x = torch.randn(1, 5, 8)
    wide = torch.zeros(1, 5, 16)
    wide[..., even] = x
    for own, other in zip(student.wav2vec2.encoder.layers, teacher.wav2vec2.encoder.layers, strict=True):
        with torch.no_grad():
            torch.testing.assert_close(own.attention(x)[0], other.attention(wide)[0][..., even])
            torch.testing.assert_close(own.feed_forward(x), other.feed_forward(wide)[..., even])
    with torch.no_grad():
        torch.testing.assert_close(student.lm_head(x), teacher.lm_head(wide))
        convolution = teacher.wav2vec2.encoder.pos_conv_embed(wide)[..., even]
        torch.testing.assert_close(student.wav2vec2.encoder.pos_conv_embed(x), convolution)


def test_a_narrow_student_hears_as_many_frames_and_saves_weights() -> None:
    teacher = tiny(adapter_attn_dim=4)
    student = student_of(teacher, 1, 8)
    assert student(sound()).logits.shape == teacher(sound()).logits.shape
    assert sum(w.numel() for w in student.parameters()) < sum(w.numel() for w in teacher.parameters())
    assert all(weight.requires_grad for weight in student.parameters()) and not student.training


@pytest.mark.parametrize(
    ("layers", "width", "message"),
    [
        (3, None, "a student of 3 layers was asked of a teacher with 2; 1 to 2 can be"),
        (0, None, "1 to 2 can be"),
        (1, 12, "a student 12 wide cannot be cut from a teacher 16 wide with 2 heads and 2 groups .*: 8, 16"),
        (1, 32, "possible: 8, 16"),
    ],
)
def test_what_cannot_be_cut_is_refused_with_what_can(layers: int, width: int | None, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        student_of(tiny(), layers, width)


def test_other_families_lose_layers_only() -> None:
    wavlm = WavLMForCTC(config(WavLMConfig, num_hidden_layers=3)).eval()
    student = student_of(wavlm, 1)
    assert torch.equal(
        student.wavlm.encoder.layers[0].attention.rel_attn_embed.weight,
        wavlm.wavlm.encoder.layers[0].attention.rel_attn_embed.weight,
    )
    assert student(sound()).logits.shape == wavlm(sound()).logits.shape
    data2vec = Data2VecAudioForCTC(config(Data2VecAudioConfig, num_conv_pos_embeddings=3)).eval()
    for model in (wavlm, data2vec):
        with pytest.raises(PlanError, match="cannot be made narrower here, only wav2vec2, hubert and unispeech can"):
            student_of(model, 1, 8)
