"""The optimiser of a run: which weights decay, what a device cannot do, eight bits beside thirty-two."""

from __future__ import annotations

import bitsandbytes
import pytest
import torch

from speechkit.errors import PlanError
from speechkit.llm.llm_config import LlmConfig
from speechkit.llm.optimizers import check_optimizer, groups_of, make_optimizer


def _net() -> torch.nn.Module:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(128, 64), torch.nn.LayerNorm(64), torch.nn.Linear(64, 1))
    net[2].weight.requires_grad_(False)
    return net


def test_matrices_decay_and_norms_and_biases_do_not() -> None:
    decayed, flat = groups_of(_net(), 0.1)
    assert [tuple(weight.shape) for weight in decayed["params"]] == [(64, 128)]
    assert (decayed["weight_decay"], flat["weight_decay"]) == (0.1, 0.0)
    assert sorted(tuple(weight.shape) for weight in flat["params"]) == [(1,), (64,), (64,), (64,)], (
        "none that is frozen"
    )


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit"])
def test_each_makes_the_first_update_of_adam(name: str) -> None:
    net = _net()
    before = net[0].weight.detach().clone()
    optimizer = make_optimizer(net, LlmConfig(steps=1, optimizer=name, learning_rate=1e-3))
    net(torch.randn(8, 128)).sum().backward()
    optimizer.step()
    steady = net[0].weight.grad.abs() > 1e-4
    moved = (net[0].weight.detach() - before)[steady]
    torch.testing.assert_close(moved, -1e-3 * net[0].weight.grad[steady].sign(), rtol=0.05, atol=1e-5)
    assert isinstance(optimizer, bitsandbytes.optim.AdamW8bit) == (name == "adamw_8bit")


def test_eight_bits_take_a_quarter_of_the_memory() -> None:
    sizes = {}
    for name in ("adamw", "adamw_8bit"):
        net = torch.nn.Linear(512, 512, bias=False)
        optimizer = make_optimizer(net, LlmConfig(steps=1, optimizer=name))
        net(torch.randn(2, 512)).sum().backward()
        optimizer.step()
        state = [value for value in optimizer.state[net.weight].values() if torch.is_tensor(value)]
        sizes[name] = sum(value.nbytes for value in state)
    assert sizes["adamw_8bit"] < sizes["adamw"] / 3.5


@pytest.mark.parametrize("name", ["paged_adamw", "paged_adamw_8bit"])
def test_pages_need_a_gpu_and_the_message_names_what_does_not(name: str) -> None:
    with pytest.raises(PlanError, match=f'Use "{name.removeprefix("paged_")}", which makes the same updates'):
        check_optimizer(name, "cpu")
    check_optimizer(name, "cuda")


def test_what_bitsandbytes_has_not_for_a_device_is_said() -> None:
    with pytest.raises(PlanError, match='which bitsandbytes does not have for mps; use "adamw"'):
        check_optimizer("adamw_8bit", "mps")
    check_optimizer("adamw", "mps")
    check_optimizer("adamw_8bit", "cpu")
