"""What cannot be quantised is refused by name: values, shapes, dtypes, importances, bytes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from kquants_oracle import gaussian

from speechkit.errors import ExportError, PlanError
from speechkit.export import kquants
from speechkit.export.kquants import BITS, dequantize, quantize

KINDS = tuple(BITS)


@pytest.fixture(params=["numba", "numpy"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both engines, one after the other."""
    monkeypatch.setattr(kquants, "_compiled", lambda: request.param == "numba")


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_that_is_no_finite_number_is_named_by_row_and_column(kind: str, value: float) -> None:
    x = gaussian(40, 512)
    x[33, 300] = value
    for importance in (None, np.ones(512, np.float32)):
        with pytest.raises(ExportError, match=rf"row 33, column 300 of x is {value}"):
            quantize(x, kind, importance, threads=2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_a_tensor_too_and_on_the_path_of_cuda_tensors(dtype: torch.dtype) -> None:
    x = torch.from_numpy(gaussian(3, 256)).to(dtype)
    x[2, 7] = torch.nan
    with pytest.raises(ExportError, match=r"row 2, column 7 of x is nan \(1 such"):
        quantize(x, "Q6_K")
    with pytest.raises(ExportError, match=r"row 2, column 7 of x is nan"):
        kquants._on_gpu(x, "Q6_K")


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("kind", KINDS)
def test_weights_whose_scale_is_infinite_in_float16_are_refused(kind: str) -> None:
    x = gaussian(3, 512)
    x[1, 257] = 3e20
    with pytest.raises(ExportError, match=r"row 1, columns 256 to \d+ of x reach 3e\+20: the scale of a"):
        quantize(x, kind)


def test_double_precision_beyond_single_is_infinite() -> None:
    x = gaussian(2, 256).astype(np.float64)
    x[0, 3] = 1e300
    with pytest.raises(ExportError, match="row 0, column 3 of x is inf"):
        quantize(x, "Q8_0")


@pytest.mark.parametrize(
    ("x", "kind", "said"),
    [
        (np.ones((1, 256), np.float32), "Q3_K", "kind is 'Q3_K'; give one of Q4_0, Q5_0, Q5_1, Q8_0, Q4_K"),
        (np.ones(256, np.float32), "Q4_K", r"x has shape \(256,\); wanted \(N, K\)"),
        (torch.ones(2, 3, 256), "Q4_K", r"x has shape \(2, 3, 256\); wanted"),
        (np.ones((1, 320), np.float32), "Q4_K", "rows of 320 weights .* hold 256; of this width can be Q4_0, Q5_0"),
        (np.ones((1, 48), np.float32), "Q8_0", "rows of 48 weights .* hold 32; keep these weights in F16"),
        (np.ones((1, 256), np.int32), "Q4_K", "x is int32; give float32, bfloat16, float16 or float64"),
        (torch.ones(1, 256).to(torch.float8_e4m3fn), "Q4_K", "x is float8_e4m3fn; give"),
        ([[1.0] * 256], "Q4_K", "x is a list; give a NumPy array or a torch tensor"),
    ],
)
def test_weights_that_do_not_fit_are_named(x: Any, kind: str, said: str) -> None:
    with pytest.raises(PlanError, match=said):
        quantize(x, kind)


@pytest.mark.parametrize(
    ("importance", "said"),
    [
        (np.ones(128), r"importance has shape \(128,\); the weights have 256 columns"),
        (np.ones((1, 256)), r"importance has shape \(1, 256\)"),
        (
            np.where(np.arange(256) == 9, -1.0, 1.0),
            "importance of column 9 is -1.0; each is a finite number, 0 or more",
        ),
        (np.where(np.arange(256) == 9, np.nan, 1.0), "importance of column 9 is nan"),
    ],
)
def test_importances_that_do_not_fit_are_named(importance: np.ndarray, said: str) -> None:
    with pytest.raises(PlanError, match=said):
        quantize(gaussian(1, 256), "Q4_K", importance)


def test_importance_may_be_a_tensor_or_double() -> None:
    x, squares = gaussian(2, 256), np.random.default_rng(0).random(256)
    wanted = quantize(x, "Q4_K", squares.astype(np.float32))
    assert np.array_equal(quantize(x, "Q4_K", squares), wanted)
    assert np.array_equal(quantize(x, "Q4_K", torch.from_numpy(squares)), wanted)


@pytest.mark.parametrize(
    ("rows", "kind", "said"),
    [
        (np.zeros((1, 143), np.uint8), "Q4_K", r"uint8 of shape \(1, 143\); Q4_K wants .* a multiple of 144"),
        (np.zeros((1, 144), np.int8), "Q4_K", r"rows are int8 of shape"),
        (np.zeros(144, np.uint8), "Q4_K", r"shape \(144,\)"),
        (np.zeros((1, 144), np.uint8), "Q4", "kind is 'Q4'"),
    ],
)
def test_bytes_that_are_no_blocks_are_named(rows: np.ndarray, kind: str, said: str) -> None:
    with pytest.raises(PlanError, match=said):
        dequantize(rows, kind)


def test_no_threads_cannot_be() -> None:
    with pytest.raises(PlanError, match="threads is 0"):
        quantize(gaussian(1, 256), "Q4_K", threads=0)
