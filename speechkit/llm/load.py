"""Name → causal language model and tokenizer, checked, repaired and told: `explain(model)` lists what was done.

In: an embedded model (`demo/chat`), a Hub id, a folder, or a folder with a PEFT adapter. Out: the model in evaluation
mode on its device and a tokenizer whose pad is not its eos. Weights come from safetensors and no code of a repository
runs. Knows no training; `repairs` mends tokenizers, `quant` decides what a device can hold in few bits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from speechkit.device import choose_device
from speechkit.llm import registry
from speechkit.llm.apply import apply_kernels
from speechkit.llm.context import Context, check_length, stretch
from speechkit.llm.files import find, read_config, read_model, read_tokenizer
from speechkit.llm.precision import choose_llm_dtype
from speechkit.llm.profiles import profile_of
from speechkit.llm.quant import Quant, check_name, check_possible, choose_quant, quantised_already
from speechkit.llm.quiet import quiet
from speechkit.llm.repairs import repair
from speechkit.llm.report import LOADED

if TYPE_CHECKING:
    import os
    from pathlib import Path

    from speechkit.device import Choice
    from speechkit.llm.families import Family
    from speechkit.llm.profiles import KernelProfile

__all__ = ["Loaded", "load_llm", "loaded"]


@dataclass(frozen=True, repr=False)
class Loaded:
    """What `load_llm` did to a model; prints as the head of what `explain` says."""

    source: registry.Source  # with the family that its configuration tells
    model_type: str  # of the text tower
    features: registry.Features
    device: Choice[str]
    dtype: Choice[str]
    quant: Quant
    context: Context
    repairs: tuple[str, ...] = ()  # what was mended in the tokenizer and the configurations
    adapter: str = ""  # the PEFT folder on top
    notes: tuple[str, ...] = ()  # what else there is to know

    @property
    def family(self) -> Family | None:
        return self.source.family

    @property
    def name(self) -> str:
        """The family's, or the model type where there is none."""
        return self.family.name if self.family else self.model_type

    @property
    def profile(self) -> KernelProfile | None:
        """What kernels cover of it."""
        return profile_of(self.model_type)

    @property
    def without(self) -> str:
        """One sentence for a model that no kernel was made for; empty for the others."""
        if self.profile is not None:
            return ""
        known = f"the family {self.family.name}" if self.family else f"the model type {self.model_type!r}"
        more = "" if self.family else ", and its LoRA targets are all linear layers but the head"
        return f"no kernels are known for {known}: it runs as transformers made it{more}"

    def __str__(self) -> str:
        family = self.family.name if self.family else f"not in the table (model type {self.model_type!r})"
        place = self.source.location
        lines = [
            self.source.name + (f" from {place}" if place != self.source.name else ""),
            f"      family     {family}: {self.features}",
            f"      device     {self.device}",
            f"      dtype      {self.dtype}",
            f"      weights    {self.quant}",
            f"      context    {self.context}",
        ]
        lines += [f"      adapter    {self.adapter}"] if self.adapter else []
        lines += [f"      repaired   {text}" for text in self.repairs] or ["      repaired   nothing"]
        return "\n".join([*lines, *(f"      note       {text}" for text in self.notes)])

    __repr__ = __str__


def load_llm(
    name: str | os.PathLike[str] = "demo/chat",
    quant: str | None = None,
    max_len: int | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    kernels: bool = True,
    revision: str | None = None,
) -> tuple[Any, Any]:
    """Load a language model and its tokenizer; `explain(model)` says what was chosen, repaired and put in.

    `quant` is None, "nf4", "int8" or "fp8". `max_len` is the longest row in tokens: beyond the model's own, positions
    are stretched by YaRN, up to eight times. `kernels=False` leaves transformers' layers as they are.

    Raises ModelError for an unknown name (with the nearest known ones) and for a repository that cannot be reached,
    wants code of its own, or has no safetensors or no language model; PlanError for a quant, dtype, device or `max_len`
    that cannot be.
    """
    check_name(quant)
    check_length(max_len)
    source = registry.resolve(name)
    where = choose_device(device)
    check_possible(quant, where.value)  # what can be seen to be wrong is said before anything is downloaded
    place = find(source, revision)
    config = read_config(place.base)
    family = registry.family_of(config)
    precision = choose_llm_dtype(where.value, dtype, family)
    kept = quantised_already(config, quant) or choose_quant(quant, where.value, precision.value)
    features, context = registry.features_of(config), stretch(config, max_len, family)
    tokenizer = read_tokenizer(place.tokenizer)
    model = read_model(place.base, config, precision.value, where.value, kept.settings)
    with quiet():
        repairs = repair(model, tokenizer, _stops(source, family))
    tokenizer.model_max_length = context.tokens or tokenizer.model_max_length
    done = Loaded(
        _told(source, family, config), config.get_text_config().model_type, features, where,
        precision, replace(kept, settings=None, gib=model.get_memory_footprint() / 2**30), context, repairs,
        str(place.adapter or ""), _notes(config, place.base, family),
    )  # fmt: skip
    model.__dict__[LOADED] = done
    if place.adapter is not None:
        model = _adapted(model, place.adapter, kernels)
    if kernels and done.profile is not None:
        apply_kernels(model)
    return model.eval(), tokenizer


def loaded(model: Any) -> Loaded | None:
    """What `load_llm` did to this bare transformers model; None for a model that came another way."""
    found = getattr(model, "__dict__", {}).get(LOADED)
    return found if isinstance(found, Loaded) else None


def _adapted(model: Any, folder: Path, kernels: bool) -> Any:
    from speechkit.llm.adapter_files import load_adapter

    with quiet():
        return load_adapter(model, folder, kernels=kernels)


def _told(source: registry.Source, family: Family | None, config: Any) -> registry.Source:
    """The source with what the configuration says, which is more than a name does."""
    return replace(source, family=family, reason=f"by its config.json: model_type {config.model_type}")


def _stops(source: registry.Source, family: Family | None) -> tuple[str, ...]:
    """Of the family that the name tells (R1's distils are Llama and Qwen 2 by configuration), then of the other."""
    named = registry.family_named(source.location)
    return tuple(dict.fromkeys((*(named.stop_tokens if named else ()), *(family.stop_tokens if family else ()))))


def _notes(config: Any, folder: Path, family: Family | None) -> tuple[str, ...]:
    notes = []
    if hasattr(config, "vision_config"):
        notes.append(f"it sees images too: transformers.AutoProcessor.from_pretrained({str(folder)!r}) prepares them")
    if family is not None and family.experts and registry.features_of(config).experts:
        notes.append(family.experts)
    return tuple(notes)
