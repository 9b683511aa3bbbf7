"""Muon for the matrices, AdamW for the rest, as one optimizer that `Trainer` can step, schedule and checkpoint.

Muon (K. Jordan and others, 2024, https://kellerjordan.github.io/posts/muon) orthogonalises the momentum of each weight
matrix; embeddings, heads, norms, biases and convolutions stay with AdamW. torch has it from 2.9 on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MuonWithAdamW", "split"]


def split(model: torch.nn.Module) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    """(matrices between hidden layers, everything else), in the model's order."""
    named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    hidden = [weight.ndim == 2 and "lm_head" not in name and "embed" not in name for name, weight in named]
    matrices = [weight for (_, weight), yes in zip(named, hidden, strict=True) if yes]
    return matrices, [weight for (_, weight), yes in zip(named, hidden, strict=True) if not yes]


class MuonWithAdamW(torch.optim.Optimizer):
    """One optimizer made of two; `lr` means the same for both (Muon's update is scaled to AdamW's size)."""

    def __init__(self, model: torch.nn.Module, lr: float, weight_decay: float = 0.01, muon_scale: float = 1.0) -> None:
        matrices, rest = split(model)
        self.muon = torch.optim.Muon(
            matrices, lr=lr * muon_scale, weight_decay=weight_decay, momentum=0.95, adjust_lr_fn="match_rms_adamw"
        )
        self.adamw = torch.optim.AdamW(rest, lr=lr, weight_decay=weight_decay, betas=(0.9, 0.98))
        super().__init__([{"params": [*matrices, *rest]}], {"lr": lr})
        # the schedulers write into these very dictionaries
        self.param_groups = [*self.muon.param_groups, *self.adamw.param_groups]

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        self.muon.step()
        self.adamw.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.muon.zero_grad(set_to_none)
        self.adamw.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.muon.load_state_dict(state_dict["muon"])
        self.adamw.load_state_dict(state_dict["adamw"])
        self.param_groups = [*self.muon.param_groups, *self.adamw.param_groups]
