"""How far a function is from its definition, values and gradients. In: both, inputs, a direction. Out: relative errors.

    errors(rms_norm, reference.rms_norm, [x, weight], dy)
    errors(partial(attention, packing=packing), by_document(attention, packing.lengths), [q, k, v], do)

The definition runs in float32 on the same inputs: what is measured is the function's own rounding. Knows no kernel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["by_document", "errors"]


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


def by_document(attend: Callable[..., torch.Tensor], lengths: Sequence[int]) -> Callable[..., torch.Tensor]:
    """An attention over rows (1, S, H, D) → the same for packed ones (S, H, D), each document given to it alone."""

    def separate(*packed: torch.Tensor) -> torch.Tensor:
        documents = zip(*(x.split(list(lengths)) for x in packed), strict=True)
        return torch.cat([attend(*(x[None] for x in document))[0] for document in documents])

    return separate
