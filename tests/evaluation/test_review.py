"""Queue and threshold against tables done by hand, brute force and scipy's Wilson interval."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from speechkit.errors import DataError
from speechkit.evaluation.calibration import ConfidenceMap
from speechkit.evaluation.judge import Judged
from speechkit.evaluation.review import errors_found, rejection_threshold, review_queue
from speechkit.types import Transcript, Word

ROWS = st.lists(st.tuples(st.integers(0, 10).map(lambda n: n / 10), st.booleans()), min_size=1, max_size=40)


def heard(text: str, sure: list[float]) -> Transcript:
    words = tuple(Word(w, at, at + 1, p) for at, (w, p) in enumerate(zip(text.split(), sure, strict=True)))
    return Transcript(text, words)


TWO = [heard("switch on the kitchen light", [0.9, 0.8, 1.0, 0.4, 0.9]), heard("", []), heard("no thanks", [0.5, 0.8])]


def test_the_least_sure_words_of_all_transcripts_come_first_and_equals_keep_their_order():
    queue = review_queue(TWO, names=["a.wav", "b.wav", "c.wav"])
    assert [item.word.text for item in queue.items] == ["kitchen", "no", "on", "thanks", "switch", "light", "the"]
    assert [(item.name, item.transcript, item.index) for item in queue.items[:3]] == [
        ("a.wav", 0, 3),
        ("c.wav", 2, 0),
        ("a.wav", 0, 1),
    ]
    assert queue.items[0].context == "switch on the [kitchen] light"
    assert queue.items[0].word is TWO[0].words[3]


def test_each_word_looks_at_its_neighbours_only():
    """An hour has 10,000 words: if each of them read all the others, that were 10^8."""
    looked = []

    class Watched(Word):
        def __getattribute__(self, name):
            if name == "text":
                looked.append(None)
            return super().__getattribute__(name)

    words = tuple(Watched("a", at, at + 1, 0.5) for at in range(200))
    assert len(review_queue([Transcript("a " * 200, words)])) == 200
    assert len(looked) == sum(min(at, 3) + 1 + min(199 - at, 3) for at in range(200))


def test_expected_errors_and_the_share_found_are_sums_done_by_hand():
    queue = review_queue(TWO)
    assert queue.expected_errors == pytest.approx(0.6 + 0.5 + 0.2 + 0.2 + 0.1 + 0.1)
    assert queue.found == pytest.approx(np.array([0, 0.6, 1.1, 1.3, 1.5, 1.6, 1.7, 1.7]) / 1.7)


@pytest.mark.parametrize(("share", "words"), [(0, 0), (0.35, 1), (0.6, 2), (0.65, 3), (1, 6)])
def test_words_to_check_for_a_share_are_the_fewest(share, words):
    assert review_queue(TWO).words_for(share) == words


def test_a_calibration_changes_the_errors_and_not_the_order():
    plain, mapped = review_queue(TWO), review_queue(TWO, ConfidenceMap(0.5, -1.0))
    assert [item.word for item in mapped.items] == [item.word for item in plain.items]
    assert mapped.items[1].error == pytest.approx(1 - 1 / (1 + math.exp(1.0)))
    assert mapped.expected_errors > plain.expected_errors


def test_the_queue_prints_its_size_and_its_first_words():
    queue = review_queue(TWO)
    assert repr(queue) == (
        "7 words, 1.7 expected errors; 50% of them in the first 2 words (29%); 80% of them in the first 4 words (57%)"
    )
    lines = queue.table(rows=2).splitlines()
    assert lines[0] == repr(queue)
    assert lines[1].split() == ["60.0%", "1", "3.00", "s", "switch", "on", "the", "[kitchen]", "light"]
    assert len(lines) == 3


def test_ideographs_stand_in_their_context_without_spaces():
    words = tuple(Word(c, 0, 1, p) for c, p in zip("中文字", [0.9, 0.1, 0.9], strict=True))
    assert review_queue([Transcript("中文字", words)]).items[0].context.replace(" ", "") == "中[文]字"


def test_nothing_to_check_is_an_empty_queue():
    for nothing in ([], [heard("", [])]):
        queue = review_queue(nothing, ConfidenceMap(2.0, 0.0))
        assert (len(queue), queue.expected_errors, queue.words_for(1.0)) == (0, 0.0, 0)
        assert repr(queue) == "0 words, 0.0 expected errors"


def test_words_that_are_all_certain_leave_nothing_to_find():
    queue = review_queue([heard("a b", [1.0, 1.0])])
    assert queue.words_for(0.9) == 0
    assert repr(queue) == "2 words, 0.0 expected errors"


def test_a_queue_of_bad_input_is_refused():
    with pytest.raises(DataError, match="1 names for 3 transcripts"):
        review_queue(TWO, names=["a"])
    with pytest.raises(DataError, match="transcript b has a text and no words"):
        review_queue([TWO[0], Transcript("ab")], names=["a", "b"])
    with pytest.raises(DataError, match="word 2 of 2 is nan"):
        review_queue([heard("a b", [0.5, math.nan])])
    with pytest.raises(DataError, match=r"share is 1\.5; it is a number from 0"):
        review_queue(TWO).words_for(1.5)


def test_true_confidences_promise_the_errors_that_come_true():
    rng = np.random.default_rng(0)
    sure = rng.beta(3, 1, 5000)
    queue = review_queue([heard(" ".join("w" * 5000), sure.tolist())])
    real = errors_found(Judged.of(sure, rng.random(5000) < sure))
    assert np.abs(queue.found - real).max() < 0.03
    assert queue.words_for(0.8) < 0.7 * 5000, "checking in this order beats any order by far"


def test_real_errors_found_are_counted_by_hand():
    rows = Judged.of([0.9, 0.1, 0.5, 0.6], [False, False, True, False])
    assert errors_found(rows) == pytest.approx([0, 1 / 3, 1 / 3, 2 / 3, 1])
    assert errors_found(Judged.of([0.5], [True])).tolist() == [1, 1]


@given(ROWS, st.sampled_from([0.0, 0.1, 0.25, 0.5]))
def test_no_other_threshold_keeps_more_words_within_the_rate(rows, rate):
    judged = Judged.of(*zip(*rows, strict=True))
    found = rejection_threshold(judged, rate)
    options = {}
    for level in set(judged.confidence.tolist()):
        kept = judged.correct[judged.confidence >= level]
        options[level] = (len(kept), float((~kept).mean()))
    fitting = {level: kept for level, (kept, wrong) in options.items() if wrong <= rate}
    assert found.reached == bool(fitting)
    if fitting:
        assert found.kept == max(fitting.values())
        assert options[found.threshold] == (found.kept, pytest.approx(found.error_rate))
    else:
        assert found.error_rate == pytest.approx(min(wrong for _, wrong in options.values()))
    assert found.coverage == pytest.approx(found.kept / len(judged))


def test_a_threshold_says_what_it_keeps_and_how_wrong_that_may_be():
    found = rejection_threshold(Judged.of([0.9] * 40 + [0.5] * 60, [True] * 39 + [False] * 41 + [True] * 20), 0.05)
    assert (found.threshold, found.coverage, found.error_rate, found.reached) == (0.9, 0.4, 0.025, True)
    assert found.upper == pytest.approx(binomtest(1, 40).proportion_ci(method="wilson").high)
    assert str(found) == (
        "confidence ≥ 0.900 keeps 40.0% of 100 words; 2.5% of 40 kept words are wrong (at most 12.9% at 95 %)"
    )
    assert found.keeps(Word("a", 0, 1, 0.9)) and not found.keeps(Word("a", 0, 1, 0.89))
    assert not found.keeps(Word("a", 0, 1, math.nan))


def test_a_rate_that_no_threshold_reaches_is_said_and_nothing_is_trusted():
    found = rejection_threshold(Judged.of([0.9, 0.9, 0.8, 0.5], [True, False, False, False]), 0.1)
    assert not found.reached
    assert str(found) == (
        "10.0% errors are not reached: at confidence ≥ 0.900, 50.0% of 2 kept words are wrong (at most 90.5% at 95 %), "
        "coverage 50.0% of 4"
    )
    assert not found.keeps(Word("a", 0, 1, 1.0))


def test_a_threshold_is_tried_on_other_words():
    found = rejection_threshold(Judged.of([0.9, 0.5], [True, False]), 0.1)
    other = found.on(Judged.of([0.95, 0.95, 0.2, 0.1], [True, False, True, True]))
    assert (other.threshold, other.coverage, other.error_rate, other.reached) == (0.9, 0.5, 0.5, False)
    assert str(found.on(Judged.of([0.2], [True]))) == "no word of 1 has a confidence of 0.900 or more"
    assert found.on(Judged.of([], [])).coverage == 0


@pytest.mark.parametrize(("right", "coverage", "reached"), [(True, 1.0, True), (False, 1.0, False)])
def test_one_sided_verdicts_keep_all_or_reach_nothing(right, coverage, reached):
    found = rejection_threshold(Judged.of([0.2, 0.9], [right] * 2), 0.0)
    assert (found.coverage, found.reached) == (coverage, reached)


@pytest.mark.parametrize("rate", [-0.1, 1.0, 5, math.nan])
def test_a_rate_that_is_none_is_refused(rate):
    with pytest.raises(DataError, match=r"it is a share of wrong words, from 0 to below 1, 0\.05 for 5 %"):
        rejection_threshold(Judged.of([0.5], [True]), rate)


def test_a_threshold_for_no_words_is_refused():
    with pytest.raises(DataError, match="no words were heard in 0 clips, so no threshold can be chosen"):
        rejection_threshold(Judged.of([], []), 0.1)
