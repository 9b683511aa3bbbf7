"""masked_group_norm against torch.nn.GroupNorm on each row alone: an implementation that never sees padding."""

from __future__ import annotations

import pytest
import torch
from speechkit_kernels.reference import masked_group_norm


@pytest.mark.parametrize("groups", [1, 4, 12])
@pytest.mark.parametrize("lengths", [[37, 2, 20], [37, 37, 37], [5, 36, 2]], ids=str)
def test_each_row_equals_group_norm_of_that_row_alone_and_padding_is_never_read(
    groups: int, lengths: list[int]
) -> None:
    norm = torch.nn.GroupNorm(groups, 12)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(3, 12, 37) * 5 + 2
    for row, n in enumerate(lengths):
        x[row, :, n:] = float("nan")
    y = masked_group_norm(x, lengths, norm.weight, norm.bias, groups, norm.eps)
    for row, n in enumerate(lengths):
        torch.testing.assert_close(y[row : row + 1, :, :n], norm(x[row : row + 1, :, :n]), atol=2e-5, rtol=1e-5)
        assert (y[row, :, n:] == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_float32_inside(dtype: torch.dtype) -> None:
    x = (torch.randn(2, 8, 501) + 30).to(dtype)  # a mean far from zero is what half-precision sums get wrong
    weight, bias = torch.ones(8), torch.zeros(8)
    y = masked_group_norm(x, [501, 77], weight, bias, 8)
    truth = masked_group_norm(x.double().float(), [501, 77], weight, bias, 8)
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), truth.to(dtype).float(), atol=0, rtol=0)


def test_gradients_equal_group_norm_of_each_row_alone_and_are_zero_in_the_padding() -> None:
    x, ours = torch.randn(2, 4, 6, requires_grad=True), torch.nn.GroupNorm(2, 4)
    theirs, direction = torch.nn.GroupNorm(2, 4), torch.randn(2, 4, 6)
    direction[1, :, 3:] = 0
    mine = masked_group_norm(x, [6, 3], ours.weight, ours.bias, 2)
    got = torch.autograd.grad((mine * direction).sum(), (x, ours.weight, ours.bias))
    rows = [(theirs(x[b : b + 1, :, :n]) * direction[b, :, :n]).sum() for b, n in enumerate((6, 3))]
    expected = torch.autograd.grad(sum(rows), (x, theirs.weight, theirs.bias))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    assert (got[0][1, :, 3:] == 0).all()


def test_a_single_value_per_group_has_no_variance_and_becomes_the_bias() -> None:
    y = masked_group_norm(torch.full((1, 3, 1), 7.0), [1], torch.ones(3), torch.tensor([1.0, 2.0, 3.0]), 3)
    assert y.flatten().tolist() == [1.0, 2.0, 3.0]


def test_lengths_may_be_a_tensor() -> None:
    x, one = torch.randn(2, 4, 6), torch.ones(4)
    assert torch.equal(
        masked_group_norm(x, torch.tensor([6, 2]), one, one, 4), masked_group_norm(x, [6, 2], one, one, 4)
    )


@pytest.mark.parametrize(
    ("lengths", "groups", "message"),
    [([7, 3], 2, r"in 1\.\.6"), ([0, 3], 2, r"in 1\.\.6"), ([6], 2, "give 2 values"), ([6, 6], 3, "divisor of 4")],
)
def test_what_does_not_fit_is_named(lengths: list[int], groups: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        masked_group_norm(torch.randn(2, 4, 6), lengths, torch.ones(4), torch.ones(4), groups)
