"""Which tensor gets which type, beside what llama.cpp's own llama_model_quantize gave the same tensors.

llama_quantize_types.json: tensors of tiny models of every architecture and the types that `llama_model_quantize` of
llama.cpp b11739 wrote for them, layer by layer ("Q6_Kx2 Q4_Kx3": two layers, then three); norms and biases left out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from speechkit.errors import PlanError
from speechkit.export.mixture import BLOCK, KINDS, kind_of, tensor_types, type_bytes

CASES: dict[str, Any] = json.loads(Path(__file__).with_name("llama_quantize_types.json").read_text(encoding="utf-8"))


def spread(case: dict[str, Any], kind: str) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Shapes and llama.cpp's types by name."""
    shapes: dict[str, tuple[int, ...]] = {}
    types: dict[str, str] = {}
    for pattern, entry in case["tensors"].items():
        runs = [run.rpartition("x") for run in entry["types"][kind].split()]
        sequence = [name for name, _, count in runs for _ in range(int(count))]
        first, last = entry["layers"]
        for layer, name in zip(range(first, last + 1), sequence, strict=True):
            shapes[pattern.replace("*", str(layer))] = tuple(entry["shape"])
            types[pattern.replace("*", str(layer))] = name
    return shapes, types


@pytest.mark.parametrize("kind", ["Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "Q4_0"])
@pytest.mark.parametrize("case", CASES)
def test_types_are_those_of_llama_quantize(case: str, kind: str) -> None:
    shapes, types = spread(CASES[case], kind)
    found = tensor_types(shapes, KINDS[kind], arch=CASES[case]["arch"], experts=CASES[case]["experts"])
    assert {name: (found[name], types[name]) for name in types if found[name] != types[name]} == {}


def test_norms_biases_and_the_router_stay_float32() -> None:
    shapes = {
        "blk.0.attn_norm.weight": (256,), "blk.0.attn_q.bias": (256,), "blk.0.ffn_gate_inp.weight": (4, 256),
        "blk.0.attn_q.weight": (256, 256), "blk.0.attn_q_norm.weight": (64,), "rope_freqs.weight": (32,),
    }  # fmt: skip
    for kind in ("F16", "Q4_K_M"):
        found = tensor_types(shapes, KINDS[kind], arch="llama")
        assert [name for name, one in found.items() if one != "F32"] == ["blk.0.attn_q.weight"]


def test_an_importance_matrix_raises_the_first_ffn_down_of_q4_0() -> None:
    shapes = {f"blk.{layer}.ffn_down.weight": (256, 512) for layer in range(16)}
    found = tensor_types(shapes, KINDS["Q4_0"], arch="llama", imatrix=True)
    assert list(found.values()) == ["Q4_1"] * 2 + ["Q4_0"] * 14


def test_widths_that_32_does_not_divide_stay_16_bits() -> None:
    found = tensor_types({"blk.0.ffn_down.weight": (64, 100)}, KINDS["Q4_K_M"], arch="llama")
    assert found == {"blk.0.ffn_down.weight": "F16"}


def test_bytes_are_those_of_the_gguf_package() -> None:
    gguf = pytest.importorskip("gguf")
    for name, (weights, size) in BLOCK.items():
        assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]] == (weights, size)
    assert type_bytes("Q4_K", (3, 2, 512)) == 3 * 2 * 2 * 144
    assert {kind.number for kind in KINDS.values()} <= {int(one) for one in gguf.LlamaFileType}


def test_names_are_taken_in_any_case_and_others_refused() -> None:
    assert kind_of("q4_k_m") is KINDS["Q4_K_M"] and kind_of("Q8-0") is KINDS["Q8_0"]
    with pytest.raises(PlanError, match="quant is 'Q2_K'; it can be F32, F16, BF16, Q8_0"):
        kind_of("Q2_K")
