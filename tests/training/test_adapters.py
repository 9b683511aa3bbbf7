"""Adapters change nothing until they are trained, and come and go without a trace. Oracle: transformers' loading."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Data2VecAudioConfig,
    Data2VecAudioForCTC,
    HubertConfig,
    HubertForCTC,
    Wav2Vec2ForCTC,
    WavLMConfig,
    WavLMForCTC,
)

sys.path.insert(0, str(Path(__file__).parent))

from tiny_ctc import TOKENS, config, sound, tiny, tokenizer, written

from speechkit import load_asr
from speechkit.errors import ModelError, OutputError, PlanError
from speechkit.training.adapters import (
    Adapter,
    add_adapters,
    list_adapters,
    load_adapter,
    save_adapter,
    swap_adapter,
    take_adapter,
)

if TYPE_CHECKING:
    from speechkit.demo import DemoClip

OTHER = ("<pad>", "<unk>", "|", *"XYZ")  # another language's alphabet


def trained(model: Any, seed: int) -> Any:
    """As if it had been trained: every number of the adapter and the head drawn anew."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "adapter_layer" in name or "lm_head" in name:
                weight.copy_(0.3 * torch.randn(weight.shape, generator=draw))
    return model


def adapter(seed: int, name: str = "a", width: int = 4, **changes: Any) -> Adapter:
    model = tiny(**changes)
    add_adapters(model, width)
    return take_adapter(trained(model, seed), name)


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return torch.as_tensor(model.eval()(sound()).logits)


@pytest.mark.parametrize("family", ["wav2vec2", "hubert"])
def test_a_model_with_new_adapters_gives_what_it_gave_bit_for_bit(family: str) -> None:
    model = tiny() if family == "wav2vec2" else HubertForCTC(config(HubertConfig)).eval()
    before = logits(model)
    assert add_adapters(model, 8)
    assert torch.equal(logits(model), before)
    assert not add_adapters(model, 8)
    with pytest.raises(PlanError, match="has adapters of width 8, asked for 16: ask for 8"):
        add_adapters(model, 16)


def test_from_a_to_b_and_back_gives_the_same_bits() -> None:
    model, before = tiny(), logits(tiny())
    plain = swap_adapter(model, adapter(1))
    first = logits(model)
    replaced = swap_adapter(model, adapter(2, "b"))
    assert not torch.equal(logits(model), first)
    swap_adapter(model, adapter(1))
    assert torch.equal(logits(model), first)
    swap_adapter(model, replaced)
    assert torch.equal(logits(model), first)
    swap_adapter(model, plain)
    assert torch.equal(logits(model), before)


def test_a_live_recognizer_changes_domain_and_back(demo_clips: list[DemoClip]) -> None:
    recognizer = load_asr("demo/en", device="cpu")
    clip = str(demo_clips[0].path)
    before, identity = recognizer.log_probs(clip), recognizer.identity
    model = load_asr("demo/en", device="cpu").model
    add_adapters(model, 8)
    domain = take_adapter(trained(model, 1), "clinic", recognizer.tokenizer)
    base = swap_adapter(recognizer, domain)
    changed = recognizer.log_probs(clip)
    assert not np.array_equal(changed, before)
    assert recognizer.transcribe(clip).model == "demo/en + clinic" and recognizer.identity != identity
    swap_adapter(recognizer, base)
    np.testing.assert_array_equal(recognizer.log_probs(clip), before)
    assert (recognizer.name, recognizer.identity) == ("demo/en", identity)
    assert swap_adapter(recognizer, domain).name == "base"
    assert swap_adapter(recognizer, base).name == "clinic"


def test_the_adapter_of_a_trained_folder_works_on_the_model_it_came_from(tmp_path: Path) -> None:
    written(tiny(), tmp_path / "base")
    model = tiny()
    add_adapters(model, 4)
    tuned = load_asr(written(trained(model, 1), tmp_path / "tuned"), device="cpu")
    base = load_asr(tmp_path / "base", device="cpu")
    clip = 0.1 * sound(1, 16_000)[0].numpy()
    assert not np.array_equal(base.log_probs(clip), tuned.log_probs(clip))
    swap_adapter(base, take_adapter(tuned, "digits"))
    np.testing.assert_array_equal(base.log_probs(clip), tuned.log_probs(clip))


def test_an_adapter_brings_its_own_alphabet(tmp_path: Path) -> None:
    recognizer = load_asr(written(tiny(), tmp_path / "model"), device="cpu")
    clip = 0.1 * sound(1, 32_000)[0].numpy()
    before = recognizer.transcribe(clip).text
    model = tiny()
    add_adapters(model, 4)
    model.lm_head = torch.nn.Linear(16, len(OTHER))
    foreign = take_adapter(trained(model, 3), "foreign", tokenizer(tmp_path / "other", OTHER))
    save_adapter(foreign, tmp_path)
    base = swap_adapter(recognizer, load_adapter(tmp_path, "foreign"))
    heard = recognizer.transcribe(clip).text
    assert heard and set(heard) <= set("XYZ ")
    assert recognizer.log_probs(clip).shape[1] == len(OTHER)
    swap_adapter(recognizer, base)
    assert recognizer.transcribe(clip).text == before
    assert tuple(recognizer.tokenizer.encoder) == TOKENS


def test_outputs_without_tokens_are_refused_by_a_recognizer_that_could_not_read_them(tmp_path: Path) -> None:
    recognizer = load_asr(written(tiny(), tmp_path / "model"), device="cpu")
    with pytest.raises(
        ModelError, match="has 6 outputs and names no tokens for them, the recogniser's tokenizer has 13"
    ):
        swap_adapter(recognizer, adapter(1, vocab_size=6))


