"""Verdicts worked out by hand, and their counts against jiwer's own."""

from __future__ import annotations

import jiwer
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechkit.errors import DataError
from speechkit.evaluation.judge import Judged, judge
from speechkit.subtitles import join_words
from speechkit.types import Char, Transcript, Word


def heard(words: str | list[str], confidence: list[float] | None = None, language: str | None = None) -> Transcript:
    """Words a second long; a character is as sure as its word."""
    texts = words.split() if isinstance(words, str) else words
    sure = confidence or [0.9] * len(texts)
    made = [
        Word(text, at, at + 1, p, tuple(Char(c, at, at + 1, p) for c in text))
        for at, (text, p) in enumerate(zip(texts, sure, strict=True))
    ]
    return Transcript(join_words(texts), tuple(made), language)


@pytest.mark.parametrize(
    ("words", "reference", "verdicts", "missed"),
    [
        pytest.param("the cat sat", "the cat sat", [1, 1, 1], 0, id="every word right"),
        pytest.param("the hat sat", "the cat sat", [1, 0, 1], 0, id="one word mistaken"),
        pytest.param("the big cat", "the cat", [1, 0, 1], 0, id="one word too many"),
        pytest.param("the sat", "the cat sat", [1, 1], 1, id="one word missed"),
        pytest.param("", "the cat", [], 2, id="nothing heard"),
        pytest.param("the cat", "", [0, 0], 0, id="nothing said"),
        pytest.param("", "", [], 0, id="nothing said and nothing heard"),
        pytest.param("THE Cat,", "the cat!", [1, 1], 0, id="case and punctuation do not count"),
        pytest.param("well-known fact", "well known fact", [1, 1], 0, id="a word that splits needs both halves: right"),
        pytest.param("well-known fact", "well own fact", [0, 1], 0, id="a word that splits needs both halves: wrong"),
        pytest.param("so , yes", "so yes", [1, 1], 0, id="a comma heard as a word is not counted"),
        pytest.param("don’t", "don't", [1], 0, id="an apostrophe is an apostrophe"),
        pytest.param(["中", "文", "字"], "中国字", [1, 0, 1], 0, id="every ideograph is a word"),
    ],
)
def test_words_are_judged_as_by_hand(words, reference, verdicts, missed):
    found = judge(heard(words), reference)
    assert found.correct.tolist() == [bool(v) for v in verdicts]
    assert found.missed.tolist() == [missed]


@pytest.mark.parametrize(
    ("words", "reference", "verdicts", "missed"),
    [
        pytest.param("cat", "cut", [1, 0, 1], 0, id="one letter mistaken"),
        pytest.param("caxt", "cat", [1, 1, 0, 1], 0, id="one letter too many"),
        pytest.param("ca", "cat", [1, 1], 1, id="one letter missed"),
        pytest.param("a b", "ab", [1, 1], 0, id="a space too many is no wrong letter"),
        pytest.param("ab", "a b", [1, 1], 0, id="a missed space is no missed letter"),
        pytest.param("don't", "don't", [1] * 5, 0, id="an apostrophe inside a word is a character"),
        pytest.param("dogs'", "dogs", [1] * 4, 0, id="an apostrophe after a word is none"),
        pytest.param(["a\u0301b"], "áb", [1, 1], 0, id="a mark belongs to its letter"),
        pytest.param(["ab"], "áb", [0, 1], 0, id="a mark that was not heard makes its letter wrong"),
        pytest.param(["ﬁt"], "fit", [1, 1, 1], 0, id="a ligature is two letters"),
        pytest.param(["कि"], "की", [0], 0, id="a vowel sign belongs to its consonant"),
        pytest.param(["가", "가"], "각가", [0, 1], 0, id="a syllable is judged whole"),
        pytest.param(["\u1100\u1161\u1102\u1161"], "가나", [1, 1], 0, id="jamo make up their syllables"),
    ],
)
def test_characters_are_judged_as_by_hand(words, reference, verdicts, missed):
    found = judge(heard(words), reference, unit="char")
    assert found.correct.tolist() == [bool(v) for v in verdicts]
    assert found.missed.tolist() == [missed]


def test_a_letter_with_a_mark_is_as_sure_as_the_less_sure_of_the_two():
    word = Word("a\u0301b", 0, 1, 0.2, (Char("a", 0, 1, 0.9), Char("\u0301", 0, 1, 0.2), Char("b", 0, 1, 0.7)))
    found = judge(Transcript("a\u0301b", (word,)), "áb", unit="char")
    assert found.confidence.tolist() == [0.2, 0.7]
    assert found.index.tolist() == [0, 2]


def test_rows_carry_their_confidence_clip_and_place():
    found = judge([heard("a b", [0.1, 0.2]), heard(""), heard("c , d", [0.3, 0.9, 0.4])], ["a", "x", "c d"])
    assert found.confidence.tolist() == [0.1, 0.2, 0.3, 0.4]
    assert found.clip.tolist() == [0, 0, 2, 2]
    assert found.index.tolist() == [0, 1, 0, 2]
    assert found.missed.tolist() == [0, 1, 0]
    assert repr(found) == "Judged(4 words of 3 clips, 75.0% right, mean confidence 0.250; 1 missed)"


