"""K-quants beside llama.cpp's own bytes and errors, read back by the gguf package; every dtype, stride and thread."""

from __future__ import annotations

import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from kquants_oracle import ODD, equal_blocks, gaussian, heavy_tailed, importances, llama_cpp, odd, read, relative_rmse

from speechkit.export import kquants
from speechkit.export.kquants import BITS, BLOCK, BYTES, dequantize, quantize

KINDS = tuple(BITS)
SEARCHED = ("Q4_K", "Q5_K", "Q6_K")
# relative RMSE of N(0, 0.02²), measured on llama.cpp's C (performance.md 3.7)
RMSE = {"Q4_K": 0.0713, "Q5_K": 0.0361, "Q6_K": 0.0178}
# sqrt(Σ d²) / n over 4096 values of 0.1 + 2 cos i, from llama.cpp's tests/test-quantize-fns.cpp
MOST = 0.002


def weights_of(kind: str, x: np.ndarray) -> list[np.ndarray | None]:
    """Without importance; with one that leaves columns out; with one that makes no difference between columns."""
    return [None, importances(x.shape[1]), np.ones(x.shape[1], np.float32)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_block_is_llama_cpps_byte_for_byte(kind: str) -> None:
    for x in (gaussian(), heavy_tailed()):
        for importance in weights_of(kind, x):
            assert equal_blocks(quantize(x, kind, importance), llama_cpp(x, kind, importance), kind) == 1.0


@pytest.mark.parametrize("name", ODD)
def test_odd_weights_are_llama_cpps_bytes_too(name: str) -> None:
    x = odd(name)
    for kind in KINDS:
        for importance in weights_of(kind, x):
            ours, theirs = quantize(x, kind, importance), llama_cpp(x, kind, importance)
            if kind == "Q5_1" and "nought" in name:  # where the C code writes a minimum of -0, ours is +0
                assert np.array_equal(read(ours, kind), read(theirs, kind))
                continue
            assert equal_blocks(ours, theirs, kind) == 1.0, (kind, importance is None)


@pytest.mark.parametrize("kind", SEARCHED)
def test_the_error_is_the_measured_one_and_no_more_than_llama_cpps(kind: str) -> None:
    x = gaussian(128)
    ours, theirs = (relative_rmse(x, read(packed, kind)) for packed in (quantize(x, kind), llama_cpp(x, kind)))
    assert ours <= 1.001 * theirs
    assert ours == pytest.approx(RMSE[kind], rel=0.01)


@pytest.mark.parametrize("kind", SEARCHED)
def test_importance_lowers_the_weighted_error(kind: str) -> None:
    x, squares = gaussian(32), np.random.default_rng(5).random(2048).astype(np.float32) ** 4 + 0.01
    plain, weighted = (np.square(read(quantize(x, kind, given), kind) - x) @ squares for given in (None, squares))
    assert weighted.mean() < 0.97 * plain.mean()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read_back_is_within_llama_cpps_own_bound(kind: str) -> None:
    x = (0.1 + 2 * np.cos(np.arange(4096, dtype=np.float32)))[None]
    back = dequantize(quantize(x, kind), kind)
    assert np.sqrt(np.square(back - x).sum()) / x.size < MOST


@pytest.mark.parametrize("kind", KINDS)
def test_reading_gives_the_gguf_readers_numbers_bit_for_bit(kind: str) -> None:
    packed = [quantize(heavy_tailed(), kind), quantize(odd("negative-nought"), kind)]
    chance = np.random.default_rng(4).integers(0, 256, (9, 4 * BYTES[kind]), dtype=np.uint8)
    for at in kquants.KINDS[kind].halves:  # any bytes are a block, but for scales that are infinite or no number
        chance.reshape(-1, BYTES[kind])[:, at + 1] &= 0xBF
    for rows in (*packed, chance):
        assert np.array_equal(dequantize(rows, kind).view(np.int32), read(rows, kind).view(np.int32))


@pytest.mark.parametrize("kind", KINDS)
def test_numpy_writes_the_compiled_searchs_bytes_and_reads_its_numbers(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [gaussian(3, 1024), heavy_tailed(4), *(odd(name)[:2] for name in ODD)]
    for x in parts:
        for importance in weights_of(kind, x):
            compiled = quantize(x, kind, importance)
            with monkeypatch.context() as patch:
                patch.setattr(kquants, "_compiled", lambda: False)
                assert np.array_equal(quantize(x, kind, importance), compiled)
                assert np.array_equal(dequantize(compiled, kind), read(compiled, kind))


def test_without_numba_a_warning_says_so_and_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kquants, "find_spec", lambda name: None)
    kquants._compiled.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match=r"NumPy, slowly: numba is not installed; pip install"):
            quantize(gaussian(1, 256), "Q4_K")
        assert kquants.engine()[0] == "numpy"
    finally:
        kquants._compiled.cache_clear()


