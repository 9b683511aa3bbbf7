"""k_quant beside llama.cpp's own quantiser (in xllamacpp's library), and read back by the gguf package."""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from speechkit_kernels.k_quant import k_quant
from speechkit_kernels.reference.k_quant import BYTES
from speechkit_kernels.reference.k_quant import k_quant as definition

KINDS = {"Q4_K": 12, "Q5_K": 13, "Q6_K": 14, "Q8_0": 8}  # ggml's numbers
# an error of sqrt(Σ d²) / n over 4096 values of 0.1 + 2 cos i, from llama.cpp's tests/test-quantize-fns.cpp
MOST = 0.002


@pytest.fixture(scope="session")
def ggml() -> Any:
    """`ggml_quantize_chunk` of the library that xllamacpp brings."""
    found = importlib.util.find_spec("xllamacpp")
    if found is None or not found.submodule_search_locations:
        pytest.skip("xllamacpp is not installed")
    (path,) = Path(found.submodule_search_locations[0]).glob("xllamacpp*.so")
    function = ctypes.CDLL(str(path)).ggml_quantize_chunk
    whole, pointer = ctypes.c_int64, ctypes.c_void_p
    function.argtypes, function.restype = (
        [ctypes.c_int, pointer, pointer, whole, whole, whole, pointer],
        ctypes.c_size_t,
    )

    def quantised(x: torch.Tensor, kind: str) -> torch.Tensor:
        x = x.float().contiguous()
        weights, size = BYTES[kind]
        out = torch.zeros(len(x), x.shape[1] // weights * size, dtype=torch.uint8)
        assert function(KINDS[kind], x.data_ptr(), out.data_ptr(), 0, *x.shape, None) == out.numel()
        return out

    return quantised


def read(packed: torch.Tensor, kind: str) -> torch.Tensor:
    gguf = pytest.importorskip("gguf")
    values = gguf.quants.dequantize(packed.cpu().numpy(), gguf.GGMLQuantizationType[kind])
    return torch.from_numpy(values)


def equal_blocks(a: torch.Tensor, b: torch.Tensor, kind: str) -> float:
    size = BYTES[kind][1]
    return (a.cpu().view(-1, size) == b.cpu().view(-1, size)).all(dim=1).float().mean().item()


def special() -> torch.Tensor:
    """Rows of nought, one value, one sign, one outlier a block, values below any scale, and very large ones."""
    x = torch.randn(10, 512) * 0.02
    x[0], x[1], x[2], x[3] = 0, 1, x[2].abs(), -x[3].abs()
    x[4, 100], x[5], x[6], x[7, :256] = 50, x[5] * 1e-17, x[6] * 1e4, 0
    x[8], x[9] = -0.5, x[9, 0]
    return x


@pytest.mark.parametrize("kind", KINDS)
def test_the_definition_writes_llama_cpps_bytes(kind: str, ggml: Any) -> None:
    x = torch.randn(128, 2048) * 0.02
    assert equal_blocks(definition(x, kind), ggml(x, kind), kind) >= 0.999


def test_parts_of_a_block_without_any_value_have_llama_cpps_codes(ggml: Any) -> None:
    x = (torch.randn(8, 512) * 0.02).masked_fill((torch.arange(512) // 16 % 3 == 1), 0)
    assert equal_blocks(definition(x, "Q6_K"), ggml(x, "Q6_K"), "Q6_K") == 1


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_of_one_value_of_nought_and_with_outliers_are_as_good_as_llama_cpps(kind: str, ggml: Any) -> None:
    x = special()
    ours, theirs = definition(x, kind), ggml(x, kind)
    assert equal_blocks(ours, theirs, kind) >= 0.97  # all, where the library was compiled without fused multiply-add
    for row in range(len(x)):
        error, allowed = (
            (read(packed[row : row + 1], kind) - x[row]).square().mean().sqrt() for packed in (ours, theirs)
        )
        assert error <= 1.001 * allowed + 1e-12, f"row {row}"


@pytest.mark.parametrize("kind", ["Q4_K", "Q5_K", "Q6_K"])
def test_the_kernel_writes_the_definitions_bytes(kind: str, device: str) -> None:
    x = torch.cat([special()[:, :256], torch.randn(6, 256) * 0.02])
    assert torch.equal(k_quant(x.to(device), kind).cpu(), definition(x, kind))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read_back_is_within_llama_cpps_own_bound(kind: str) -> None:
    x = (0.1 + 2 * torch.cos(torch.arange(4096.0)))[None]
    back = read(definition(x, kind), kind)
    assert (back - x).square().sum().sqrt() / x.numel() < MOST


@pytest.mark.parametrize("kind", ["Q6_K", "Q8_0"])
def test_half_precision_and_strided_weights_are_those_values_in_float32(kind: str, device: str) -> None:
    x = torch.randn(512, 3).to(torch.bfloat16).T
    assert torch.equal(k_quant(x.to(device), kind).cpu(), definition(x.float().contiguous(), kind))


def test_no_rows_and_no_weights_give_no_bytes(device: str) -> None:
    assert k_quant(torch.zeros(0, 512, device=device), "Q4_K").shape == (0, 288)
    assert k_quant(torch.zeros(3, 0, device=device), "Q6_K").shape == (3, 0)
    assert k_quant(torch.zeros(0, 64, device=device), "Q8_0").shape == (0, 68)


@pytest.mark.parametrize(
    ("x", "kind", "said"),
    [
        (torch.ones(1, 256), "Q4_0", "kind is 'Q4_0'; give one of Q4_K, Q5_K, Q6_K, Q8_0"),
        (torch.ones(256), "Q4_K", r"x has shape \(256,\); wanted \(N, K\)"),
        (torch.ones(1, 300), "Q4_K", "rows of 300 weights are no whole blocks of Q4_K, which hold 256"),
        (torch.ones(1, 48), "Q8_0", "rows of 48 weights are no whole blocks of Q8_0, which hold 32"),
        (torch.ones(1, 256).int(), "Q4_K", "x is torch.int32; give float32"),
    ],
)
def test_what_does_not_fit_is_named(x: torch.Tensor, kind: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"k_quant: {said}"):
        k_quant(x, kind)
