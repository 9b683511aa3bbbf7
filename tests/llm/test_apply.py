"""Tiny random models of every family: with kernels they compute what transformers does, undone they are untouched."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parent))

from tiny_llms import tiny

from speechkit.errors import ModelError, PlanError
from speechkit.llm import apply_kernels, explain, undo_kernels
from speechkit.llm.registry import PROFILES

TYPES = [kind for profile in PROFILES for kind in profile.model_types]


def loss_and_gradients(model: Any) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    ids = torch.arange(2 * 11).reshape(2, 11) % 60 + 3
    out = model(input_ids=ids, labels=ids)
    model.zero_grad()
    out.loss.backward()
    return out.logits.detach(), out.loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters()
                                                    if p.grad is not None}  # fmt: skip


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


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "phi3"])
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


def test_generation_with_a_cache_gives_the_same_tokens() -> None:
    model, ids = tiny("qwen3"), torch.tensor([[3, 9, 27]])
    plain = model.generate(ids, max_new_tokens=8, do_sample=False)
    apply_kernels(model)
    assert torch.equal(model.generate(ids, max_new_tokens=8, do_sample=False), plain)


def test_some_kinds_alone_and_a_second_call_adds_the_rest() -> None:
    model = tiny("llama")
    before = model.config._attn_implementation
    first = apply_kernels(model, ("norms",))
    assert first.counts == {"norms": 5}
    assert any("2 gated units without a kernel, such as model.layers.0.mlp" in reason for reason in first.left)
    counts = {"norms": 5, "gated units": 2, "rotary positions": 2, "attention": 1}
    assert apply_kernels(model).counts == counts
    assert model.config._attn_implementation == "speechkit"
    assert "Llama: kernels in" in str(explain(model)) and not explain(model).left
    assert undo_kernels(model) == 10 and undo_kernels(model) == 0
    assert model.config._attn_implementation == before


def test_a_class_is_never_changed_and_a_second_model_is_left_alone() -> None:
    one, other = tiny("llama"), tiny("llama")
    forward = type(one.model.layers[0].self_attn).forward
    apply_kernels(one)
    assert type(other.model.layers[0].self_attn).forward is forward
    assert not explain(other).counts


def test_what_is_not_covered_is_listed() -> None:
    assert any("experts" in reason for reason in apply_kernels(tiny("mixtral")).left)
    assert any("rotary" in reason for reason in apply_kernels(tiny("deepseek_v3")).left)


def test_unknown_families_and_kinds_are_refused_by_name() -> None:
    with pytest.raises(ModelError, match=r"no kernels are known for the model type 'gpt2'; known are llama, .*phi3"):
        apply_kernels(AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", n_layer=1, n_embd=8, n_head=2)))
    with pytest.raises(
        PlanError, match="loss: no such kind; it can be norms, gated units, rotary positions, attention"
    ):
        apply_kernels(tiny("llama"), ("loss",))
