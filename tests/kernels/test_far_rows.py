"""Tensors that reach past 2^31 elements are addressed in int64. Memory is reserved, not taken: views with wide gaps.

Numbers of 32 bits would fall back by 2^32, into memory that is not ours, or the sign would.
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

import pytest
import torch
from closeness import assert_close, assert_equal_to
from speechkit_kernels.cross_entropy import Loss, cross_entropy, launch_forward
from speechkit_kernels.flash_attention import flash_attention
from speechkit_kernels.nf4_linear import nf4_linear
from speechkit_kernels.paged_attention import paged_attention
from speechkit_kernels.reference import attention as attentions
from speechkit_kernels.reference import losses, weights
from speechkit_kernels.reference import nf4 as fours
from speechkit_kernels.row_linear import row_linear

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Far = Callable[[Sequence[int], Sequence[int]], torch.Tensor]

EDGE = 2**31
NORESERVE = 0x4000  # Linux; in the module from Python 3.13 on


@pytest.fixture
def far(device: str) -> Far:
    """(sizes, strides) → float16 normal numbers that lie so."""

    def made(sizes: Sequence[int], strides: Sequence[int]) -> torch.Tensor:
        last = sum((size - 1) * step for size, step in zip(sizes, strides, strict=True))
        assert last >= EDGE
        if device == "cuda":
            memory = torch.zeros(last + 1, dtype=torch.float16, device=device)
        else:
            pages = mmap.mmap(-1, 2 * (last + 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE)
            pages.madvise(mmap.MADV_NOHUGEPAGE)  # a touched row takes 4 KiB, not 2 MiB
            memory = torch.frombuffer(pages, dtype=torch.float16)
        view = memory.as_strided(tuple(sizes), tuple(strides))
        return view.copy_(torch.randn(tuple(sizes)))

    return made


def test_attention_over_batches_and_rows_far_apart(far: Far) -> None:
    near = torch.randn(2, 40, 1, 16).half()
    for strides in ((EDGE + 64, 16, 16, 1), (64, 2**26, 16, 1)):  # the second: too far for a tile, and copied
        k, v = far((2, 40, 1, 16), strides), far((2, 40, 1, 16), strides)
        q = near.to(k.device)
        expected = attentions.attention(q.float(), k.float(), v.float(), causal=True)
        assert_close("o", flash_attention(q, k, v, causal=True), expected, expected.half())


def test_attention_over_a_sequence_of_more_elements_than_int32_counts(far: Far) -> None:
    """Values and gradients: each row 2^23 - 16 elements after the one before it."""
    sizes, strides = (1, 280, 1, 16), (0, 2**23 - 16, 16, 1)
    q, k, v = (far(sizes, strides).requires_grad_() for _ in range(3))
    direction = torch.randn(sizes).to(q.device).half()
    found = torch.autograd.grad(flash_attention(q, k, v, causal=True, window=9), (q, k, v), direction)
    wide = [x.detach().contiguous().requires_grad_() for x in (q, k, v)]
    expected = torch.autograd.grad(flash_attention(*wide, causal=True, window=9), wide, direction)
    for got, one in zip(found, expected, strict=True):
        assert torch.equal(got, one)


def test_attention_over_pages_far_apart(far: Far) -> None:
    k, v = (far((4, 8, 1, 16), (2**30, 16, 16, 1)) for _ in range(2))
    table, lengths = torch.tensor([[3, 0], [1, 2]]).to(k.device), torch.tensor([13, 16]).to(k.device)
    q = torch.randn(2, 1, 16).to(k.device).half()
    expected = attentions.paged_attention(q.float(), k.float(), v.float(), table, lengths)
    assert_close("o", paged_attention(q, k, v, table, lengths), expected, expected.half())


def test_logits_of_more_elements_than_int32_counts(far: Far) -> None:
    x = far((4, 33), (2**30, 1))
    labels = torch.tensor([3, -100, 32, 0]).to(x.device)
    expected = losses.cross_entropy(x, labels, reduction="none")
    assert_equal_to(
        lambda x: cross_entropy(x, labels, reduction="none"),
        lambda x: losses.cross_entropy(x, labels, reduction="none"),
        [x],
    )
    wide = x.float().requires_grad_()
    (gradient,) = torch.autograd.grad(losses.cross_entropy(wide, labels, reduction="sum"), wide)
    loss, _ = launch_forward(x, labels, Loss(), torch.ones(1, device=x.device))
    assert_close("loss", loss, expected)
    assert_close("gradient over the logits", x, gradient, gradient.half())


def test_products_with_rows_far_apart(far: Far) -> None:
    x = far((4, 64), (2**30, 1))
    four = fours.nf4_quantise(torch.randn(10, 64)).to(x.device)
    eight = weights.row_quantise(torch.randn(10, 64)).to(x.device)
    for rows in (x, x[::3][1:]):  # tiles, and one row
        assert_close(
            "4 bits", nf4_linear(rows, four), fours.nf4_linear(rows.float(), four), fours.nf4_linear(rows, four)
        )
    assert_close("8 bits", row_linear(x, eight), weights.row_linear(x.float(), eight), weights.row_linear(x, eight))
