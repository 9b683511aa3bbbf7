"""Kernels compiled, in models of a few families on a GPU: beside transformers in float32, beside the truth in bfloat16.

Left out by default (`-m gpu` runs them). Heads of 64, so that attention has a choice of its candidates.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from tiny_llms import tiny

from speechkit.llm import apply_kernels, undo_kernels
from speechkit.training.process import random_state_kept

pytestmark = pytest.mark.gpu

FAMILIES = ["llama", "qwen3", "gemma2", "gemma3_text", "phi3", "mixtral", "deepseek_v3"]
WIDE = {
    "hidden_size": 256,
    "intermediate_size": 448,
    "head_dim": 64,
    "vocab_size": 1003,
    "max_position_embeddings": 512,
}
LATENT = {"q_lora_rank": 64, "kv_lora_rank": 64, "qk_rope_head_dim": 32, "qk_nope_head_dim": 64, "v_head_dim": 64}


def test_random_numbers_of_the_gpu_are_as_they_were() -> None:
    torch.cuda.manual_seed(5)
    wanted = torch.rand(3, device="cuda")
    torch.cuda.manual_seed(5)
    with random_state_kept():
        torch.manual_seed(1)
    assert torch.equal(torch.rand(3, device="cuda"), wanted)


def model_of(kind: str, dtype: torch.dtype) -> Any:
    more = {**WIDE, **LATENT, "head_dim": 32} if "deepseek" in kind else dict(WIDE)
    if "gemma" in kind:
        more |= {"query_pre_attn_scalar": 64, "sliding_window": 40}
    return tiny(kind, **more).to("cuda", dtype).train()


def run(model: Any) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Logits in evaluation, loss and gradients in training: 4 rows of 130 tokens."""
    ids = torch.arange(4 * 130, device="cuda").reshape(4, 130) * 37 % 1000 + 3
    with torch.no_grad():
        logits = model.eval()(ids).logits
    loss = model.train()(ids, labels=ids.masked_fill(ids % 5 == 0, -100)).loss
    model.zero_grad()
    loss.backward()
    gradients = {name: weight.grad.float() for name, weight in model.named_parameters() if weight.grad is not None}
    return logits.float(), loss.detach().float(), gradients


def off(found: torch.Tensor, truth: torch.Tensor) -> float:
    """Root mean square of the difference, of the size of the truth."""
    return ((found - truth).square().mean() / truth.square().mean().clamp(min=1e-12)).sqrt().item()


@pytest.mark.parametrize("kind", FAMILIES)
def test_in_float32_logits_loss_and_gradients_are_those_of_transformers(kind: str) -> None:
    model = model_of(kind, torch.float32)
    logits, loss, gradients = run(model)
    applied = apply_kernels(model)
    compiled = [name for name, how in applied.runs.items() if "compiled for" in how]
    assert sorted(compiled) == ["gated units", "loss", "norms", "rotary positions"], str(applied)
    ours, our_loss, our_gradients = run(model)
    assert off(ours, logits) <= 1e-3 and abs(our_loss - loss) <= 1e-3 * loss
    assert our_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert off(our_gradients[name], gradient) <= 2e-3, name
    undo_kernels(model)
    assert off(run(model)[0], logits) <= 1e-6


@pytest.mark.parametrize("kind", FAMILIES)
def test_in_bfloat16_they_are_as_near_the_truth_as_those_of_transformers(kind: str) -> None:
    model = model_of(kind, torch.bfloat16)
    logits, loss, gradients = run(copy.deepcopy(model).float())
    low, low_loss, low_gradients = run(model)
    apply_kernels(model)
    ours, our_loss, our_gradients = run(model)
    assert off(ours, logits) <= 2 * off(low, logits) + 1e-3
    assert abs(our_loss - loss) <= 2 * abs(low_loss - loss) + 1e-3 * loss
    for name, gradient in gradients.items():
        if name.endswith("mlp.gate.weight"):
            continue  # a token that stands between two experts may go to either
        assert off(our_gradients[name], gradient) <= 2 * off(low_gradients[name], gradient) + 1e-2, name


@pytest.mark.parametrize("checkpointed", [False, True])
def test_twenty_updates_in_bfloat16_autocast_stay_beside_those_of_transformers(checkpointed: bool) -> None:
    curves = []
    for kernels in (False, True):
        model = model_of("llama", torch.float32)
        if kernels:
            apply_kernels(model)
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        ids, losses = torch.arange(4 * 130, device="cuda").reshape(4, 130) * 37 % 1000 + 3, []
        for _ in range(20):
            with torch.autocast("cuda", torch.bfloat16):
                loss = model(ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        curves.append(losses)
    assert curves[0][-1] < 0.8 * curves[0][0], "it learns"
    assert curves[1] == pytest.approx(curves[0], rel=2e-2)


def test_the_loss_takes_a_fraction_of_the_memory_of_all_logits() -> None:
    """At V 65 536 the float32 logits of 4 096 tokens take a gibibyte, and transformers holds them several times."""
    peaks = []
    for kernels in (False, True):
        model = tiny("llama", hidden_size=256, vocab_size=65_536, max_position_embeddings=4_096).to("cuda").bfloat16()
        if kernels:
            apply_kernels(model, ("loss",))
        ids = torch.arange(4_096, device="cuda")[None] * 7 % 65_000 + 3
        model.train()(ids, labels=ids).loss.backward()  # gradients are there, and the kernels compiled
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        model(ids, labels=ids).loss.backward()
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[1] <= peaks[0] / 1.5, [f"{peak / 2**20:.0f} MiB" for peak in peaks]


def test_tokens_of_a_padded_batch_with_a_static_cache() -> None:
    model = model_of("llama", torch.float32).eval()
    ids = torch.tensor([[0, 0, 5, 9, 13], [7, 11, 8, 21, 34]], device="cuda")
    given = {"input_ids": ids, "attention_mask": (ids > 0).long(), "max_new_tokens": 24, "do_sample": False}
    given |= {"eos_token_id": None, "pad_token_id": 0, "cache_implementation": "static", "disable_compile": True}
    expected = model.generate(**given)
    apply_kernels(model)
    assert torch.equal(model.generate(**given), expected)
