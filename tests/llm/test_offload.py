"""Activations in main memory: gradients are the same, what is moved comes back. On a CPU the hooks copy there too."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from tiny_llms import loss_and_gradients, tiny

from speechkit.llm.offload import Offload


@pytest.mark.parametrize("layers", [False, True], ids=["all activations", "inputs of checkpointed layers"])
def test_gradients_are_those_without_and_all_that_went_out_comes_back(layers: bool) -> None:
    model = tiny("llama").train()
    _, loss, wanted = loss_and_gradients(model)
    if layers:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    with Offload(tuple(model.parameters()), device="cpu", least=64) as context:
        _, again, found = loss_and_gradients(model)
    assert context.moved_bytes == context.back_bytes > 0
    assert torch.equal(loss, again)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, msg=name)


def test_with_layers_checkpointed_little_is_moved() -> None:
    moved = []
    for layers in (False, True):
        model = tiny("llama").train()
        if layers:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        with Offload(tuple(model.parameters()), device="cpu", least=64) as context:
            loss_and_gradients(model)
        moved.append(context.moved_bytes)
    assert 0 < moved[1] < moved[0] / 2


def test_weights_small_tensors_and_other_devices_stay() -> None:
    weight = torch.nn.Parameter(torch.randn(32, 32))
    x = torch.randn(32, 32, requires_grad=True)
    with Offload((weight,), device="cpu", least=2048) as small:
        (x @ weight).sum().backward()
    assert small.moved_bytes == 0
    with Offload((weight,), device="cuda", least=1) as other:
        (x @ weight).sum().backward()
    assert other.moved_bytes == 0
    with Offload((weight,), device="cpu", least=1) as context:
        (x @ weight).sum().backward()
    assert context.moved_bytes == x.nbytes, "the input, not the weight"


@pytest.mark.gpu
def test_on_a_gpu_less_memory_is_taken_and_gradients_are_the_same() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(*[torch.nn.Sequential(torch.nn.Linear(1024, 1024), torch.nn.GELU()) for _ in range(16)])
    net, x = net.cuda(), torch.randn(16384, 1024, device="cuda")

    def step(context: object) -> tuple[float, torch.Tensor]:
        net.zero_grad()
        torch.cuda.reset_peak_memory_stats()
        with context:  # type: ignore[attr-defined]
            net(x).square().mean().backward()
        return torch.cuda.max_memory_allocated() / 2**20, net[0][0].weight.grad.clone()  # type: ignore[index, union-attr]

    from contextlib import nullcontext

    before, wanted = step(nullcontext())
    after, found = step(Offload(tuple(net.parameters())))
    assert after < before / 2
    torch.testing.assert_close(found, wanted)
