"""Packed equals separate on every attention, in loss and gradients; and where plain transformers leaks, it is seen."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from tiny_llms import tiny
from token_rows import documents

from speechkit.errors import DataError
from speechkit.llm import apply_kernels
from speechkit.llm.data import IGNORED, Tokens
from speechkit.llm.exact import packed_equals_separate
from speechkit.llm.packing import collate, pack

ROWS = documents(3, 11, 1, 7, 19)
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {}, "qwen3": {}, "mistral": {"sliding_window": 4}, "gemma2": {}, "gemma3_text": {}, "mixtral": {},
    "qwen3_moe": {}, "deepseek_v3": {}, "phi3": {},
}  # fmt: skip


def model_of(kind: str, attention: str) -> Any:
    model = tiny(kind, **FAMILIES[kind])
    if attention == "kernels":
        apply_kernels(model)
    else:
        model.set_attn_implementation(attention)
    return model


def sum_alone(model: Any, rows: list[Tokens]) -> tuple[float, list[torch.Tensor]]:
    """The oracle: cross-entropy of each document's own logits, by torch."""
    total = torch.zeros(())
    for row in rows:
        logits = model(input_ids=torch.tensor([row.input_ids]), use_cache=False).logits[0, :-1]
        total = total + torch.nn.functional.cross_entropy(
            logits, torch.tensor(row.labels[1:], dtype=torch.long), reduction="sum"
        )
    return float(total), list(torch.autograd.grad(total, list(model.parameters()), allow_unused=True))


@pytest.mark.parametrize(
    ("kind", "attention"),
    [(kind, name) for kind in FAMILIES for name in ("sdpa", "eager", "kernels") if (kind, name) != ("gemma2", "sdpa")],
)  # transformers has no sdpa for Gemma 2
def test_packed_equals_separate_in_loss_and_gradients(kind: str, attention: str) -> None:
    model = model_of(kind, attention)
    found = packed_equals_separate(model, ROWS)
    assert found.ok and max(found.loss_difference, found.gradient_difference) <= 1e-5
    assert (found.documents, found.tokens, found.learnt) == (5, 41, sum(row.learnt for row in ROWS))
    truth, _ = sum_alone(tiny(kind, **FAMILIES[kind]), ROWS)
    assert found.packed == pytest.approx(truth, rel=1e-5) == found.separate


def test_gradients_of_a_packed_batch_are_the_sum_of_those_alone() -> None:
    model = model_of("llama", "sdpa")
    _, theirs = sum_alone(model, ROWS)
    batch = collate(pack(ROWS, 64))
    loss = model(**batch).loss * int((batch["labels"] != IGNORED).sum())
    for mine, other in zip(torch.autograd.grad(loss, list(model.parameters())), theirs, strict=True):
        assert (mine - other).norm() <= 1e-5 * other.norm()


@pytest.mark.filterwarnings("ignore::UserWarning:torch")
def test_flex_attention_which_has_no_gradients_on_a_cpu_agrees_in_the_loss() -> None:
    model = model_of("qwen3", "flex_attention").requires_grad_(False)
    with torch.compiler.set_stance("force_eager"):  # compiled for each length it takes minutes, and does the same
        found = packed_equals_separate(model, ROWS)
    assert found.ok and found.gradient_difference == 0 and found.attention == "flex_attention"


def logits_of(model: Any, **more: Any) -> torch.Tensor:
    batch = {name: x for name, x in collate(pack(ROWS, 64, seed=None)).items() if name != "labels"} | more
    return model(**batch).logits[0]


