"""LoRA on a CTC model through peft: add, save, load, merge, and measure that merged equals adapter.

In: a CTC model. Out: peft's wrapper around it, a folder in peft's format, a merged model with its proof. The method
(Hu et al. 2021, arXiv:2106.09685): W stays, W + (alpha / rank) B A is used, B starts at zero. The head is trained and
saved whole.

peft expects models that read tokens. What that needs here: no look at input embeddings on saving, which raises in a
model that hears as soon as the head was resized; gradients that reach every update, measured once, because some models
(WavLM's attention) read the weight and never call the layer, so that an update on it would learn nothing, silently.
"""

from __future__ import annotations

import copy
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from speechkit import extras
from speechkit.asr.batch import normalise
from speechkit.asr.check import HALF_BOUNDS, ragged_clips
from speechkit.errors import ModelError, OutputError, PlanError
from speechkit.training.anatomy import Anatomy, core_of

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence
    from types import ModuleType

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["LoraOptions", "Merged", "add_lora", "load_lora", "merge_lora", "save_lora"]

BOUND = 1e-4  # float32, natural-log units
PROBE = 4800  # samples: 0.3 s
# names of the linear layers, for all architectures; a conformer's come second
LINEAR = {
    "attention": ("q_proj", "k_proj", "v_proj", "out_proj", "linear_q", "linear_k", "linear_v", "linear_out"),
    "ffn": ("intermediate_dense", "output_dense"),
}


@dataclass(frozen=True)
class LoraOptions:
    """Rank and place of the updates."""

    rank: int = 16
    alpha: float = 32.0  # the update is scaled by alpha / rank
    dropout: float = 0.05  # of what enters the update, in training
    targets: str = "attention"  # or "ffn", or "attention+ffn"


@dataclass(frozen=True)
class Merged:
    """A model whose updates are part of its weights, and how far its outputs are from those of the adapter."""

    model: Any = field(repr=False)  # plain transformers, evaluation mode
    difference: float  # the largest between merged and adapter
    effect: float  # the largest between adapter and the model without it: 0 means that nothing was learnt
    bound: float = BOUND
    quantity: str = "log p"  # that was compared; in half precision "p", as in `asr.check`

    @property
    def ok(self) -> bool:
        return self.difference <= self.bound  # False for NaN

    def __str__(self) -> str:
        verdict = "ok" if self.ok else "DIFFERENT"
        note = "" if self.effect else "; the updates change nothing: they were not trained"
        return (
            f"merged == adapter: max |Δ {self.quantity}| {self.difference:.1e} (bound {self.bound:.0e}), where the "
            f"adapter changes the model by {self.effect:.1e}: {verdict}{note}"
        )


def add_lora(model: Any, options: LoraOptions | None = None) -> Any:
    """Wrap a CTC model: low-rank updates and the head learn, all else is frozen. Outputs stay as they are at first.

    Raises PlanError for options out of range or updates that no gradient would reach, ModelError for a model without
    CTC head, MissingExtra without peft.
    """
    options = options or LoraOptions()
    if hasattr(model, "peft_config"):
        raise PlanError("the model has LoRA updates already: merge them (merge_lora), or go on training these")
    parts = Anatomy.of(model)
    targets = _targets(parts, options)
    peft = _peft()
    _front_end_off(parts)
    parts.model.requires_grad_(False)
    config = peft.LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=targets,
        modules_to_save=["lm_head"],
    )
    with _without_rename_note():
        wrapped = _ready(peft.get_peft_model(parts.model, config))
    still = _without_gradient(wrapped)
    if still:
        wrapped.unload()
        raise PlanError(
            f"{len(still)} LoRA updates of {type(parts.model).__name__} would learn nothing, among them {still[0]}: "
            "its forward pass reads the weight and does not call the layer. Take targets 'ffn' (given: "
            f"{options.targets!r}), or strategy 'top-K'"
        )
    return wrapped


def save_lora(model: Any, folder: str | os.PathLike[str]) -> Path:
    """Write updates and head in peft's format (adapter_model.safetensors, adapter_config.json); see :func:`load_lora`.

    Raises PlanError for a model without LoRA, OutputError where it cannot be written.
    """
    from safetensors import SafetensorError

    if not hasattr(model, "peft_config"):
        raise PlanError(f"{type(model).__name__} has no LoRA updates to save; add_lora adds them")
    try:
        model.save_pretrained(folder, save_embedding_layers=False)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"{folder} cannot be written: {error}; free some space or give another folder") from error
    return Path(folder)


