"""rms_norm beside its definition and torch.nn.functional.rms_norm: values, gradients, odd sizes, bad input."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from closeness import assert_close, assert_derived_once, assert_equal_to
from speechkit_kernels import reference
from speechkit_kernels.rms_norm import rms_norm

SHAPES = [(1, 1), (3, 5), (2, 7, 96), (5, 130), (1, 1000)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("offset", [0.0, 1.0], ids=["plain", "Gemma"])
def test_values_and_gradients_are_those_of_the_definition(
    shape: tuple[int, ...], dtype: torch.dtype, offset: float, device: str
) -> None:
    x, weight = torch.randn(shape).to(device, dtype), torch.randn(shape[-1]).to(device, dtype)
    assert_equal_to(partial(rms_norm, offset=offset), partial(reference.rms_norm, offset=offset), [x, weight])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_with_a_residual_the_stream_comes_back_too_and_carries_its_gradient(dtype: torch.dtype, device: str) -> None:
    x, residual = torch.randn(2, 4, 70).to(device, dtype).unbind()
    weight = torch.randn(70).to(device, dtype)

    def both(function: object) -> object:
        return lambda x, w, residual: function(x, w, residual=residual)  # type: ignore[operator]

    assert_equal_to(both(rms_norm), both(reference.rms_norm), [x, weight, residual])  # type: ignore[arg-type]


def test_the_definition_is_that_of_torch() -> None:
    x, weight = torch.randn(3, 17), torch.randn(17)
    expected = torch.nn.functional.rms_norm(x, (17,), weight, 1e-6)
    assert_close("y", reference.rms_norm(x, weight), expected)
    assert_close("Gemma", reference.rms_norm(x, weight - 1, offset=1.0), expected)


def test_rows_far_apart_transposed_and_expanded_are_read_where_they_lie(device: str) -> None:
    weight = torch.randn(12, device=device)
    whole = torch.randn(6, 40, device=device)
    for x in (whole[:, 3:15], whole[::2, :12], torch.randn(12, 5, device=device).T, whole[:1, :12].expand(4, 12)):
        assert_equal_to(rms_norm, reference.rms_norm, [x, weight])


def test_no_rows_give_no_rows_and_a_zero_gradient(device: str) -> None:
    x = torch.zeros(0, 8, device=device, requires_grad=True)
    weight = torch.ones(8, device=device, requires_grad=True)
    y = rms_norm(x, weight)
    y.sum().backward()
    assert y.shape == (0, 8) and x.grad is not None and weight.grad is not None
    assert not weight.grad.any()


def test_a_frozen_weight_gets_no_gradient(device: str) -> None:
    x = torch.randn(3, 8, device=device, requires_grad=True)
    rms_norm(x, torch.ones(8, device=device)).sum().backward()
    assert x.grad is not None


def test_a_stream_that_leads_nowhere_brings_no_gradient(device: str) -> None:
    x, residual = (torch.randn(3, 8, device=device, requires_grad=True) for _ in range(2))
    y, _ = rms_norm(x, torch.ones(8, device=device), residual=residual)
    y.pow(3).sum().backward()
    expected = torch.autograd.functional.jacobian(
        lambda s: reference.rms_norm(s, torch.ones(8, device=device)).pow(3).sum(), (x + residual).detach()
    )
    assert x.grad is not None and residual.grad is not None
    assert_close("dx", x.grad, expected)
    assert torch.equal(x.grad, residual.grad)


def test_a_weight_with_gaps_or_expanded_is_read_element_by_element(device: str) -> None:
    x, weight = torch.randn(3, 6, device=device), torch.randn(12, device=device)
    for one in (weight[::2], weight[:1].expand(6)):
        assert_close("y", rms_norm(x, one), reference.rms_norm(x, one))


def test_results_may_be_written_over_and_a_stream_that_backward_needs_says_so(device: str) -> None:
    x, weight = torch.randn(2, 3, 8, device=device, requires_grad=True), torch.ones(8, device=device)
    rms_norm(x, weight).mul_(2).pow(3).sum().backward()
    expected = torch.autograd.grad((2 * reference.rms_norm(x, weight)).pow(3).sum(), x)[0]
    assert x.grad is not None
    assert_close("dx", x.grad, expected)
    y, stream = rms_norm(x, weight, residual=x * 2)
    stream += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_it_is_derived_once(device: str) -> None:
    assert_derived_once(rms_norm, [torch.randn(3, 6, device=device), torch.randn(6, device=device)])


@pytest.mark.parametrize(
    ("x", "weight", "residual", "said"),
    [
        (torch.ones(2, 4), torch.ones(5), None, r"weight has shape \(5,\); wanted \(4,\)"),
        (torch.ones(2, 4), torch.ones(4), torch.ones(4), r"residual has shape \(4,\); wanted \(2, 4\)"),
        (torch.ones(2, 4, dtype=torch.int64), torch.ones(4), None, "x is torch.int64; give float32, float16"),
        (torch.ones(()), torch.ones(1), None, r"x \(\) has nothing to normalise"),
        (torch.ones(2, 0), torch.ones(0), None, r"x \(2, 0\) has nothing to normalise"),
        (torch.ones(2, 4, device="meta"), torch.ones(4), None, "weight is on cpu, x on meta; put them on one device"),
    ],
)
def test_what_does_not_fit_is_named(
    x: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor | None, said: str
) -> None:
    with pytest.raises(ValueError, match=f"rms_norm: {said}"):
        rms_norm(x, weight, residual=residual)


def test_a_row_too_wide_for_one_program_is_computed_by_the_definition_with_one_warning(device: str) -> None:
    x, weight = torch.randn(1, 70_000, device=device), torch.randn(70_000, device=device)
    with pytest.warns(RuntimeWarning, match="rms_norm runs by its definition in plain PyTorch: a row of 70,000"):
        y = rms_norm(x, weight)
    assert torch.equal(y, reference.rms_norm(x, weight))
