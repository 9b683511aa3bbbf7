"""row_linear beside its definition and that of bitsandbytes; the choice; gradients; bad input."""

from __future__ import annotations

import re
from functools import partial

import pytest
import torch
from closeness import assert_close, assert_equal_to
from speechkit_kernels import row_linear as module
from speechkit_kernels.launch import FP8, Hardware, hardware_of, support
from speechkit_kernels.lora_linear import lora_linear
from speechkit_kernels.reference import weights as reference
from speechkit_kernels.row_linear import plan, row_linear, row_quantise
from speechkit_kernels.weights import Weight

INT8, E4M3 = torch.int8, torch.float8_e4m3fn
A100, L4, T4 = Hardware("cuda", (8, 0), "A100"), Hardware("cuda", (8, 9), "L4"), Hardware("cuda", (7, 5), "T4")
HALF, BF16, FULL = torch.float16, torch.bfloat16, torch.float32


@pytest.mark.parametrize(
    ("hardware", "dtype", "rows", "values", "value", "reason"),
    [
        (A100, BF16, 1, INT8, "tile", "1 of at most 64 rows"),
        (A100, BF16, 65, INT8, "library", "65 rows are more than 64"),
        (A100, BF16, 1, E4M3, "library", r"A100 \(sm_80\) does not convert float8"),
        (L4, HALF, 1, E4M3, "tile", "1 of at most 64 rows"),
        (L4, FULL, 1, INT8, "library", "tensor cores multiply halves, not torch.float32"),
        (L4, HALF, 0, INT8, "library", "there are no rows"),
        (T4, HALF, 1, INT8, "library", "uses no tensor cores on T4"),
        (Hardware("cpu"), BF16, 1, INT8, "library", "on a CPU the definition is the fast path"),
    ],
)
def test_the_choice_follows_from_card_dtype_and_size_and_says_why(
    hardware: Hardware, dtype: torch.dtype, rows: int, values: torch.dtype, value: str, reason: str
) -> None:
    found = plan(hardware, dtype, rows, values)
    assert found.value == value
    assert re.search(reason, found.reason)


@pytest.mark.parametrize("dtype", [FULL, HALF, BF16], ids=str)
def test_int8_values_and_scales_are_those_of_bitsandbytes(dtype: torch.dtype) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = torch.randn(40, 130).to(dtype)
    values, most, _ = functional.int8_vectorwise_quant(weight.float())
    ours = row_quantise(weight)
    assert torch.equal(ours.scale, most / 127)
    # it multiplies by 127 / most where we divide by most / 127: what lies between two integers may fall either way
    apart = (ours.values.int() - values.int()).abs()
    tie = (weight.float() / ours.scale[:, None] % 1 - 0.5).abs() < 1e-4
    assert not apart[~tie].any() and apart.max() <= 1


def test_every_value_of_e4m3_is_the_nearest_there_is() -> None:
    """Beside a search among all finite values of the format, listed from their bits."""
    listed = torch.arange(256, dtype=torch.uint8).view(E4M3).float()
    listed = listed[listed.isfinite()]
    weight = torch.randn(3, 70)
    ours = row_quantise(weight, E4M3)
    wanted = weight / (weight.abs().amax(dim=1, keepdim=True) / 448)
    nearest = (wanted[..., None] - listed).abs().min(dim=-1).values
    assert_close("distance", (wanted - ours.values.float()).abs(), nearest)


@pytest.mark.parametrize("values", [INT8, E4M3], ids=str)
def test_rows_of_zeros_stay_zero_and_the_rest_is_as_near_as_the_format_is(values: torch.dtype) -> None:
    weight = torch.randn(5, 33)
    weight[2] = 0
    back = row_quantise(weight, values).dequantise()
    most = weight.abs().amax(dim=1, keepdim=True)
    allowed = most / 254 if values == INT8 else (weight.abs() / 16).maximum(most / 448 * 2**-10)
    assert ((back - weight).abs() <= allowed * 1.0001).all()
    assert not back[2].any()


