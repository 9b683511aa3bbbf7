"""How far a function is from its definition, values and gradients. In: both, inputs, a direction. Out: relative errors.

The definition runs in float32 on the same inputs: what is measured is the function's own rounding. Knows no kernel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["errors"]


def errors(
    function: Callable[..., Any], definition: Callable[..., Any], inputs: Sequence[torch.Tensor], direction: Any
) -> dict[str, float]:
    """ "output 0", …, "gradient 0", … → |difference| / |truth| in the 2-norm.

    direction: the gradient of the output, or of each in a list. Gradients are those of the inputs that require one.
    """
    directions = direction if isinstance(direction, list | tuple) else [direction]
    found = []
    for one, wide in ((function, False), (definition, True)):
        leaves = [(x.detach().float() if wide and x.is_floating_point() else x.detach().clone()) for x in inputs]
        wanted = [leaf.requires_grad_() for leaf, x in zip(leaves, inputs, strict=True) if x.requires_grad]
        made = one(*leaves)
        outputs = list(made) if isinstance(made, list | tuple) else [made]
        towards = [dy.to(y.dtype) for dy, y in zip(directions, outputs, strict=True)]
        gradients = torch.autograd.grad(outputs, wanted, towards) if wanted else ()
        found.append([*(y.detach() for y in outputs), *gradients])
    names = [f"output {at}" for at in range(len(directions))]
    names += [f"gradient {at}" for at in range(len(found[0]) - len(directions))]
    return {
        name: ((ours.float() - truth).norm() / truth.norm().clamp(min=1e-20)).item()
        for name, ours, truth in zip(names, *found, strict=True)
    }
