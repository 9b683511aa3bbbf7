"""Errors beside those that the perturbation put in."""

from __future__ import annotations

import pytest
import torch
from speechkit_kernels.agreement import by_document, errors


def test_a_value_that_is_five_percent_off_is_told_and_so_is_its_gradient() -> None:
    x = torch.rand(64, requires_grad=True)
    found = errors(lambda x: 1.05 * torch.sin(x), torch.sin, [x], torch.ones(64))
    assert found == {"output 0": pytest.approx(0.05, rel=1e-3), "gradient 0": pytest.approx(0.05, rel=1e-3)}


def test_a_gradient_alone_can_be_wrong() -> None:
    x = torch.rand(64, requires_grad=True)
    found = errors(lambda x: torch.sin(x).detach() + (x - x.detach()), torch.sin, [x], torch.ones(64))
    assert found["output 0"] < 1e-6 < 0.1 < found["gradient 0"]


def test_the_definition_runs_in_float32_and_integers_stay() -> None:
    kinds: list[torch.dtype] = []

    def seen(x: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        kinds.extend((x.dtype, at.dtype))
        return x[at]

    found = errors(seen, seen, [torch.rand(4).bfloat16(), torch.tensor([1, 3])], torch.ones(2))
    assert kinds == [torch.bfloat16, torch.int64, torch.float32, torch.int64]
    assert found == {"output 0": 0.0}


def test_several_outputs_each_have_a_direction() -> None:
    x = torch.rand(8, requires_grad=True)
    found = errors(lambda x: (x * 2, x * 3), lambda x: (x * 2, x * 4), [x], [torch.ones(8), torch.zeros(8)])
    assert found == {"output 0": 0.0, "output 1": pytest.approx(0.25), "gradient 0": 0.0}


def test_each_document_is_given_alone_and_comes_back_in_its_place() -> None:
    seen: list[tuple[int, ...]] = []

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(q.shape))
        return q + k.sum() + v.sum()  # whatever another document held would be in the sum

    x = torch.arange(6.0).view(6, 1, 1)
    out = by_document(attend, [1, 3, 2])(x, x, x)
    assert seen == [(1, 1, 1, 1), (1, 3, 1, 1), (1, 2, 1, 1)]
    assert out.flatten().tolist() == [0, 13, 14, 15, 22, 23]
