"""Kernels into a transformers model and out again: per instance, reversible, listed. Nothing of a module is patched.

Norms and gated units are exchanged for modules of the same name that hold the same weights, so a state dict keeps its
keys. The rotary turn is called inside an attention's forward; that instance gets the same forward with one name bound
to the kernel. Where a kernel cannot run (a CPU, an old GPU) its definition does, so that a model with kernels works
everywhere. Knows no training.
"""

from __future__ import annotations

import inspect
from collections import Counter
from dataclasses import dataclass, field
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from speechkit.errors import ModelError, PlanError
from speechkit.llm.registry import PROFILES, profile_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from speechkit.llm.registry import KernelProfile

__all__ = ["KINDS", "Applied", "apply_kernels", "explain", "undo_kernels"]

KINDS = ("norms", "gated units", "rotary positions", "attention")
_PLACE = "_speechkit_kernels"
_ROTARY = "apply_rotary_pos_emb"


@dataclass(frozen=True)
class _Change:
    """One exchange: how it is undone."""

    kind: str
    name: str
    parent: nn.Module = field(repr=False)
    child: str = ""  # of the parent, where a module was exchanged; of attention the name it had
    original: nn.Module | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Applied:
    """What is in a model, and what is not, with the reason."""

    family: str
    counts: dict[str, int]  # kind → modules
    left: tuple[str, ...]  # what stays as it was, and why

    def __str__(self) -> str:
        lines = [f"{count:>4} {kind}" for kind, count in self.counts.items()] or ["   no kernel"]
        return "\n".join([f"{self.family}: kernels in", *lines, *(f"   – {reason}" for reason in self.left)])


def apply_kernels(model: nn.Module, kinds: tuple[str, ...] = KINDS) -> Applied:
    """Put kernels into `model`, in place; `kinds` are some of `KINDS`.

    Outputs stay the same but for rounding. A second call puts in what is not in yet. Raises ModelError for a model
    whose family is not known, PlanError for a kind that does not exist.
    """
    if unknown := set(kinds) - set(KINDS):
        raise PlanError(f"{', '.join(sorted(unknown))}: no such kind; it can be {', '.join(KINDS)}")
    profile = _profile(model)
    changes: list[_Change] = model.__dict__.setdefault(_PLACE, [])
    for kind in kinds:
        changes.extend(_MAKERS[kind](model, profile))
    return explain(model)


def undo_kernels(model: nn.Module) -> int:
    """Take all kernels out again; how many modules were put back. The weights are those that the kernels had."""
    changes: list[_Change] = model.__dict__.pop(_PLACE, [])
    for change in reversed(changes):
        if change.kind == "attention":
            model.set_attn_implementation(change.child)  # type: ignore[operator]
            continue
        if change.original is None:
            del change.parent.forward
            continue
        ours = getattr(change.parent, change.child)
        for name, weight in ours._parameters.items():  # may have been exchanged since, by a load or a cast
            change.original._parameters[name] = weight
        for name, module in ours._modules.items():
            change.original._modules[name] = module
        change.original.train(ours.training)
        setattr(change.parent, change.child, change.original)
    return len(changes)


def explain(model: nn.Module) -> Applied:
    """What kernels are in `model`, and what stays as it is. Raises ModelError for a family that is not known."""
    profile = _profile(model)
    counts = Counter(change.kind for change in model.__dict__.get(_PLACE, []))
    found = {kind: counts[kind] for kind in KINDS if counts[kind]}
    left = [*profile.uncovered, *_left(model, profile, found)]
    return Applied(profile.family, found, tuple(left))


