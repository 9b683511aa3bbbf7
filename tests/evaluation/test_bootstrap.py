"""`speechkit.evaluation.bootstrap` against scipy's bootstrap and against intervals known in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from speechkit.errors import DataError
from speechkit.evaluation.bootstrap import interval, paired_replicates, pooled, replicates


def corpus(count: int = 80, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    said = rng.integers(3, 15, count)
    return rng.binomial(said, rng.beta(1, 6, count)), said


def test_the_interval_is_that_of_scipy():
    wrong, said = corpus()
    found = stats.bootstrap(
        (wrong, said), lambda e, n, axis=-1: e.sum(axis) / n.sum(axis), paired=True, vectorized=True,
        method="percentile", n_resamples=20_000, rng=np.random.default_rng(5),
    )  # fmt: skip
    low, high = interval(wrong, said, draws=20_000)
    width = found.confidence_interval.high - found.confidence_interval.low
    assert low == pytest.approx(found.confidence_interval.low, abs=0.03 * width)
    assert high == pytest.approx(found.confidence_interval.high, abs=0.03 * width)
    assert replicates(wrong, said, 20_000).std() == pytest.approx(found.standard_error, rel=0.03)


def test_utterances_of_one_word_give_the_normal_interval_of_a_share():
    wrong = np.arange(400) < 100
    low, high = interval(wrong, np.ones(400), draws=20_000)
    spread = 1.96 * math.sqrt(0.25 * 0.75 / 400)
    assert (low, high) == pytest.approx((0.25 - spread, 0.25 + spread), abs=0.004)


def test_nineteen_intervals_of_twenty_hold_the_true_rate():
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(300):
        said = rng.integers(4, 12, 60)
        low, high = interval(rng.binomial(said, 0.2), said, draws=400, seed=trial)
        held += low <= 0.2 <= high
    assert 0.90 <= held / 300 <= 0.98


def test_many_portions_are_as_good_as_one(monkeypatch):
    wrong, said = corpus()
    whole = replicates(wrong, said, 5000)
    monkeypatch.setattr("speechkit.evaluation.bootstrap.DRAWS", 1000)
    parts = replicates(wrong, said, 5000)
    assert len(parts) == len(whole) == 5000
    assert np.quantile(parts, [0.1, 0.9]) == pytest.approx(np.quantile(whole, [0.1, 0.9]), rel=0.05)


def test_the_same_seed_gives_the_same_interval_and_another_one_another():
    wrong, said = corpus()
    assert interval(wrong, said, seed=3) == interval(wrong, said, seed=3) != interval(wrong, said, seed=4)


def test_without_an_error_the_upper_end_is_the_rule_of_three():
    low, high = interval(np.zeros(100), np.full(100, 3))
    assert low == 0.0 and high == pytest.approx(3 / 300, rel=0.01)


@pytest.mark.parametrize("said", [[], [5], [5, 0], [0, 0]])
def test_fewer_than_two_blocks_with_words_have_no_interval(said):
    assert all(math.isnan(end) for end in interval(np.ones(len(said)), said))


def test_draws_without_a_reference_word_are_left_out():
    rates = replicates([1, 1], [2, 0], 1000)
    assert len(rates) < 1000 and set(np.round(rates, 3)) == {0.5, 1.0}


def test_systems_drawn_on_the_same_clips_differ_less_than_on_clips_of_their_own():
    rng = np.random.default_rng(0)
    hard = rng.integers(0, 9, 100)
    a, b, said = hard + 1, hard, np.full(100, 10)
    together = paired_replicates(a, b, said)
    assert together == pytest.approx(np.full(len(together), -0.1))
    assert (replicates(b, said, seed=1) - replicates(a, said, seed=2)).std() > 0.02


def test_groups_are_summed_and_must_be_one_per_utterance():
    blocks = pooled([[1, 2, 3], [4, 5, 6]], ["b", "a", "b"])
    assert blocks.tolist() == [[2, 4], [5, 10]]
    assert pooled([[1, 2]]).tolist() == [[1, 2]]
    with pytest.raises(DataError, match="1 groups for 2 utterances; give one per utterance"):
        pooled([[1, 2]], ["a"])


def test_where_speakers_differ_only_drawing_speakers_tells_how_far_the_rate_may_be_off():
    rng = np.random.default_rng(0)
    held = {"utterances": 0, "speakers": 0}
    for trial in range(150):
        home = np.repeat(np.arange(24), 10)
        said = rng.integers(4, 12, 240)
        wrong = rng.binomial(said, np.repeat(rng.beta(1, 6, 24), 10))  # a speaker's rate is 1/7 on average
        for name, groups in (("utterances", None), ("speakers", home.tolist())):
            low, high = interval(*pooled([wrong, said], groups), draws=400, seed=trial)
            held[name] += low <= 1 / 7 <= high
    assert held["utterances"] / 150 < 0.75 < 0.85 < held["speakers"] / 150
