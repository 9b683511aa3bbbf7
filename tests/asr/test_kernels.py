"""Published shapes with kernels by their definitions: the log-probabilities of transformers, padding unseen, undone."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from speechkit_kernels import launch

from speechkit import demo, load_asr
from speechkit.asr import kernels, masks
from speechkit.asr.kernels import ChannelsLastFrontEnd, apply_kernels, explain, undo_kernels
from speechkit.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

    from speechkit.asr.model import Recognizer

KINDS = {
    "base": {"feat_extract_norm": "group"},
    "base with biases": {"feat_extract_norm": "group", "conv_bias": True},
    "large": {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True},
    "large without biases": {"feat_extract_norm": "layer", "do_stable_layer_norm": True},
}


@pytest.fixture(autouse=True)
def _definitions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter is slow, and tests/kernels tests the kernels by it; tests marked `gpu` run them compiled."""
    if request.node.get_closest_marker("gpu") is None:
        monkeypatch.setattr(launch, "_triton", lambda: None)


def sounds() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(0, 0.1, size).astype(np.float32) for size in (16_000, 5_000, 9_700)]


def farthest(one: list[np.ndarray], other: list[np.ndarray]) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", ["demo/en", "tiny layer norm"])
def test_outputs_batches_and_names_stay_and_undoing_is_exact(name: str, tiny_ctc: Path) -> None:
    asr: Recognizer = load_asr(name if name == "demo/en" else tiny_ctc, device="cpu")
    names, before = list(asr.model.state_dict()), asr.log_probs(sounds())
    applied = apply_kernels(asr)
    assert (applied.norms, applied.positional) == (1 if name == "demo/en" else 7, 1)
    assert applied.fronts == 1 and not applied.left
    assert apply_kernels(asr) == applied, "twice is once"
    assert list(asr.model.state_dict()) == names
    together = asr.log_probs(sounds())
    assert farthest(together, before) < 1e-4
    assert farthest(together, [asr.log_probs(clip) for clip in sounds()]) < 1e-4, "batched equals single"
    assert undo_kernels(asr) == applied.norms + 2
    assert farthest(asr.log_probs(sounds()), before) == 0 and explain(asr).norms == 0


