"""Plans against what torch's memory tracker counts in a real step, tensor by tensor; against counts made by hand."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from tiny_llms import config_of, tiny

from speechkit.device import Hardware
from speechkit.errors import ModelError, PlanError
from speechkit.llm.apply import apply_kernels
from speechkit.llm.dry_run import measure_step
from speechkit.llm.lora import add_lora
from speechkit.llm.lora_options import LoraOptions
from speechkit.llm.plan import plan, size_text, table
from speechkit.llm.plan_options import PlanOptions

SIZE = {
    "num_hidden_layers": 6, "vocab_size": 300, "hidden_size": 64, "intermediate_size": 128, "head_dim": 16,
    "max_position_embeddings": 256,
}  # fmt: skip
LORA = LoraOptions(rank=8, targets=("all-linear",))
TOKENS = 160


def ready(kind: str, options: PlanOptions, dtype: str, **size: Any) -> Any:
    """A real model as `options` describe it."""
    model = tiny(kind, **{**SIZE, **size}).train()
    if options.method != "full":
        model = add_lora(model.to(getattr(torch, dtype)), options.lora, kernels=options.kernels).train()
    bare = model.get_base_model() if options.method != "full" else model
    if options.kernels:
        apply_kernels(bare)
    if options.checkpointing != "none":
        bare.activation_checkpointing_enable({"use_reentrant": False})
        if options.method != "full":
            bare.enable_input_require_grads()
    return model


def counted(kind: str, options: PlanOptions, **size: Any) -> Any:
    rows, length = options.rows
    ids = torch.arange(rows * length).reshape(rows, length) * 7 % 290 + 3
    model = ready(kind, options, options.dtype, **size)
    return measure_step(model, {"input_ids": ids, "labels": ids}, dtype=options.dtype)


CASES = [
    *itertools.product(("full", "lora"), ("none", "layers"), (False, True), ("float32",)),
    ("full", "none", False, "bfloat16"),
    ("full", "layers", True, "bfloat16"),
    ("lora", "none", True, "bfloat16"),
    ("lora", "layers", False, "bfloat16"),
]


@pytest.mark.parametrize(("method", "checkpointing", "kernels", "dtype"), CASES)
def test_the_plan_is_what_torchs_tracker_counts(method: str, checkpointing: str, kernels: bool, dtype: str) -> None:
    """With more layers than the dry runs have; the bound is 15 %, and 5 % where no kernel is in."""
    options = PlanOptions(
        method=method, checkpointing=checkpointing, kernels=kernels, dtype=dtype, batch_tokens=TOKENS, card="cpu",
        lora=LORA,
    )  # fmt: skip
    real = counted("llama", options)
    planned = plan(config_of("llama", **SIZE), options)
    within = 0.15 if kernels else 0.05
    assert planned.total == pytest.approx(real.total, rel=within), f"{planned}\n{real}"
    assert planned.activations + planned.logits == pytest.approx(real.activations, rel=0.2)
    assert planned.fits is None and planned.card is None


@pytest.mark.parametrize("kind", ["qwen3", "gemma2", "mixtral", "deepseek_v3"])
def test_other_families_too(kind: str) -> None:
    options = PlanOptions(method="full", kernels=False, dtype="float32", batch_tokens=TOKENS, card="cpu")
    # values as wide as keys: for others a CPU has no flash attention, and keeps all scores
    size = {"head_dim": 8, "num_key_value_heads": 4, "v_head_dim": 16} if kind == "deepseek_v3" else {}
    real = counted(kind, options, **size)
    planned = plan(config_of(kind, **{**SIZE, **size}), options)
    assert planned.total == pytest.approx(real.total, rel=0.15), f"{planned}\n{real}"


def test_the_optimizer_and_gradients_alone_are_exact() -> None:
    """With few tokens the worst moment is the update: weights, gradients and two states, 16 bytes a weight."""
    options = PlanOptions(method="full", kernels=False, dtype="float32", batch_tokens=2, card="cpu")
    planned, model = plan(config_of("llama", **SIZE), options), tiny("llama", **SIZE)
    weights = sum(weight.numel() for weight in model.parameters())
    assert planned.parameters == planned.trained == weights
    assert (planned.weights, planned.optimizer) == (4 * weights, 8 * weights)
    assert planned.gradients + planned.activations + planned.logits == pytest.approx(4 * weights, rel=0.02)


def test_adapters_are_counted_as_peft_counts_them() -> None:
    model = add_lora(tiny("llama", **SIZE), LORA)
    trained, total = model.get_nb_trainable_parameters()
    planned = plan(config_of("llama", **SIZE), PlanOptions(batch_tokens=64, card="cpu", dtype="float32", lora=LORA))
    assert (planned.trained, planned.parameters) == (trained, total)


def test_nf4_takes_the_bytes_that_bitsandbytes_does() -> None:
    """Of layers in whole blocks; the scales of scales alone differ, which go in blocks of 256 layer by layer."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    size = {**SIZE, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "head_dim": 64}
    model, packed, rest = tiny("llama", **size), 0, 0
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            code, state = bitsandbytes.functional.quantize_4bit(
                module.weight.data, quant_type="nf4", compress_statistics=True
            )
            packed += code.numel() + state.absmax.numel() + 4 * state.state2.absmax.numel()
            rest -= module.weight.numel()
    rest += sum(weight.numel() for weight in model.parameters())
    options = PlanOptions(method="qlora", batch_tokens=64, card="cpu", dtype="float32", lora=LORA)
    planned = plan(config_of("llama", **size), options)
    assert planned.weights == pytest.approx(packed + 4 * (rest + planned.trained), rel=0.001)


