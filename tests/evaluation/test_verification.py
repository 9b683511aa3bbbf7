"""Equal error rates against scikit-learn's ROC, and pairs against plain loops."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_curve

from speechkit.errors import DataError
from speechkit.evaluation import verification
from speechkit.evaluation.verification import equal_error_rate, verify


@settings(max_examples=50)
@given(st.integers(0, 9999), st.floats(0, 3))
def test_the_rate_is_where_the_roc_curve_crosses_the_diagonal(seed: int, apart: float) -> None:
    rng = np.random.default_rng(seed)
    same, different = rng.standard_normal(200) + apart, rng.standard_normal(300)
    rate, threshold = equal_error_rate(same, different)
    accepted, hit, _ = roc_curve([1] * 200 + [0] * 300, np.concatenate([same, different]), drop_intermediate=False)
    at = int(np.argmin(np.abs(1 - hit - accepted)))
    assert rate == pytest.approx((1 - hit[at] + accepted[at]) / 2, abs=0.006)
    assert np.mean(same < threshold) == pytest.approx(rate, abs=0.006)
    assert np.mean(different >= threshold) == pytest.approx(rate, abs=0.006)


def test_perfect_and_hopeless_scores() -> None:
    assert equal_error_rate(np.array([2.0, 3.0]), np.array([0.0, 1.0]))[0] == 0
    assert equal_error_rate(np.array([0.0, 1.0]), np.array([2.0, 3.0]))[0] == 1
    assert equal_error_rate(np.ones(5), np.ones(5))[0] == pytest.approx(0.5)


def test_every_pair_is_counted_but_those_kept_apart() -> None:
    rng = np.random.default_rng(0)
    speakers, texts = [n % 4 for n in range(24)], [n % 3 for n in range(24)]
    vectors = rng.standard_normal((4, 16))[speakers] * 3 + rng.standard_normal((24, 16))
    found = verify(vectors, speakers, apart=texts)
    pairs = [(a, b) for a, b in combinations(range(24), 2) if texts[a] != texts[b]]
    assert found.same == sum(speakers[a] == speakers[b] for a, b in pairs)
    assert found.different == len(pairs) - found.same
    centred = vectors - vectors.mean(0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    wanted = sorted(float(unit[a] @ unit[b]) for a, b in pairs if speakers[a] == speakers[b])
    np.testing.assert_allclose(np.sort(found.scores_same), wanted, atol=1e-5)
    assert found.eer < 0.1 and "equal error rate" in str(found)


def test_one_kind_of_pair_is_not_enough() -> None:
    with pytest.raises(DataError, match="no pair of one speaker among 3 clips"):
        verify(np.eye(3), ["a", "b", "c"])
    with pytest.raises(DataError, match="no pair of one speaker among 4 clips"):
        verify(np.eye(4), ["a", "a", "b", "b"], apart=["x"] * 4)
    with pytest.raises(DataError, match="3 names to keep apart and 4 vectors"):
        verify(np.eye(4), ["a", "a", "b", "b"], apart=["x"] * 3)
    with pytest.raises(DataError, match="scores of one kind only"):
        equal_error_rate(np.ones(3), np.zeros(0))


def test_pairs_met_in_blocks_are_the_same_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    vectors, speakers = rng.standard_normal((50, 8)), rng.integers(0, 4, 50).tolist()
    whole = verify(vectors, speakers)
    monkeypatch.setattr(verification, "ROWS", 7)
    found = verify(vectors, speakers)
    assert (found.same, found.different) == (whole.same, whole.different)
    np.testing.assert_allclose(np.sort(found.scores_different), np.sort(whole.scores_different), atol=1e-6)


def test_of_very_many_pairs_a_random_share_gives_the_same_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    speakers = rng.integers(0, 20, 800)
    vectors = rng.standard_normal((20, 8))[speakers] + rng.standard_normal((800, 8))
    whole = verify(vectors, speakers.tolist())
    monkeypatch.setattr(verification, "MOST_PAIRS", 10_000)
    found = verify(vectors, speakers.tolist())
    assert found.same == pytest.approx(10_000, rel=0.05) and found.different == pytest.approx(10_000, rel=0.05)
    assert found.eer == pytest.approx(whole.eer, abs=0.01)
