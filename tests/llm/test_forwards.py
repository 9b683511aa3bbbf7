"""What each module computes with its kernel, beside torch's own modules and complex numbers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers.activations import ACT2FN

from speechkit.llm import forwards


def of(body: dict[str, Any], **attributes: Any) -> Any:
    """A bare object with what a body of methods gives."""
    return type("Module", (SimpleNamespace,), body)(**attributes)


def test_a_norm_is_torchs_with_either_name_of_its_epsilon_and_an_offset() -> None:
    x, weight = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)), torch.linspace(-1, 1, 8)
    for name in ("variance_epsilon", "eps"):
        module = of(forwards.norm(object, 0.0), weight=weight, **{name: 0.3})
        torch.testing.assert_close(module.forward(x), nn.functional.rms_norm(x, (8,), weight, 0.3))
    gemma = of(forwards.norm(object, 1.0), weight=weight, eps=0.3)
    torch.testing.assert_close(gemma.forward(x), nn.functional.rms_norm(x, (8,), 1 + weight, 0.3))


@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_pytorch_tanh", "gelu_new"])
def test_activations_are_recognised_and_multiplied(name: str) -> None:
    act = ACT2FN[name]
    kind = forwards.activation_of(SimpleNamespace(act_fn=act))
    both = torch.linspace(-3, 3, 20).reshape(2, 10)
    gate, up = both.chunk(2, dim=-1)
    found = of(forwards.experts(object, kind))._apply_gate(both)
    torch.testing.assert_close(found, act(gate) * up, atol=1e-6, rtol=1e-5)


def test_an_activation_that_no_kernel_has_is_none() -> None:
    for name in ("relu", "quick_gelu", "tanh"):
        assert forwards.activation_of(SimpleNamespace(act_fn=ACT2FN[name])) is None
    assert forwards.activation_of(SimpleNamespace()) is None


def turned(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Pairs beside each other as complex numbers: x (B, H, S, D), angles (B, S, D/2)."""
    z = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(z * torch.polar(torch.ones_like(angles), angles)[:, None]).flatten(-2)


@pytest.fixture
def case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    made = torch.Generator().manual_seed(0)
    return (*(torch.randn(2, heads, 5, 8, generator=made) for heads in (3, 1)), torch.randn(2, 5, 4, generator=made))


def test_positions_of_deepseek_v2_are_products_of_complex_numbers(case: tuple[torch.Tensor, ...]) -> None:
    q, k, angles = case
    found = forwards.TURNS["apply_rotary_emb"](q, k, torch.polar(torch.ones_like(angles), angles))
    for x, y in zip((q, k), found, strict=True):
        torch.testing.assert_close(y, turned(x, angles))


def test_positions_of_deepseek_v3_give_the_same_scores(case: tuple[torch.Tensor, ...]) -> None:
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import apply_rotary_pos_emb_interleave

    q, k, angles = case
    cos, sin = (torch.cat([x, x], dim=-1) for x in (angles.cos(), angles.sin()))
    found = forwards.TURNS["apply_rotary_pos_emb_interleave"](q, k, cos, sin)
    theirs = apply_rotary_pos_emb_interleave(q, k, cos, sin)
    torch.testing.assert_close(found[0] @ found[1].mT, theirs[0] @ theirs[1].mT)
    torch.testing.assert_close(found[0], turned(q, angles))


def test_positions_of_the_others_with_heads_before_or_after_tokens(case: tuple[torch.Tensor, ...]) -> None:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    q, k, angles = case
    cos, sin = (torch.cat([x, x], dim=-1) for x in (angles.cos(), angles.sin()))
    turn = forwards.TURNS["apply_rotary_pos_emb"]
    for found, expected in zip(turn(q, k, cos, sin), apply_rotary_pos_emb(q, k, cos, sin), strict=True):
        torch.testing.assert_close(found, expected)
    swapped = turn(q.transpose(1, 2), k.transpose(1, 2), cos, sin, unsqueeze_dim=2)
    for found, expected in zip(swapped, apply_rotary_pos_emb(q, k, cos, sin), strict=True):
        torch.testing.assert_close(found.transpose(1, 2), expected)
