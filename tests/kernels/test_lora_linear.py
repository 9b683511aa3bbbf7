"""lora_linear beside its definition and peft: over dense and 4-bit weights, fused and apart, gradients, bad input."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from closeness import assert_close, assert_equal_to
from speechkit_kernels import lora_linear as module
from speechkit_kernels.launch import Hardware, hardware_of, support
from speechkit_kernels.lora_linear import lora_linear, plan
from speechkit_kernels.nf4 import NF4Weight
from speechkit_kernels.reference import nf4 as definitions
from speechkit_kernels.reference import weights as reference

H200, T4 = Hardware("cuda", (9, 0), "H200"), Hardware("cuda", (7, 5), "T4")
HALF, BF16, FULL = torch.float16, torch.bfloat16, torch.float32


def parts(rows: int, outer: int, inner: int, rank: int, device: str, dtype: torch.dtype) -> list[torch.Tensor]:
    """x, a, b, bias; a and b of the size that training gives them."""
    shapes = [(rows, inner), (rank, inner), (outer, rank), (outer,)]
    sizes = [1.0, inner**-0.5, 0.5, 1.0]
    return [(torch.randn(shape) * size).to(device, dtype) for shape, size in zip(shapes, sizes, strict=True)]


def quantised(outer: int, inner: int, device: str) -> NF4Weight:
    return definitions.nf4_quantise(torch.randn(outer, inner) * inner**-0.5).to(device)


@pytest.mark.parametrize(
    ("hardware", "dtype", "rows", "rank", "nf4", "value", "reason"),
    [
        (H200, BF16, 1, 16, True, "fused", "2 of at most 64 rows"),
        (H200, BF16, 64, 64, True, "fused", "64 of at most 64 rows"),
        (H200, BF16, 65, 16, True, "apart", "65 rows are more than 64"),
        (H200, BF16, 0, 16, True, "apart", "there are no rows"),
        (H200, BF16, 8, 65, True, "apart", "rank 65 is more than the 64 that a tile holds"),
        (H200, BF16, 8, 16, False, "apart", "only a 4-bit weight has a kernel with the update inside"),
        (H200, FULL, 1, 16, True, "apart", "2 of at most 4 rows wait"),
        (T4, HALF, 8, 16, True, "apart", "uses no tensor cores on T4"),
        (Hardware("cpu"), BF16, 1, 16, True, "apart", "on a CPU the definition is the fast path"),
    ],
)
def test_the_choice_follows_from_card_dtype_and_size_and_says_why(
    hardware: Hardware, dtype: torch.dtype, rows: int, rank: int, nf4: bool, value: str, reason: str
) -> None:
    found = plan(hardware, dtype, rows, 4096, rank, nf4=nf4)
    assert found.value == value
    assert re.search(reason, found.reason)


def eager(
    x: torch.Tensor, weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float = 1.0,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """As peft computes it: three products, a scaling and a sum, each rounded to the dtype of x."""
    linear = torch.nn.functional.linear
    return linear(x, weight, bias) + scale * linear(linear(x, a), b)


@pytest.mark.parametrize("dtype", [FULL, HALF, BF16], ids=str)
@pytest.mark.parametrize(
    ("rows", "outer", "inner", "rank", "way"),
    [
        (1, 67, 128, 3, "fused"),
        (5, 9, 192, 17, "fused"),
        (70, 10, 64, 4, "apart"),
        (3, 7, 45, 1, "apart"),
    ],
)
def test_over_a_4_bit_weight_values_and_gradients_are_those_of_the_definition(
    rows: int, outer: int, inner: int, rank: int, way: str, dtype: torch.dtype, device: str
) -> None:
    weight = quantised(outer, inner, device)
    x, a, b, bias = parts(rows, outer, inner, rank, device, dtype)
    if dtype != FULL and support(hardware_of(x.device), dtype, matmul=True).value:
        assert plan(hardware_of(x.device), dtype, rows, inner, rank, nf4=True).value == way
    dense = definitions.nf4_dequantise(weight, dtype)
    assert_equal_to(
        lambda x, a, b, bias: lora_linear(x, weight, a, b, 1.5, bias),
        lambda x, a, b, bias: reference.lora_linear(x, weight, a, b, 1.5, bias),
        [x, a, b, bias],
        lambda x, a, b, bias: eager(x, dense, a, b, 1.5, bias),
    )


@pytest.mark.parametrize("dtype", [FULL, HALF, BF16], ids=str)
@pytest.mark.parametrize("shape", [(1, 5), (2, 3, 45), (40, 64)], ids=str)
def test_over_a_dense_weight_that_is_trained_too_likewise(
    shape: tuple[int, ...], dtype: torch.dtype, device: str
) -> None:
    x, a, b, bias = parts(1, 11, shape[-1], 4, device, dtype)
    x = torch.randn(shape).to(device, dtype)
    weight = (torch.randn(11, shape[-1]) * shape[-1] ** -0.5).to(device, dtype)
    assert_equal_to(lora_linear, reference.lora_linear, [x, weight, a, b], eager)
    with_bias = [x, weight, a, b, bias]
    assert_equal_to(
        lambda x, w, a, b, bias: lora_linear(x, w, a, b, 0.5, bias),
        lambda x, w, a, b, bias: reference.lora_linear(x, w, a, b, 0.5, bias),
        with_bias,
        lambda x, w, a, b, bias: eager(x, w, a, b, 0.5, bias),
    )


def test_the_tile_with_the_update_inside_gives_what_the_parts_give(device: str) -> None:
    """In float32, where the plan takes the parts and nothing hides in rounding; programs share K and do not."""
    for outer, inner in ((5, 320), (200, 64)):
        weight = quantised(outer, inner, device)
        x, a, b, bias = parts(3, outer, inner, 5, device, FULL)
        fused = module.launch_tile(x, weight, bias, module.LowRank(a, b, 2.0))
        assert_close("y", fused, reference.lora_linear(x, weight, a, b, 2.0, bias))


def test_the_derivative_is_that_of_the_product_in_float64() -> None:
    x, a, b, bias = (one.double().requires_grad_() for one in parts(3, 4, 6, 2, "cpu", FULL))
    dense = torch.randn(4, 6).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda *given: lora_linear(*given[:4], 1.7, given[4]), (x, dense, a, b, bias))
    weight = quantised(4, 6, "cpu")
    assert torch.autograd.gradcheck(lambda x, a, b: lora_linear(x, weight, a, b, 1.7), (x, a, b))


def peft_layer(base: torch.nn.Module, rank: int) -> Any:
    lora = pytest.importorskip("peft.tuners.lora")
    holder = torch.nn.Module()
    holder.add_module("layer", base)
    made = pytest.importorskip("peft").inject_adapter_in_model(
        lora.LoraConfig(r=rank, lora_alpha=3 * rank, target_modules=["layer"], init_lora_weights=False), holder
    )
    return made.layer


@pytest.mark.parametrize("rows", [2, 70])
@pytest.mark.parametrize("kind", ["dense", "4-bit"])
def test_peft_gives_the_same_values_and_gradients(kind: str, rows: int) -> None:
    if kind == "dense":
        base: Any = torch.nn.Linear(64, 10)
        weight: Any = base.weight.detach()
    else:
        nn = pytest.importorskip("bitsandbytes").nn
        base = nn.Linear4bit(64, 10, quant_type="nf4", compute_dtype=torch.float32)
        base.load_state_dict({"weight": torch.randn(10, 64), "bias": torch.randn(10)})
        base.to("cpu")
        weight = NF4Weight.from_bitsandbytes(base.weight)
    layer = peft_layer(base, 4)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    x, dy = torch.randn(rows, 64, requires_grad=True), torch.randn(rows, 10)
    theirs, ours = layer(x), lora_linear(x, weight, a, b, layer.scaling["default"], base.bias)
    assert_close("y", ours.detach(), theirs.detach())
    for name, got, expected in zip(
        ("dx", "da", "db"),
        torch.autograd.grad(ours, (x, a, b), dy),
        torch.autograd.grad(theirs, (x, a, b), dy),
        strict=True,
    ):
        assert_close(name, got, expected)


@pytest.mark.parametrize("rows", [2, 70], ids=["fused", "apart"])
def test_x_and_the_low_rank_pair_are_all_that_is_kept(rows: int, device: str) -> None:
    weight, kept = quantised(8, 64, device), []
    x, a, b, _ = (one.requires_grad_() for one in parts(rows, 8, 64, 4, device, HALF))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        lora_linear(x, weight, a, b)
    assert sorted(kept) == sorted(one.data_ptr() for one in (x, a, b))


@pytest.mark.parametrize("frozen", ["x", "a", "b", "pair"])
def test_what_is_frozen_gets_no_gradient_and_the_rest_theirs(frozen: str, device: str) -> None:
    weight = quantised(6, 64, device)
    x, a, b, _ = parts(3, 6, 64, 4, device, FULL)
    named = {"x": x, "a": a, "b": b}
    wanted = [
        one.requires_grad_() for name, one in named.items() if name != frozen and (frozen != "pair" or name == "x")
    ]
    expected = torch.autograd.grad(reference.lora_linear(x, weight, a, b).square().sum(), wanted)
    for got, one in zip(
        torch.autograd.grad(lora_linear(x, weight, a, b).square().sum(), wanted), expected, strict=True
    ):
        assert_close("gradient", got, one)


def test_a_float32_pair_over_half_activations_gets_float32_gradients(device: str) -> None:
    weight = quantised(6, 64, device)
    x, a, b, _ = parts(3, 6, 64, 4, device, FULL)
    a, b = a.requires_grad_(), b.requires_grad_()
    y = lora_linear(x.half(), weight, a, b)
    assert y.dtype == HALF
    da, db = torch.autograd.grad(y.float().sum(), (a, b))
    assert da.dtype == db.dtype == FULL
    with torch.autocast(device, dtype=BF16):
        assert lora_linear(x, weight, a, b).dtype == BF16


@pytest.mark.parametrize("kind", ["dense", "4-bit"])
def test_a_backward_pass_called_under_autocast_is_in_the_dtype_of_the_forward_pass(kind: str, device: str) -> None:
    weight = quantised(8, 64, device) if kind == "4-bit" else torch.randn(8, 64, device=device)
    x, a, b, _ = (one.requires_grad_() for one in parts(70, 8, 64, 4, device, FULL))
    y = lora_linear(x, weight, a, b).sum()
    expected = torch.autograd.grad(y, (x, a, b), retain_graph=True)
    with torch.autocast(device, dtype=BF16):
        found = torch.autograd.grad(y, (x, a, b))
    for got, one in zip(found, expected, strict=True):
        assert torch.equal(got, one)


def test_leading_dimensions_gaps_and_no_rows(device: str) -> None:
    weight, whole = quantised(6, 64, device), torch.randn(2, 4, 100, device=device)
    _, a, b, _ = parts(1, 6, 64, 3, device, FULL)
    wide = torch.randn(64, 3, device=device).T  # a that is not contiguous
    for x in (whole[..., 5:69], whole[:, :, :64].transpose(0, 1), whole[0, 0, :64], whole[:0, :, :64]):
        for pair in ((a, b), (wide, b.repeat(1, 2)[:, ::2])):
            assert lora_linear(x, weight, *pair).shape == (*x.shape[:-1], 6)
            assert_equal_to(
                lambda x, a, b: lora_linear(x, weight, a, b), lambda x, a, b: reference.lora_linear(x, weight, a, b),
                [x, *pair],
            )  # fmt: skip


@pytest.mark.parametrize("rows", [3, 70], ids=["fused", "apart"])
def test_a_bias_may_have_gaps(rows: int, device: str) -> None:
    weight = quantised(6, 64, device)
    x, a, b, bias = parts(rows, 6, 64, 4, device, HALF)
    assert_equal_to(
        lambda x, a, b, bias: lora_linear(x, weight, a, b, 1.0, bias[::2]),
        lambda x, a, b, bias: reference.lora_linear(x, weight, a, b, 1.0, bias[::2]),
        [x, a, b, bias.repeat_interleave(2)],
    )


def test_nothing_derives_it_twice() -> None:
    x, a, b, _ = (one.double().requires_grad_() for one in parts(3, 4, 6, 2, "cpu", FULL))
    (dx,) = torch.autograd.grad(lora_linear(x, torch.ones(4, 6).double(), a, b).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


GOOD = {"x": torch.ones(2, 8), "weight": torch.ones(5, 8), "a": torch.ones(3, 8), "b": torch.ones(5, 3)}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"x": torch.ones(2, 7)}, r"x has shape \(2, 7\); wanted \(…, 8\) for a weight of 5 x 8"),
        ({"a": torch.ones(3, 7)}, r"a has shape \(3, 7\); wanted \(3, 8\)"),
        ({"a": torch.ones(8)}, r"a has shape \(8,\); wanted \(R, 8\) with R at least 1"),
        ({"b": torch.ones(3, 5)}, r"b has shape \(3, 5\); wanted \(5, 3\)"),
        ({"bias": torch.ones(8)}, r"bias has shape \(8,\); wanted \(5,\)"),
        ({"b": torch.ones(5, 3, dtype=torch.int32)}, "b is torch.int32; give float32"),
        ({"b": torch.ones(5, 3, device="meta")}, "b is on meta, x on cpu"),
        ({"weight": torch.ones(5, 8, dtype=torch.int8)}, "weight is torch.int8; give float32"),
    ],
)
def test_what_does_not_fit_is_named(changed: dict[str, torch.Tensor], said: str) -> None:
    with pytest.raises(ValueError, match=f"lora_linear: {said}"):
        lora_linear(**(GOOD | changed))
