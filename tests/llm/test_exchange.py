"""A class exchanged for one instance and back, with a recipe that knows no kernel."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from speechkit.errors import ModelError
from speechkit.llm.exchange import Recipe, put_in, recipe_of, take_out, taken_in, why_not


def doubled(base: type, times: float) -> dict[str, Any]:
    return {"forward": lambda self, x: times * base.forward(self, x)}  # type: ignore[attr-defined]


TWICE = Recipe("norms", "twice", nn.LayerNorm, doubled, (2.0,))
X = torch.arange(8.0).reshape(2, 4)


def test_the_module_stays_itself_and_computes_as_the_recipe_says_until_it_is_taken_out() -> None:
    module, other = nn.LayerNorm(4), nn.LayerNorm(4)
    weights, plain = dict(module.named_parameters()), module(X)
    put_in(module, TWICE)
    assert torch.equal(module(X), 2 * plain) and torch.equal(other(X), plain)
    assert isinstance(module, nn.LayerNorm) and type(module).__name__ == "LayerNorm"
    assert all(weight is weights[name] for name, weight in module.named_parameters())
    assert recipe_of(module) is TWICE and recipe_of(other) is None
    assert repr(module).startswith("LayerNorm((4,), eps=1e-05") and repr(module).endswith(", kernel=twice)")
    assert take_out(module) == 1 and type(module) is nn.LayerNorm and torch.equal(module(X), plain)


def test_two_instances_share_one_class_that_another_recipe_does_not() -> None:
    one, two, three = nn.LayerNorm(4), nn.LayerNorm(4), nn.LayerNorm(4)
    put_in(one, TWICE)
    put_in(two, Recipe("norms", "twice", nn.LayerNorm, doubled, (2.0,)))
    put_in(three, Recipe("norms", "thrice", nn.LayerNorm, doubled, (3.0,)))
    assert type(one) is type(two) is not type(three)


def test_all_modules_of_a_tree_are_found_and_taken_out() -> None:
    tree = nn.Sequential(nn.LayerNorm(4), nn.Sequential(nn.LayerNorm(4), nn.ReLU()))
    put_in(tree[0], TWICE)
    put_in(tree[1][0], TWICE)
    assert [name for name, _, _ in taken_in(tree)] == ["0", "1.0"]
    assert take_out(tree) == 2 and not list(taken_in(tree))


def pickled(module: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(module))  # noqa: S301 - our own bytes


@pytest.mark.parametrize("twin_of", [copy.deepcopy, copy.copy, pickled])
def test_copies_and_pickles_keep_what_was_put_in(twin_of: Any) -> None:
    module = nn.LayerNorm(4)
    put_in(module, TWICE)
    twin = twin_of(module)
    assert twin is not module and torch.equal(twin(X), module(X))
    take_out(module)
    assert torch.equal(twin(X), 2 * module(X))


def test_hooks_that_a_module_has_are_called() -> None:
    module, seen = nn.LayerNorm(4), []
    module.register_forward_hook(lambda *_: seen.append("after"))
    put_in(module, TWICE)
    module(X)
    assert seen == ["after"]


def test_what_cannot_be_exchanged_is_refused_with_its_reason() -> None:
    module = nn.LayerNorm(4)
    put_in(module, TWICE)
    with pytest.raises(ModelError, match="no kernel for LayerNorm: it has one"):
        put_in(module, TWICE)
    module = nn.LayerNorm(4)
    module.forward = lambda x: x  # type: ignore[method-assign]
    assert why_not(module) == "somebody gave this instance a forward of its own"
    with pytest.raises(ModelError, match="a forward of its own"):
        put_in(module, TWICE)


def test_a_hook_of_accelerate_over_a_forward_that_is_not_the_classs_is_left() -> None:
    from accelerate.hooks import ModelHook, add_hook_to_module

    module = nn.LayerNorm(4)
    module.forward = lambda x: x  # type: ignore[method-assign]
    add_hook_to_module(module, ModelHook())
    assert why_not(module) == "its hook wraps a forward that is not its class's"
