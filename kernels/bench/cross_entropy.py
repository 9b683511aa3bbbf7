"""cross_entropy beside PyTorch's, torch.compile's and Liger's: loss and gradient of 8192 rows of 128256 logits.

    python kernels/bench/cross_entropy.py

The yardstick is a copy on the same card in the same run: logits read once, gradient written once. Ours and Liger's
write the gradient over the logits, which are put back before each call, outside the time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from gpu import Bench, agree, compiled, peer
from speechkit_kernels.cross_entropy import cross_entropy
from speechkit_kernels.reference.losses import cross_entropy as definition
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable

ROWS, VOCABULARIES, CHECKED = 8192, (32_000, 128_256), 256


def transformers_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """As transformers' ForCausalLMLoss: in float32."""
    return functional.cross_entropy(logits.float(), labels)


def full(function: Callable[..., Any], logits: torch.Tensor, labels: torch.Tensor) -> Callable[[], Any]:
    """Forward and backward; the view is no leaf, so that it may be overwritten."""

    def call() -> Any:
        return torch.autograd.grad(function(logits.view_as(logits), labels), logits)

    return call


def main() -> None:
    bench = Bench("cross_entropy")
    torch.manual_seed(0)
    liger = peer("liger_kernel.transformers.functional", "liger_cross_entropy")
    for vocabulary in VOCABULARIES:
        source = 4 * torch.randn(ROWS, vocabulary, device="cuda", dtype=torch.bfloat16)
        logits = source.clone().requires_grad_()
        labels = torch.randint(0, vocabulary, (ROWS,), device="cuda")
        labels[::7] = -100
        some, named = source[:CHECKED].clone().requires_grad_(), labels[:CHECKED]

        def check(some: torch.Tensor = some, named: torch.Tensor = named) -> None:
            for inplace in (False, True):
                ours = lambda x: cross_entropy(x * 1, named, inplace=inplace, softcap=30.0)  # noqa: B023, E731
                agree(ours, lambda x: definition(x, named, softcap=30.0), [some], torch.ones((), device="cuda"))
                ours = lambda x: cross_entropy(x * 1, named, inplace=inplace)  # noqa: B023, E731
                agree(ours, lambda x: definition(x, named), [some], torch.ones((), device="cuda"))

        functions = {
            "ours": lambda x, y: cross_entropy(x, y, inplace=True), "ours apart": cross_entropy,
            "torch": transformers_loss, "torch bf16": functional.cross_entropy,
            "torch.compile": compiled(transformers_loss),
        } | ({"liger": liger} if liger else {})  # fmt: skip

        def put_back(logits: torch.Tensor = logits, source: torch.Tensor = source) -> None:
            logits.data.copy_(source)

        bench.measure(
            "cross_entropy full", {"M": ROWS, "V": vocabulary},
            {name: full(function, logits, labels) for name, function in functions.items()},
            check=check, moved=2 * 2 * ROWS * vocabulary, before=put_back,
        )  # fmt: skip
        del source, logits
        torch.cuda.empty_cache()
    bench.write()


if __name__ == "__main__":
    main()