@pytest.mark.parametrize("dtype", [FULL, HALF, BF16], ids=str)
@pytest.mark.parametrize("values", [INT8, E4M3], ids=str)
def test_dequantising_rounds_once(values: torch.dtype, dtype: torch.dtype, device: str) -> None:
    weight = row_quantise(torch.randn(9, 33, device=device), values)
    assert torch.equal(weight.dequantise(dtype), reference.row_dequantise(weight, dtype))


@pytest.mark.parametrize("dtype", [FULL, HALF, BF16], ids=str)
@pytest.mark.parametrize("values", [INT8, E4M3], ids=str)
@pytest.mark.parametrize(("rows", "outer", "inner"), [(1, 67, 33), (5, 3, 400), (70, 5, 64)])
def test_values_and_gradients_are_those_of_the_definition(
    rows: int, outer: int, inner: int, values: torch.dtype, dtype: torch.dtype, device: str
) -> None:
    weight = row_quantise(torch.randn(outer, inner, device=device), values)
    x, bias = torch.randn(rows, inner).to(device, dtype), torch.randn(outer).to(device, dtype)
    hardware = hardware_of(x.device)
    if dtype != FULL and support(hardware, dtype, matmul=True).value and (hardware.capability or FP8) >= FP8:
        assert plan(hardware, dtype, rows, values).value == ("tile" if rows <= 64 else "library")
    assert_equal_to(
        lambda x, bias: row_linear(x, weight, bias), lambda x, bias: reference.row_linear(x, weight, bias), [x, bias]
    )


def test_the_tile_gives_the_product_where_programs_share_its_sum_and_where_not(device: str) -> None:
    for outer, inner in ((5, 400), (200, 70)):
        weight, x = row_quantise(torch.randn(outer, inner, device=device)), torch.randn(3, inner, device=device)
        expected = reference.row_linear(x, weight)
        assert_close("y", module._launch_forward(x, weight, None), expected)


@pytest.mark.parametrize("values", [INT8, E4M3], ids=str)
def test_it_is_a_weight_and_carries_a_low_rank_update(values: torch.dtype, device: str) -> None:
    weight = row_quantise(torch.randn(6, 40, device=device) / 6, values)
    assert isinstance(weight, Weight)
    x, a, b = (torch.randn(shape, device=device) for shape in ((3, 40), (4, 40), (6, 4)))
    assert_close("y", weight.linear(x), reference.row_linear(x, weight))
    assert_equal_to(
        lambda x, a, b: lora_linear(x, weight, a, b, 0.5), lambda x, a, b: reference.lora_linear(x, weight, a, b, 0.5),
        [x, a, b],
    )  # fmt: skip


def test_a_transposed_weight_is_quantised_row_by_row_and_a_bias_may_have_gaps(device: str) -> None:
    weight = row_quantise(torch.randn(64, 6, device=device).T)
    x, bias = torch.randn(3, 64, device=device).half(), torch.randn(12, device=device).half()[::2]
    assert_equal_to(
        lambda x, bias: row_linear(x, weight, bias[::2]), lambda x, bias: reference.row_linear(x, weight, bias[::2]),
        [x, bias.repeat_interleave(2)],
    )  # fmt: skip
    with pytest.raises(
        ValueError, match=r"RowWeight: values have strides \(1, 6\), scale \(1,\); give both without gaps"
    ):
        reference.RowWeight(weight.values.T.contiguous().T, weight.scale, weight.dtype)


def test_its_size_is_told() -> None:
    assert repr(row_quantise(torch.randn(4, 10))) == "RowWeight(4 x 10, int8, 56 bytes, cpu)"


@pytest.mark.parametrize(
    ("weight", "values", "said"),
    [
        (torch.ones(4), INT8, r"got torch.float32 of shape \(4,\) for torch.int8; give a float \(N, K\)"),
        (torch.ones(4, 4), torch.int4, "for torch.int4; give a float"),
        (torch.ones(4, 4, dtype=torch.int32), INT8, "got torch.int32"),
    ],
)
def test_what_cannot_be_quantised_is_named(weight: torch.Tensor, values: torch.dtype, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        row_quantise(weight, values)


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match=r"row_linear: x has shape \(2, 3\); wanted \(…, 4\) for a weight of 5 x 4"):
        partial(row_linear, torch.ones(2, 3))(row_quantise(torch.ones(5, 4)))
