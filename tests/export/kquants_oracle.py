"""llama.cpp's own quantiser, by ctypes from the library that xllamacpp brings; and weights to try quantisers on."""

from __future__ import annotations

import ctypes
import importlib.util
import os
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES


def library_of_xllamacpp() -> ctypes.CDLL:
    """The library with llama.cpp in it; without the package a failure in CI, a skip elsewhere."""
    found = importlib.util.find_spec("xllamacpp")
    if found is None or not found.submodule_search_locations:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("xllamacpp is not installed")
    (path,) = Path(next(iter(found.submodule_search_locations))).glob("xllamacpp*.so")
    return ctypes.CDLL(str(path))


@cache
def _function() -> Any:
    function = library_of_xllamacpp().ggml_quantize_chunk
    whole, pointer = ctypes.c_int64, ctypes.c_void_p
    function.argtypes = [ctypes.c_int, pointer, pointer, whole, whole, whole, pointer]
    function.restype = ctypes.c_size_t
    return function


def llama_cpp(x: np.ndarray, kind: str, importance: np.ndarray | None = None) -> np.ndarray:
    """(N, K) float32 → (N, bytes of a row) uint8, by `ggml_quantize_chunk`."""
    number = gguf.GGMLQuantizationType[kind]
    weights, size = GGML_QUANT_SIZES[number]
    x = np.ascontiguousarray(x, np.float32)
    out = np.zeros((len(x), x.shape[1] // weights * size), np.uint8)
    given = None if importance is None else np.ascontiguousarray(importance, np.float32)
    wrote = _function()(
        int(number), x.ctypes.data, out.ctypes.data, 0, *x.shape, None if given is None else given.ctypes.data
    )
    assert wrote == out.size
    return out


def read(packed: np.ndarray, kind: str) -> np.ndarray:
    """(N, K) float32, by the gguf package's reader."""
    return gguf.quants.dequantize(packed, gguf.GGMLQuantizationType[kind])


def equal_blocks(a: np.ndarray, b: np.ndarray, kind: str) -> float:
    """The share of blocks that are the same, byte for byte."""
    size = GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][1]
    return float((a.reshape(-1, size) == b.reshape(-1, size)).all(axis=1).mean())


def relative_rmse(x: np.ndarray, back: np.ndarray) -> float:
    return float(np.sqrt(np.square(back - x, dtype=np.float64).mean() / np.square(x, dtype=np.float64).mean()))


def gaussian(rows: int = 64, width: int = 2048, seed: int = 0) -> np.ndarray:
    """N(0, 0.02²), the scale that weights of language models have."""
    return (np.random.default_rng(seed).standard_normal((rows, width)) * 0.02).astype(np.float32)


def heavy_tailed(rows: int = 16, width: int = 1024) -> np.ndarray:
    """Student's t with 2 degrees of freedom: outliers in every block."""
    return (np.random.default_rng(1).standard_t(2, (rows, width)) * 0.02).astype(np.float32)


ODD = {
    "nought": lambda x: x * 0,
    "negative-nought": lambda x: x * -0.0,
    "all-one": lambda x: x * 0 + 1,
    "all-minus-half": lambda x: x * 0 - 0.5,
    "positive": np.abs,
    "negative": lambda x: -np.abs(x),
    "one-huge-outlier": lambda x: np.where(np.arange(x.shape[1]) == 100, np.float32(50), x),
    "an-outlier-in-every-block": lambda x: np.where(np.arange(x.shape[1]) % 32 == 7, x * 1000, x),
    "nought-in-some-sub-blocks": lambda x: np.where(np.arange(x.shape[1]) % 96 < 48, np.float32(0), x),
    "nought-in-one-block": lambda x: np.where(np.arange(x.shape[1]) < 256, np.float32(0), x),
    "below-any-scale": lambda x: x * np.float32(1e-17),
    "denormal": lambda x: x * np.float32(1e-38),
    "smallest-denormal": lambda x: x * np.float32(1e-43),
    "large": lambda x: x * 1e4,
    "few-different-values": lambda x: np.round(x * 100) / 100,
}


def odd(name: str) -> np.ndarray:
    return np.ascontiguousarray(ODD[name](gaussian(4, 1024, seed=2)), np.float32)


def importances(width: int) -> np.ndarray:
    """Mean squares as activations have them: a few columns count a hundred times the rest, some not at all."""
    squares = np.random.default_rng(3).random(width).astype(np.float32) ** 6
    squares[5:50] = 0
    return squares
