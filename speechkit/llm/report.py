"""What kernels are in a model, how each runs on its device, and what stays as it was: read off the model each time."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from speechkit.llm.exchange import recipe_of, taken_in, why_not
from speechkit.llm.forwards import activation_of
from speechkit.llm.loss import head_reason

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from speechkit.llm.profiles import KernelProfile

__all__ = [
    "ATTENTION",
    "KINDS",
    "LOADED",
    "Applied",
    "attention_config",
    "matching",
    "one_by_one",
    "read",
    "read_nothing",
]

KINDS = ("norms", "gated units", "rotary positions", "attention", "loss")
LOW_RANK = "low-rank updates"  # of adapters, whose kernel `add_lora` and `fuse` put in; `undo_kernels` takes it out too
ATTENTION = "_speechkit_attention"  # where a model keeps the name of the attention that it had
LOADED = "_speechkit_loaded"  # where it keeps what `load_llm` did


@dataclass(frozen=True, repr=False)
class Applied:
    """What is in a model, and what is not, with the reason. Prints as a table."""

    family: str
    counts: dict[str, int]  # kind → modules
    left: tuple[str, ...]  # what stays as it was, and why
    runs: dict[str, str] = field(default_factory=dict)  # kind → kernel and how it runs on the model's device
    device: str = ""  # the model's, with its dtype
    loaded: Any = None  # `load.Loaded`, of a model that `load_llm` loaded

    def __str__(self) -> str:
        lines = [f"{self.family} on {self.device}" if self.device else self.family]
        for kind in (*KINDS, LOW_RANK):
            if kind in self.counts:
                lines.append(f"{self.counts[kind]:>5} {kind:<18}{self.runs.get(kind, '')}".rstrip())
        if not self.counts:
            lines.append("      no kernel in")
        lines = [*str(self.loaded).splitlines(), *lines] if self.loaded is not None else lines
        return "\n".join([*lines, *(["      as it was:"] if self.left else []), *(f"      – {x}" for x in self.left)])

    __repr__ = __str__


def read(model: Any, profile: KernelProfile) -> Applied:
    """All of it, of the bare transformers model."""
    found = [(recipe.kind, recipe.kernel) for _, _, recipe in taken_in(model)]
    if ATTENTION in model.__dict__ and attention_config(model)._attn_implementation == "speechkit":
        found.append(("attention", "attention"))
    counts = Counter(kind for kind, _ in found)
    device, dtype = _where(model)
    runs = {kind: _runs(model, kernel, device, dtype) for kind, kernel in found}
    left = [*profile.uncovered, *_left(model, profile, counts), *_updates_left(model)]
    there = {kind: counts[kind] for kind in (*KINDS, LOW_RANK) if counts[kind]}
    return Applied(profile.family, there, tuple(left), runs, _shown(device, dtype))


def read_nothing(model: Any, family: str, why: str) -> Applied:
    """The same of a model that no kernel can go into, because nobody has compared one with its layers."""
    return Applied(family, {}, (why,), device=_shown(*_where(model)))


def matching(model: nn.Module, profile: KernelProfile, kind: str) -> list[tuple[str, nn.Module]]:
    """Name and module of all that a kernel of this kind may go into; those that have it already are among them."""
    if kind == "loss":
        return [("", model)] if model.__class__.__name__.endswith(("ForCausalLM", "ForConditionalGeneration")) else []
    wanted = {
        "norms": profile.norms, "gated units": profile.mlps + profile.experts, "rotary positions": profile.attentions,
    }.get(kind, ())  # fmt: skip
    return [(name, module) for name, module in model.named_modules() if type(module).__name__ in wanted]


def attention_config(model: Any) -> Any:
    """The configuration whose attention can be chosen: of the text, where there are images too."""
    return model.config.get_text_config()


def _where(model: Any) -> tuple[torch.device, torch.dtype]:
    """Where the model computes, and in what."""
    weight = next(model.parameters())
    return _device(model, weight), weight.dtype if weight.is_floating_point() else model.dtype


def _shown(device: torch.device, dtype: torch.dtype) -> str:
    return f"{device}, {str(dtype).removeprefix('torch.')}"


def _device(model: nn.Module, weight: torch.Tensor) -> torch.device:
    """Where the model computes: an offloaded one has no weights there until accelerate's hook brings them."""
    hooks: list[Any] = [module.__dict__.get("_hf_hook") for module in model.modules()] if weight.is_meta else []
    devices = [hook.execution_device for hook in hooks if getattr(hook, "execution_device", None) is not None]
    return torch.device(devices[0]) if devices else weight.device


