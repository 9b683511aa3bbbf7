"""Kernels into a transformers model and out again: per instance, reversible, listed. Nothing of a module is patched.

A module gets a subclass of its class (`exchange`), the attention goes through transformers' `AttentionInterface`, both
for one model. Where a kernel cannot run (a CPU, an old GPU) its definition does, so that a model with kernels works
everywhere. Models in wrappers (PEFT, torch.compile, DDP) are found within. Knows no training.

Not through `KernelConfig` and `kernelize`, tried with transformers 5.23: it wants kernels 0.18 (0.17.2 is refused) and
no CPU ("Only devices in ['cuda', …] are supported"); there is no way back; it reaches decorated layers alone: no Gemma
norm, of a gated unit the activation without its product, and one rotary function for all models of a family.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from speechkit.errors import ModelError, PlanError
from speechkit.llm import forwards
from speechkit.llm.exchange import Recipe, put_in, recipe_of, take_out, why_not
from speechkit.llm.loss import causal_loss, head_reason
from speechkit.llm.profiles import PROFILES, profile_of
from speechkit.llm.report import (
    ATTENTION,
    KINDS,
    LOADED,
    Applied,
    attention_config,
    matching,
    one_by_one,
    read,
    read_nothing,
)

if TYPE_CHECKING:
    from torch import nn

    from speechkit.llm.profiles import KernelProfile

__all__ = ["KINDS", "Applied", "apply_kernels", "explain", "undo_kernels"]


def apply_kernels(model: nn.Module, kinds: tuple[str, ...] = KINDS) -> Applied:
    """Put kernels into `model`, in place; `kinds` are some of `KINDS`.

    Outputs stay the same but for rounding, and but for one thing: with "loss", a model in training that is given
    labels returns no logits (see `speechkit.llm.loss`; `skip_logits=False` in the call brings them back). A second
    call puts in what is not in yet. Raises ModelError for a model whose family is not known, PlanError for a kind that
    does not exist.
    """
    if unknown := set(kinds) - set(KINDS):
        raise PlanError(f"{', '.join(sorted(unknown))}: no such kind; it can be {', '.join(KINDS)}")
    bare, profile = _known(model)
    for kind in kinds:
        if kind == "attention":
            _attend(bare)
            continue
        for _, module in matching(bare, profile, kind):
            if (recipe := _recipe(module, kind, profile)) is not None and not why_not(module):
                put_in(module, recipe)
    return read(bare, profile)


def undo_kernels(model: nn.Module) -> int:
    """Take all kernels out again; how many. The weights stay where they are, whatever was loaded or trained since.

    Raises ModelError for a family that is not known, and for a model that FSDP has wrapped since.
    """
    bare: Any
    bare, _ = _known(model)
    count = take_out(bare)
    before = bare.__dict__.pop(ATTENTION, None)
    if before is None or attention_config(bare)._attn_implementation != "speechkit":  # or chosen anew since
        return count
    _set_attention(bare, before.name)
    return count + 1


def explain(model: nn.Module) -> Applied:
    """What loading did to `model`, what kernels are in, how they run, and what stays as it is; prints as a table.

    Raises ModelError for a family that is not known, unless `load_llm` loaded it: then a sentence says what it lacks.
    """
    bare: Any = _bare(model)
    found = bare.__dict__.get(LOADED)
    if found is not None and profile_of(_kind(bare)) is None:
        return replace(read_nothing(bare, found.name, found.without), loaded=found)
    return replace(read(*_known(model)), loaded=found)


@dataclass(frozen=True)
class _Before:
    """The attention that a model had. In another process the name "speechkit" must be registered before it is used."""

    name: str

    def __reduce__(self) -> Any:
        return _registered, (self.name,)


def _registered(name: str) -> _Before:
    from speechkit.llm.attention import register

    register()
    return _Before(name)


def _attend(model: Any) -> None:
    config = attention_config(model)
    before = config._attn_implementation
    if before == "speechkit" or getattr(config, "attention_dropout", 0.0):
        return
    model.__dict__[ATTENTION] = _registered(before)
    _set_attention(model, "speechkit")


def _set_attention(model: Any, name: str) -> None:
    """Of the text alone, where a model has a tower for images too."""
    apart = attention_config(model) is not model.config
    model.set_attn_implementation({"text_config": name} if apart else name)


def _recipe(module: nn.Module, kind: str, profile: KernelProfile) -> Recipe | None:
    """What goes into this module; None where its activation or its head is one that no kernel has."""
    base = type(module)
    if recipe_of(module) is not None:
        return None
    if kind == "norms":
        return Recipe(kind, "rms_norm", base, forwards.norm, (profile.offset,))
    if kind == "rotary positions":
        return Recipe(kind, "rope", base, forwards.rotary)
    if kind == "loss":
        return None if head_reason(module) else Recipe(kind, "linear_cross_entropy", base, causal_loss)
    activation = forwards.activation_of(module)
    if activation is None or one_by_one(module):
        return None
    kernel = "swiglu" if activation == "silu" else "geglu"
    return Recipe(
        kind, kernel, base, forwards.experts if base.__name__ in profile.experts else forwards.gated_unit, (activation,)
    )


def _known(model: nn.Module) -> tuple[nn.Module, KernelProfile]:
    """The transformers model within, and its profile."""
    bare = _bare(model)
    kind = _kind(bare)
    profile = profile_of(kind)
    if profile is None:
        known = ", ".join(name for one in PROFILES for name in one.model_types)
        raise ModelError(f"no kernels are known for the model type {kind!r}; known are {known}")
    return bare, profile


def _kind(bare: Any) -> str:
    """The model type that tells the layers: of the text, where what is around it is not known."""
    config: Any = getattr(bare, "config", None)
    kind = str(getattr(config, "model_type", ""))
    if profile_of(kind) is None and hasattr(config, "get_text_config"):
        text = str(config.get_text_config().model_type)
        return text if profile_of(text) is not None else kind
    return kind


def _bare(model: Any) -> Any:
    """The transformers model within torch.compile's, DDP's or PEFT's wrappers."""
    while True:
        inner = model.__dict__.get("_modules", {}).get("_orig_mod") or model._modules.get("module")
        if inner is None and hasattr(model, "get_base_model"):
            inner = model.get_base_model()
        if inner is None or inner is model:
            return model
        model = inner