LARGE = config_of(
    "llama", hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
    num_key_value_heads=8, head_dim=128, vocab_size=128256, max_position_embeddings=8192,
)  # fmt: skip


def test_eight_billion_weights_are_planned_without_memory_and_kernels_save_the_logits() -> None:
    with_kernels = plan(LARGE, PlanOptions(card="H200", batch_tokens=8192))
    without = plan(LARGE, PlanOptions(card="H200", batch_tokens=8192, kernels=False))
    assert with_kernels.parameters == 8_030_261_248 + with_kernels.trained, "as Meta counts Llama 3.1"
    assert with_kernels.weights == 2 * 8_030_261_248 + 4 * with_kernels.trained
    assert without.logits >= 8192 * 128256 * 4 and with_kernels.total < without.total - 2**33
    assert with_kernels.fits and (with_kernels.batch_tokens or 0) > (without.batch_tokens or 0) >= 8192


def test_a_card_that_is_too_small_is_told_with_what_would_fit() -> None:
    full = plan(LARGE, PlanOptions(method="full", card="L4"))
    assert full.fits is False and full.batch_tokens is None
    assert "does not fit L4" in str(full) and "shard (zero3, fsdp2), quantise (qlora) or offload" in str(full)
    packed = plan(LARGE, PlanOptions(method="qlora", card="T4", dtype="float16", batch_tokens=1024))
    assert packed.fits and "fits T4" in str(packed)


def test_checkpointing_and_its_offload_keep_less() -> None:
    sizes = [
        plan(LARGE, PlanOptions(card="H200", batch_tokens=8192, checkpointing=how)).activations
        for how in ("none", "layers", "offload")
    ]
    assert sizes[0] > 5 * sizes[1] and sizes[1] - sizes[2] > 20 * 8192 * 4096 * 2, "inputs of most of 32 layers"


def test_accumulation_reaches_the_tokens_asked_for_and_padding_costs() -> None:
    options = PlanOptions(card="H200", strategy="zero2", ranks=4, batch_tokens=4096, global_tokens=131072)
    assert plan(LARGE, options).accumulation == 8
    padded = plan(LARGE, options.replace(packing=False, max_len=1024, fill=0.25))
    assert padded.accumulation == 32 and "accumulation 32: 131,072 useful tokens an update" in str(padded)


def test_sharding_divides_what_it_says() -> None:
    found = {name: plan(LARGE, PlanOptions(card="H100", method="full", strategy=name, ranks=8)) for name in
             ("zero2", "zero3", "fsdp2")}  # fmt: skip
    weights = found["zero2"].parameters
    assert found["zero2"].weights == 2 * weights
    assert found["zero2"].optimizer == found["zero3"].optimizer == 12 * weights // 8
    assert found["fsdp2"].optimizer == 8 * weights // 8
    assert 2 * weights // 8 < found["zero3"].weights < 2 * weights // 8 + 2**32
    moved = plan(LARGE, PlanOptions(card="H100", method="full", strategy="zero3", ranks=8, offload="parameters"))
    assert moved.optimizer == 0 and moved.host == 14 * weights // 8 and "elsewhere" in str(moved)


