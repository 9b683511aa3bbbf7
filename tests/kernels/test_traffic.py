"""Bytes counted by hand, and the peak beside what torch's own profiler sees of the allocator."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from speechkit_kernels.traffic import Step, traffic
from torch.nn.functional import cross_entropy, linear, silu

if TYPE_CHECKING:
    from collections.abc import Callable

ROWS, WIDTH = 64, 1024
N = ROWS * WIDTH


def x(dtype: torch.dtype = torch.float32, device: str = "cpu") -> torch.Tensor:
    return torch.zeros(ROWS, WIDTH, dtype=dtype, device=device)


def test_each_operation_reads_its_inputs_and_writes_its_output() -> None:
    found = traffic(lambda a, b: silu(a) * b, x(), x())
    assert found.steps == (Step("silu", 4 * N, 4 * N), Step("mul", 8 * N, 4 * N))
    assert found.moved == 20 * N


def test_views_and_bare_allocations_move_nothing() -> None:
    assert traffic(lambda a: (a.T.reshape(WIDTH, 8, 8)[1:].unsqueeze(0).detach(), a.new_empty(3)), x()).steps == ()


def test_what_is_filled_or_copied_over_is_not_read() -> None:
    found = traffic(lambda a, b: b.copy_(a.bfloat16()).zero_(), x(), x(torch.bfloat16))
    assert [(step.read, step.written) for step in found.steps] == [(4 * N, 2 * N), (2 * N, 2 * N), (0, 2 * N)]


def test_an_expanded_dimension_is_read_once() -> None:
    [step] = traffic(lambda a, b: a * b.expand(ROWS, WIDTH), x(), torch.zeros(WIDTH)).steps
    assert (step.read, step.written) == (4 * N + 4 * WIDTH, 4 * N)


def test_on_meta_nothing_is_allocated_and_the_count_is_the_same() -> None:
    def loss(x: torch.Tensor, w: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(cross_entropy(linear(x, w).float(), y), x)[0]

    found = []
    for device in ("cpu", "meta"):
        states = x(torch.bfloat16, device).requires_grad_()
        head = torch.zeros(512, WIDTH, dtype=torch.bfloat16, device=device)
        found.append(traffic(loss, states, head, torch.zeros(ROWS, dtype=torch.long, device=device)))
    assert found[0] == found[1] and found[0].peak > 3 * 4 * ROWS * 512
    huge = torch.empty(2**20, 2**20, device="meta")
    assert traffic(lambda a: a + 1, huge).peak == 2**42


@pytest.mark.parametrize(
    "function",
    [
        lambda a: (a * 2 + 1).sum(),
        lambda a: torch.cat([a, a]).softmax(-1) @ a.T,
        lambda a: [a + i for i in range(3)][1],
        lambda a: a.view(-1)[: N // 2].clone().add_(1),
    ],
    ids=["one after the other", "a softmax", "three held", "in place"],
)
def test_the_peak_is_the_allocators(function: Callable[[torch.Tensor], object]) -> None:
    given = x()
    function(given)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        result = function(given)
    del result
    events = sorted(
        (e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns()
    )
    now, peak = 0, 0
    for event in events:
        now += event.nbytes()
        peak = max(peak, now)
    assert traffic(function, given).peak == pytest.approx(peak, rel=0.01)


def test_what_a_function_closes_over_is_not_its_own() -> None:
    held = x()
    assert traffic(lambda a: a @ held.T.contiguous()[:, :1], x()).peak == 4 * N + 4 * ROWS


def test_its_text_names_the_operations() -> None:
    assert str(traffic(lambda a: a * 2 * 3, x())) == "2 operations (2 mul) move 1.0 MB"
