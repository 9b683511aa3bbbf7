"""swiglu and geglu beside their definitions, and these beside the MLPs of transformers' Llama and Gemma."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest
import torch
from closeness import assert_close, assert_derived_once, assert_equal_to
from speechkit_kernels.glu import geglu, swiglu
from speechkit_kernels.reference import glu as reference

if TYPE_CHECKING:
    from collections.abc import Callable

KINDS = {
    "swiglu": (swiglu, reference.swiglu),
    "geglu exact": (geglu, reference.geglu),
    "geglu tanh": (partial(geglu, approximate="tanh"), partial(reference.geglu, approximate="tanh")),
}


@pytest.fixture(params=KINDS)
def pair(request: pytest.FixtureRequest) -> tuple[Callable[..., torch.Tensor], Callable[..., torch.Tensor]]:
    return KINDS[request.param]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 3, 70), (3, 1500)], ids=str)
def test_values_and_gradients_are_those_of_the_definition(
    pair: tuple[Callable[..., torch.Tensor], ...], shape: tuple[int, ...], dtype: torch.dtype, device: str
) -> None:
    gate, up = (3 * torch.randn(2, *shape)).to(device, dtype)
    assert_equal_to(*pair, [gate, up])


def test_far_from_zero_nothing_overflows(pair: tuple[Callable[..., torch.Tensor], ...], device: str) -> None:
    gate = torch.tensor([-1e4, -90.0, -20.0, -1.5, 0.0, 20.0, 90.0, 1e4], device=device)
    assert_equal_to(*pair, [gate, torch.ones(8, device=device)])
    far = torch.tensor([-3e38, 3e38], device=device, requires_grad=True)
    y = pair[0](far, torch.ones(2, device=device))
    assert y.tolist() == [0.0, far[1].item()]
    y.sum().backward()
    assert far.grad is not None and far.grad.tolist() == [0.0, 1.0]


def test_halves_of_a_joint_projection_rows_far_apart_and_columns_apart_are_read_where_they_lie(
    pair: tuple[Callable[..., torch.Tensor], ...], device: str
) -> None:
    joint = torch.randn(2, 3, 2100 * 2, device=device)
    assert_equal_to(*pair, list(joint.chunk(2, dim=-1)))  # a row of more than one program
    part = torch.randn(4, 10, device=device)
    assert_equal_to(*pair, [part.T, torch.randn(10, 4, device=device)])
    assert_equal_to(*pair, [part[::2, 3:9], part[:1, :6].expand(2, 6)])


def test_a_gradient_that_is_expanded_is_read_as_such(
    pair: tuple[Callable[..., torch.Tensor], ...], device: str
) -> None:
    gate, up = torch.randn(2, 3, 7, device=device).requires_grad_()
    for kernel, wanted in zip(*[torch.autograd.grad(f(gate, up).sum(), (gate, up)) for f in pair], strict=True):
        assert_close("gradient of a sum", kernel, wanted)


@pytest.mark.parametrize("shape", [(0, 8), (3, 0)], ids=str)
def test_nothing_gives_nothing(
    pair: tuple[Callable[..., torch.Tensor], ...], shape: tuple[int, ...], device: str
) -> None:
    gate = torch.zeros(shape, device=device, requires_grad=True)
    y = pair[0](gate, torch.zeros(shape, device=device))
    y.sum().backward()
    assert y.shape == shape and gate.grad is not None


def test_the_definitions_are_the_gated_units_of_llama_and_gemma() -> None:
    from transformers import Gemma2Config, LlamaConfig
    from transformers.models.gemma2.modeling_gemma2 import Gemma2MLP
    from transformers.models.llama.modeling_llama import LlamaMLP

    small = {"hidden_size": 32, "intermediate_size": 9, "num_attention_heads": 1}
    x = torch.randn(4, 32)
    for mlp, ours in (
        (LlamaMLP(LlamaConfig(**small)), reference.swiglu),
        (Gemma2MLP(Gemma2Config(**small, hidden_activation="gelu_pytorch_tanh")), KINDS["geglu tanh"][1]),
        (Gemma2MLP(Gemma2Config(**small, hidden_activation="gelu")), reference.geglu),
    ):
        assert_close("mlp", mlp.down_proj(ours(mlp.gate_proj(x), mlp.up_proj(x))).detach(), mlp(x).detach())


def test_where_no_kernel_runs_the_definition_does(
    pair: tuple[Callable[..., torch.Tensor], ...], monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    gate, up = torch.randn(2, 3, 7, device=device)
    expected = pair[0](gate, up)
    monkeypatch.setattr("speechkit_kernels.glu.use_kernel", lambda *_, **__: False)
    assert_close("y", pair[0](gate, up), expected)


def test_it_is_derived_once(device: str) -> None:
    assert_derived_once(swiglu, [torch.randn(3, 6, device=device) for _ in range(2)])


@pytest.mark.parametrize(
    ("gate", "up", "said"),
    [
        (torch.ones(2, 4), torch.ones(4), r"up has shape \(4,\); wanted \(2, 4\)"),
        (torch.ones(2), torch.ones(2).long(), "up is torch.int64; give float32, float16"),
        (torch.ones(2), torch.ones(2, device="meta"), "up is on meta, gate on cpu; put them on one device"),
        (torch.ones(()), torch.ones(()), "gate has no dimension"),
    ],
)
def test_what_does_not_fit_is_named(gate: torch.Tensor, up: torch.Tensor, said: str) -> None:
    for name, function in (("swiglu", swiglu), ("geglu", geglu)):
        with pytest.raises(ValueError, match=f"{name}: {said}"):
            function(gate, up)


def test_an_approximation_that_does_not_exist_is_named() -> None:
    with pytest.raises(ValueError, match="geglu: approximate is 'fast'; give one of 'none', 'tanh'"):
        geglu(torch.ones(2), torch.ones(2), approximate="fast")