def test_where_no_folder_can_be_written_it_is_compiled_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    numba = pytest.importorskip("numba")
    from speechkit.export import kquants_numba

    def no_place(function: Any = None, **options: Any) -> Any:
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return njit(function, **options)

    njit = numba.njit
    monkeypatch.setattr(kquants_numba.numba, "njit", no_place)
    assert kquants_numba.compiled(lambda x: x + 1)(1) == 2


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K", "Q8_0"])
def test_threads_and_chunks_change_no_byte(kind: str) -> None:
    x, importance = gaussian(300, 512), importances(512)
    assert np.array_equal(quantize(x, kind, importance, threads=1), quantize(x, kind, importance, threads=5))
    packed = quantize(x, kind)
    assert np.array_equal(dequantize(packed, kind, threads=1), dequantize(packed, kind, threads=5))


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K", "Q8_0"])
def test_a_row_is_quantised_alone_whatever_stands_around_it(kind: str) -> None:
    x, importance = gaussian(7, 1280), importances(1280)
    together = quantize(x, kind, importance)
    for row in range(len(x)):
        assert np.array_equal(quantize(x[row : row + 1], kind, importance)[0], together[row])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_a_tensor_of_any_float_type_is_its_values_in_float32(dtype: torch.dtype) -> None:
    x = torch.from_numpy(gaussian(8, 512)).to(dtype)
    wanted = llama_cpp(x.float().numpy(), "Q4_K")
    assert np.array_equal(quantize(x, "Q4_K"), wanted)
    assert np.array_equal(quantize(torch.nn.Parameter(x), "Q4_K"), wanted)
    if dtype != torch.bfloat16:
        assert np.array_equal(quantize(x.numpy(), "Q4_K"), wanted)


def test_weights_are_converted_a_chunk_at_a_time() -> None:
    x = np.zeros((2048, 4096), np.float16)  # 32 MiB in float32
    quantize(x[:1], "Q6_K")
    tracemalloc.start()
    try:
        packed = quantize(x, "Q6_K", threads=1)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - packed.nbytes < 8 * 2**20


def test_strides_are_followed() -> None:
    x = gaussian(512, 512)
    wanted = llama_cpp(np.ascontiguousarray(x.T[::2, ::-1]), "Q5_K")
    assert np.array_equal(quantize(x.T[::2, ::-1], "Q5_K"), wanted)
    assert np.array_equal(quantize(torch.from_numpy(x).T[::2].flip(1), "Q5_K"), wanted)
    packed = np.asfortranarray(wanted)
    assert np.array_equal(dequantize(packed, "Q5_K"), read(wanted, "Q5_K"))


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K", "Q8_0"])
def test_the_path_of_cuda_tensors_gives_the_same_bytes(kind: str) -> None:
    x = torch.from_numpy(gaussian(2, 512))  # on a CPU the kernel's launcher takes its definition, or interprets
    assert np.array_equal(kquants._on_gpu(x, kind), llama_cpp(x.numpy(), kind))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["Q4_K", "Q5_K", "Q6_K", "Q8_0", "Q4_0"])
def test_tensors_on_a_gpu_become_llama_cpps_bytes(kind: str) -> None:
    x = torch.from_numpy(gaussian(64, 4096))
    for importance in (None, importances(4096)):
        theirs = llama_cpp(x.numpy(), kind, importance)
        assert equal_blocks(quantize(x.cuda(), kind, importance), theirs, kind) >= 0.999


def test_the_tables_are_the_gguf_packages() -> None:
    import gguf
    from gguf.constants import GGML_QUANT_SIZES

    for kind in KINDS:
        weights, size = GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
        assert (BLOCK[kind], BYTES[kind], BITS[kind]) == (weights, size, 8 * size / weights)


def test_nothing_in_gives_nothing_out() -> None:
    assert quantize(np.zeros((0, 512), np.float32), "Q4_K").shape == (0, 288)
    assert quantize(torch.zeros(3, 0), "Q6_K").shape == (3, 0)
    assert dequantize(np.zeros((0, 34), np.uint8), "Q8_0").shape == (0, 32)