def _runs(model: Any, kernel: str, device: torch.device, dtype: torch.dtype) -> str:
    """As `launch.support` decides it for the device; attention is decided call by call, told for one."""
    from speechkit_kernels.launch import hardware_of, support

    if kernel == "attention":
        return _attends(model, device, dtype)
    found = support(hardware_of(device), dtype)
    how = f"{kernel}: {found.reason}" if found.value else f"{kernel} by its definition: {found.reason}"
    return f"{how}; no logits in training" if kernel == "linear_cross_entropy" else how


def _attends(model: Any, device: torch.device, dtype: torch.dtype) -> str:
    from speechkit_kernels.attention import Case, choose
    from speechkit_kernels.attention_backends import available
    from speechkit_kernels.launch import hardware_of

    config, hardware = attention_config(model), hardware_of(device)
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    latent = getattr(config, "qk_nope_head_dim", None)
    case = Case(
        hardware.kind, hardware.capability, dtype, latent + config.qk_rope_head_dim if latent else width, heads=heads,
        kv_heads=heads if latent else config.num_key_value_heads, training=True, interpreted=hardware.interpreted,
        softcap=bool(getattr(config, "attn_logit_softcapping", None)),
    )  # fmt: skip
    choice = choose(case, available(device))
    return f"{choice.name}, for {case.queries:,} causal tokens in training: {choice.reason}"


def _left(model: Any, profile: KernelProfile, counts: dict[str, int]) -> Iterator[str]:
    for kind in KINDS:
        rest = [(name, _reason(module, kind)) for name, module in matching(model, profile, kind)
                if (recipe := recipe_of(module)) is None or recipe.kind != kind]  # fmt: skip
        if kind == "loss" and kind in counts and (reason := head_reason(model)):
            yield f"loss: {reason}, so that transformers' own is computed"
        if kind == "loss" and rest:
            yield f"loss by transformers' own: {rest[0][1]}"
        elif rest:
            yield f"{len(rest)} {kind} without a kernel, such as {rest[0][0]}: {rest[0][1]}"
    if not counts.get("attention"):
        rate = getattr(attention_config(model), "attention_dropout", 0.0)
        why = f"attention_dropout is {rate}, no kernel has one" if rate else "not asked for"
        yield f"attention by transformers' own: {why}"


def _updates_left(model: Any) -> Iterator[str]:
    """Adapted layers that run peft's own forward as they stand."""
    if not any(hasattr(module, "lora_A") for module in model.modules()):
        return
    from speechkit.llm.lora_kernels import fused

    for why, count in fused(model).left.items():
        yield f"{count} low-rank updates by peft's own forward: {why}"


def _reason(module: Any, kind: str) -> str:
    if reason := why_not(module):
        return reason
    if kind == "gated units" and activation_of(module) is None:
        return f"no kernel has its activation, {type(getattr(module, 'act_fn', None)).__name__}"
    if kind == "gated units" and one_by_one(module):
        return "experts one after the other (experts_implementation is eager)"
    return (head_reason(module) if kind == "loss" else "") or "not asked for"


def one_by_one(module: Any) -> bool:
    """Whether these are experts that transformers goes through one by one, without a place for a kernel."""
    return hasattr(module, "_apply_gate") and module.config._experts_implementation == "eager"
