"""A 4-bit base on a CPU has gradients, whatever ran before. Oracle: the weight that bitsandbytes itself writes out."""

from __future__ import annotations

import bitsandbytes
import pytest
import torch

from speechkit.llm.four_bits import SWITCH, differentiable


@pytest.fixture
def layer() -> bitsandbytes.nn.Linear4bit:
    torch.manual_seed(0)
    made = bitsandbytes.nn.Linear4bit(128, 64, bias=False, quant_type="nf4", compute_dtype=torch.float32)
    return made.to("cpu").requires_grad_(False)


def _wanted(layer: bitsandbytes.nn.Linear4bit, seen: torch.Tensor) -> torch.Tensor:
    weight = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    return torch.ones(len(seen), 64) @ weight.float()


def test_gradients_pass_a_layer_that_was_evaluated_in_between(layer: bitsandbytes.nn.Linear4bit) -> None:
    seen = torch.randn(5, 128)
    wanted = _wanted(layer, seen)
    with differentiable(layer) as before:
        layer.eval()(seen)
        x = seen.clone().requires_grad_()
        layer.train()(x).sum().backward()
    assert before == 0
    torch.testing.assert_close(x.grad, wanted)


def test_a_layer_that_ran_before_is_put_back(layer: bitsandbytes.nn.Linear4bit) -> None:
    if not getattr(layer, SWITCH):
        pytest.skip("this CPU has no bfloat16 instructions: bitsandbytes rearranges nothing here")
    seen = torch.randn(5, 128)
    wanted = _wanted(layer, seen)
    layer.eval()(seen)
    assert layer.weight.quant_state.packing_format_for_cpu, "or this test proves nothing"
    with differentiable(layer) as before:
        x = seen.clone().requires_grad_()
        layer.train()(x).sum().backward()
    assert before == 1
    torch.testing.assert_close(x.grad, wanted, rtol=2e-2, atol=2e-2)  # its scales went through bfloat16
    assert getattr(layer, SWITCH), "and runs fast again afterwards"
