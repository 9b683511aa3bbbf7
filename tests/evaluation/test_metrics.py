"""`speechkit.evaluation.metrics` against rates counted by hand: edits over reference words."""

import pytest

from speechkit.errors import DataError
from speechkit.evaluation.metrics import wer


@pytest.mark.parametrize(
    ("references", "hypotheses", "edits", "words"),
    [
        pytest.param("the cat sat", "the cat sat", 0, 3, id="equal texts make no error"),
        pytest.param("the cat sat", "the hat sat", 1, 3, id="one wrong word of three"),
        pytest.param("the cat sat", "the cat", 1, 3, id="one word missing"),
        pytest.param("the cat", "the big cat", 1, 2, id="one word too many"),
        pytest.param("yes", "no no no", 3, 1, id="more errors than words give a rate above one"),
        pytest.param("The cat, sat!", "the CAT sat", 0, 3, id="case and punctuation do not count"),
        pytest.param(
            ["one two three four", "five"], ["one two three four", "six"], 1, 5, id="pairs are pooled, not averaged"
        ),
        pytest.param(["one", ""], ["one", ""], 0, 1, id="a silent pair among others"),
        pytest.param("", "", 0, 1, id="nothing said and nothing heard"),
        pytest.param("zażółć gęślą", "zażółć gesla", 1, 2, id="an accent lost is a wrong word"),
    ],
)
def test_rate_is_edits_over_reference_words(references, hypotheses, edits, words):
    assert wer(references, hypotheses) == pytest.approx(edits / words)


def test_lists_of_different_length_are_refused():
    with pytest.raises(DataError, match="2 references and 1 hypotheses; give one hypothesis per reference"):
        wer(["a", "b"], ["a"])


def test_words_heard_where_nothing_was_said_have_no_rate():
    with pytest.raises(DataError, match="not defined"):
        wer(["", "..."], ["", "hello"])
