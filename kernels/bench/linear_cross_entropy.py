"""linear_cross_entropy beside transformers' way, torch.compile, chunks in plain PyTorch, and Liger's.

    python kernels/bench/linear_cross_entropy.py

Loss and gradients of 8192 hidden states of width 4096 through a head of 128256 words, frozen (as in LoRA training) and
trained. TFLOP/s count the products that must be: 4 M H V and 6 M H V. Peak memory is above hidden states and head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from gpu import Bench, agree, compiled, peer
from speechkit_kernels.linear_cross_entropy import linear_cross_entropy
from speechkit_kernels.reference.losses import linear_cross_entropy as definition
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable

ROWS, WIDTH, VOCABULARY, CHECKED, CHUNK = 8192, 4096, 128_256, 512, 1024


def transformers_loss(x: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """As transformers' causal models: logits of all rows, then in float32."""
    return functional.cross_entropy(functional.linear(x, weight).float(), labels)


def chunked_loss(x: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Chunk by chunk in plain PyTorch; backward computes the logits of each again."""

    def one(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(functional.linear(x, weight).float(), labels, reduction="sum")

    parts = zip(x.split(CHUNK), labels.split(CHUNK), strict=True)
    return sum(checkpoint(one, *part, use_reentrant=False) for part in parts) / (labels != -100).sum()


def full(function: Callable[..., Any], inputs: list[torch.Tensor], labels: torch.Tensor) -> Callable[[], Any]:
    wanted = [x for x in inputs if x.requires_grad]
    return lambda: torch.autograd.grad(function(*inputs, labels), wanted)


def main() -> None:
    bench = Bench("linear_cross_entropy")
    torch.manual_seed(0)
    liger = peer("liger_kernel.transformers.functional", "liger_fused_linear_cross_entropy")
    labels = torch.randint(0, VOCABULARY, (ROWS,), device="cuda")
    labels[::7] = -100
    states = torch.randn(ROWS, WIDTH, device="cuda", dtype=torch.bfloat16)
    head = torch.randn(VOCABULARY, WIDTH, device="cuda", dtype=torch.bfloat16) * WIDTH**-0.5
    for frozen in (True, False):
        inputs = [states.requires_grad_(), head.requires_grad_(not frozen)]
        some, named = states[:CHECKED].detach().requires_grad_(), labels[:CHECKED]

        def check(inputs: list[torch.Tensor] = inputs, some: torch.Tensor = some) -> None:
            ours = lambda x, w: linear_cross_entropy(x, w, named, chunk=CHECKED // 4)  # noqa: B023, E731
            agree(ours, lambda x, w: definition(x, w, named), [some, inputs[1]], torch.ones((), device="cuda"))  # noqa: B023

        functions = {
            "ours": linear_cross_entropy, "transformers": transformers_loss,
            "torch.compile": compiled(transformers_loss), "torch chunks": chunked_loss,
        } | ({"liger": liger} if liger else {})  # fmt: skip
        shape = {"M": ROWS, "H": WIDTH, "V": VOCABULARY, "head": "frozen" if frozen else "trained"}
        bench.measure(
            "linear_cross_entropy full", shape,
            {name: full(function, inputs, labels) for name, function in functions.items()},
            check=check, flops=(4 if frozen else 6) * ROWS * WIDTH * VOCABULARY,
        )  # fmt: skip
    bench.write()


if __name__ == "__main__":
    main()
