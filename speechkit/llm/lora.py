"""Adapters into a language model through peft: where they go, what they are, the fused product where it fits.

In: a transformers model (16 or 32 bit, or bitsandbytes NF4 and int8), a `LoraOptions`. Out: a peft `PeftModel`, in
place, whose adapter is in float32 and alone learns; the base stays as it was loaded, norms too: frozen they need no
wider numbers, their statistics are in float32 in any case. Files are in `adapter_files`, merging in `merge`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from speechkit import extras
from speechkit.errors import PlanError
from speechkit.llm.lora_kernels import FusedReport, fuse, fused, keep_unpacked, layers_of, unfuse
from speechkit.llm.lora_options import LoraOptions
from speechkit.llm.lora_targets import experts_of, names_of, targets_of
from speechkit.llm.quiet import quiet

if TYPE_CHECKING:
    from torch import nn

__all__ = ["AdapterReport", "FusedReport", "LoraOptions", "adapter_report", "add_lora", "fuse", "fused", "unfuse"]

OPTIONS = "_speechkit_lora"  # where a peft model keeps the options of each adapter, by name


@dataclass(frozen=True, repr=False)
class AdapterReport:
    """What an adapter is, where it went and what it leaves alone. Prints as a few lines."""

    name: str
    options: LoraOptions
    layers: dict[str, int]  # last part of a layer's name → how many were adapted
    trained: int  # weights that learn
    total: int  # weights in all; of a 4-bit base as many as it stands for
    notes: tuple[str, ...]  # what stays as it is, and why

    def __str__(self) -> str:
        where = ", ".join(f"{count} {name}" for name, count in self.layers.items())
        share = f"{self.trained:,} of {self.total:,} weights learn ({self.trained / max(self.total, 1):.2%})"
        return "\n".join([f"{self.name}: {self.options}", f"  {share}: {where}", *(f"  – {x}" for x in self.notes)])

    __repr__ = __str__


def add_lora(
    model: nn.Module, options: LoraOptions | None = None, *, name: str = "default", kernels: bool = True
) -> Any:
    """Adapt `model` in place → peft's PeftModel around it; a second call with another `name` adds one more adapter.

    Before training, outputs are those of the base, for B is zero. With `kernels` the fused product goes in where it
    fits; `fused(model)` says where it does not. Raises PlanError for targets that the model has not, for a part that
    it has not, and for a name that is taken.
    """
    with quiet():
        extras.require("peft", extra="llm", purpose="an adapter")
        from peft import PeftModel, get_peft_model

    options = LoraOptions() if options is None else options
    if not isinstance(options, LoraOptions):
        raise PlanError(f"options is a {type(options).__name__}; give LoraOptions(rank=…, …)")
    if not isinstance(name, str) or not name or "." in name:
        raise PlanError(f"name is {name!r}; an adapter's name is a word without dots")
    inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    config = _config(inner, options)
    keep_unpacked(inner)
    if not isinstance(model, PeftModel):
        wrapped: Any = get_peft_model(inner, config, adapter_name=name)
    elif name in model.peft_config:
        raise PlanError(f"the model has an adapter {name!r} already; give this one another name")
    else:
        model.add_adapter(name, config)
        model.set_adapter(name)
        wrapped = model
    wrapped.__dict__.setdefault(OPTIONS, {})[name] = options
    if any(getattr(module, "gradient_checkpointing", False) for module in inner.modules()):
        inner.enable_input_require_grads()  # a checkpointed block whose inputs ask for no gradient would have none
    if kernels:
        fuse(wrapped)
    return wrapped


def adapter_report(model: Any, name: str = "default") -> AdapterReport:
    """What the adapter `name` of a peft model is. Raises PlanError where it has none of that name."""
    if name not in getattr(model, "peft_config", {}):
        known = ", ".join(map(repr, getattr(model, "peft_config", {}))) or "none: add one with add_lora"
        raise PlanError(f"the model has no adapter {name!r}; it has {known}")
    layers = [path for path, layer in layers_of(model) if name in layer.lora_A or name in layer.lora_embedding_A]
    trained, total = model.get_nb_trainable_parameters()
    return AdapterReport(
        name, options_of(model, name), dict(Counter(path.rpartition(".")[2] for path in layers)), trained, total,
        _notes(model, options_of(model, name)),
    )  # fmt: skip


def options_of(model: Any, name: str = "default") -> LoraOptions:
    """As they were given; for an adapter that peft made, as its configuration tells them."""
    kept = model.__dict__.get(OPTIONS, {}).get(name)
    if kept is not None:
        return kept  # type: ignore[no-any-return]
    config = model.peft_config[name]
    targets = config.target_modules or ()
    return LoraOptions(
        rank=config.r, alpha=config.lora_alpha, dropout=config.lora_dropout, rslora=config.use_rslora,
        dora=config.use_dora, targets=(targets,) if isinstance(targets, str) else tuple(sorted(targets)) or ("auto",),
        experts=bool(config.target_parameters), also_train=tuple(config.modules_to_save or ()),
    )  # fmt: skip


def _config(model: nn.Module, options: LoraOptions) -> Any:
    from peft import LoraConfig

    inits = {"default": True, "gaussian": "gaussian", "random": False}
    given: dict[str, Any] = {
        "r": options.rank,
        "lora_alpha": int(options.alpha) if float(options.alpha).is_integer() else options.alpha,
        "lora_dropout": options.dropout,
        "use_rslora": options.rslora,
        "use_dora": options.dora,
        "init_lora_weights": inits[options.init],
        "target_modules": targets_of(model, options),
        "target_parameters": _expert_targets(model) if options.experts else None,
        "modules_to_save": _also(model, options) or None,
        "task_type": "CAUSAL_LM" if _speaks(model) else None,
    }
    return LoraConfig(**given)


def _speaks(model: Any) -> bool:
    """Whether peft's wrapper for causal models fits, which wants `generate`'s doors."""
    return hasattr(model, "prepare_inputs_for_generation")


def _expert_targets(model: nn.Module) -> list[str]:
    found = experts_of(model)
    if not found:
        raise PlanError("experts=True, and the model has no experts whose weights are one tensor; leave it out")
    return sorted({".".join(name.split(".")[-2:]) for name in found})


def _also(model: nn.Module, options: LoraOptions) -> list[str]:
    names = [name for name, _ in model.named_modules() if name]
    for wanted in options.also_train:
        if not any(name == wanted or name.endswith(f".{wanted}") for name in names):
            near = get_close_matches(wanted, {name.rpartition(".")[2] for name in names}, 3)
            raise PlanError(
                f"also_train names {wanted!r}, which the model has not; near are {', '.join(near) or 'none'}"
            )
    return list(options.also_train)


def _notes(model: Any, options: LoraOptions) -> tuple[str, ...]:
    inner, notes = model.get_base_model(), []
    kept = experts_of(inner)
    if kept and not options.experts:
        notes.append(
            f"{len(kept)} tensors of experts stay as they are, such as {kept[0]}: experts=True adapts them (no dropout)"
        )
    if names_of(inner, "vision") and options.part != "both":
        other = "vision" if options.part == "text" else "text"
        notes.append(f"{other} layers stay as they are (part is {options.part!r})")
    return tuple(notes)
