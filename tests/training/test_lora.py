"""LoRA on models that hear. Oracles: W + alpha / rank · B A by hand, peft's own loading, a plain Trainer."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import Trainer, TrainingArguments, WavLMConfig, WavLMForCTC

sys.path.insert(0, str(Path(__file__).parent))

from tiny_ctc import config, labels, sound, tiny, written

from speechkit import load_asr
from speechkit.errors import MissingExtra, ModelError, OutputError, PlanError
from speechkit.training.lora import LoraOptions, add_lora, load_lora, merge_lora, save_lora

QUERY = "base_model.model.wav2vec2.encoder.layers.1.attention.q_proj"


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return torch.as_tensor(model.eval()(input_values=sound()).logits)


def trained(model: Any, steps: int = 5) -> Any:
    """A few steps of Adam on random labels: large enough to see, far from nothing."""
    optimizer = torch.optim.Adam([w for w in model.parameters() if w.requires_grad], lr=0.02)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_values=sound(), labels=labels()).loss.backward()
        optimizer.step()
    return model.eval()


def test_updates_change_nothing_until_they_are_trained() -> None:
    before = logits(tiny())
    model = add_lora(tiny(), LoraOptions(rank=2, targets="attention+ffn"))
    assert torch.equal(logits(model), before)
    merged = merge_lora(model)
    assert merged.effect == 0 and merged.ok
    assert "the updates change nothing: they were not trained" in str(merged)


def test_nobody_is_told_of_properties_that_were_renamed(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        load_lora(tiny(), save_lora(add_lora(tiny(), LoraOptions(rank=2)), tmp_path))


def test_the_head_and_the_updates_learn_and_nothing_else() -> None:
    model = add_lora(tiny(), LoraOptions(rank=2))
    names = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert all(".lora_" in name or "lm_head.modules_to_save" in name for name in names)
    assert sum(".lora_A." in name for name in names) == 2 * 4  # layers x (query, key, value, out)
    assert all(weight.grad is None for weight in model.parameters())  # the probe left nothing behind


def test_merged_weights_are_what_the_paper_says() -> None:
    model = trained(add_lora(tiny(), LoraOptions(rank=2, alpha=6.0, dropout=0.0)))
    weights = dict(model.named_parameters())
    a, b = weights[f"{QUERY}.lora_A.default.weight"], weights[f"{QUERY}.lora_B.default.weight"]
    want = weights[f"{QUERY}.base_layer.weight"] + 6.0 / 2 * b @ a
    merged = merge_lora(model)
    torch.testing.assert_close(merged.model.wav2vec2.encoder.layers[1].attention.q_proj.weight, want)
    assert merged.ok and merged.effect > 100 * merged.difference
    assert str(merged).startswith("merged == adapter: max |Δ log p| ") and str(merged).endswith(": ok")
    assert not [name for name, _ in merged.model.named_parameters() if "lora" in name]


def test_merging_leaves_the_adapter_as_it_is_and_gives_a_folder_that_opens(tmp_path: Path) -> None:
    model = trained(add_lora(tiny()))
    before = logits(model)
    merged = merge_lora(model.train()).model
    assert model.training
    torch.testing.assert_close(logits(merged), before, atol=1e-5, rtol=1e-4)
    assert torch.equal(logits(model), before)
    recognizer = load_asr(written(merged, tmp_path), device="cpu")
    torch.testing.assert_close(logits(recognizer.model), logits(merged))


def test_half_precision_compares_probabilities_with_a_bound_of_its_own() -> None:
    merged = merge_lora(trained(add_lora(tiny())).to(torch.bfloat16))
    assert (merged.quantity, merged.bound) == ("p", 0.1) and merged.ok and merged.effect > 0
    assert str(merged).startswith("merged == adapter: max |Δ p| ")


def test_a_broken_merge_does_not_pass() -> None:
    model = trained(add_lora(tiny()))
    with torch.no_grad():
        dict(model.named_parameters())[f"{QUERY}.lora_B.default.weight"][0, 0] = float("nan")
    assert not merge_lora(model).ok and str(merge_lora(model)).endswith("DIFFERENT")


def test_saved_updates_load_here_and_in_peft(tmp_path: Path) -> None:
    model = trained(add_lora(tiny()))
    save_lora(model, tmp_path)
    assert {"adapter_model.safetensors", "adapter_config.json"} <= {path.name for path in tmp_path.iterdir()}
    assert torch.equal(logits(load_lora(tiny(), tmp_path)), logits(model))
    assert torch.equal(logits(PeftModel.from_pretrained(tiny(), str(tmp_path))), logits(model))
    again = load_lora(tiny(), tmp_path, trainable=True)
    loss = [float(trained(again, 3)(input_values=sound(), labels=labels()).loss.detach()) for _ in range(2)]
    assert loss[1] < loss[0]


def test_a_head_of_another_size_than_that_on_disk_is_saved_and_loaded(tmp_path: Path) -> None:
    """peft then looks for input embeddings to save with it, which a model that hears does not have."""
    written(tiny(vocab_size=13), tmp_path / "base")
    base = load_asr(tmp_path / "base", device="cpu").model

    def resized() -> Any:
        model = tiny()
        model.lm_head, model.config.vocab_size = torch.nn.Linear(16, 20), 20
        model.config._name_or_path = model.name_or_path = str(tmp_path / "base")
        return model

    assert base.config.vocab_size != resized().config.vocab_size
    model = trained(add_lora(resized()))
    save_lora(model, tmp_path / "ours")
    model.save_pretrained(tmp_path / "trainers")  # as Trainer calls it
    for name in ("ours", "trainers"):
        assert torch.equal(logits(load_lora(resized(), tmp_path / name)), logits(model))
    with pytest.raises(ModelError, match=r"do not fit this Wav2Vec2ForCTC: .*that they were trained on"):
        load_lora(tiny(), tmp_path / "ours")


def test_a_plain_trainer_trains_it_with_recomputed_activations_and_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    rows = [{"input_values": clip, "labels": ids} for clip, ids in zip(sound(4), labels(4), strict=True)]

    def run(steps: int, resume: bool) -> Any:
        model = add_lora(tiny(), LoraOptions(dropout=0.0))
        args = TrainingArguments(
            str(tmp_path), max_steps=steps, save_steps=3, per_device_train_batch_size=4, learning_rate=0.02,
            gradient_checkpointing=True, report_to=[], use_cpu=True, disable_tqdm=True, logging_steps=1,
            remove_unused_columns=False, lr_scheduler_type="constant",
        )  # fmt: skip
        trainer = Trainer(model, args, train_dataset=rows)  # type: ignore[arg-type]
        trainer.train(resume_from_checkpoint=resume)
        return [row["loss"] for row in trainer.state.log_history if "loss" in row], model

    run(3, resume=False)
    losses, model = run(6, resume=True)
    assert losses[-1] < losses[3] < losses[0]
    updates = [weight for name, weight in model.named_parameters() if ".lora_B." in name]
    assert all(bool(weight.any()) for weight in updates)


def test_updates_that_no_gradient_would_reach_are_refused() -> None:
    """WavLM hands its attention weights to a function of torch and never calls the layers."""
    with pytest.raises(PlanError, match=r"8 LoRA updates of WavLMForCTC would learn nothing.*Take targets 'ffn'"):
        add_lora(WavLMForCTC(config(WavLMConfig)), LoraOptions(rank=2))
    model = add_lora(WavLMForCTC(config(WavLMConfig)), LoraOptions(rank=2, targets="ffn"))
    before = logits(model)
    assert not torch.equal(logits(trained(model)), before)


@pytest.mark.parametrize(
    "options",
    [LoraOptions(rank=0), LoraOptions(dropout=1.0), LoraOptions(alpha=0.0), LoraOptions(targets="everything")],
    ids=str,
)
def test_options_out_of_range_are_refused(options: LoraOptions) -> None:
    with pytest.raises(PlanError, match=r'the rank is 1 or more, alpha above 0, .*"attention\+ffn"'):
        add_lora(tiny(), options)


def test_what_has_no_updates_cannot_be_saved_merged_or_given_them_twice(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="has no LoRA updates to save"):
        save_lora(tiny(), tmp_path)
    with pytest.raises(PlanError, match="has no LoRA updates to merge"):
        merge_lora(tiny())
    with pytest.raises(PlanError, match="has LoRA updates already"):
        add_lora(add_lora(tiny()))
    with pytest.raises(ModelError, match=r"has no adapter_config.json"):
        load_lora(tiny(), tmp_path)


def test_a_folder_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot be written"):
        save_lora(add_lora(tiny()), tmp_path / "file" / "below")


def test_without_peft_the_message_holds_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtra, match=r'LoRA needs the package \'peft\'.*pip install "speechkit\[train\]"'):
        add_lora(tiny())
