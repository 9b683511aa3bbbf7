"""`speechkit.evaluation.metrics` against rates counted by hand: edits over reference words."""

import math
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechkit.errors import DataError
from speechkit.evaluation.metrics import Rate, align, cer, error_rate, first_figure, wer


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


@pytest.mark.parametrize(
    ("said", "heard", "edits", "units"),
    [
        pytest.param("abc de", "abd de", 1, 6, id="a space counts as a character"),
        pytest.param("Ab, c!", "ab c", 0, 4, id="case and punctuation do not count"),
        pytest.param("हिन्दी", "हन्दी", 1, 6, id="a vowel sign is a character"),
        pytest.param("你好", "你 号", 1, 2, id="Chinese has no spaces"),
        pytest.param("café", "cafe\u0301", 0, 4, id="composed and decomposed letters are one"),
    ],
)
def test_character_rate_is_edits_over_characters(said, heard, edits, units):
    assert cer(said, heard) == pytest.approx(edits / units)


def test_words_of_a_script_without_spaces_are_its_characters():
    assert wer("你好世界", "你好世间") == 0.25


def test_a_rate_prints_with_its_interval_and_says_how_it_was_averaged():
    rate = error_rate(["a b c d", "e f"], ["a b c x", "e f"])
    assert (rate.value, rate.errors, rate.count, rate.blocks) == (1 / 6, 1, 6, 2)
    assert str(rate) == "16.7 % [0.0, 25.0]"
    assert "1 edits over 6 reference words of the whole corpus" in repr(rate) and "2 utterances drawn anew" in repr(
        rate
    )
    assert float(rate) == rate.value


def test_one_utterance_has_a_rate_and_no_interval():
    rate = error_rate("a b", "a c")
    assert math.isnan(rate.low) and str(rate) == "50.0 % [–]"
    assert "no interval: 1 utterances" in repr(rate)


def test_raw_rates_take_the_texts_as_written():
    assert error_rate("Hello, World!", "hello world", normalize=False).errors == 2
    assert error_rate("Cafe\u0301  x", "Café x", "char", normalize=False).errors == 0


def test_letters_of_korean_syllables_are_counted_apart():
    rate = error_rate("한국", "한극", "jamo")
    assert (rate.errors, rate.count) == (1, 6)
    assert "letters" in repr(rate)


@pytest.mark.parametrize(
    ("language", "texts", "unit"),
    [
        ("zh", [], "char"),
        ("zh-TW", [], "char"),
        ("th", [], "char"),
        ("ko", [], "char"),
        ("en", ["你好"], "word"),
        ("uk", [], "word"),
        (None, ["你好世界 ok"], "char"),
        (None, ["hello 你"], "word"),
        (None, [], "word"),
    ],
)
def test_the_first_figure_goes_by_language_then_by_script_and_gives_a_reason(language, texts, unit):
    choice = first_figure(language, texts)
    assert choice.value == unit and choice.reason
    if texts:
        assert error_rate(texts, texts, language=language).unit == unit


def test_speakers_are_drawn_whole():
    assert error_rate(["a", "b", "c"], ["a", "x", "c"], groups=["s", "s", "t"]).blocks == 2


def test_a_rate_over_nothing_is_no_number_and_says_so():
    assert str(error_rate(["", ""], ["a", ""])) == "– [–]"
    assert error_rate(["", ""], ["", ""]).value == 0.0


def test_units_and_counts_that_cannot_be_are_told():
    with pytest.raises(DataError, match='unit is \'phone\'; it can be "word", "char" or "jamo"'):
        error_rate("a", "b", "phone")
    with pytest.raises(DataError, match=r"errors of shape \(2,\) and counts of shape \(1,\)"):
        Rate.of([1, 2], [3])
    for call in (wer, cer, error_rate):
        with pytest.raises(DataError, match='hypothesis 2 is NoneType; give texts, "" where nothing was heard'):
            call(["a", "b"], ["a", None])
    with pytest.raises(DataError, match="2 references and 1 hypotheses"):
        cer(["a", "b"], ["a"])
    with pytest.raises(DataError, match="a character error rate is not defined"):
        cer("", "a")


UNITS = st.lists(st.sampled_from("abc"), max_size=7)


@given(UNITS, UNITS)
def test_an_alignment_spells_both_sides_and_is_as_short_as_any(said, heard):
    columns = align([said], [heard])[0]
    assert [said[i] for _, i, _ in columns if i >= 0] == said
    assert [heard[j] for _, _, j in columns if j >= 0] == heard
    assert all((kind == "equal") == (i >= 0 and j >= 0 and said[i] == heard[j]) for kind, i, j in columns)
    assert sum(kind != "equal" for kind, _, _ in columns) == distance(tuple(said), tuple(heard))


@cache
def distance(a: tuple[str, ...], b: tuple[str, ...]) -> int:
    """Levenshtein distance by its definition."""
    if not a or not b:
        return len(a) + len(b)
    keep = distance(a[1:], b[1:]) + (a[0] != b[0])
    return min(keep, distance(a[1:], b) + 1, distance(a, b[1:]) + 1)
