"""Precision and few bits: what each device can do, with its reason, and that quantised models really run on a CPU."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from tiny_llms import config_of, tiny
from tiny_tokens import VOCABULARY, tokenizer

from speechkit.device import Gpu, Hardware
from speechkit.errors import PlanError
from speechkit.llm import explain, load_llm
from speechkit.llm.precision import choose_llm_dtype, choose_llm_precision
from speechkit.llm.quant import QUANTS, choose_quant, possible
from speechkit.llm.registry import family_of

P100, T4 = Gpu("Tesla P100", (6, 0), 16), Gpu("Tesla T4", (7, 5), 15)
A100, H200 = Gpu("NVIDIA A100", (8, 0), 80), Gpu("NVIDIA H200", (9, 0), 140)
OVERFLOW = "its hidden states leave the range of float16 (65,504) and become infinite"


@pytest.mark.parametrize(
    ("gpu", "kind", "dtype", "reason"),
    [
        (None, "llama", "float32", "half precision is not faster on cpu"),
        (None, "gemma2", "float32", "half precision is not faster on cpu"),
        (H200, "llama", "bfloat16", "NVIDIA H200 (sm_90) computes in it, with float32's range"),
        (A100, "gemma3", "bfloat16", "NVIDIA A100 (sm_80) computes in it, with float32's range"),
        (T4, "llama", "float16", "Tesla T4 (sm_75) has no bfloat16"),
        (T4, "gemma2", "float32", f"Tesla T4 (sm_75) has no bfloat16, and in float16 {OVERFLOW} (Gemma 2)"),
        (T4, "gpt2", "float16", "Tesla T4 (sm_75) has no bfloat16"),
        (P100, "llama", "float32", "Tesla P100 (sm_60) has no float16 tensor cores"),
    ],
    ids=lambda value: getattr(value, "name", None) or str(value or "CPU"),
)
def test_the_dtype_follows_the_device_and_the_family(gpu: Any, kind: str, dtype: str, reason: str) -> None:
    have = Hardware(8, (gpu,) if gpu else ())
    found = choose_llm_dtype("cuda" if gpu else "cpu", "auto", family_of(config_of(kind)), have)
    assert (found.value, found.reason) == (dtype, reason)


@pytest.mark.parametrize(
    ("device", "gpu", "kind", "asked", "said"),
    [
        ("cuda", T4, "llama", "bfloat16", '"bfloat16", but Tesla T4 (sm_75) has none; use "float16"'),
        ("cuda", T4, "gemma2", "bfloat16", '"bfloat16", but Tesla T4 (sm_75) has none; use "float32"'),
        ("cuda", T4, "gemma3", "float16", f'"float16", but of Gemma 3 {OVERFLOW}; use "float32"'),
        ("cuda", H200, "gemma3", "float16", f'"float16", but of Gemma 3 {OVERFLOW}; use "bfloat16" or "float32"'),
        ("cpu", None, "gemma2", "float16", 'use "bfloat16" or "float32"'),
        ("cpu", None, "llama", "fp16", 'dtype is \'fp16\'; it can be "auto", \'float32\', \'float16\', \'bfloat16\''),
    ],
    ids=["bfloat16 on a T4", "of Gemma", "float16 of Gemma on a T4", "on an H200", "on a CPU", "no such name"],
)  # fmt: skip
def test_a_dtype_that_cannot_be_says_which_can(device: str, gpu: Any, kind: str, asked: str, said: str) -> None:
    with pytest.raises(PlanError, match=re.escape(said)):
        choose_llm_dtype(device, asked, family_of(config_of(kind)), Hardware(8, (gpu,) if gpu else ()))


@pytest.mark.parametrize(
    ("gpu", "kind", "precision"),
    [(T4, "llama", "float16"), (T4, "gemma2", "float32"), (T4, "gemma3", "float32"), (A100, "gemma2", "bfloat16"),
     (P100, "llama", "float32")],
    ids=lambda value: getattr(value, "name", value),
)  # fmt: skip
def test_training_multiplies_in_what_the_family_bears(gpu: Gpu, kind: str, precision: str) -> None:
    """Whose weights are float32 in any case: float16 would come by autocast."""
    assert choose_llm_precision("cuda", "auto", family_of(config_of(kind)), Hardware(8, (gpu,))).value == precision


def test_training_gemma_in_float16_is_refused() -> None:
    said = f'precision is "float16", but of Gemma 2 {OVERFLOW}; use "auto" or "float32"'
    with pytest.raises(PlanError, match=re.escape(said)):
        choose_llm_precision("cuda", "float16", family_of(config_of("gemma2")), Hardware(8, (H200,)))


def test_a_dtype_asked_for_is_taken() -> None:
    found = choose_llm_dtype("cuda:1", "float32", None, Hardware(8, (T4, H200)))
    assert str(found) == "float32 (asked for)"


@pytest.mark.parametrize(
    ("device", "gpu", "quant", "said"),
    [
        ("cpu", None, "fp8", 'quant is \'fp8\', but float8 products need a GPU from sm_89 on, and this is a CPU; '
                             "this device can do 'nf4' and 'int8', or quant=None"),
        ("cuda", T4, "fp8", "needs sm_89 or later, and the device is Tesla T4 (sm_75); this device can do 'nf4' and"),
        ("cuda", A100, "fp8", "needs sm_89 or later, and the device is NVIDIA A100 (sm_80)"),
        ("cuda", P100, "int8", "needs sm_75 or later, and the device is Tesla P100 (sm_60); this"),
        ("mps", None, "nf4", "bitsandbytes has no kernels for an Apple GPU; use quant=None"),
        ("cpu", None, "q4", "quant is 'q4'; it can be None, 'nf4', 'int8', 'fp8'"),
    ],
    ids=["float8 on a CPU", "on a T4", "on an A100", "int8 on a P100", "on a Mac", "no such kind"],
)  # fmt: skip
def test_a_quant_that_the_device_cannot_do_names_those_it_can(device: str, gpu: Any, quant: str, said: str) -> None:
    with pytest.raises(PlanError, match=re.escape(said)):
        choose_quant(quant, device, "float16", Hardware(8, (gpu,) if gpu else ()))


def test_an_h200_can_do_all() -> None:
    assert possible("cuda", Hardware(8, (H200,))) == dict.fromkeys(QUANTS, "")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("quant") / "m"
    tiny("llama", vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128).save_pretrained(place)
    tokenizer().save_pretrained(place)
    return place


@pytest.mark.parametrize(("quant", "kind", "bound"), [("nf4", torch.uint8, 0.3), ("int8", torch.int8, 0.02)])
def test_a_quantised_model_runs_on_a_cpu_near_to_the_whole_one(
    quant: str, kind: torch.dtype, bound: float, folder: Path
) -> None:
    small, tokens = load_llm(folder, quant, device="cpu")
    whole, _ = load_llm(folder, device="cpu")
    weight = small.model.layers[0].self_attn.q_proj.weight
    assert weight.dtype == kind and small.lm_head.weight.dtype == torch.float32
    ids = tokens("few bits", return_tensors="pt")
    a, b = small(**ids).logits, whole(**ids).logits
    assert 0 < (a - b).norm() / b.norm() < bound, "it differs, and not by much"
    small.train()
    states = small.get_input_embeddings()(ids["input_ids"]).detach().requires_grad_()
    small(inputs_embeds=states, labels=ids["input_ids"]).loss.backward()
    assert states.grad is not None and states.grad.isfinite().all() and states.grad.norm() > 0
    told = [line for line in str(explain(small)).splitlines() if line.startswith("      weights    ")]
    assert re.fullmatch(
        rf" +weights    {quant}, 0\.\d MiB \(asked for: [48] bits .*, computed in float32, bitsandbytes .*\)", told[0]
    )
    assert small.get_memory_footprint() < 0.75 * whole.get_memory_footprint()


def test_weights_that_a_repository_has_quantised_load_as_they_are_and_no_quant_goes_on_top(
    folder: Path, tmp_path: Path
) -> None:
    small, tokens = load_llm(folder, "nf4", device="cpu")
    small.save_pretrained(tmp_path)
    tokens.save_pretrained(tmp_path)
    again, _ = load_llm(tmp_path, device="cpu")
    assert again.model.layers[0].self_attn.q_proj.weight.dtype == torch.uint8
    ids = tokens("few bits", return_tensors="pt")
    torch.testing.assert_close(again(**ids).logits, small(**ids).logits, rtol=1e-4, atol=1e-4)
    assert re.search(r"weights    4 bits, bitsandbytes, 0\.\d MiB \(as the repository has them\)", str(explain(again)))
    with pytest.raises(
        PlanError, match=r"quant is 'int8', and the weights are quantised already \(4 bits, bitsandbytes\)"
    ):
        load_llm(tmp_path, "int8", device="cpu")


def test_the_quant_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="quant is 'int4'"):
        load_llm(tmp_path / "absent", "int4")


def test_a_quant_that_cannot_be_is_refused_before_a_model_is_looked_for() -> None:
    with pytest.raises(PlanError, match="quant is 'fp8', but float8 products need a GPU"):
        load_llm("owner/not-in-the-cache", "fp8", device="cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("quant", QUANTS)
def test_a_quantised_model_learns_on_a_gpu(quant: str, folder: Path) -> None:
    small, tokens = load_llm(folder, quant, device="cuda")
    ids = tokens("few bits", return_tensors="pt").to("cuda")
    small.train()
    states = small.get_input_embeddings()(ids["input_ids"]).detach().requires_grad_()
    small(inputs_embeds=states, labels=ids["input_ids"]).loss.backward()
    assert states.grad is not None and states.grad.isfinite().all()