def test_transformers_opens_what_was_saved(tmp_path: Path) -> None:
    model = tiny()
    add_adapters(model, 4)
    written(trained(model, 1), tmp_path)
    saved = adapter(2, "polish")
    save_adapter(saved, tmp_path)
    want = swap_adapter(model, saved) and logits(model)
    torch.testing.assert_close(logits(Wav2Vec2ForCTC.from_pretrained(tmp_path, target_lang="polish")), want)
    live = Wav2Vec2ForCTC.from_pretrained(tmp_path)
    live.load_adapter("polish")
    torch.testing.assert_close(logits(live), want)
    assert load_asr(tmp_path, device="cpu").config.adapter_attn_dim == 4


def test_what_transformers_wrote_opens_here(tmp_path: Path) -> None:
    model = tiny(adapter_attn_dim=4)
    save_file(
        {key: weight.detach() for key, weight in model._get_adapters().items()}, tmp_path / "adapter.ukr.safetensors"
    )
    read = load_adapter(tmp_path, "ukr")
    assert (read.dim, read.tokens, read.name) == (4, (), "ukr")
    target = tiny(seed=0)
    swap_adapter(target, read)
    assert torch.equal(target.lm_head.weight, model.lm_head.weight)
    own, other = (m.wav2vec2.encoder.layers[1].adapter_layer.linear_2.weight for m in (target, model))
    assert torch.equal(own, other)


def test_saving_and_loading_gives_the_same_adapter_back(tmp_path: Path) -> None:
    model = tiny()
    add_adapters(model, 4)
    first = take_adapter(trained(model, 1), "a", tokenizer(tmp_path / "words"))
    path = save_adapter(first, tmp_path)
    again = load_adapter(tmp_path, "a")
    assert again.tokens == TOKENS and again.specials == first.specials and "<pad>" in again.specials.values()
    assert again.sketch == first.sketch and again.weights.keys() == first.weights.keys()
    assert all(torch.equal(again.weights[key], first.weights[key]) for key in first.weights)
    assert set(load_file(path)) == set(first.weights) and list_adapters(tmp_path) == ("a",)
    # per layer: norm 16 + 16, 4 x 16 + 4, 16 x 4 + 16; head 13 x 16 + 13
    assert str(first) == f"adapter a: {2 * 180 + 221} numbers (0.00 MB), width 4, 13 outputs"


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(lambda: tiny(do_stable_layer_norm=False), id="wav2vec2 that normalises behind the layer"),
        pytest.param(lambda: WavLMForCTC(config(WavLMConfig)), id="wavlm"),
        pytest.param(
            lambda: Data2VecAudioForCTC(config(Data2VecAudioConfig, num_conv_pos_embeddings=3)), id="data2vec"
        ),
    ],
)
def test_models_that_cannot_have_adapters_are_named_with_what_serves_instead(model: Any) -> None:
    with pytest.raises(PlanError, match=r"cannot have adapters: .*do_stable_layer_norm=true.*Take strategy \"lora\""):
        add_adapters(model(), 8)


def test_an_adapter_goes_onto_the_weights_it_was_trained_on_only() -> None:
    with pytest.raises(ModelError, match=r"'a' was trained on other weights than this model's \(they differ by up to"):
        swap_adapter(tiny(seed=1), adapter(1))
    with pytest.raises(ModelError, match="was trained on 3 layers, this model has 2"):
        swap_adapter(tiny(), adapter(1, num_hidden_layers=3))
    half = tiny().to(torch.bfloat16)  # rounding alone is no other model
    swap_adapter(half, adapter(1))
    assert half.lm_head.weight.dtype == torch.bfloat16


def test_a_wider_adapter_does_not_fit_a_narrow_place() -> None:
    model = tiny()
    swap_adapter(model, adapter(1, width=4))
    with pytest.raises(PlanError, match="has adapters of width 4, asked for 6"):
        swap_adapter(model, adapter(1, width=6))


def test_weights_of_other_names_are_refused() -> None:
    whole = adapter(1)
    short = Adapter("a", {key: weight for key, weight in whole.weights.items() if "layers.1" not in key})
    with pytest.raises(ModelError, match=r"'a' does not fit this model: .*layers.1.* is absent in the adapter"):
        swap_adapter(tiny(), short)


def test_a_missing_adapter_names_those_there_and_a_broken_one_says_so(tmp_path: Path) -> None:
    save_adapter(adapter(1, "digits"), tmp_path)
    with pytest.raises(ModelError, match=r"no adapter 'letters' in .*; there: digits"):
        load_adapter(tmp_path, "letters")
    (tmp_path / "adapter.broken.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00nonsense")
    with pytest.raises(ModelError, match="cannot be read as an adapter"):
        load_adapter(tmp_path, "broken")
    save_file({"some.weight": torch.zeros(2)}, tmp_path / "adapter.else.safetensors")
    with pytest.raises(ModelError, match=r"is no adapter: it holds some.weight"):
        load_adapter(tmp_path, "else")


@pytest.mark.parametrize("name", ["../up", "a/b", "", "a.b"])
def test_a_name_that_would_leave_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="letters, digits, - and _ only"):
        load_adapter(tmp_path, name)
    model = tiny()
    add_adapters(model, 4)
    with pytest.raises(PlanError, match="letters, digits, - and _ only"):
        take_adapter(model, name)


def test_a_folder_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match=r"adapter.a.safetensors cannot be written: .*give another folder"):
        save_adapter(adapter(1), tmp_path / "file")


def test_a_model_without_adapters_has_none_to_take() -> None:
    with pytest.raises(PlanError, match="has no adapters yet: call add_adapters"):
        take_adapter(tiny(), "a")
    with pytest.raises(PlanError, match="the width of an adapter is 0"):
        add_adapters(tiny(), 0)
