"""Measures against scikit-learn, against sums done by hand and against simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from speechkit.errors import DataError
from speechkit.evaluation.judge import Judged
from speechkit.evaluation.reliability import bin_numbers, reliability

ROWS = st.lists(st.tuples(st.integers(0, 20).map(lambda n: n / 20), st.booleans()), min_size=1, max_size=60)


def drawn(count: int = 4000, seed: int = 0, power: float = 1.0) -> Judged:
    """Correctness drawn from confidence ** power: power 1 is calibrated, above 1 overconfident."""
    rng = np.random.default_rng(seed)
    sure = rng.beta(4, 1.5, count)
    return Judged.of(sure, rng.random(count) < sure**power)


def test_the_measures_equal_scikit_learns():
    rows = drawn(power=2)
    found = reliability(rows)
    assert found.brier == pytest.approx(brier_score_loss(rows.correct, rows.confidence))
    assert found.auroc == pytest.approx(roc_auc_score(rows.correct, rows.confidence))
    flat = log_loss(rows.correct, np.full(len(rows), rows.correct.mean()))
    assert found.nce == pytest.approx(1 - log_loss(rows.correct, rows.confidence) / flat)


@given(ROWS)
def test_auroc_equals_scikit_learns_with_ties(rows):
    sure, right = zip(*rows, strict=True)
    found = reliability(Judged.of(sure, right))
    if len(set(right)) == 1:
        assert math.isnan(found.auroc) and math.isnan(found.nce)
    else:
        assert found.auroc == pytest.approx(roc_auc_score(right, sure))


@given(ROWS, st.integers(1, 20))
def test_bins_of_equal_width_equal_scikit_learns_also_on_the_edges(rows, bins):
    sure, right = (np.array(column) for column in zip(*rows, strict=True))
    found = reliability(Judged.of(sure, right), bins)
    shares, means = calibration_curve(right, sure, n_bins=bins, strategy="uniform", pos_label=True)
    assert [b.accuracy for b in found.bins] == pytest.approx(shares.tolist())
    assert [b.confidence for b in found.bins] == pytest.approx(means.tolist())


def test_bins_of_equal_mass_equal_scikit_learns_where_no_confidences_are_equal():
    rows = drawn(600, power=2)
    found = reliability(rows, 10, "mass")
    shares, means = calibration_curve(rows.correct, rows.confidence, n_bins=10, strategy="quantile")
    assert [b.count for b in found.bins] == [60] * 10
    assert [b.accuracy for b in found.bins] == pytest.approx(shares.tolist(), abs=0.02)  # an edge word may change sides
    assert [b.confidence for b in found.bins] == pytest.approx(means.tolist(), abs=0.02)


def test_the_error_of_a_table_done_by_hand():
    # (0, 0.5]: 0.2 0.4, none right: gap 0.3; (0.5, 1]: 0.6 0.8 1.0, two right: gap |2/3 - 0.8|
    found = reliability(Judged.of([0.2, 0.4, 0.6, 0.8, 1.0], [0, 0, 1, 0, 1]), bins=2)
    assert found.ece == pytest.approx((2 * 0.3 + 3 * (0.8 - 2 / 3)) / 5)
    assert [(b.low, b.high, b.count) for b in found.bins] == [(0.0, 0.5, 2), (0.5, 1.0, 3)]


def test_one_bin_compares_the_two_means():
    found = reliability(Judged.of([0.9, 0.7], [True, False]), bins=1)
    assert found.ece == pytest.approx(0.3)
    assert found.binned == "1 equal-width bin"


@pytest.mark.parametrize("binning", ["width", "mass"])
@pytest.mark.parametrize(("right", "ece"), [(True, 0.4), (False, 0.6)], ids=["all right", "all wrong"])
def test_one_sided_verdicts_have_an_error_and_say_that_order_is_undefined(binning, right, ece):
    found = reliability(Judged.of([0.5, 0.6, 0.7], [right] * 3), binning=binning)
    assert found.ece == pytest.approx(ece)
    assert math.isnan(found.auroc) and math.isnan(found.nce)
    assert "NCE undefined, AUROC undefined" in repr(found)


@given(ROWS, st.integers(1, 8), st.randoms())
def test_mass_bins_never_part_equal_confidences_and_ignore_the_order_of_rows(rows, bins, random):
    sure = np.array([p for p, _ in rows])
    numbers = bin_numbers(sure, bins, "mass")
    for level in set(sure.tolist()):
        assert len(set(numbers[sure == level].tolist())) == 1
    mixed = random.sample(rows, len(rows))
    first, second = (reliability(Judged.of(*zip(*some, strict=True)), bins, "mass") for some in (rows, mixed))
    assert first.ece == pytest.approx(second.ece)
    assert sum(b.count for b in first.bins) == len(rows)


@pytest.mark.parametrize("binning", ["width", "mass"])
def test_the_error_by_chance_is_what_true_confidences_show(binning):
    errors = [reliability(drawn(800, seed), binning=binning).ece for seed in range(60)]
    promised = reliability(drawn(800), binning=binning).ece_by_chance
    assert promised == pytest.approx(np.mean(errors), rel=0.1)


def test_overconfidence_shows_as_an_error_far_beyond_chance():
    found = reliability(drawn(power=2))
    truth = np.mean([p - p**2 for p in drawn(200_000, 1).confidence])
    assert found.ece == pytest.approx(truth, abs=0.02)
    assert found.ece > 5 * found.ece_by_chance


def test_printing_gives_one_line_and_the_table_one_per_bin():
    found = reliability(Judged.of([0.2, 0.4, 0.9, 0.9], [0, 0, 1, 0]), bins=2)
    assert repr(found).startswith("ECE 0.350 in 2 equal-width bins (")
    assert "\n" not in repr(found) and "4 words, 25.0% right, mean confidence 0.600" in repr(found)
    lines = found.table().splitlines()
    assert len(lines) == 1 + len(found.bins) + 1
    assert lines[2].split() == ["0.50–1.00", "2", "0.900", "0.500", "-0.400"]


def test_the_table_stars_a_gap_beyond_chance():
    found = reliability(Judged.of([0.9] * 200, [True] * 100 + [False] * 100), bins=1)
    assert found.table().splitlines()[1].endswith("*")


def test_no_words_are_refused():
    with pytest.raises(DataError, match="no words were heard in 0 clips, so there is nothing to measure"):
        reliability(Judged.of([], []))


@pytest.mark.parametrize(
    ("bins", "binning", "message"),
    [(0, "width", "bins is 0; it is 1 or more"), (15, "log", 'binning is \'log\'; it can be "width" or "mass"')],
)
def test_bins_that_cannot_be_are_refused(bins, binning, message):
    with pytest.raises(DataError, match=message):
        reliability(drawn(10), bins, binning)


def test_a_certain_mistake_costs_much_and_not_infinitely_much():
    assert math.isfinite(reliability(Judged.of([1.0, 0.0, 0.5], [False, True, True])).nce)
