"""Tiny random models of every family: with kernels they compute what transformers does, undone they are untouched."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parent))

from tiny_llms import loss_and_gradients, tiny

from speechkit.errors import ModelError, PlanError
from speechkit.llm import KINDS, apply_kernels, explain, undo_kernels
from speechkit.llm.profiles import PROFILES

TYPES = [kind for profile in PROFILES for kind in profile.model_types]


@pytest.mark.parametrize("kind", TYPES)
def test_logits_loss_and_gradients_are_those_of_transformers_and_undoing_is_exact(kind: str) -> None:
    model = tiny(kind)
    names = list(model.state_dict())
    logits, loss, gradients = loss_and_gradients(model)
    applied = apply_kernels(model)
    assert applied.counts["norms"] >= 5, str(applied)
    assert list(model.state_dict()) == names
    ours, our_loss, our_gradients = loss_and_gradients(model)
    torch.testing.assert_close(ours, logits, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(our_loss, loss, atol=1e-6, rtol=1e-5)
    assert our_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            our_gradients[name], gradient, atol=1e-5, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}"
        )
    assert undo_kernels(model) == sum(applied.counts.values())
    back, back_loss, back_gradients = loss_and_gradients(model)
    assert torch.equal(back, logits) and torch.equal(back_loss, loss)
    assert all(torch.equal(back_gradients[name], gradient) for name, gradient in gradients.items())
    assert not explain(model).counts


@pytest.mark.parametrize("kind", TYPES)
def test_thirty_updates_on_fixed_data_stay_beside_those_of_transformers(kind: str) -> None:
    curves = []
    for kernels in (False, True):
        model = tiny(kind).train()
        if kernels:
            apply_kernels(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        ids, losses = torch.arange(4 * 12).reshape(4, 12) * 7 % 60 + 3, []
        for _ in range(30):
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        curves.append(losses)
    assert curves[0][-1] < 0.5 * curves[0][0], "it learns"
    assert curves[1] == pytest.approx(curves[0], rel=1e-3)


def test_weights_loaded_while_kernels_are_in_stay_when_they_are_taken_out() -> None:
    model, other = tiny("llama"), tiny("llama")
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(1.5)
    apply_kernels(model)
    model.load_state_dict(other.state_dict(), assign=True)
    undo_kernels(model)
    ids = torch.tensor([[3, 4, 5]])
    assert torch.equal(model(ids).logits, other(ids).logits)


COUNTS = {"norms": 5, "gated units": 2, "rotary positions": 2, "attention": 1, "loss": 1}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_alone_is_put_in_and_taken_out(kind: str) -> None:
    model = tiny("llama")
    logits, loss, gradients = loss_and_gradients(model)
    applied = apply_kernels(model, (kind,))
    assert applied.counts == {kind: COUNTS[kind]}
    assert len(applied.left) == 4 and all("not asked for" in reason for reason in applied.left)
    ours, our_loss, our_gradients = loss_and_gradients(model.train())
    torch.testing.assert_close(our_loss, loss, atol=1e-6, rtol=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(our_gradients[name], gradient, atol=1e-5, rtol=1e-3)
    assert (ours is None) == (kind == "loss")
    assert undo_kernels(model) == COUNTS[kind]
    assert torch.equal(loss_and_gradients(model)[0], logits)


def test_a_second_call_adds_the_rest_and_a_third_nothing() -> None:
    model = tiny("llama")
    before = model.config._attn_implementation
    apply_kernels(model, ("norms",))
    assert apply_kernels(model).counts == COUNTS
    classes = [type(module) for module in model.modules()]
    assert apply_kernels(model).counts == COUNTS and not explain(model).left
    assert [type(module) for module in model.modules()] == classes
    assert model.config._attn_implementation == "speechkit"
    assert undo_kernels(model) == 11 and undo_kernels(model) == 0
    assert model.config._attn_implementation == before


def test_an_attention_chosen_after_the_kernels_stays_when_they_go() -> None:
    model = tiny("llama")
    apply_kernels(model)
    model.set_attn_implementation("eager")
    assert "attention" not in explain(model).counts
    undo_kernels(model)
    assert model.config._attn_implementation == "eager"


def test_a_class_is_never_changed_and_a_second_model_is_left_alone() -> None:
    one, other = tiny("llama"), tiny("llama")
    forwards = [type(module).forward for module in other.modules()]
    apply_kernels(one)
    assert [type(module).forward for module in other.modules()] == forwards
    assert not explain(other).counts


def test_experts_gone_through_one_by_one_are_left_and_named() -> None:
    model = tiny("mixtral")
    model.set_experts_implementation("eager")
    applied = apply_kernels(model)
    assert "gated units" not in applied.counts
    assert any("experts one after the other" in reason for reason in applied.left)


def test_an_activation_that_no_kernel_has_is_left_and_named() -> None:
    applied = apply_kernels(tiny("llama", hidden_act="relu"))
    assert "gated units" not in applied.counts
    assert any("2 gated units" in reason and "ReLU" in reason for reason in applied.left)


def test_attention_with_dropout_is_left_and_named() -> None:
    applied = apply_kernels(tiny("llama", attention_dropout=0.1))
    assert "attention" not in applied.counts
    assert any("attention_dropout is 0.1" in reason for reason in applied.left)


def test_of_phi_3_with_partly_turned_heads_the_rest_of_a_head_stays() -> None:
    model = tiny("phi3", head_dim=16, rope_parameters={"rope_theta": 1e4, "rope_type": "default",
                                                       "partial_rotary_factor": 0.5})  # fmt: skip
    assert model.model.rotary_emb(torch.zeros(1, 2, 32), torch.arange(2)[None])[0].shape[-1] == 8, "half of a head"
    logits, *_ = loss_and_gradients(model)
    apply_kernels(model)
    torch.testing.assert_close(loss_and_gradients(model)[0], logits, atol=2e-5, rtol=1e-4)


def test_of_gemma_3_with_images_the_tower_for_images_is_left() -> None:
    model = tiny("gemma3")
    ids, types = torch.full((1, 12), 9), torch.zeros(1, 12, dtype=torch.long)
    ids[0, 2:6], types[0, 2:6] = model.config.image_token_id % 67, 1
    model.config.image_token_id = int(ids[0, 2])
    given = {"input_ids": ids, "token_type_ids": types, "pixel_values": torch.linspace(-1, 1, 2352).view(1, 3, 28, 28)}
    logits, sight = model(**given).logits, model.config.vision_config._attn_implementation
    apply_kernels(model)
    assert model.config.vision_config._attn_implementation == sight
    torch.testing.assert_close(model(**given).logits, logits, atol=2e-5, rtol=1e-4)


def test_unknown_families_and_kinds_are_refused_by_name() -> None:
    gpt = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", n_layer=1, n_embd=8, n_head=2))
    for function in (apply_kernels, explain, undo_kernels):
        with pytest.raises(
            ModelError, match=r"no kernels are known for the model type 'gpt2'; known are llama, .*phi3"
        ):
            function(gpt)
    with pytest.raises(PlanError, match=r"dropout: no such kind; it can be norms, gated units, .*, attention, loss"):
        apply_kernels(tiny("llama"), ("dropout",))
