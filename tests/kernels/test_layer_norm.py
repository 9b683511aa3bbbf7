"""layer_norm beside its definition and torch.nn.functional.layer_norm: values, gradients, odd sizes, bad input."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from closeness import assert_close, assert_derived_once, assert_equal_to
from speechkit_kernels.layer_norm import layer_norm
from speechkit_kernels.reference.layer_norm import layer_norm as definition


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 2), (3, 5), (2, 7, 96), (5, 130), (1, 1000)], ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_values_and_gradients_are_those_of_the_definition(
    shape: tuple[int, ...], dtype: torch.dtype, bias: bool, device: str
) -> None:
    inputs = [torch.randn(size).to(device, dtype) for size in (shape, shape[-1:], *[shape[-1:]] * bias)]
    assert_equal_to(layer_norm, definition, inputs)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_the_definition_is_that_of_torch(bias: bool) -> None:
    x, weight, shift = torch.randn(3, 17), torch.randn(17), torch.randn(17) if bias else None
    expected = torch.nn.functional.layer_norm(x, (17,), weight, shift, 1e-3)
    assert_close("y", definition(x, weight, shift, 1e-3), expected)


def test_a_mean_far_above_the_deviation_costs_no_digits(device: str) -> None:
    x = torch.randn(2, 300, dtype=torch.float64) + 1000  # the variance of squares would keep one digit of it
    truth = torch.nn.functional.layer_norm(x.float().double(), (300,)).float()
    got = layer_norm(x.float().to(device), torch.ones(300, device=device))
    # a unit of 1000 is 6e-5, and a GPU's sum and division are off by some; the variance of squares would be by 0.03
    torch.testing.assert_close(got.cpu(), truth, atol=2e-4 if device == "cpu" else 5e-4, rtol=0)


def test_rows_far_apart_transposed_and_expanded_are_read_where_they_lie(device: str) -> None:
    weight, bias = torch.randn(2, 12, device=device)
    whole = torch.randn(6, 40, device=device)
    for x in (whole[:, 3:15], whole[::2, :12], torch.randn(12, 5, device=device).T, whole[:1, :12].expand(4, 12)):
        assert_equal_to(layer_norm, definition, [x, weight, bias])
    apart = torch.randn(12, 2, device=device)
    assert_close("y", layer_norm(whole[:, :12], *apart.T), definition(whole[:, :12], *apart.T))


def test_a_constant_row_becomes_the_bias_and_has_a_finite_gradient(device: str) -> None:
    x = torch.full((2, 9), 7.0, device=device, requires_grad=True)
    bias = torch.arange(9.0, device=device)
    y = layer_norm(x, torch.ones(9, device=device), bias)
    # a GPU divides the sum by 9 with an error of up to two units, which eps makes 316 times larger
    torch.testing.assert_close(y, bias.expand(2, 9), atol=0 if device == "cpu" else 1e-3, rtol=0)
    (y * bias).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()


def test_a_half_precision_input_with_float32_weights_keeps_each_its_dtype(device: str) -> None:
    x = torch.randn(3, 8, device=device, dtype=torch.bfloat16, requires_grad=True)
    weight, bias = (torch.randn(8, device=device, requires_grad=True) for _ in range(2))
    y = layer_norm(x, weight, bias)
    found = torch.autograd.grad(y.sum(), (x, weight, bias))
    assert y.dtype == torch.bfloat16
    assert [gradient.dtype for gradient in found] == [torch.bfloat16, torch.float32, torch.float32]
    assert found[2].tolist() == [3.0] * 8  # each of three rows brings one


def test_no_rows_give_no_rows_and_a_zero_gradient(device: str) -> None:
    x = torch.zeros(0, 8, device=device, requires_grad=True)
    weight, bias = (torch.ones(8, device=device, requires_grad=True) for _ in range(2))
    layer_norm(x, weight, bias).sum().backward()
    assert x.grad is not None and weight.grad is not None and bias.grad is not None
    assert not weight.grad.any() and not bias.grad.any()


@pytest.mark.parametrize("frozen", [(), ("bias",), ("weight",), ("weight", "bias")], ids=str)
def test_what_is_frozen_gets_no_gradient_and_changes_none(frozen: tuple[str, ...], device: str) -> None:
    named = {"x": torch.randn(3, 8), "weight": torch.randn(8), "bias": torch.randn(8)}
    leaves = {name: value.to(device).requires_grad_(name not in frozen) for name, value in named.items()}
    for function in (layer_norm, partial(definition)):
        function(**leaves).pow(3).sum().backward()
        found = {name: leaf.grad for name, leaf in leaves.items()}
        if function is layer_norm:
            ours = found
        for leaf in leaves.values():
            leaf.grad = None
    for name in named:
        assert (ours[name] is None) == (found[name] is None) == (name in frozen)
        if name not in frozen:
            assert_close(name, ours[name], found[name])


def test_where_no_kernel_runs_the_definition_does(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    x, weight, bias = torch.randn(3, 8, device=device), *torch.randn(2, 8, device=device)
    expected = layer_norm(x, weight, bias, 0.1)
    monkeypatch.setattr("speechkit_kernels.layer_norm.use_kernel", lambda *_, **__: False)
    assert_close("y", layer_norm(x, weight, bias, 0.1), expected)


def test_results_may_be_written_over(device: str) -> None:
    x, weight = torch.randn(2, 3, 8, device=device, requires_grad=True), torch.ones(8, device=device)
    layer_norm(x, weight).mul_(2).pow(3).sum().backward()
    expected = torch.autograd.grad((2 * definition(x, weight)).pow(3).sum(), x)[0]
    assert x.grad is not None
    assert_close("dx", x.grad, expected)


def test_it_is_derived_once(device: str) -> None:
    assert_derived_once(layer_norm, [torch.randn(3, 6, device=device), torch.randn(6, device=device)])


@pytest.mark.parametrize(
    ("x", "weight", "bias", "said"),
    [
        (torch.ones(2, 4), torch.ones(5), None, r"weight has shape \(5,\); wanted \(4,\)"),
        (torch.ones(2, 4), torch.ones(4), torch.ones(1), r"bias has shape \(1,\); wanted \(4,\)"),
        (torch.ones(2, 4).long(), torch.ones(4), None, "x is torch.int64; give float32, float16"),
        (torch.ones(()), torch.ones(1), None, r"x of shape \(\) has nothing to normalise"),
        (torch.ones(3, 0), torch.ones(0), None, r"x of shape \(3, 0\) has nothing to normalise"),
        (torch.ones(2, 4), torch.ones(4), torch.ones(4, device="meta"), "bias is on meta, x on cpu"),
    ],
)
def test_what_does_not_fit_is_named(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, said: str
) -> None:
    with pytest.raises(ValueError, match=f"layer_norm: {said}"):
        layer_norm(x, weight, bias)
