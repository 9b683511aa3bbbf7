"""Resized heads on real models: what was known is computed as before, and transformers agrees on the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from transformers import (
    HubertConfig,
    HubertForCTC,
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
    Wav2Vec2ForPreTraining,
    WavLMConfig,
    WavLMForCTC,
)

from speechkit import demo, load_asr
from speechkit.audio import load
from speechkit.errors import ModelError
from speechkit.training.vocabulary import Vocabulary, build_vocabulary, extend_vocabulary, resize_head

if TYPE_CHECKING:
    from pathlib import Path

OLD = Vocabulary(("<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefgn"), 0, 3, 4)
SIZES = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "conv_dim": (8,) * 7,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2, "feat_extract_norm": "layer",
}  # fmt: skip


def tiny(config: type = Wav2Vec2Config, model: type = Wav2Vec2ForCTC, size: int = len(OLD)) -> torch.nn.Module:
    torch.manual_seed(0)
    made = model(config(**SIZES, vocab_size=size, pad_token_id=0)).eval()
    if hasattr(made, "lm_head"):
        torch.nn.init.normal_(made.lm_head.bias)
    return made


def logits(model: torch.nn.Module) -> torch.Tensor:
    """(F, V) of a second of noise."""
    sound = torch.randn(1, 16000, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(sound).logits[0]


@pytest.mark.parametrize(
    ("config", "kind"),
    [(Wav2Vec2Config, Wav2Vec2ForCTC), (HubertConfig, HubertForCTC), (WavLMConfig, WavLMForCTC)],
    ids=["wav2vec2", "hubert", "wavlm"],
)
def test_known_tokens_are_scored_as_before_wherever_they_go(config: type, kind: type) -> None:
    model = tiny(config, kind)
    before = logits(model)
    new = Vocabulary(("|", *"gfedcba", "<blank>", "[UNK]", "z"), 8, 9, 0)
    change = resize_head(model, OLD, new)
    after = logits(model)
    assert after.shape[1] == len(new) == model.config.vocab_size
    for token in "gfedcba":
        torch.testing.assert_close(after[:, new.ids[token]], before[:, OLD.ids[token]])
    for role in ("blank", "unk", "delimiter"):
        torch.testing.assert_close(after[:, getattr(new, role)], before[:, getattr(OLD, role)])
    assert (change.fresh, change.derived, change.dropped) == (("z",), (), ("<s>", "</s>", "n"))
    assert len(change.copied) == 10


def test_growing_the_alphabet_changes_no_transcript() -> None:
    """On the embedded model and clips: every frame's winner is the old one."""
    clips = [load(clip.path) for clip in demo.clips("en")[:3]]
    fresh = load_asr("demo/en", device="cpu")
    before = [row.argmax(axis=1) for row in fresh.log_probs(clips)]
    old = Vocabulary.load(fresh)
    new = extend_vocabulary(old, ["éñżß жиш 你好"])
    resize_head(fresh.model, old, new)
    after = fresh.log_probs(clips)
    assert all(row.shape[1] == len(old) + 9 for row in after)
    for rows, winners in zip(after, before, strict=True):
        np.testing.assert_array_equal(rows.argmax(axis=1), winners)


def test_a_letter_with_an_accent_starts_just_below_its_plain_form() -> None:
    model = tiny()
    change = resize_head(model, OLD, extend_vocabulary(OLD, ["né ж"]))
    scores = logits(model)
    assert change.derived == (("é", "e"),)
    assert change.fresh == ("ж",)
    torch.testing.assert_close(scores[:, 13], scores[:, OLD.ids["e"]] - 1)
    letters = scores[:, [OLD.ids[token] for token in OLD.letters]]
    torch.testing.assert_close(scores[:, 14], letters.mean(dim=1))


def test_a_change_of_case_keeps_every_row() -> None:
    model = tiny()
    before = logits(model)
    upper = Vocabulary(tuple(t.upper() if len(t) == 1 else t for t in OLD.tokens), 0, 3, 4)
    change = resize_head(model, OLD, upper)
    assert change.copied == upper.tokens
    torch.testing.assert_close(logits(model), before)


def test_without_an_old_vocabulary_everything_is_drawn_anew() -> None:
    model = tiny(size=3)
    new = build_vocabulary(["a new alphabet"], "en")
    change = resize_head(model, None, new)
    assert change.fresh == new.tokens
    assert not model.lm_head.bias.any()
    assert float(model.lm_head.weight.detach().std()) == pytest.approx(model.config.initializer_range, rel=0.2)


def test_the_loss_takes_the_new_vocabulary_s_blank() -> None:
    """The loss of transformers equals torch's with the blank where the new vocabulary has it."""
    model = tiny()
    new = Vocabulary((*"abcdefg", "|", "<unk>", "<pad>"), 9, 8, 7)
    resize_head(model, OLD, new)
    model.config.ctc_loss_reduction = "sum"
    sound, labels = torch.randn(1, 16000), torch.tensor([new.encode("bad cab")])
    with torch.no_grad():
        out = model(sound, labels=labels)
    scores = out.logits.log_softmax(-1).transpose(0, 1)
    want = torch.nn.functional.ctc_loss(scores, labels, [len(scores)], [7], blank=9, reduction="sum")
    torch.testing.assert_close(out.loss, want)


def test_a_resized_model_survives_its_folder(tmp_path: Path) -> None:
    model = tiny()
    new = extend_vocabulary(OLD, ["ñu"])
    resize_head(model, OLD, new)
    model.save_pretrained(tmp_path)
    new.processor().save_pretrained(tmp_path)
    again = load_asr(tmp_path, device="cpu")
    assert Vocabulary.load(again) == new
    np.testing.assert_allclose(again.model(torch.ones(1, 800)).logits.numpy(),
                               model(torch.ones(1, 800)).logits.detach().numpy(), atol=1e-6)  # fmt: skip


def test_kind_device_and_gradients_of_the_head_stay() -> None:
    model = tiny().half()
    model.lm_head.requires_grad_(False)
    resize_head(model, OLD, extend_vocabulary(OLD, ["ñ"]))
    assert model.lm_head.weight.dtype == torch.float16
    assert not model.lm_head.weight.requires_grad and not model.lm_head.bias.requires_grad


def test_a_head_without_bias_works_too() -> None:
    model = tiny()
    model.lm_head = torch.nn.Linear(16, len(OLD), bias=False)
    before = logits(model).argmax(-1)
    change = resize_head(model, OLD, extend_vocabulary(OLD, ["é"]))
    assert change.fresh == ("é",)  # a copy of e would tie with it
    assert torch.equal(logits(model).argmax(-1), before)


def test_models_without_a_head_or_with_another_one_are_refused() -> None:
    with pytest.raises(ModelError, match=r"Wav2Vec2ForPreTraining has no CTC head \(lm_head\)"):
        resize_head(tiny(model=Wav2Vec2ForPreTraining), None, OLD)
    with pytest.raises(ModelError, match="the head has 5 outputs, the old vocabulary 13 tokens"):
        resize_head(tiny(size=5), OLD, OLD)


def test_the_change_prints_in_one_line() -> None:
    change = resize_head(tiny(), OLD, extend_vocabulary(OLD, ["é ж"]))
    assert str(change) == "head: 13 rows copied, 1 started from a relative (é ← e), 1 new (ж)"
