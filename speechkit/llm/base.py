"""The model of a run, opened and made ready to learn: loaded or taken as given, adapted or freed, told apart by digest.

In: settings, perhaps a model and its tokenizer. Out: a `Base`. What trains it stands in `trainer`.
"""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from speechkit.errors import PlanError
from speechkit.llm.four_bits import differentiable
from speechkit.llm.lora_options import LoraOptions
from speechkit.llm.precision import choose_llm_precision

if TYPE_CHECKING:
    from collections.abc import Iterator

    from speechkit.device import Choice
    from speechkit.llm.llm_config import LlmConfig

__all__ = ["Base", "bare_of", "forward_kept", "make_learn", "mode_kept", "open_base", "options_of"]

SAMPLE = 64  # numbers of each tensor that its digest is of


@dataclass(frozen=True)
class Base:
    """What is trained. `model` is a peft model, or with method "full" a transformers model."""

    model: Any
    tokenizer: Any
    name: str  # without the folders of this machine
    published: bool  # whether the Hub knows it by that name
    identity: str  # changes with its weights, not with those of the adapter
    precision: Choice[str]
    longest: int  # tokens that it can take at once
    adapter: str = ""  # what was put in, in words
    notes: tuple[str, ...] = ()


def open_base(config: LlmConfig, device: str, model: Any = None, tokenizer: Any = None) -> Base:
    """Load `config.model`, or take the model that is given, as it is; :meth:`make_learn` changes it.

    Raises ModelError or PlanError of the loader, and PlanError where the model given does not go with the settings.
    """
    if (model is None) != (tokenizer is None):
        raise PlanError("model and tokenizer go together: give both, or neither and the name of the model")
    if model is None:
        model, tokenizer = _loaded(config, device)
    bare = bare_of(model)
    with differentiable(model):  # 4-bit weights in the layout that they were loaded in
        identity = _digest(model)
    name, published = _name(config, bare)
    longest = int(getattr(bare.config.get_text_config(), "max_position_embeddings", 0) or 2**31)
    if config.max_len is not None and config.max_len > longest:
        raise PlanError(
            f"max_len is {config.max_len}, and the model that was given takes {longest} tokens: give max_len {longest} "
            f"or less, or load it with load_llm(name, max_len={config.max_len})"
        )
    return Base(model, tokenizer, name, published, identity, _precision(config, bare, device), longest)


def make_learn(base: Base, config: LlmConfig) -> Base:
    """The same with an adapter in it, or with every weight free. Raises PlanError where the method does not fit it."""
    notes: list[str] = []
    if config.method == "full":
        return replace(base, model=_freed(base.model, notes), notes=tuple(notes))
    model, adapter = _adapted(base.model, config, notes)
    return replace(base, model=model, adapter=adapter, notes=tuple(notes))


def options_of(config: LlmConfig) -> LoraOptions:
    """The settings of the adapter among those of the run."""
    names = ("rank", "alpha", "dropout", "rslora", "dora", "targets", "part")
    return LoraOptions(**{name: getattr(config, name) for name in names})


def bare_of(model: Any) -> Any:
    """The transformers model itself, whatever adapter is around it."""
    return model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model


def _loaded(config: LlmConfig, device: str) -> tuple[Any, Any]:
    from speechkit.llm.load import load_llm

    dtype = "auto"
    if config.method == "full" or config.precision == "float32":
        dtype = "float32"  # what learns is float32, its multiplications are of `precision`
    elif config.precision != "auto":
        dtype = config.precision
    return load_llm(
        config.model,
        config.base_quant,
        config.max_len,
        device=device,
        dtype=dtype,
        kernels=config.kernels,
        revision=config.revision,
    )


def _precision(config: LlmConfig, bare: Any, device: str) -> Choice[str]:
    """As asked; else as the model lies in memory, which its loader chose with the family in mind, as is done here."""
    from speechkit.device import Choice
    from speechkit.llm.registry import family_of

    kind = str(bare.dtype).removeprefix("torch.")
    if config.precision == "auto" and config.method != "full" and kind in ("bfloat16", "float16"):
        return Choice(kind, "that of the base's weights")
    return choose_llm_precision(device, config.precision, family_of(bare.config))


def _freed(model: Any, notes: list[str]) -> Any:
    """Every weight learns, in float32."""
    if hasattr(model, "peft_config"):
        raise PlanError(
            'method is "full", and the model that was given has an adapter: merge it first, or use method "lora"'
        )
    if _is_quantised(model):
        raise PlanError(
            'method is "full", and the model that was given is quantised: load it without quant, or "qlora"'
        )
    if model.dtype != torch.float32:
        notes.append(f"the weights were {str(model.dtype).removeprefix('torch.')} and learn as float32")
        model.to(torch.float32)
    model.requires_grad_(True)
    return model


def _adapted(model: Any, config: LlmConfig, notes: list[str]) -> tuple[Any, str]:
    if config.method == "qlora" and not _is_quantised(bare_of(model)):
        raise PlanError(
            'method is "qlora", and the model that was given is not quantised: load it with load_llm(name, "nf4"), or '
            'use method "lora"'
        )
    if hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
        notes.append("the adapter that the model had goes on learning; rank, targets and the like are its own")
        for name, weight in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                weight.requires_grad_(True)
        return model, "The adapter that was there"
    from peft.tuners.tuners_utils import BaseTunerLayer

    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise PlanError(
            "the model that was given holds an adapter of an earlier run: give that run's `result.model` to go on with "
            "it, or load the model again to start anew"
        )
    from speechkit.llm.lora import add_lora

    options = options_of(config)
    return add_lora(model, options, kernels=config.kernels), str(options)


def _is_quantised(model: Any) -> bool:
    return getattr(model, "quantization_method", None) is not None


def _name(config: LlmConfig, bare: Any) -> tuple[str, bool]:
    name = config.model
    if name.startswith("demo/"):
        return name, False
    if Path(name).expanduser().is_dir() or name.startswith((".", "/", "~")):
        return Path(name).expanduser().resolve().name, False
    return name, True


def _digest(model: Any) -> str:
    """Of a sample of every weight that is no adapter's."""
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        if "lora_" in name:
            continue
        flat = weight.detach().reshape(-1)
        step = max(1, flat.numel() // SAMPLE)
        part = flat[::step][:SAMPLE].to("cpu")
        plain = part.float() if part.is_floating_point() else part
        digest.update(f"{name.replace('base_model.model.', '').replace('base_layer.', '')} {weight.numel()}".encode())
        digest.update(plain.contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


@contextmanager
def forward_kept(model: Any) -> Iterator[None]:
    """The model's own forward afterwards: accelerate leaves one behind that computes in the run's half precision."""
    before = model.__dict__.get("forward")
    try:
        yield
    finally:
        model.__dict__.pop("_original_forward", None)
        model.__dict__.pop("forward", None)
        if before is not None:
            model.__dict__["forward"] = before


@contextmanager
def mode_kept(model: Any) -> Iterator[None]:
    """trl's forward, checkpointing and the training mode go again; the model is for use after the run."""
    bare = bare_of(model)
    before = bare.__dict__.get("forward")
    checkpointed = _checkpointed(bare)
    try:
        yield
    finally:
        if before is None:
            bare.__dict__.pop("forward", None)
        if not checkpointed and _checkpointed(bare):
            bare.gradient_checkpointing_disable()
        model.eval()


def _checkpointed(model: Any) -> bool:
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
