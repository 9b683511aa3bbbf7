"""nf4_linear beside its definition and bitsandbytes: the choice, each way of computing, gradients, bad input."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import pytest
import torch
from closeness import assert_close, assert_equal_to
from speechkit_kernels import nf4_linear as module
from speechkit_kernels import weights
from speechkit_kernels.launch import Hardware, support
from speechkit_kernels.nf4 import NF4Weight
from speechkit_kernels.nf4_linear import nf4_linear, plan
from speechkit_kernels.reference import nf4 as definition
from speechkit_kernels.scratch import free_scratch, scratch, tickets
from speechkit_kernels.weights import Weight

T4, H200 = Hardware("cuda", (7, 5), "T4"), Hardware("cuda", (9, 0), "H200")
HALF, BF16, FULL = torch.float16, torch.bfloat16, torch.float32


def quantised(outer: int, inner: int, device: str, nested: bool = True) -> NF4Weight:
    return definition.nf4_quantise(torch.randn(outer, inner), nested=nested).to(device)


@pytest.mark.parametrize(
    ("hardware", "dtype", "rows", "inner", "backward", "value", "reason"),
    [
        (H200, BF16, 1, 4096, False, "vector", "1 of at most 4 rows wait for the bytes of W"),
        (H200, BF16, 2, 4096, False, "tile", "2 of at most 64 rows"),
        (H200, BF16, 64, 4096, False, "tile", "64 of at most 64 rows"),
        (H200, BF16, 65, 4096, False, "library", "65 rows are more than 64: arithmetic takes longer"),
        (H200, BF16, 1, 4096, True, "tile", "1 of at most 64 rows"),
        (H200, BF16, 8192, 4096, True, "library", "8192 rows are more than 64"),
        (H200, BF16, 1, 4100, False, "library", "blocks of 64 cross the rows of 4100"),
        (H200, BF16, 0, 4096, False, "library", "there are no rows"),
        (H200, FULL, 4, 4096, False, "vector", "4 of at most 4 rows"),
        (H200, FULL, 5, 4096, False, "library", "tensor cores multiply halves, not torch.float32"),
        (H200, torch.float64, 1, 4096, False, "library", "no kernel was written for torch.float64"),
        (T4, HALF, 4, 4096, False, "vector", "4 of at most 4 rows"),
        (T4, HALF, 5, 4096, False, "library", r"a matrix product in Triton uses no tensor cores on T4 \(sm_75\)"),
        (T4, HALF, 1, 4096, True, "library", "a matrix product in Triton uses no tensor cores"),
        (T4, BF16, 1, 4096, False, "library", r"T4 \(sm_75\) has no bfloat16"),
        (Hardware("cpu"), BF16, 1, 4096, False, "library", "on a CPU the definition is the fast path"),
        (Hardware("cpu", triton=False), HALF, 1, 64, False, "library", "triton is not installed"),
    ],
)  # fmt: skip
def test_the_choice_follows_from_card_dtype_and_size_and_says_why(
    hardware: Hardware, dtype: torch.dtype, rows: int, inner: int, backward: bool, value: str, reason: str
) -> None:
    found = plan(hardware, dtype, rows, inner, backward=backward)
    assert found.value == value
    assert re.search(reason, found.reason)


@pytest.mark.parametrize(
    ("nested", "dtype"),
    [(True, FULL), (True, HALF), (True, BF16), (False, HALF)],
    ids=["nested, float32", "nested, float16", "nested, bfloat16", "plain, float16"],
)
@pytest.mark.parametrize(
    ("rows", "outer", "inner", "ways"),
    [
        (1, 7, 192, "vector, tile"),
        (3, 5, 64, "tile, tile"),
        (17, 67, 192, "tile, tile"),
        (80, 9, 128, "library, library"),
        (5, 7, 71, "library, library"),
        (1, 33, 50, "library, library"),
    ],
)
def test_values_and_gradients_are_those_of_the_definition(
    rows: int, outer: int, inner: int, ways: str, nested: bool, dtype: torch.dtype, device: str
) -> None:
    weight = quantised(outer, inner, device, nested)
    hardware = module.hardware_of(torch.device(device))
    if dtype != FULL and support(hardware, dtype, matmul=True).value:  # in float32 more goes to the library
        found = (plan(hardware, dtype, rows, inner), plan(hardware, dtype, rows, inner, backward=True))
        assert ", ".join(one.value for one in found) == ways
    x, bias = torch.randn(rows, inner).to(device, dtype), torch.randn(outer).to(device, dtype)
    assert_equal_to(
        lambda x, bias: nf4_linear(x, weight, bias), lambda x, bias: definition.nf4_linear(x, weight, bias), [x, bias]
    )
    without = partial(nf4_linear, weight=weight), partial(definition.nf4_linear, weight=weight)
    assert_equal_to(*without, [x])


@pytest.mark.parametrize("dtype", [FULL, HALF], ids=str)
def test_every_way_gives_the_same_product(dtype: torch.dtype, device: str) -> None:
    """Also where the plan would take another: its choice changes the time alone."""
    weight = quantised(67, 192, device)
    x, dy, bias = (torch.randn(shape).to(device, dtype) for shape in ((5, 192), (5, 67), (67,)))
    w = definition.nf4_dequantise(weight, dtype).float()
    y, dx = x.float() @ w.T + bias.float(), dy.float() @ w
    assert_close("vector", module._launch_vector(x, weight, bias), y, y.to(dtype))
    assert_close("tile", module.launch_tile(x, weight, bias), y, y.to(dtype))
    assert_close("library", weights.library_product(x, weight, bias), y, y.to(dtype))
    assert_close("tile, backward", module._launch_backward(dy, weight), dx, dx.to(dtype))
    assert_close("library, backward", weights.library_gradient(dy, weight), dx, dx.to(dtype))


def test_programs_that_share_a_sum_leave_their_counters_at_zero(device: str) -> None:
    weight, x = quantised(20, 640, device), torch.randn(3, 640, device=device).half()
    assert module.shared_out(x.device, 1, 10, module.GROUPS)[0] > 1
    first, second = nf4_linear(x, weight), nf4_linear(x, weight)
    assert torch.equal(first, second)
    assert not tickets(x.device, 1).any()


@pytest.mark.parametrize(("length", "step", "tiles"), [(64, 2, 1), (7, 2, 2), (1, 64, 1), (1000, 64, 5), (65, 64, 1)])
def test_every_program_that_shares_has_something_and_nothing_is_left(length: int, step: int, tiles: int) -> None:
    splits, each = module.shared_out(torch.device("cpu"), tiles, length, step)
    assert splits >= 1 and each % step == 0
    assert (splits - 1) * each < length <= splits * each


def test_bitsandbytes_gives_the_same_product_and_gradient() -> None:
    nn = pytest.importorskip("bitsandbytes").nn
    layer = nn.Linear4bit(128, 24, bias=True, quant_type="nf4", compute_dtype=torch.float32)
    layer.load_state_dict({"weight": torch.randn(24, 128), "bias": torch.randn(24)})
    layer.to("cpu")
    weight = NF4Weight.from_bitsandbytes(layer.weight)
    for rows in (3, 70):
        x = torch.randn(rows, 128, requires_grad=True)
        dy = torch.randn(rows, 24)
        (theirs,) = torch.autograd.grad(layer(x), x, dy)
        y = nf4_linear(x, weight, layer.bias)
        dx, dbias = torch.autograd.grad(y, (x, layer.bias), dy)
        assert_close("y", y.detach(), layer(x).detach())
        assert_close("dx", dx, theirs)
        assert_close("dbias", dbias, dy.sum(0))


def test_the_derivative_is_that_of_the_product_in_float64() -> None:
    weight = quantised(5, 7, "cpu")
    x, bias = torch.randn(2, 7).double().requires_grad_(), torch.randn(5).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, bias: nf4_linear(x, weight, bias), (x, bias))


def test_leading_dimensions_gaps_and_no_rows(device: str) -> None:
    weight = quantised(6, 64, device)
    whole = torch.randn(2, 4, 100, device=device)
    for x in (whole[..., 5:69], whole[:, :, :64].transpose(0, 1), torch.randn(64, device=device), whole[:0, :, :64]):
        assert nf4_linear(x, weight).shape == (*x.shape[:-1], 6)
        assert_equal_to(partial(nf4_linear, weight=weight), partial(definition.nf4_linear, weight=weight), [x])


@pytest.mark.parametrize("rows", [1, 3, 70])
def test_a_bias_may_have_gaps(rows: int, device: str) -> None:
    weight = quantised(6, 64, device)
    x, bias = torch.randn(rows, 64, device=device).half(), torch.randn(12, device=device).half()
    assert_equal_to(
        lambda x, bias: nf4_linear(x, weight, bias[::2]), lambda x, bias: definition.nf4_linear(x, weight, bias[::2]),
        [x, bias],
    )  # fmt: skip


def test_nothing_is_kept_for_the_backward_pass_but_the_weight(device: str) -> None:
    weight, kept = quantised(8, 64, device), []
    x = torch.randn(70, 64, device=device, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda tensor: tensor):
        nf4_linear(x, weight)
    assert kept == []


def test_one_scratch_serves_all_weights_and_is_given_back(device: str) -> None:
    free_scratch()
    x = torch.randn(70, 64, device=device)
    for outer in (8, 40, 16):
        nf4_linear(x, quantised(outer, 64, device))
    assert free_scratch() == 40 * 64 * 4
    assert free_scratch() == 0


def test_a_scratch_that_was_made_in_inference_mode_serves_training(device: str) -> None:
    free_scratch()
    weight, x = quantised(8, 64, device), torch.randn(70, 64, device=device)
    with torch.inference_mode():
        expected = nf4_linear(x, weight)
    assert torch.equal(nf4_linear(x.requires_grad_(), weight).detach(), expected)
    with scratch(torch.device(device), (3, 5), torch.float16) as lent:
        assert lent.shape == (3, 5) and not lent.is_inference()


def test_autocast_decides_the_dtype_of_the_product(device: str) -> None:
    weight, x = quantised(8, 64, device), torch.randn(70, 64, device=device, requires_grad=True)
    with torch.autocast(device, dtype=torch.bfloat16):
        y = nf4_linear(x, weight)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.float32


def test_a_weight_is_a_weight_and_multiplies_itself(device: str) -> None:
    weight, x = quantised(8, 64, device), torch.randn(3, 64, device=device)
    assert isinstance(weight, Weight)
    assert torch.equal(weight.linear(x), nf4_linear(x, weight))


BAD: list[tuple[dict[str, Any], str]] = [
    ({"x": torch.ones(2, 63)}, r"x has shape \(2, 63\); wanted \(…, 64\) for a weight of 8 x 64"),
    ({"x": torch.ones(())}, r"x has shape \(\); wanted"),
    ({"x": torch.ones(2, 64, dtype=torch.int64)}, "x is torch.int64; give float32"),
    ({"x": torch.ones(2, 64, device="meta")}, "weight is on cpu, x on meta"),
    ({"x": torch.ones(2, 64), "bias": torch.ones(7)}, r"bias has shape \(7,\); wanted \(8,\)"),
]


@pytest.mark.parametrize(("given", "said"), BAD)
def test_what_does_not_fit_is_named(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"nf4_linear: {said}"):
        nf4_linear(**given, weight=quantised(8, 64, "cpu"))
