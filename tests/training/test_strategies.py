"""What learns under each strategy. Oracle: a real optimiser step, and which weights it moved."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from transformers import Wav2Vec2Config, Wav2Vec2ForPreTraining, Wav2Vec2Model

sys.path.insert(0, str(Path(__file__).parent))

from tiny_ctc import config, labels, sound, tiny

from speechkit.asr import masks
from speechkit.errors import ModelError, PlanError
from speechkit.training.strategies import (
    Applied,
    StrategyOptions,
    apply_strategy,
    enable_checkpointing,
    parameter_groups,
)


def moved(applied: Applied) -> set[str]:
    """Names of the parameters that a step of SGD changes, over all parameters, frozen or not."""
    model = applied.model.train()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    for _ in range(2):  # a matrix behind one that is zero moves at the second step
        model.zero_grad()
        model(input_values=sound(), labels=labels()).loss.backward()
        with torch.no_grad():
            for weight in model.parameters():
                if weight.grad is not None:
                    weight -= 0.5 * weight.grad
    return {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}


PIECES = ("lm_head", "layers.0", "layers.1", "encoder.layer_norm", "pos_conv", "projection", "feature_extr")


def parts(names: set[str]) -> set[str]:
    return {next(piece for piece in PIECES if piece in name) for name in names}


@pytest.mark.parametrize(
    ("strategy", "stable", "want"),
    [
        ("head", True, {"lm_head"}),
        ("top-1", True, {"lm_head", "layers.1", "encoder.layer_norm"}),
        ("top-1", False, {"lm_head", "layers.1"}),  # here the encoder's norm lies below the layers
        ("top-2", True, {"lm_head", "layers.0", "layers.1", "encoder.layer_norm"}),
        ("all", True, {"lm_head", "layers.0", "layers.1", "encoder.layer_norm", "pos_conv", "projection"}),
        ("adapters", True, {"lm_head", "layers.0", "layers.1"}),
        ("lora", True, {"lm_head", "layers.0", "layers.1"}),
    ],
)
def test_a_step_moves_the_parts_that_the_strategy_names_and_no_others(
    strategy: str, stable: bool, want: set[str]
) -> None:
    applied = apply_strategy(tiny(do_stable_layer_norm=stable), strategy)
    changed = moved(applied)
    assert parts(changed) == want
    assert changed <= set(applied.names)
    assert applied.trainable == sum(w.numel() for w in applied.model.parameters() if w.requires_grad)


def test_adapters_and_lora_leave_the_weights_of_the_layers_alone() -> None:
    for strategy, piece in (("adapters", "adapter_layer"), ("lora", "lora_")):
        changed = moved(apply_strategy(tiny(), strategy))
        assert all(piece in name or "lm_head" in name for name in changed)
        assert any(piece in name for name in changed)


def test_the_front_end_learns_on_request_only() -> None:
    applied = apply_strategy(tiny(), "all", StrategyOptions(freeze_features=False))
    assert "feature_extr" in parts(moved(applied))
    assert "front-end too" in applied.reason


def test_a_second_strategy_starts_afresh() -> None:
    model = tiny()
    apply_strategy(model, "all", {"freeze_features": False})
    assert parts(moved(apply_strategy(model, "head"))) == {"lm_head"}
    assert parts(moved(apply_strategy(model, "all", {"freeze_features": False}))) >= {"feature_extr", "projection"}


def test_a_frozen_front_end_gets_no_gradient_down_to_the_samples() -> None:
    model = apply_strategy(tiny(), "all").model.train()
    outputs = []
    model.wav2vec2.feature_extractor.register_forward_hook(lambda module, given, out: outputs.append(out))
    model(sound(), labels=labels()).loss.backward()
    assert not outputs[0].requires_grad


def test_the_line_of_the_table_names_numbers_and_parts() -> None:
    applied = apply_strategy(tiny(), "top-1")
    head = 16 * 13 + 13
    assert f"head {head:,}" in str(applied) and "layer 1 " in str(applied)
    assert str(applied).startswith(f"top-1     {applied.trainable:>12,} of {applied.total:>12,} learn (")
    assert str(apply_strategy(tiny(), "top-2")).count("layers 0-1") == 1


def test_a_merged_copy_that_answers_otherwise_is_told() -> None:
    applied = apply_strategy(tiny(), "lora")
    with torch.no_grad():  # updates so large that adding them to the weights loses what the weights were
        for name, weight in applied.model.named_parameters():
            if "lora_" in name:
                weight.fill_(1e6)
    with pytest.warns(RuntimeWarning, match="DIFFERENT"):
        applied.plain()


@pytest.mark.parametrize("strategy", ["head", "top-1", "all", "adapters", "lora", "distil"])
def test_what_is_saved_is_a_plain_model_with_the_outputs_of_the_trained_one(strategy: str) -> None:
    applied = apply_strategy(tiny(), strategy)
    moved(applied)
    plain = applied.plain()
    assert type(plain).__name__ == "Wav2Vec2ForCTC"
    with torch.no_grad():
        want = applied.model.eval()(input_values=sound()).logits
        torch.testing.assert_close(plain.eval()(sound()).logits, want, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("top-3", r"top-3 was asked of a model with 2 encoder layers; top-1 to top-2 can be"),
        ("adapter", r"unknown strategy 'adapter'; it can be head, top-1 … top-2, all, .*; did you mean 'adapters'\?"),
        ("top", r"unknown strategy 'top'"),
        ("", r"unknown strategy ''"),
    ],
)
def test_a_strategy_that_cannot_be_is_refused_with_those_that_can(given: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        apply_strategy(tiny(), given)


def test_options_may_be_named_without_the_prefix_of_their_strategy() -> None:
    assert StrategyOptions.of("lora", {"rank": 4, "targets": "ffn"}) == StrategyOptions(lora_rank=4, lora_targets="ffn")
    assert StrategyOptions.of("distil", {"layers": 1, "weight": 0.3}) == StrategyOptions(
        student_layers=1, distil_weight=0.3
    )
    with pytest.raises(PlanError, match=r"strategies have no option 'rnak'; they have freeze_features, adapter_dim"):
        apply_strategy(tiny(), "lora", {"rnak": 4})


@pytest.mark.parametrize(
    ("strategy", "given", "message"),
    [
        ("lora", {"rank": "8"}, "lora_rank is '8'; it should be of type int, as 16"),
        ("distil", {"student_layers": None}, "student_layers is None; it should be of type int"),
        ("all", {"freeze_features": "no"}, "freeze_features is 'no'; it should be of type bool"),
    ],
)
def test_an_option_of_another_type_is_refused(strategy: str, given: dict[str, object], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        StrategyOptions.of(strategy, given)
    assert StrategyOptions.of("lora", {"alpha": 8}).lora_alpha == 8, "JSON writes 8.0 as 8"


def test_a_model_without_ctc_head_is_refused() -> None:
    for kind in (Wav2Vec2Model, Wav2Vec2ForPreTraining):
        with pytest.raises(ModelError, match=rf"{kind.__name__} has no CTC head"):
            apply_strategy(kind(config(Wav2Vec2Config, codevector_dim=8, proj_codevector_dim=8)), "head")


def test_lower_layers_learn_more_slowly_by_a_constant_factor() -> None:
    model = apply_strategy(tiny(), "all").model
    groups = parameter_groups(model, 1e-3, layer_decay=0.5, weight_decay=0.1, head_rate=5e-3)
    rate = {name: group["lr"] for group in groups for name in group["names"]}
    decay = {name: group["weight_decay"] for group in groups for name in group["names"]}
    base = "wav2vec2.encoder.layers"
    assert rate["lm_head.weight"] == 5e-3
    assert rate[f"{base}.1.attention.q_proj.weight"] == 1e-3 == rate["wav2vec2.encoder.layer_norm.weight"]
    assert rate[f"{base}.0.attention.q_proj.weight"] == 5e-4
    assert rate["wav2vec2.feature_projection.projection.weight"] == 2.5e-4
    assert decay[f"{base}.0.attention.q_proj.weight"] == 0.1 and decay[f"{base}.0.attention.q_proj.bias"] == 0.0
    assert decay[f"{base}.0.layer_norm.weight"] == 0.0
    given = [id(weight) for group in groups for weight in group["params"]]
    assert sorted(given) == sorted(id(weight) for weight in model.parameters() if weight.requires_grad)
    torch.optim.AdamW(groups).step()


def test_without_decay_all_learn_alike_and_nothing_to_learn_is_an_error() -> None:
    model = apply_strategy(tiny(), "top-1").model
    assert {group["lr"] for group in parameter_groups(model, 1e-3)} == {1e-3}
    with pytest.raises(PlanError, match=r"layer_decay is 1\.5"):
        parameter_groups(model, 1e-3, layer_decay=1.5)
    with pytest.raises(PlanError, match="no parameter learns"):
        parameter_groups(model.requires_grad_(False), 1e-3)


@pytest.mark.parametrize("strategy", ["top-1", "all", "adapters", "lora", "distil"])
def test_recomputing_activations_gives_the_same_gradients(strategy: str) -> None:
    """Also where the layers lie on frozen ones, whose outputs need no gradient."""
    found = []
    for recompute in (False, True):
        applied = apply_strategy(tiny(), strategy, {"freeze_features": True})
        if recompute:
            enable_checkpointing(applied.model)
        torch.manual_seed(1)
        applied.model.train()(input_values=sound(), labels=labels()).loss.backward()
        # the random half of LoRA is drawn from the same seed in both runs: by `tiny`
        found.append({n: w.grad for n, w in applied.model.named_parameters() if w.requires_grad})
    assert set(found[0]) == set(found[1])
    for name, want in found[0].items():
        if want is not None:
            torch.testing.assert_close(found[1][name], want, atol=1e-6, rtol=1e-5)
    assert any(want is not None and bool(want.any()) for name, want in found[0].items() if "lm_head" not in name)


def test_recomputing_knows_the_lengths_of_a_ragged_batch() -> None:
    """The masked group norm is told them for the forward pass only."""
    found = []
    for recompute in (False, True):
        model = tiny(feat_extract_norm="group", conv_bias=True)
        masks.attach(model)
        model = apply_strategy(model, "all", {"freeze_features": False}).model.train()
        if recompute:
            enable_checkpointing(model)
        mask = torch.ones(2, 8000, dtype=torch.long)
        mask[1, 6000:] = 0
        with masks.lengths_known(model, [8000, 6000]):
            loss = model(sound(), attention_mask=mask, labels=labels()).loss
        loss.backward()
        found.append(model.wav2vec2.feature_extractor.conv_layers[0].conv.weight.grad)
    torch.testing.assert_close(found[0], found[1])
