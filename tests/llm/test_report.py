"""What `explain` says: how each kernel runs on the model's device, and what stays as it was."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from speechkit_kernels import launch
from speechkit_kernels.launch import Hardware

sys.path.insert(0, str(Path(__file__).parent))

from tiny_llms import tiny

from speechkit.llm import apply_kernels, explain, undo_kernels
from speechkit.llm.lora import add_lora
from speechkit.llm.lora_options import LoraOptions


@pytest.mark.parametrize(
    ("hardware", "dtype", "said"),
    [
        (Hardware("cuda", (9, 0), "NVIDIA H200"), torch.bfloat16, "rms_norm: compiled for NVIDIA H200 (sm_90)"),
        (Hardware("cuda", (7, 5), "Tesla T4"), torch.bfloat16,
         "rms_norm by its definition: Tesla T4 (sm_75) has no bfloat16"),
        (Hardware("cuda", (7, 5), "Tesla T4"), torch.float16, "rms_norm: compiled for Tesla T4 (sm_75)"),
        (Hardware("cpu"), torch.float32, "rms_norm by its definition: on a CPU the definition is the fast path"),
        (Hardware("mps", None, "Apple M4"), torch.float16,
         "rms_norm by its definition: no kernel was written for Apple M4"),
    ],
    ids=lambda value: getattr(value, "name", None) or str(value),
)  # fmt: skip
def test_how_a_kernel_runs_is_said_for_the_device(
    hardware: Hardware, dtype: torch.dtype, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "hardware_of", lambda device: hardware)
    model = tiny("llama").to(dtype)
    applied = apply_kernels(model, ("norms",))
    assert applied.runs["norms"] == said
    assert f"    5 norms             {said}" in str(applied).splitlines()


def test_the_table_reads_well_and_is_what_a_notebook_shows() -> None:
    model = tiny("gemma2")
    before = str(explain(model)).splitlines()
    assert before[:3] == ["Gemma 2 on cpu, float32", "      no kernel in", "      as it was:"]
    assert len(before) == 8, "one line a kind"
    lines = str(apply_kernels(model)).splitlines()
    assert [(int(line[:5]), line[6:24].strip()) for line in lines[1:]] == [
        (9, "norms"), (2, "gated units"), (2, "rotary positions"), (1, "attention"), (1, "loss"),
    ]  # fmt: skip
    assert "no logits in training" in lines[-1] and "geglu" in lines[2]
    assert repr(explain(model)) == "\n".join(lines) and all(len(line) <= 140 for line in lines)


def test_updates_of_adapters_are_listed_and_go_with_the_other_kernels() -> None:
    model = add_lora(tiny("llama"), LoraOptions(rank=4))
    apply_kernels(model)
    found = explain(model)
    assert found.counts["low-rank updates"] == 14 and list(found.counts)[-1] == "low-rank updates"
    assert "   14 low-rank updates  lora_linear by its definition: " in str(found)
    with model.disable_adapter():
        assert "14 low-rank updates by peft's own forward: the adapter is switched off" in explain(model).left
    assert undo_kernels(model) == sum(found.counts.values())
    assert "low-rank updates" not in explain(model).counts
    assert "14 low-rank updates by peft's own forward: not asked for" in explain(model).left


def test_the_dtype_is_the_models_as_it_is_now() -> None:
    model = tiny("llama")
    apply_kernels(model)
    assert explain(model.half()).device == "cpu, float16"


@pytest.mark.parametrize(
    ("hardware", "dtype", "candidate"),
    [
        (Hardware("cuda", (7, 5), "Tesla T4"), torch.float16, "sdpa_efficient"),
        (Hardware("cpu"), torch.float32, "sdpa_flash"),
    ],
    ids=["T4", "CPU"],
)
def test_which_attention_a_long_batch_would_take_is_said(
    hardware: Hardware, dtype: torch.dtype, candidate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny("llama").to(dtype)
    apply_kernels(model, ("attention",))
    monkeypatch.setattr(launch, "hardware_of", lambda device: hardware)
    found = explain(model).runs["attention"]
    assert found.startswith(f"{candidate}, for 2,048 causal tokens in training: ")
