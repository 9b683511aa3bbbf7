"""Curves with known faults, and one without."""

from __future__ import annotations

import math

import pytest

from speechkit.training.pretrain_config import PretrainCurve, PretrainPoint
from speechkit.training.pretrain_doctor import diagnose


def curve(step: int = 900, **values: float) -> PretrainCurve:
    healthy = {"loss": 3.0, "contrastive": 2.9, "diversity": 0.3, "accuracy": 0.45, "perplexity": 40.0}
    return PretrainCurve((PretrainPoint(step, 60.0, **{**healthy, **values}),), steps=1000)


@pytest.mark.parametrize(
    ("values", "name", "advice"),
    [
        ({"perplexity": 1.0, "accuracy": 1.0, "contrastive": 0.0}, "codebook collapse", "diversity_weight"),
        ({"perplexity": 1.2}, "codebook collapse", "learning_rate"),
        ({"accuracy": 0.999}, "the task is too easy", "mask more"),
        ({"accuracy": 0.012, "contrastive": 4.6}, "still guessing", "more steps"),
        ({"perplexity": 3.0}, "few codes in use", "fewer codes"),
        ({"loss": 150_000.0}, "the penalty outweighs the task", "feature_penalty to 0"),
        ({"contrastive": math.nan}, "the loss is no number", "half the learning_rate"),
        ({"loss": math.inf}, "the loss is no number", "earlier checkpoint"),
    ],
)
def test_each_fault_is_named_with_what_to_do(values: dict[str, float], name: str, advice: str) -> None:
    found = list(diagnose(curve(**values), codes=64, negatives=100))
    assert [finding.name for finding in found] == [name]
    assert advice in found[0].remedy
    assert found[0].symptom.startswith("step 900: ") and str(found[0]).startswith(name)


def test_accuracy_of_one_with_one_code_is_called_no_success() -> None:
    (found,) = diagnose(curve(perplexity=1.0, accuracy=1.0), codes=64, negatives=100)
    assert "no success" in found.symptom


def test_a_healthy_run_and_an_early_one_have_no_findings() -> None:
    assert not list(diagnose(curve(), codes=64, negatives=100))
    assert not list(diagnose(curve(step=100, accuracy=0.012, contrastive=4.6), codes=64, negatives=100))
    assert not list(diagnose(PretrainCurve(), codes=64, negatives=100))
