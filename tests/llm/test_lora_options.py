"""Options of an adapter: what goes together, and the sentences for what does not."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from speechkit.errors import PlanError
from speechkit.llm.lora_options import LoraOptions


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"rank": 0}, "rank is 0; it should be 1 or more, usually 8 to 64"),
        ({"rank": 8.0}, "rank is 8.0; it should be of type int"),
        ({"rank": True}, "rank is True; it should be of type int"),
        ({"alpha": 0}, "alpha is 0; it should be more than 0, usually once or twice the rank"),
        ({"alpha": float("nan")}, "alpha is nan; it should be more than 0"),
        ({"alpha": "32"}, "alpha is '32'; it should be a number"),
        ({"dropout": 1.0}, "dropout is 1.0, a share: it should be 0 or more and less than 1"),
        ({"rslora": 1}, "rslora is 1; it should be of type bool"),
        ({"part": "ears"}, "part is 'ears'; it can be 'text', 'vision', 'both'"),
        ({"init": "zeros"}, "init is 'zeros'; it can be 'default', 'gaussian', 'random'"),
        ({"init": "pissa_niter_4"}, "init is 'pissa_niter_4', which changes the base's own weights or needs data"),
        ({"targets": ()}, "targets is empty, so that nothing would learn; give 'auto', 'all-linear' or names"),
        ({"targets": ("auto", "q_proj")}, r"targets is \('auto', 'q_proj'\): 'auto' stands alone"),
        ({"targets": ("q_proj", 3)}, "targets holds 3; it should hold names of layers, such as 'q_proj'"),
        ({"targets": None}, "targets is None; it should be a name of layers, such as 'q_proj', or several"),
        ({"also_train": 3}, "also_train is 3; it should be a name of layers"),
        ({"experts": True, "dropout": 0.1}, "experts=True does not go with dropout 0.1: .* leave experts or dropout"),
        ({"experts": True, "dora": True}, "experts=True does not go with dora"),
    ],
    ids=lambda x: str(x) if isinstance(x, dict) else "",
)
def test_what_cannot_work_is_refused_with_what_can(given: dict[str, Any], text: str) -> None:
    with pytest.raises(PlanError, match=text):
        LoraOptions(**given)


def test_they_are_frozen_and_changed_by_making_others_that_are_checked_again() -> None:
    options = LoraOptions()
    with pytest.raises(FrozenInstanceError):
        options.rank = 3  # type: ignore[misc]
    assert options.replace(rank=4).rank == 4
    with pytest.raises(PlanError, match="rank is 0"):
        options.replace(rank=0)


def test_they_go_through_json_and_come_back_the_same() -> None:
    options = LoraOptions(rank=8, alpha=4.5, targets=("q_proj", "v_proj"), also_train=("lm_head",), part="both")
    assert LoraOptions(**json.loads(json.dumps(options.as_dict()))) == options


def test_the_scale_is_that_of_the_papers() -> None:
    assert LoraOptions(rank=16, alpha=32).scale == 2
    assert LoraOptions(rank=16, alpha=32, rslora=True).scale == 8


def test_they_print_as_one_line() -> None:
    assert str(LoraOptions()) == "LoRA of rank 16, alpha 32, on the layers that its family is adapted on"
    options = LoraOptions(rank=8, dora=True, rslora=True, dropout=0.05, part="both", targets="all-linear")  # type: ignore[arg-type]
    assert str(options) == "DoRA of rank 8, alpha 32 / √rank, on all linear layers (both), dropout 0.05"
