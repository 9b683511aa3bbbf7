"""Does packing change what is learnt? In: a model and token rows. Out: an `Agreement`, measured there and then.

    print(packed_equals_separate(model, report.rows[:8]))

The rows are run one by one and then as one packed batch; the sums of their losses are compared, and the gradients of
all weights that learn. Nothing is left behind: no gradient, no mode. Knows no training.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from speechkit.errors import DataError
from speechkit.llm.data import IGNORED
from speechkit.llm.packing import collate, pack

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch

    from speechkit.llm.data import Tokens

__all__ = ["TOLERANCE", "Agreement", "packed_equals_separate"]

TOLERANCE = {"float32": 1e-5, "float64": 1e-9}  # of the loss and of the norm of the gradient
HALF = 2e-2  # in half precision, where sums of other order round otherwise


@dataclass(frozen=True)
class Agreement:
    """One packed batch beside its documents alone."""

    documents: int
    tokens: int
    learnt: int  # tokens with loss
    packed: float  # sum of the loss over them
    separate: float
    gradient_difference: float  # norm of the difference of all gradients / their norm; 0 where no weight learns
    attention: str  # the implementation that ran
    tolerance: float

    @property
    def loss_difference(self) -> float:
        """As a part of the separate loss."""
        return abs(self.packed - self.separate) / max(abs(self.separate), 1e-30)

    @property
    def ok(self) -> bool:
        return max(self.loss_difference, self.gradient_difference) <= self.tolerance

    def __str__(self) -> str:
        verdict = "packed equals separate" if self.ok else "packed is NOT separate"
        return (
            f"{verdict}: {self.documents} documents, {self.tokens:,} tokens, attention {self.attention}; loss "
            f"{self.packed / self.learnt:.6f} and {self.separate / self.learnt:.6f} a token (off by "
            f"{self.loss_difference:.1e}), gradients off by {self.gradient_difference:.1e}; allowed {self.tolerance:g}"
        )

    __repr__ = __str__


def packed_equals_separate(model: Any, tokens: Sequence[Tokens], *, tolerance: float | None = None) -> Agreement:
    """Loss and gradients of `tokens` (a few rows: they are run twice) packed into one batch, beside one by one.

    tolerance: None is 1e-5 in float32 and 2e-2 in half precision. Dropout is off meanwhile. Raises DataError where no
    token has a loss.
    """
    alone = [one for row in tokens for one in pack([row], len(row))]
    if not any(_learnt(collate([one])["labels"]) for one in alone):
        raise DataError("no token of these rows has a loss: every label is masked, so there is nothing to compare")
    batch = collate(pack(tokens, sum(map(len, tokens))))
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    separate = 0.0
    theirs: list[torch.Tensor | None] = [None] * len(weights)
    with _without_dropout(model):
        packed, mine = _run(model, weights, batch)
        for one in alone:
            row = collate([one])
            loss, found = _run(model, weights, {name: row[name] for name in ("input_ids", "labels", "use_cache")})
            separate += loss
            theirs = [_sum(a, b) for a, b in zip(theirs, found, strict=True)]
    kind = str((weights or list(model.parameters()))[0].dtype).removeprefix("torch.")
    return Agreement(
        len(tokens), sum(map(len, tokens)), _learnt(batch["labels"]), packed, separate, _off(mine, theirs),
        str(model.config.get_text_config()._attn_implementation),
        TOLERANCE.get(kind, HALF) if tolerance is None else tolerance,
    )  # fmt: skip


def _learnt(labels: torch.Tensor) -> int:
    return int((labels != IGNORED).sum())


def _run(model: Any, weights: list[torch.Tensor], batch: dict[str, Any]) -> tuple[float, list[torch.Tensor | None]]:
    """The sum of the loss over tokens, and its gradients."""
    import torch

    learnt = _learnt(batch["labels"])
    if not learnt:  # the mean of no token is NaN
        return 0.0, [None] * len(weights)
    device = model.get_input_embeddings().weight.device
    moved = {name: one.to(device) if isinstance(one, torch.Tensor) else one for name, one in batch.items()}
    with torch.set_grad_enabled(bool(weights)):
        loss = model(**moved).loss * learnt
    if not weights:
        return float(loss), []
    return float(loss.detach()), list(torch.autograd.grad(loss, weights, allow_unused=True))


def _sum(a: torch.Tensor | None, b: torch.Tensor | None) -> torch.Tensor | None:
    return b if a is None else a if b is None else a + b


def _off(mine: list[torch.Tensor | None], theirs: list[torch.Tensor | None]) -> float:
    """Norm of the difference / norm, over all weights together, in double precision."""
    apart = whole = 0.0
    for a, b in zip(mine, theirs, strict=True):
        if b is not None:
            apart += float((b.double() if a is None else a.double() - b.double()).square().sum())
            whole += float(b.double().square().sum())
        elif a is not None:
            apart += float(a.double().square().sum())
    return math.sqrt(apart / whole) if whole else math.sqrt(apart)


@contextmanager
def _without_dropout(model: Any) -> Iterator[None]:
    """As in training, where the kernels' loss runs, but for what is random."""
    from torch import nn

    before = [(module, module.training) for module in model.modules()]
    random = getattr(model.config.get_text_config(), "attention_dropout", 0.0)
    model.train(not random)
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training
