"""Rules on hand-made paths: 0 is the blank, 1 the delimiter, 2 … are letters."""

from __future__ import annotations

import numpy as np
import pytest

from speechkit.asr.commit import Span, agreeing, passed, seam, settled, spans, widest_pause
from speechkit.asr.decode import Alphabet, BestPath

ALPHABET = Alphabet(("", "", "a", "b", "c"), blank=0, delimiter=1)


def path(digits: str) -> BestPath:
    ids = np.array([int(digit) for digit in digits], np.int32)
    return BestPath(ids, np.zeros(len(ids), np.float32))


def test_a_word_ends_with_its_last_letter_and_is_closed_by_its_delimiter() -> None:
    assert spans(path("0220300110400"), [1, 10], ALPHABET) == [Span(1, 4, 9), Span(10, 10, None)]


def test_a_path_without_words_has_no_spans() -> None:
    assert spans(path("0000"), [], ALPHABET) == []
    assert settled([], 4, 0) == 0


def test_a_word_is_settled_once_it_is_followed_and_far_enough_from_the_edge() -> None:
    found = spans(path("22010330000"), [0, 5], ALPHABET)
    assert settled(found, 11, lag=9) == 1
    assert settled(found, 11, lag=10) == 0
    assert settled(found, 11, lag=0) == 1, "the last word has neither a delimiter nor a long pause behind it"


def test_a_long_pause_settles_a_word_that_no_delimiter_closes() -> None:
    assert settled(spans(path("22" + "0" * 14), [0], ALPHABET), 16, lag=3) == 0
    assert settled(spans(path("22" + "0" * 15), [0], ALPHABET), 17, lag=3) == 1


def test_the_seam_lies_between_the_words() -> None:
    found = spans(path("2200001330"), [0, 7], ALPHABET)
    assert 2 <= seam(found, 1, 10) <= 7
    assert seam(spans(path("220010"), [0], ALPHABET), 1, 6) == 5, "behind the delimiter"
    assert seam(spans(path("22" + "0" * 20), [0], ALPHABET), 1, 22) == 9, "in the pause, away from the last letter"


@pytest.mark.parametrize(
    ("before", "now", "count"),
    [((), ("a",), 0), (("a", "b"), ("a", "b", "c"), 2), (("a", "x"), ("a", "b"), 1), (("a", "b"), ("a",), 1)],
)
def test_two_transcripts_agree_up_to_their_first_difference(
    before: tuple[str, ...], now: tuple[str, ...], count: int
) -> None:
    assert agreeing(before, now) == count


def test_an_utterance_is_cut_in_the_widest_gap_of_its_later_half() -> None:
    found = [Span(0, 1, None), Span(9, 10, None), Span(12, 13, None), Span(17, 18, None)]
    assert widest_pause(found, 20) == 15
    assert widest_pause(found[:1], 20) == 20


def test_a_pause_is_passed_but_for_its_end() -> None:
    assert passed([], 100, lag=10) == 75, "0.3 s before what may still be read anew"
    assert passed([Span(40, 42, None)], 100, lag=10) == 25, "0.3 s before the next word"
    assert passed([Span(3, 4, None)], 100, lag=10) == passed([], 20, lag=10) == 0