@pytest.mark.parametrize("attention", ["sdpa", "eager", "kernels"])
def test_another_first_document_changes_nothing_for_the_second(attention: str) -> None:
    model, (first, second) = model_of("mistral", attention), documents(9, 7, seed=4)
    other = Tokens(tuple(reversed(first.input_ids)), first.labels)
    logits = []
    for one in (first, other):
        batch = collate(pack([one, second], 16, seed=None))
        assert batch["input_ids"][0, 9:].tolist() == list(second.input_ids)
        logits.append(model(**batch, **({"skip_logits": False} if attention == "kernels" else {})).logits[0])
    assert torch.equal(logits[0][9:], logits[1][9:]) and not torch.equal(logits[0][:9], logits[1][:9])


def test_only_the_adapter_learns_and_it_agrees() -> None:
    from speechkit.llm.lora import LoraOptions, add_lora

    model = add_lora(model_of("llama", "kernels"), LoraOptions(rank=4, init="random"))
    found = packed_equals_separate(model, ROWS)
    assert found.ok and 0 < found.gradient_difference <= 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
@pytest.mark.parametrize("attention", ["sdpa", "eager", "flex_attention", "kernels"])
def test_packed_equals_separate_on_a_gpu(kind: str, attention: str) -> None:
    more = {"head_dim": 16, "hidden_size": 64}  # what compiled kernels take
    model = tiny(kind, **{**FAMILIES[kind], **more}).cuda().bfloat16()
    if attention == "kernels":
        apply_kernels(model)
    else:
        model.set_attn_implementation(attention)
    assert packed_equals_separate(model, ROWS, tolerance=5e-2).ok


WAYS: dict[str, dict[str, Any]] = {
    "a cache": {"use_cache": True},
    "an all-ones mask": {"attention_mask": torch.ones(1, 41, dtype=torch.long)},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_plain_transformers_leaks_across_documents_with(way: str, attention: str) -> None:
    """The reason why `collate` gives neither: another first document changes what the second one gets."""
    model, alone = model_of("llama", attention), logits_of(model_of("llama", attention))
    assert (logits_of(model, **WAYS[way]) - alone).abs().max() > 1e-2


@pytest.mark.parametrize(("kind", "way"), [("llama", "a cache"), ("llama", "an all-ones mask"), ("gemma2", "a cache")])
def test_speechkits_attention_keeps_documents_apart_even_with(kind: str, way: str) -> None:
    model = model_of(kind, "kernels")
    torch.testing.assert_close(logits_of(model, **WAYS[way]), logits_of(model), atol=1e-5, rtol=1e-4)


def test_a_leak_is_found_and_said() -> None:
    """A model that is shown a mask, as some collators do."""
    model = model_of("llama", "sdpa")
    forward = model.forward

    def leaking(**batch: Any) -> Any:
        return forward(**batch, attention_mask=torch.ones_like(batch["input_ids"]))

    model.forward = leaking
    found = packed_equals_separate(model, ROWS)
    assert not found.ok and found.loss_difference > 1e-4
    assert str(found).startswith("packed is NOT separate: 5 documents, 41 tokens, attention sdpa; loss ")


def test_the_line_says_what_was_measured() -> None:
    printed = str(packed_equals_separate(model_of("llama", "kernels"), ROWS))
    assert printed.startswith("packed equals separate: 5 documents, 41 tokens, attention speechkit; loss ")
    assert printed.endswith("; allowed 1e-05")


def test_half_precision_is_held_to_what_it_can() -> None:
    found = packed_equals_separate(model_of("llama", "sdpa").bfloat16(), ROWS)
    assert found.ok and found.tolerance == 2e-2 and found.gradient_difference > 1e-5


def test_nothing_is_left_behind() -> None:
    model = model_of("llama", "sdpa")
    model.model.layers[0].mlp.dropout = torch.nn.Dropout(0.5)
    model.eval()
    packed_equals_separate(model, ROWS)
    assert not any(module.training for module in model.modules())
    assert all(weight.grad is None for weight in model.parameters())


def test_rows_without_a_loss_are_refused() -> None:
    with pytest.raises(DataError, match="every label is masked"):
        packed_equals_separate(model_of("llama", "sdpa"), [Tokens((5, 6), (IGNORED, IGNORED))])
