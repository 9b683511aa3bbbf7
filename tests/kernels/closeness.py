"""How near is near enough, by name. Imported by the tests beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def assert_close(name: str, got: torch.Tensor, truth: torch.Tensor, plain: torch.Tensor | None = None) -> None:
    """`got` beside the float32 `truth`. Of half precision: at most twice the error of `plain`, the definition in it."""
    assert got.shape == truth.shape, f"{name}: shape {tuple(got.shape)}, wanted {tuple(truth.shape)}"
    if not truth.numel():
        return
    size = max(truth.float().abs().max().item(), 0.01)  # what is zero but for rounding has no size of its own
    error = (got.float() - truth.float()).abs().max().item() / size
    allowed = 2e-5
    if plain is not None and got.dtype != torch.float32:
        allowed, unit = 2 * (plain.float() - truth.float()).abs().max().item() / size, torch.finfo(got.dtype).eps
        # what rounds once is off by up to half a unit, and on a few numbers by less, which is luck and no measure;
        # the interpreter cuts bits off where a GPU rounds: one unit more
        allowed = max(allowed, unit) if got.is_cuda else allowed + unit
    assert error <= allowed, f"{name}: off by {error:.2e} of {size:.3g}, allowed {allowed:.2e}"


def results(
    function: Callable[..., torch.Tensor | tuple[torch.Tensor, ...]], inputs: Sequence[torch.Tensor]
) -> list[tuple[str, torch.Tensor]]:
    """Outputs of `function`, and gradients of all floating inputs for a fixed direction in each output."""
    leaves = [x.detach().clone().requires_grad_(x.is_floating_point()) for x in inputs]
    found = function(*leaves)
    outputs = found if isinstance(found, tuple) else (found,)
    torch.manual_seed(1)
    directions = [torch.randn(y.shape, dtype=torch.float32).to(y.device, y.dtype) for y in outputs]
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    gradients = torch.autograd.grad(outputs, wanted, directions, allow_unused=True)
    named = [(f"output {at}", y.detach()) for at, y in enumerate(outputs)]
    return named + [(f"gradient of input {at}", g) for at, g in enumerate(gradients) if g is not None]


def assert_equal_to(
    kernel: Callable[..., torch.Tensor | tuple[torch.Tensor, ...]],
    definition: Callable[..., torch.Tensor | tuple[torch.Tensor, ...]],
    inputs: Sequence[torch.Tensor],
    rough: Callable[..., torch.Tensor | tuple[torch.Tensor, ...]] | None = None,
) -> None:
    """Values and gradients of `kernel` on `inputs`, beside the definition on the same inputs in float32.

    rough: what computes it in the dtype of `inputs` step by step, as models do, where the kernel rounds on its way as
    well; the definition, which rounds once, would be no measure of it.
    """
    wide = [x.float() if x.is_floating_point() else x for x in inputs]
    ours, plain, truth = results(kernel, inputs), results(rough or definition, inputs), results(definition, wide)
    assert [name for name, _ in ours] == [name for name, _ in truth]
    for (name, got), (_, low), (_, exact) in zip(ours, plain, truth, strict=True):
        assert_close(name, got, exact, low)


def assert_derived_once(
    kernel: Callable[..., torch.Tensor | tuple[torch.Tensor, ...]], inputs: Sequence[torch.Tensor]
) -> None:
    """A derivative of the derivative, which no kernel has, is an error: without one it would silently be zero."""
    leaves = [x.detach().clone().requires_grad_(x.is_floating_point()) for x in inputs]
    found = kernel(*leaves)
    outputs = found if isinstance(found, tuple) else (found,)
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    total = torch.stack([y.float().square().sum() for y in outputs]).sum()
    gradients = torch.autograd.grad(total, wanted, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        torch.stack([g.square().sum() for g in gradients]).sum().backward()