def test_gradients_are_those_of_transformers(tiny_ctc: Path) -> None:
    model = load_asr(tiny_ctc, device="cpu").model.eval().requires_grad_(True)
    found = []
    for applied in (False, True):
        if applied:
            apply_kernels(model)
        model.zero_grad()
        logits = model(torch.from_numpy(sounds()[0])[None]).logits
        (logits * torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
        named = model.named_parameters()
        found.append({name: weight.grad.clone() for name, weight in named if weight.grad is not None})
    assert found[0].keys() == found[1].keys() and len(found[0]) > 20
    for name, gradient in found[0].items():
        assert (found[1][name] - gradient).abs().max() <= 1e-4 * gradient.abs().max() + 1e-5, name


def test_texts_of_the_embedded_clips_stay(tmp_path: Path) -> None:
    asr, clips = load_asr("demo/en", device="cpu"), [clip.path for clip in demo.clips("en")]
    before = [told.text for told in asr.transcribe(clips)]
    print(apply_kernels(asr))
    assert [told.text for told in asr.transcribe(clips)] == before
    assert asr.self_check().ok


def tiny(kind: str) -> Any:
    """A Wav2Vec2ForCTC in miniature, norms and biases at random; published ones have seven layers as here."""
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    torch.manual_seed(0)
    config = Wav2Vec2Config(
        vocab_size=9, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        conv_dim=(8,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2, mask_time_prob=0.0,
        layerdrop=0.0, hidden_dropout=0.0, activation_dropout=0.0, attention_dropout=0.0, feat_proj_dropout=0.0,
        final_dropout=0.0, **KINDS[kind],
    )  # fmt: skip
    model = Wav2Vec2ForCTC(config).eval()
    with torch.no_grad():
        for parameter in model.wav2vec2.feature_extractor.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def logits(model: Any, samples: list[int] | None = None) -> torch.Tensor:
    """Of three rows of noise; with `samples` what lies behind a row's own is zero, and masked."""
    audio = torch.randn(3, 4000, generator=torch.Generator().manual_seed(3))
    mask = None if samples is None else (torch.arange(4000) < torch.tensor(samples)[:, None]).long()
    with torch.inference_mode(), masks.lengths_known(model, samples):
        return torch.as_tensor(model(audio if mask is None else audio * mask, attention_mask=mask).logits)


@pytest.fixture
def fast_passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each pass of a front-end that was channels last."""
    passes: list[int] = []
    whole = kernels._first
    monkeypatch.setattr(kernels, "_first", lambda *given: passes.append(1) or whole(*given))
    return passes


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kernel", [False, True], ids=["no kernel", "masked kernel"])
def test_the_whole_front_end_is_that_of_transformers_and_padding_is_not_seen(
    kind: str, kernel: bool, monkeypatch: pytest.MonkeyPatch, fast_passes: list[int]
) -> None:
    monkeypatch.setattr(kernels, "_kernel_runs", lambda _: kernel)
    model = tiny(kind)
    before = logits(model)
    masks.attach(model)
    apply_kernels(model)
    torch.testing.assert_close(logits(model), before, rtol=0, atol=2e-5)
    samples = [4000, 1700, 2950]
    together = logits(model, samples)
    audio = torch.randn(3, 4000, generator=torch.Generator().manual_seed(3))
    for row, size in enumerate(samples):
        with torch.inference_mode():
            alone = model(audio[row : row + 1, :size]).logits[0]
        torch.testing.assert_close(together[row, : len(alone)], alone, rtol=0, atol=2e-5)
    assert len(fast_passes) == 5


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_change_after_applying_are_the_ones_used(kind: str, fast_passes: list[int]) -> None:
    model, plain = tiny(kind), tiny(kind)
    apply_kernels(model)
    for one in (model, plain):
        logits(one)
        optimizer = torch.optim.SGD(one.parameters(), lr=0.05)
        audio = torch.randn(2, 1500, generator=torch.Generator().manual_seed(5))
        one.train()(audio, labels=torch.tensor([[1, 2], [3, 4]])).loss.backward()
        optimizer.step()
        one.eval()
    assert len(fast_passes) == 1, "with a gradient it goes layer by layer"
    torch.testing.assert_close(logits(model), logits(plain), rtol=0, atol=5e-5)
    assert (logits(model) - logits(tiny(kind))).abs().max() > 1e-3, "the step was one"
    model.load_state_dict(tiny(kind).state_dict())
    torch.testing.assert_close(logits(model), logits(tiny(kind)), rtol=0, atol=2e-5)
    kept = model.state_dict()
    undo_kernels(model)
    plain.load_state_dict(kept)
    assert torch.equal(logits(model), logits(plain)) and list(model.state_dict()) == list(kept)


def test_a_frozen_front_end_is_channels_last_in_training_and_the_rest_learns_as_before(fast_passes: list[int]) -> None:
    found = []
    for applied in (False, True):
        model = tiny("large")
        if applied:
            apply_kernels(model)
        model.freeze_feature_encoder()
        audio = torch.randn(2, 1500, generator=torch.Generator().manual_seed(5))
        model.train()(audio, labels=torch.tensor([[1, 2], [3, 4]])).loss.backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert len(fast_passes) == 1 and found[0].keys() == found[1].keys() and found[0]
    for name, gradient in found[0].items():
        assert (found[1][name] - gradient).abs().max() <= 1e-4 * gradient.abs().max() + 1e-6, name


class Doubled(torch.nn.Module):
    """An adapter: computes something else than its weight says."""

    def __init__(self, conv: torch.nn.Conv1d) -> None:
        super().__init__()
        self.conv, self.weight, self.bias, self.stride = conv, conv.weight, conv.bias, conv.stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * torch.as_tensor(self.conv(x))


@pytest.mark.parametrize("kind", ["base", "large"])
def test_an_adapter_or_a_hook_put_in_later_is_not_passed_by(kind: str, fast_passes: list[int]) -> None:
    model, plain = tiny(kind), tiny(kind)
    apply_kernels(model)
    for one in (model, plain):
        layer = one.wav2vec2.feature_extractor.conv_layers[2]
        layer.conv = Doubled(layer.conv)
    torch.testing.assert_close(logits(model), logits(plain), rtol=0, atol=2e-5)
    for one in (model, plain):
        place = one.wav2vec2.encoder.pos_conv_embed
        place.conv = Doubled(place.conv)
    torch.testing.assert_close(logits(model), logits(plain), rtol=0, atol=2e-5)
    model, plain = tiny(kind), tiny(kind)
    apply_kernels(model)
    for one in (model, plain):
        one.wav2vec2.feature_extractor.conv_layers[3].register_forward_hook(lambda _, __, y: y + 1)
    torch.testing.assert_close(logits(model), logits(plain), rtol=0, atol=2e-5)
    assert not fast_passes


def test_a_copy_stands_alone_and_a_saved_model_is_one_of_transformers(tmp_path: Path) -> None:
    from transformers import Wav2Vec2ForCTC

    model = tiny("large")
    before = logits(model)
    apply_kernels(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(0.5)
    torch.testing.assert_close(logits(model), before, rtol=0, atol=2e-5)
    assert (logits(twin) - before).abs().max() > 0.1 and undo_kernels(twin) == undo_kernels(copy.deepcopy(model)) == 9
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(Wav2Vec2ForCTC.from_pretrained(tmp_path).eval()), before)


def test_too_little_audio_is_the_same_error_and_a_front_end_of_another_make_is_named() -> None:
    model = tiny("large")
    assert isinstance(apply_kernels(model), kernels.SpeechKernels)
    assert isinstance(model.wav2vec2.feature_extractor, ChannelsLastFrontEnd)
    with torch.inference_mode(), pytest.raises(RuntimeError, match="Kernel size can't be greater than actual input"):
        model(torch.zeros(1, 5))
    wider = tiny("large")
    conv = wider.wav2vec2.feature_extractor.conv_layers[2].conv
    wider.wav2vec2.feature_extractor.conv_layers[2].conv = torch.nn.Conv1d(8, 8, 3, 2, dilation=2)
    assert conv.dilation == (1,)
    before = logits(wider)
    told = apply_kernels(wider)
    assert told.fronts == 0 and "the front-end as a whole: it is not of the usual make" in str(told)
    torch.testing.assert_close(logits(wider), before, rtol=0, atol=2e-5)


def test_what_has_no_front_end_is_refused() -> None:
    with pytest.raises(ModelError, match=r"Linear has no front-end of wav2vec 2\.0"):
        apply_kernels(torch.nn.Linear(2, 2))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_on_a_gpu_compiled_kernels_give_what_transformers_does(tiny_ctc: Path, dtype: str) -> None:
    assert torch.cuda.is_available(), "no CUDA GPU here: `-m gpu` is for a machine that has one"
    for name in ("demo/en", tiny_ctc):
        asr: Recognizer = load_asr(name, device="cuda", dtype=dtype)
        before = asr.log_probs(sounds())
        apply_kernels(asr)
        assert farthest(asr.log_probs(sounds()), before) < (1e-3 if dtype == "float32" else 0.2)
        undo_kernels(asr)
        assert farthest(asr.log_probs(sounds()), before) == 0
