"""Known-bad pairs are refused with the reason and a way out; the ways out are not refused."""

from __future__ import annotations

from typing import Any

import pytest

from speechkit.device import Hardware
from speechkit.errors import PlanError
from speechkit.llm.lora_options import LoraOptions
from speechkit.llm.plan_options import CARDS, PlanOptions, card_of
from speechkit.llm.validity import refusals, valid

TWO: dict[str, Any] = {"ranks": 2, "card": "H100"}

BAD = {
    "qlora with zero3": ({"method": "qlora", "strategy": "zero3", **TWO}, "peft#1418", {"strategy": "zero2"}),
    "qlora with fsdp2": ({"method": "qlora", "strategy": "fsdp2", **TWO}, "accelerate#3874", {"strategy": "zero2"}),
    "int8 with fsdp2": (
        {"method": "qlora", "quant": "int8", "strategy": "fsdp2", **TWO}, "bytes", {"strategy": "zero2"},
    ),
    "8-bit Adam offloaded": (
        {"optimizer": "adamw_8bit", "strategy": "zero2", "offload": "optimizer", **TWO}, "DeepSpeed's own Adam",
        {"optimizer": "adamw"},
    ),
    "8-bit Adam with fsdp2": (
        {"optimizer": "adamw_8bit", "strategy": "fsdp2", **TWO}, "bitsandbytes#89", {"strategy": "zero2"},
    ),
    "bfloat16 on a T4": ({"card": "T4"}, "compute capability 7.5", {"dtype": "float16"}),
    "paged Adam on a CPU": (
        {"card": "cpu", "optimizer": "paged_adamw_8bit"}, "without an NVIDIA GPU", {"optimizer": "adamw_8bit"},
    ),
    "weights trained in float16": (
        {"card": "H100", "trained_dtype": "float16"}, "unscaled", {"trained_dtype": "float32"},
    ),
    "float16 on a CPU": ({"card": "cpu", "dtype": "float16"}, "no loss scaling", {"dtype": "float32"}),
    "one GPU, two ranks": ({"ranks": 2, "card": "H100"}, "one GPU has one process", {"strategy": "zero2"}),
    "one process, two ranks on a CPU": ({"ranks": 2, "card": "cpu", "dtype": "float32"}, "it is one process",
                                        {"strategy": "zero2"}),
    "fsdp2 alone": ({"strategy": "fsdp2", "card": "H100"}, "nobody to share with", {"strategy": "one"}),
    "zero3 alone": ({"strategy": "zero3", "card": "H100"}, "nobody to share with", {"offload": "parameters"}),
    "offload without DeepSpeed": ({"offload": "optimizer", "card": "H100"}, "strategy one", {"strategy": "zero2"}),
    "parameters out of zero2": (
        {"strategy": "zero2", "offload": "parameters", **TWO}, "keeps all weights", {"strategy": "zero3"},
    ),
    "a disk for zero2": (
        {"strategy": "zero2", "offload": "optimizer", "nvme": "/fast", **TWO}, "only ZeRO-3", {"strategy": "zero3"},
    ),
    "activations out of a CPU": (
        {"card": "cpu", "checkpointing": "offload"}, "in main memory already", {"checkpointing": "layers"},
    ),
    "DoRA with zero3": (
        {"strategy": "zero3", "lora": LoraOptions(dora=True), **TWO}, "norm of each whole weight",
        {"lora": LoraOptions(rslora=True)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_known_bad_pair_is_refused_and_its_way_out_is_not(name: str) -> None:
    given, says, instead = BAD[name]
    with pytest.raises(PlanError, match=says):
        valid(PlanOptions(**given))
    valid(PlanOptions(**{**given, **instead}))


def test_every_refusal_names_a_pair_a_reason_and_a_way_out() -> None:
    found = refusals(PlanOptions(method="qlora", strategy="zero3", optimizer="adamw_8bit", offload="parameters", **TWO))
    assert len(found) == 3
    for one in found:
        assert one.pair and one.reason and one.instead and f"Take {one.instead}" in str(one)


def test_float16_is_refused_for_gemma_alone() -> None:
    options = PlanOptions(card="T4", dtype="float16")
    with pytest.raises(PlanError, match="65,504"):
        valid(options, model_type="gemma3_text")
    valid(options, model_type="llama")


def test_more_ranks_than_gpus_are_refused() -> None:
    there = Hardware(8, (CARDS["L4"],))
    with pytest.raises(PlanError, match="2 ranks on a node with 1 GPU: NCCL refuses"):
        valid(PlanOptions(strategy="zero2", ranks=2), there)
    valid(PlanOptions(strategy="zero2", ranks=2, nodes=2), there)


def test_two_processes_on_a_cpu_may_share() -> None:
    for strategy in ("zero2", "zero3", "fsdp2"):
        valid(PlanOptions(strategy=strategy, ranks=2, card="cpu", dtype="float32"))


def test_the_card_is_the_one_named_else_the_one_found() -> None:
    assert card_of(PlanOptions(card="T4")) is CARDS["T4"]
    assert card_of(PlanOptions(card="cpu"), Hardware(8, (CARDS["L4"],))) is None
    assert card_of(PlanOptions(), Hardware(8, (CARDS["L4"],))) is CARDS["L4"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"strategy": "zero1"}, "strategy is 'zero1'; it can be 'one', 'zero2', 'zero3', 'fsdp2'"),
        ({"card": "V100"}, "card is 'V100'; it can be 'T4', 'L4'"),
        ({"batch_tokens": 0}, "batch_tokens is 0; it should be a whole number, 1 or more"),
        ({"ranks": True}, "ranks is True"),
        ({"fill": 0.0}, "fill is 0.0"),
        ({"ranks": 3, "nodes": 2}, "3 ranks cannot be divided evenly among 2 nodes"),
        ({"max_len": 4096}, "max_len is 4096 and batch_tokens 2048"),
    ],
)
def test_options_that_cannot_be_are_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(PlanError, match=says):
        PlanOptions(**given)
