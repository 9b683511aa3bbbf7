"""The loss without logits equals transformers', with all that its callers hand to it; logits come where asked for."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))

from tiny_llms import tiny

from speechkit.llm import apply_kernels, explain, undo_kernels
from speechkit.llm.profiles import PROFILES

TYPES = [kind for profile in PROFILES for kind in profile.model_types]
IDS = torch.arange(3 * 9).reshape(3, 9) * 5 % 60 + 3
LABELS = IDS.masked_fill(torch.arange(27).reshape(3, 9) % 4 == 1, -100)


def pair(kind: str, **more: Any) -> tuple[Any, Any]:
    """The same model with the loss by transformers, and by the kernel alone; both in training."""
    ours = tiny(kind, **more).train()
    assert apply_kernels(ours, ("loss",)).counts == {"loss": 1}
    return tiny(kind, **more).train(), ours


def assert_same(theirs: Any, ours: Any, **given: Any) -> Any:
    """Loss and gradients for `given`; returns what ours gave."""
    expected, found = (model(input_ids=IDS, **given) for model in (theirs, ours))
    torch.testing.assert_close(found.loss, expected.loss, atol=1e-6, rtol=1e-5)
    for model, out in ((theirs, expected), (ours, found)):
        model.zero_grad()
        out.loss.backward()
    for (name, weight), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if other.grad is not None:
            torch.testing.assert_close(weight.grad, other.grad, atol=1e-6, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    return found


@pytest.mark.parametrize("kind", TYPES)
def test_in_training_the_loss_and_its_gradients_are_those_of_transformers_and_there_are_no_logits(kind: str) -> None:
    found = assert_same(*pair(kind), labels=LABELS)
    assert found.logits is None and "logits" not in found


@pytest.mark.parametrize(
    "given",
    [
        pytest.param({"num_items_in_batch": torch.tensor(31)}, id="the items of several batches, a tensor"),
        pytest.param({"num_items_in_batch": 7}, id="a number of items"),
        pytest.param({"shift_labels": LABELS.roll(2, 1)}, id="labels shifted already"),
        pytest.param({"ignore_index": 8}, id="another label to ignore"),
        pytest.param({"attention_mask": (torch.arange(9) > 2).long().expand(3, 9)}, id="padding"),
        pytest.param({"position_ids": (torch.arange(9) % 4).expand(3, 9)}, id="positions"),
    ],
)
def test_what_trainers_hand_in_means_the_same(given: dict[str, Any]) -> None:
    labels = LABELS if "ignore_index" not in given else IDS
    assert_same(*pair("qwen3"), labels=labels, **given)


def test_caps_on_logits_are_felt() -> None:
    """Weights so large that the cap of Gemma 2 changes the loss: were it left out the loss would be another."""
    theirs, ours = pair("gemma2", final_logit_softcapping=2.0)
    free = tiny("gemma2", final_logit_softcapping=None).train()
    for model in (theirs, ours, free):
        with torch.no_grad():
            model.model.embed_tokens.weight.mul_(20)
    assert_same(theirs, ours, labels=LABELS)
    with torch.no_grad():
        assert abs(free(IDS, labels=LABELS).loss - ours(IDS, labels=LABELS).loss) > 0.1


@pytest.mark.parametrize("kind", ["mixtral", "qwen2_moe", "qwen3_moe"])
def test_a_routers_balance_is_added(kind: str) -> None:
    theirs, ours = pair(kind, router_aux_loss_coef=0.5)
    found = assert_same(theirs, ours, labels=LABELS, output_router_logits=True)
    assert found.aux_loss > 0.1 and found.router_logits is not None
    plain = ours(IDS, labels=LABELS)
    torch.testing.assert_close(found.loss - 0.5 * found.aux_loss, plain.loss)


def test_logits_come_in_evaluation_and_where_they_are_asked_for() -> None:
    theirs, ours = pair("llama")
    expected = theirs(IDS, labels=LABELS)
    asked = ours(IDS, labels=LABELS, skip_logits=False)
    assert torch.equal(asked.logits, expected.logits) and torch.equal(asked.loss, expected.loss)
    assert torch.equal(ours(IDS).logits, expected.logits), "no labels"
    assert ours(IDS, labels=LABELS, logits_to_keep=9).logits is not None
    ours.eval()
    assert torch.equal(ours(IDS, labels=LABELS).logits, expected.logits)
    skipped = ours(IDS, labels=LABELS, skip_logits=True)
    assert skipped.logits is None
    torch.testing.assert_close(skipped.loss, expected.loss)


def test_positional_arguments_and_tuples() -> None:
    theirs, ours = pair("llama")
    mask = torch.ones_like(IDS)
    loss, *_ = ours(IDS, mask, None, None, None, LABELS, return_dict=False)
    torch.testing.assert_close(loss, theirs(IDS, mask, labels=LABELS).loss)
    states = ours(IDS, labels=LABELS, output_hidden_states=True).hidden_states
    assert len(states) == 3 and states[0].shape == (3, 9, 32)


def test_all_labels_ignored_give_zero_and_zero_gradients() -> None:
    _, ours = pair("llama")
    loss = ours(IDS, labels=torch.full_like(IDS, -100)).loss
    loss.backward()
    assert loss == 0 and all(not weight.grad.any() for weight in ours.parameters() if weight.grad is not None)


def test_a_frozen_head_gets_no_gradient_and_the_rest_has_it_all() -> None:
    theirs, ours = pair("llama", tie_word_embeddings=False)
    for model in (theirs, ours):
        model.lm_head.requires_grad_(False)
    assert_same(theirs, ours, labels=LABELS)
    assert ours.lm_head.weight.grad is None


def test_of_an_embedding_that_is_the_head_both_gradients_are_summed() -> None:
    theirs, ours = pair("llama", tie_word_embeddings=True)
    assert ours.lm_head.weight is ours.model.embed_tokens.weight
    assert_same(theirs, ours, labels=LABELS)


def test_under_autocast_the_head_multiplies_in_the_lower_precision() -> None:
    theirs, ours = pair("llama")
    with torch.no_grad():
        exact = theirs(IDS, labels=LABELS).loss
        with torch.autocast("cpu", torch.bfloat16):
            low, found = theirs(IDS, labels=LABELS).loss, ours(IDS, labels=LABELS).loss
    assert found.dtype == torch.float32
    assert abs(found - exact) <= 2 * abs(low - exact) + 1e-4


def test_a_head_on_another_gpu_that_only_moves_what_comes_in_keeps_the_kernel() -> None:
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    theirs, ours = pair("llama", tie_word_embeddings=False)
    add_hook_to_module(ours.lm_head, AlignDevicesHook(execution_device="cpu"))
    assert not any("head" in line for line in explain(ours).left)
    assert assert_same(theirs, ours, labels=LABELS).logits is None


def _with_hook(model: Any) -> None:
    model.lm_head.register_forward_hook(lambda _, __, logits: logits * 2)


def _with_other_head(model: Any) -> None:
    model.lm_head = nn.Sequential(model.lm_head)


def _with_other_loss(model: Any) -> None:
    model.loss_function = lambda logits, labels, vocab_size, **_: logits.float().square().mean()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_with_hook, "its head has hooks"),
        (_with_other_head, "its head is a Sequential"),
        (_with_other_loss, "its loss is not the usual one of causal models"),
    ],
)
def test_where_the_head_or_the_loss_is_another_transformers_own_runs(change: Any, reason: str) -> None:
    theirs, ours = pair("llama", tie_word_embeddings=False)
    for model in (theirs, ours):
        change(model)
    found, expected = (model(IDS, labels=LABELS) for model in (ours, theirs))
    assert torch.equal(found.loss, expected.loss) and torch.equal(found.logits, expected.logits)
    assert any(reason in line for line in explain(ours).left)
    assert any(reason in line for line in apply_kernels(theirs, ("loss",)).left), "before it is put in, too"


def test_a_forward_that_somebody_kept_is_transformers_own_again_when_kernels_are_out() -> None:
    theirs, ours = pair("llama")
    kept = ours.forward
    assert kept(IDS, labels=LABELS).logits is None
    undo_kernels(ours)
    expected = theirs(IDS, labels=LABELS)
    assert torch.equal(kept(IDS, labels=LABELS).logits, expected.logits)