def test_an_8_bit_optimizer_keeps_two_bytes_and_a_paged_one_none() -> None:
    full = {"method": "full", "card": "H200"}
    whole, eight, paged = (
        plan(LARGE, PlanOptions(**full, optimizer=name))  # type: ignore[arg-type]
        for name in ("adamw", "adamw_8bit", "paged_adamw_8bit")
    )
    assert eight.optimizer == pytest.approx(whole.optimizer / 4 * (1 + 4 / 256), rel=1e-3)
    assert paged.optimizer == 0 and paged.host == eight.optimizer and "pages out" in str(paged)


def test_the_table_has_all_pairs_and_says_which_are_refused() -> None:
    found = table(config_of("llama", **SIZE), PlanOptions(card="A100-40", batch_tokens=128), ranks=4)
    assert len(found.plans) == 10 and [name for name, _ in found.refused] == ["qlora, zero3", "qlora, fsdp2"]
    lines = str(found).splitlines()
    assert lines[0].split() == [
        "method", "strategy", "weights", "gradients", "optimizer", "activations", "logits", "total", "fits",
    ]  # fmt: skip
    assert lines[1].startswith("full    one") and lines[2].startswith("full    zero2 × 4")
    assert all(line.endswith("yes") for line in lines[1:11])


def test_a_plan_prints_its_sizes() -> None:
    text = str(plan(LARGE, PlanOptions(card="H200", batch_tokens=2048)))
    assert "weights" in text and "15.1" in text and "GiB" in text and "MiB" in text
    assert [size_text(size) for size in (0, 2048, 3 * 2**20, 5 * 2**30)] == ["0", "2.0 KiB", "3.00 MiB", "5.00 GiB"]


def test_on_a_cpu_it_speaks_of_no_gpu() -> None:
    shared = PlanOptions(card="cpu", strategy="zero2", ranks=2, dtype="float32", offload="optimizer", batch_tokens=64)
    text = str(plan(config_of("llama", **SIZE), shared))
    assert "CUDA" not in text and "GPU" not in text
    assert "the interpreter and its libraries come on top" in text and "offloaded: the same memory on a CPU" in text


def test_what_has_no_configuration_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no_such_model"}')
    with pytest.raises(ModelError):
        plan(tmp_path)
    with pytest.raises(PlanError, match="bfloat16 on T4"):
        plan(LARGE, PlanOptions(card="T4"))


def test_a_model_a_folder_and_its_configuration_plan_alike(tmp_path: Path) -> None:
    model = tiny("llama", **SIZE)
    model.save_pretrained(tmp_path)
    options = PlanOptions(batch_tokens=64, dtype="float32", lora=LORA)
    there = Hardware(2)
    totals = {plan(one, options, hardware=there).total for one in (model, model.config, tmp_path, str(tmp_path))}
    assert len(totals) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("kernels", [False, True])
@pytest.mark.parametrize("checkpointing", ["none", "layers"])
def test_on_a_gpu_the_plan_is_the_measured_peak(method: str, kernels: bool, checkpointing: str) -> None:
    size = {
        "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8, "num_attention_heads": 16,
        "num_key_value_heads": 4, "head_dim": 64, "vocab_size": 32000, "max_position_embeddings": 4096,
    }  # fmt: skip
    options = PlanOptions(
        method=method, kernels=kernels, checkpointing=checkpointing, batch_tokens=4096,
        lora=LoraOptions(targets=("all-linear",)),
    )  # fmt: skip
    planned = plan(config_of("llama", **size), options)
    model = ready("llama", options, "float32" if method == "full" else "bfloat16", **size).to("cuda")
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], fused=True)
    ids = torch.arange(4096, device="cuda")[None] * 7 % 31000 + 3
    for step in range(3):
        if step == 2:
            torch.cuda.reset_peak_memory_stats()
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert planned.total == pytest.approx(torch.cuda.max_memory_allocated(), rel=0.15), str(planned)