WORDS = st.lists(st.sampled_from("ab b cab a".split()), max_size=6).map(" ".join)


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=5))
def test_right_and_missed_add_up_to_what_jiwer_counts(pairs):
    found = judge([heard(said) for said, _ in pairs], [reference for _, reference in pairs])
    counted = [jiwer.process_words(reference, said) for said, reference in pairs]
    assert int(found.correct.sum()) == sum(one.hits for one in counted)
    assert found.missed.tolist() == [one.deletions for one in counted]


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=5))
def test_characters_are_as_many_as_there_are_letters(pairs):
    found = judge([heard(said) for said, _ in pairs], [reference for _, reference in pairs], unit="char")
    assert len(found) == sum(len(said.replace(" ", "")) for said, _ in pairs)
    for clip, (said, reference) in enumerate(pairs):
        right = int(found.correct[found.clip == clip].sum())
        assert right <= min(len(said.replace(" ", "")), len(reference.replace(" ", "")))


def test_the_transcripts_language_decides_the_letter_case():
    assert judge(heard("IŞIK", language="tr"), "ışık").correct.tolist() == [True]
    assert judge(heard("IŞIK"), "ışık").correct.tolist() == [False]
    assert judge(heard("IŞIK"), "ışık", language="tr").correct.tolist() == [True]


def test_lists_of_different_length_are_refused():
    with pytest.raises(DataError, match="2 transcripts and 1 references; give one reference per transcript"):
        judge([heard("a"), heard("b")], ["a"])
    with pytest.raises(DataError, match="0 transcripts and 0 references"):
        judge([], [])


def test_a_transcript_without_its_words_is_refused_with_the_way_out():
    with pytest.raises(DataError, match=r"transcript 2 has a text and no words.*words=True"):
        judge([heard("a"), Transcript("a b")], ["a", "a b"])
    bare = Transcript("a", (Word("a", 0, 1, 0.5),))
    with pytest.raises(DataError, match="'a' of transcript 1 has no characters with confidences; use unit='word'"):
        judge(bare, "a", unit="char")
    with pytest.raises(DataError, match='unit is \'syllable\'; it can be "word" or "char"'):
        judge(bare, "a", unit="syllable")


@pytest.mark.parametrize("bad", [float("nan"), -0.1, 1.1])
@pytest.mark.parametrize("unit", ["word", "char"])
def test_a_confidence_that_is_none_is_refused_by_its_place(bad, unit):
    with pytest.raises(DataError, match=rf"{unit} 2 of 2 is {bad}; confidences are numbers from 0 to 1 \(1 of 2"):
        judge(heard("a b", [0.5, bad]), "a b", unit=unit)


def test_rows_of_different_number_are_refused():
    with pytest.raises(DataError, match="2 confidences, 1 verdicts, 2 clips and 2 positions"):
        Judged.of([0.1, 0.2], [True])
    with pytest.raises(DataError, match="clips are numbered 0 to 3; 1 clips count from 0"):
        Judged(np.ones(2), np.ones(2, bool), np.array([0, 3]), np.zeros(2, int), np.zeros(1, int))


@given(st.integers(2, 30), st.floats(0.01, 0.99), st.integers(0, 5))
def test_a_split_parts_the_clips_and_leaves_none_out(clips, share, seed):
    rows = Judged.of(np.full(3 * clips, 0.5), np.ones(3 * clips), np.repeat(np.arange(clips), 3))
    one, other = rows.split(share, seed)
    assert sorted([*one, *other]) == list(range(clips))
    assert len(one) == min(max(round(share * clips), 1), clips - 1)
    assert len(rows.pick(one)) == 3 * len(one)


def test_a_split_by_speaker_keeps_each_speaker_on_one_side():
    speakers = list("aabbccdd")
    one, other = Judged.of([0.5] * 8, [True] * 8).split(0.5, groups=speakers)
    assert len(one) == 4
    assert not {speakers[i] for i in one} & {speakers[i] for i in other}


def test_picked_clips_keep_their_rows_and_are_numbered_anew():
    rows = judge([heard("a", [0.1]), heard("b c", [0.2, 0.3]), heard("", [])], ["a", "b", "x y"])
    picked = rows.pick([2, 1])
    assert picked.confidence.tolist() == [0.2, 0.3]
    assert picked.clip.tolist() == [1, 1]
    assert picked.missed.tolist() == [2, 0]


@pytest.mark.parametrize("share", [0, 1, float("nan")])
def test_a_share_that_leaves_a_side_empty_is_refused(share):
    with pytest.raises(DataError, match="of 3 clips cannot be split off: share is between 0 and 1"):
        Judged.of([0.5] * 3, [True] * 3).split(share)


def test_what_cannot_be_parted_is_refused():
    with pytest.raises(DataError, match=r"0\.5 of 1 clips cannot be split off"):
        Judged.of([0.5], [True]).split()
    with pytest.raises(DataError, match=r"0\.5 of 1 groups cannot be split off"):
        Judged.of([0.5] * 2, [True] * 2).split(groups=["a", "a"])
    with pytest.raises(DataError, match="1 groups for 2 clips"):
        Judged.of([0.5] * 2, [True] * 2).split(groups=["a"])
