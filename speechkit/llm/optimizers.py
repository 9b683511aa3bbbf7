"""The optimiser of a run: AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101), whole, 8-bit or paged.

In: a model, settings, a device. Out: an optimiser. 8-bit keeps both moments in a byte each, with a scale per block
(Dettmers et al. 2022, arXiv:2110.02861); tensors under 4,096 numbers stay in 32 bit. Paged moments move to main memory
when a GPU runs full. Both are bitsandbytes'.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from speechkit import extras
from speechkit.errors import PlanError

if TYPE_CHECKING:
    from speechkit.llm.llm_config import LlmConfig

__all__ = ["check_optimizer", "groups_of", "make_optimizer"]

CLASSES = {"adamw_8bit": "AdamW8bit", "paged_adamw": "PagedAdamW", "paged_adamw_8bit": "PagedAdamW8bit"}
BETAS, EPS = (0.9, 0.95), 1e-8  # the usual ones of language models


def check_optimizer(name: str, device: str) -> None:
    """Raise PlanError for an optimiser that `device` cannot run, MissingExtra where bitsandbytes is absent."""
    if name.startswith("paged") and not device.startswith("cuda"):
        other = name.removeprefix("paged_")
        raise PlanError(
            f'optimizer is "{name}", and {device} has no paged memory: pages move between a GPU and main memory. '
            f'Use "{other}", which makes the same updates'
        )
    if name in CLASSES:
        if not device.startswith(("cuda", "cpu")):
            raise PlanError(f'optimizer is "{name}", which bitsandbytes does not have for {device}; use "adamw"')
        extras.require("bitsandbytes", extra="llm", purpose=f'optimizer "{name}"')


def groups_of(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The weights that learn: matrices with decay; norms, biases and DoRA's magnitudes without."""
    learning = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    flat = [weight for name, weight in learning if weight.ndim < 2 or "magnitude" in name]
    apart = {id(weight) for weight in flat}
    rest = [weight for _, weight in learning if id(weight) not in apart]
    parts = ((rest, weight_decay), (flat, 0.0))
    return [{"params": weights, "weight_decay": decay} for weights, decay in parts if weights]


def make_optimizer(model: torch.nn.Module, config: LlmConfig) -> torch.optim.Optimizer:
    """The optimiser that `config` names, for the weights of `model` that learn."""
    groups = groups_of(model, config.weight_decay)
    options: dict[str, Any] = {"lr": config.learning_rate, "betas": BETAS, "eps": EPS}
    if config.optimizer == "adamw":
        on_gpu = all(weight.is_cuda for group in groups for weight in group["params"])
        return torch.optim.AdamW(groups, fused=on_gpu or None, **options)
    import bitsandbytes

    made: torch.optim.Optimizer = getattr(bitsandbytes.optim, CLASSES[config.optimizer])(groups, **options)
    return made
