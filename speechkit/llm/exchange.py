"""A module's class exchanged for a subclass of it, one instance at a time, and back. Knows no kernel and no model.

The module itself stays: weights, children, hooks and adapters that it has or will get, its name in a state dict, and
`isinstance`. What changes is `__class__`, so that a copy, a pickle or a replica on another GPU has the kernel too, and
no other instance has it. A forward bound to the instance, the other way of doing this, would run on the replica of one
GPU with the weights of another.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from types import MethodType
from typing import TYPE_CHECKING, Any

from speechkit.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn

__all__ = ["Recipe", "put_in", "recipe_of", "take_out", "taken_in", "why_not"]

_RECIPE = "_speechkit_recipe"


@dataclass(frozen=True)
class Recipe:
    """What a class is made from; enough to make it again in another process."""

    kind: str  # of kernel, in the words of `apply_kernels`
    kernel: str  # its name in speechkit_kernels
    base: type  # transformers' class
    body: Callable[..., dict[str, Any]]  # (base, *options) → what the subclass has of its own; a module's function
    options: tuple[Any, ...] = ()


@cache  # one class for all instances: torch.compile and isinstance look at it
def _class_of(recipe: Recipe) -> type:
    base = recipe.base
    same = {name: getattr(base, name) for name in ("__module__", "__qualname__", "__doc__")}
    own = {_RECIPE: recipe, "__reduce_ex__": _reduce, "extra_repr": _extra_repr}
    return type(base.__name__, (base,), {**same, **own, **recipe.body(base, *recipe.options)})


def put_in(module: nn.Module, recipe: Recipe) -> None:
    """Give `module` the class of `recipe`; raises ModelError where `why_not` says why it cannot."""
    if reason := why_not(module):
        raise ModelError(f"no kernel for {type(module).__name__}: {reason}")
    _become(module, _class_of(recipe))


def take_out(model: nn.Module) -> int:
    """Give all modules of `model` the classes back that they had; how many. Raises ModelError before it changes one."""
    found = [(module, _own_recipe(module).base) for _, module, _ in taken_in(model)]
    for module, base in found:
        _become(module, base)
    return len(found)


def recipe_of(module: nn.Module) -> Recipe | None:
    """What was put into this module, None for nothing."""
    return getattr(type(module), _RECIPE, None)


def taken_in(model: nn.Module) -> Iterator[tuple[str, nn.Module, Recipe]]:
    """Name, module and recipe of all modules of `model` that have a kernel."""
    for name, module in model.named_modules():
        if (recipe := recipe_of(module)) is not None:
            yield name, module, recipe


def why_not(module: nn.Module) -> str:
    """Why the class of this module cannot be exchanged; empty where it can."""
    if recipe_of(module) is not None:
        return "it has one"
    forward = module.__dict__.get("forward")
    if forward is None:
        return ""
    if not hasattr(module, "_hf_hook"):
        return "somebody gave this instance a forward of its own"
    if getattr(module.__dict__.get("_old_forward"), "__func__", None) is not type(module).forward:
        return "its hook wraps a forward that is not its class's"
    return ""


def _become(module: nn.Module, other: type) -> None:
    """accelerate's hook (device_map) keeps the bound forward that it wraps: that is exchanged as well."""
    old = module.__dict__.get("_old_forward")
    hooked = getattr(old, "__func__", None) is type(module).forward
    module.__class__ = other  # type: ignore[assignment]
    if hooked:
        module.__dict__["_old_forward"] = MethodType(other.forward, module)  # type: ignore[attr-defined]


def _own_recipe(module: nn.Module) -> Recipe:
    """Raises ModelError where another class was put over ours."""
    recipe: Recipe | None = type(module).__dict__.get(_RECIPE)
    if recipe is None:
        raise ModelError(
            f"{type(module).__name__} was given another class after its kernel was put in (FSDP's fully_shard does so);"
            " take kernels out before"
        )
    return recipe


def _reduce(self: nn.Module, protocol: Any) -> Any:
    """For pickle and deepcopy: the class has no name under which it could be found again, its recipe has."""
    recipe = _own_recipe(self)
    plain: Any = object.__reduce_ex__(self, max(int(protocol), 2))
    return (_blank, (recipe,), *plain[2:])


def _blank(recipe: Recipe) -> nn.Module:
    made: Any = _class_of(recipe)
    return made.__new__(made)


def _extra_repr(self: nn.Module) -> str:
    recipe = recipe_of(self)
    assert recipe is not None
    before = recipe.base.extra_repr(self)  # type: ignore[attr-defined]
    return f"{before}, kernel={recipe.kernel}" if before else f"kernel={recipe.kernel}"