def load_lora(model: Any, folder: str | os.PathLike[str], trainable: bool = False) -> Any:
    """Put saved updates around the model that they were trained on. Raises ModelError where they do not fit or load."""
    from safetensors import SafetensorError

    if not (Path(folder) / "adapter_config.json").is_file():
        raise ModelError(f"{folder} has no adapter_config.json; give a folder that save_lora or peft wrote")
    parts = Anatomy.of(model)
    _front_end_off(parts)
    try:
        with _without_rename_note():
            wrapped = _peft().PeftModel.from_pretrained(parts.model, str(folder), is_trainable=trainable)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(
            f"the LoRA updates in {folder} do not fit this {type(parts.model).__name__}: {reason}; load them onto the "
            "model and head that they were trained on"
        ) from error
    return _ready(wrapped)


def merge_lora(model: Any, clips: Sequence[NDArray[np.float32]] | None = None) -> Merged:
    """A copy of the model with the updates added to its weights, compared on `clips` (T,) each, default test signals.

    `model` itself is left as it is and may go on training. Raises PlanError for a model without LoRA.
    """
    if not hasattr(model, "peft_config"):
        raise PlanError(f"{type(model).__name__} has no LoRA updates to merge; add_lora adds them")
    merged = copy.deepcopy(model).merge_and_unload().eval().requires_grad_(False)
    training = model.training
    model.eval()
    try:
        rows = [normalise(clip) for clip in (ragged_clips(4, longest_s=4.0) if clips is None else clips)]
        adapted = [_log_probs(model, row) for row in rows]
        with model.disable_adapter():
            plain = [_log_probs(model, row) for row in rows]
    finally:
        model.train(training)
    joined = [_log_probs(merged, row) for row in rows]
    half = HALF_BOUNDS.get(str(next(merged.parameters()).dtype).removeprefix("torch."))
    if half is not None:
        joined, adapted, plain = ([row.exp() for row in found] for found in (joined, adapted, plain))
    apart, effect = _apart(joined, adapted), _apart(adapted, plain)
    return Merged(merged, apart, effect, half or BOUND, "p" if half else "log p")


def _peft() -> ModuleType:
    return extras.require("peft", extra="train", purpose="LoRA")


@contextmanager
def _without_rename_note() -> Iterator[None]:
    """peft asks for a property that transformers renamed: a note to peft's developers, on every user's screen."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def _targets(parts: Anatomy, options: LoraOptions) -> str:
    """A pattern of the layers asked for, in the encoder's layers only."""
    kinds = options.targets.split("+")
    unknown = [kind for kind in kinds if kind not in LINEAR]
    if unknown or options.rank < 1 or not 0 <= options.dropout < 1 or options.alpha <= 0:
        raise PlanError(
            f"LoRA of rank {options.rank}, alpha {options.alpha}, dropout {options.dropout} on {options.targets!r}: "
            'the rank is 1 or more, alpha above 0, dropout in [0, 1), targets "attention", "ffn" or "attention+ffn"'
        )
    wanted = {name for kind in kinds for name in LINEAR[kind]}
    found = {name.rpartition(".")[2] for name, module in parts.encoder.named_modules() if hasattr(module, "weight")}
    names = sorted(wanted & found)
    if not names:
        raise PlanError(f"{type(parts.model).__name__} has no layer of the names {', '.join(sorted(wanted))}")
    return rf".*encoder\.layers\.\d+\..*\b({'|'.join(names)})"


def _front_end_off(parts: Anatomy) -> None:
    """No gradient runs down to the samples through a front-end that is frozen."""
    parts.features._requires_grad = False


def _ready(wrapped: Any) -> Any:
    """Trainer saves checkpoints with peft's defaults, which look for embeddings once the head was resized."""
    wrapped.save_pretrained = partial(wrapped.save_pretrained, save_embedding_layers=False)
    return wrapped


def _without_gradient(wrapped: Any) -> list[str]:
    """Names of updates that a backward pass from the logits does not reach."""
    training = wrapped.training
    # A alone has no gradient while B is zero, so B is what must have one; no dropout, no layer left out
    inputs = [(name, weight) for name, weight in wrapped.named_parameters() if ".lora_B." in name]
    like = inputs[0][1]
    noise = torch.randn(1, PROBE, generator=torch.Generator().manual_seed(0)).to(like.device, like.dtype)
    wrapped.eval()
    try:
        wrapped(input_values=noise).logits.float().square().sum().backward()
        return [name for name, weight in inputs if weight.grad is None or not bool(weight.grad.any())]
    finally:
        wrapped.zero_grad(set_to_none=True)
        wrapped.train(training)


def _log_probs(model: Any, row: NDArray[np.float32]) -> torch.Tensor:
    core = core_of(model)  # a trainer makes the forward of the wrapper around it one in half precision
    weight = next(core.parameters())
    with torch.inference_mode():
        logits = core(input_values=torch.from_numpy(row)[None].to(weight.device, weight.dtype)).logits
    return torch.as_tensor(logits.float().log_softmax(-1)).cpu()


def _apart(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> float:
    # torch.max hands a NaN on, so a broken merge cannot pass
    return float(torch.stack([(a - b).abs().max() for a, b in zip(first, second, strict=True)]).max())