class FusedRMSNorm(nn.Module):
    """An RMS norm of a model, computed by `speechkit_kernels.rms_norm`; the weight is the model's own."""

    def __init__(self, original: nn.Module, offset: float) -> None:
        super().__init__()
        self.weight: nn.Parameter = original.get_parameter("weight")
        self.eps = _epsilon(original)
        self.offset = offset

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (…, H)."""
        from speechkit_kernels.rms_norm import rms_norm

        normed: torch.Tensor = rms_norm(x, self.weight, self.eps, offset=self.offset)
        return normed

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, eps={self.eps}, offset={self.offset:g}"


class FusedGatedUnit(nn.Module):
    """A gated unit of a model, its activation and product by one kernel; the projections are the model's own."""

    def __init__(self, original: nn.Module, activation: str) -> None:
        super().__init__()
        for name, child in original.named_children():
            self.add_module(name, child)
        self.activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (…, H)."""
        from speechkit_kernels.glu import geglu, swiglu

        if "gate_up_proj" in self._modules:
            gate, up = self.get_submodule("gate_up_proj")(x).chunk(2, dim=-1)
        else:
            gate, up = self.get_submodule("gate_proj")(x), self.get_submodule("up_proj")(x)
        unit = swiglu(gate, up) if self.activation == "silu" else geglu(gate, up, self.activation)
        out: torch.Tensor = self.get_submodule("down_proj")(unit)
        return out


def _norms(model: nn.Module, profile: KernelProfile) -> Iterator[_Change]:
    for name, parent, child, module in _children(model, profile.norms):
        setattr(parent, child, FusedRMSNorm(module, profile.offset))
        yield _Change("norms", name, parent, child, module)


def _gated_units(model: nn.Module, profile: KernelProfile) -> Iterator[_Change]:
    for name, parent, child, module in _children(model, profile.mlps):
        activation = _activation(module)
        if activation is None:
            continue
        setattr(parent, child, FusedGatedUnit(module, activation).train(module.training))
        yield _Change("gated units", name, parent, child, module)


def _rotary(model: nn.Module, profile: KernelProfile) -> Iterator[_Change]:
    for name, _, _, module in _children(model, profile.attentions):
        if "forward" in module.__dict__:  # ours already, or a hook's: what it wraps would be lost
            continue
        forward = inspect.unwrap(type(module).forward)
        names = {**forward.__globals__, _ROTARY: _turned}
        same = FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__)
        same.__kwdefaults__ = forward.__kwdefaults__
        module.forward = MethodType(same, module)
        yield _Change("rotary positions", name, module)


def _attention(model: nn.Module, profile: KernelProfile) -> Iterator[_Change]:
    from speechkit.llm.attention import NAME, register

    config: Any = model.config
    before = config._attn_implementation
    if before == NAME or getattr(config, "attention_dropout", 0.0) or not profile.attends:
        return
    model.set_attn_implementation(register())  # type: ignore[operator]
    yield _Change("attention", "", model, before)


_MAKERS: dict[str, Callable[[nn.Module, KernelProfile], Iterator[_Change]]] = dict(
    zip(KINDS, (_norms, _gated_units, _rotary, _attention), strict=True)
)


def _turned(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """`apply_rotary_pos_emb` of transformers: q, k (B, H, S, D), or (B, S, H, D) with unsqueeze_dim 2."""
    from speechkit_kernels.rope import rope

    if unsqueeze_dim == 2:
        q, k = rope(q.transpose(1, 2), k.transpose(1, 2), cos, sin)
        return q.transpose(1, 2), k.transpose(1, 2)
    turned: tuple[torch.Tensor, torch.Tensor] = rope(q, k, cos, sin)
    return turned


def _profile(model: nn.Module) -> KernelProfile:
    kind = getattr(getattr(model, "config", None), "model_type", "")
    profile = profile_of(kind)
    if profile is None:
        known = ", ".join(name for one in PROFILES for name in one.model_types)
        raise ModelError(f"no kernels are known for the model type {kind!r}; known are {known}")
    return profile


def _children(model: nn.Module, classes: tuple[str, ...]) -> list[tuple[str, nn.Module, str, nn.Module]]:
    """Name, parent, name within it, module: of every module of these classes, found before any is exchanged."""
    parents = dict(model.named_modules())
    found = []
    for name, module in parents.items():
        if type(module).__name__ in classes and name:
            above, _, child = name.rpartition(".")
            found.append((name, parents[above], child, module))
    return found


def _epsilon(norm: nn.Module) -> float:
    return float(getattr(norm, "variance_epsilon", None) or norm.eps)  # type: ignore[arg-type]


def _activation(unit: nn.Module) -> str | None:
    """ "silu", or the `approximate` of a GELU; None for an activation that no kernel has."""
    module: Any = getattr(unit, "act_fn", None) or getattr(unit, "activation_fn", None)
    name = type(module).__name__
    if name in ("SiLUActivation", "SiLU"):
        return "silu"
    if name in ("GELUTanh", "PytorchGELUTanh", "NewGELUActivation"):
        return "tanh"
    return "none" if name == "GELUActivation" else None


def _left(model: nn.Module, profile: KernelProfile, found: dict[str, int]) -> Iterator[str]:
    if "attention" not in found and profile.attends:
        rate = getattr(model.config, "attention_dropout", 0.0)
        yield f"attention by transformers' own{f': attention_dropout is {rate}, no kernel has one' if rate else ''}"
    for kind, classes in zip(KINDS[:3], (profile.norms, profile.mlps, profile.attentions), strict=True):
        rest = [row for row in _children(model, classes) if "forward" not in row[3].__dict__]
        if kind == "rotary positions" and not classes:
            continue  # the profile says why
        if rest:
            yield f"{len(rest)} {kind} without a kernel, such as {rest[0][0]}"
