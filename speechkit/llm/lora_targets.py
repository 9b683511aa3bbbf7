"""Which layers of a model an adapter goes into. In: a transformers model, options. Out: names as peft takes them.

A family's own list comes from the registry; this file knows how a model that sees is divided, what a head is, and how
few names say which layers are meant. Knows no peft.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from torch import nn

from speechkit.errors import PlanError
from speechkit.llm import registry

if TYPE_CHECKING:
    from speechkit.llm.lora_options import LoraOptions

__all__ = ["experts_of", "names_of", "targets_of"]

HEARING = ("audio", "speech", "sound")  # towers that are neither text nor vision
ROUTERS = ("gate", "router", "shared_expert_gate")  # what chooses experts: moved, it unbalances them


def targets_of(model: nn.Module, options: LoraOptions) -> list[str]:
    """Names for peft's `target_modules`: last parts of names where they say enough, else whole names."""
    if options.part != "text" and not names_of(model, "vision"):
        raise PlanError(
            f"part is {options.part!r}, and {type(model).__name__} has no tower that sees; part='text' adapts it"
        )
    chosen: list[str] = []
    for part in ("text", "vision") if options.part == "both" else (options.part,):
        chosen += _of_part(model, options, part)
    wanted, endings = set(chosen), {name.rpartition(".")[2] for name in chosen}
    matched = {name for name, _ in model.named_modules() if name.rpartition(".")[2] in endings}
    return sorted(endings) if matched == wanted else sorted(wanted)


def names_of(model: Any, part: str) -> list[str]:
    """Full names of the linear layers of the "text" or of the "vision" of a model, its head left out."""
    linear, prefix = _linear(model), _text_prefix(model)
    if not prefix:
        return linear if part == "text" else []
    if part == "text":
        return [name for name in linear if name.startswith(prefix)]
    return [name for name in linear if not name.startswith(prefix) and not any(word in name for word in HEARING)]


def experts_of(model: nn.Module) -> list[str]:
    """Names of the weights that hold all experts of a layer in one 3-D tensor; peft's layers do not reach them."""
    return [name for name, weight in model.named_parameters() if weight.dim() == 3 and ".experts." in f".{name}"]


def _of_part(model: nn.Module, options: LoraOptions, part: str) -> list[str]:
    """Full names of what `options.targets` means in this part of the model."""
    names = names_of(model, part)
    if options.targets == ("all-linear",):
        return names
    if options.targets == ("auto",):
        wanted = registry.lora_targets(model) if part == "text" else ()
        found = [name for name in names if name.rpartition(".")[2] in wanted] if wanted else []
        return found or [name for name in names if name.rpartition(".")[2] not in ROUTERS]
    found = []
    for target in options.targets:
        matched = [name for name in _all_names(model, names, part) if name == target or name.endswith(f".{target}")]
        if not matched and options.part != "both":
            raise _no_such(model, target, names)
        found += matched
    if options.part == "both" and part == "vision":
        for target in options.targets:
            if not any(name == target or name.endswith(f".{target}") for name in _linear(model)):
                raise _no_such(model, target, _linear(model))
    return found


def _all_names(model: nn.Module, names: list[str], part: str) -> list[str]:
    """What may be named: linear layers, and with the text the head and embeddings, which no word stands for."""
    if part != "text":
        return names
    more = [_plain(name) for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Embedding))]
    return [*names, *(name for name in more if name == _head(model) or name.endswith("embed_tokens"))]


def _no_such(model: nn.Module, target: str, names: list[str]) -> PlanError:
    known = sorted({name.rpartition(".")[2] for name in names})
    near = get_close_matches(target, known, 1)
    meant = f"; meant is {near[0]!r}, perhaps" if near else ""
    return PlanError(
        f"{type(model).__name__} has no layer {target!r} to adapt{meant}. It has {', '.join(known)}; 'auto' and "
        "'all-linear' choose among them"
    )


def _linear(model: nn.Module) -> list[str]:
    """Names of all linear layers but the head, adapted ones by the name that they had before.

    Not torch's attention's own projection: its weight is read past the module, so that an adapter would learn nothing.
    """
    from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
    from transformers.pytorch_utils import Conv1D

    head = _head(model)
    found = {
        _plain(name): None
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and not isinstance(module, NonDynamicallyQuantizableLinear)
    }
    return [name for name in found if name and name != head]


def _plain(name: str) -> str:
    """The name that a module had before peft wrapped it; empty for what peft brought."""
    if ".lora_" in name or ".modules_to_save" in name:
        return ""
    return name.removesuffix(".base_layer").removesuffix(".original_module")


def _head(model: Any) -> str:
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return next((_plain(name) for name, module in model.named_modules() if module is head), "")


def _text_prefix(model: Any) -> str:
    """With what the names of the text's layers begin in a model that sees; empty for a model of text alone."""
    if getattr(getattr(model, "config", None), "vision_config", None) is None:
        return ""
    decoder = model.get_decoder()
    name = next((name for name, module in model.named_modules() if module is decoder), "")
    return f"{name}." if name else ""
