"""One normal form for training and scoring."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.text import (
    alphabet,
    as_written,
    from_jamo,
    has_unspaced_script,
    normalize,
    split_words,
    to_jamo,
)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("Hello, World!", "hello world"),
        ("  two\t spaces\n here ", "two spaces here"),
        ("well-known — isn’t it?", "well known isn't it"),
        ("'quoted' dogs' rock 'n' roll", "quoted dogs rock n roll"),
        ("L'Été", "l'été"),
        ("5'6\" tall, 100%", "5 6 tall 100"),
        ("мʼята і м'ята", "м'ята і м'ята"),
        ("Straße", "straße"),
        ("ΟΔΟΣ", "οδος"),
        ("", ""),
        ("…!?", ""),
    ],
)
def test_case_marks_and_spaces_are_levelled(raw: str, expected: str) -> None:
    assert normalize(raw) == expected


def test_a_decomposed_letter_equals_its_composed_form() -> None:
    assert normalize("Łódź café") == normalize(unicodedata.normalize("NFD", "Łódź café")) == "łódź café"


@pytest.mark.parametrize("word", ["हिन्दी", "ภาษาไทย", "น้ำ", "தமிழ்", "বাংলা", "עִבְרִית", "العَرَبِيَّة"])
def test_combining_marks_stay(word: str) -> None:
    assert normalize(word) == unicodedata.normalize("NFC", word)


def test_korean_jamo_are_composed_and_single_letters_stay_letters() -> None:
    assert normalize(unicodedata.normalize("NFD", "안녕하세요")) == "안녕하세요"
    assert normalize("ㄱㄴ") == "ㄱㄴ"


def test_typographic_forms_of_a_letter_are_that_letter() -> None:
    assert normalize("ＡＢＣ ｶﾞ ﬁn") == "abc ガ fin"
    assert normalize("ﻼ") == "لا"


def test_what_no_reader_sees_is_dropped() -> None:
    assert normalize("co\u00adope\u200brate\ufeff") == "cooperate"
    assert normalize("مـــرحبا") == "مرحبا"


def test_scripts_without_spaces_lose_the_spaces_between_their_characters() -> None:
    assert normalize("你 好 ， 世界 OK 吗") == "你好世界 ok 吗"


def test_turkish_casing_is_used_only_when_asked_for() -> None:
    assert normalize("ISPARTA İL", "tr") == "ısparta il"
    assert normalize("ISPARTA") == "isparta"


# letters of many scripts, marks, punctuation, invisible characters and the apostrophes that the rules are about
TEXTS = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from("'’ʼ aéİΣ你ガﾞ́ำ\u200d-")), max_size=40)


@given(TEXTS)
@settings(max_examples=300)
def test_normalising_twice_changes_nothing(raw: str) -> None:
    once = normalize(raw)
    assert normalize(once) == once


@given(TEXTS)
@settings(max_examples=300)
def test_only_letters_marks_numbers_apostrophes_and_single_spaces_remain(raw: str) -> None:
    text = normalize(raw)
    assert all(char in "' " or unicodedata.category(char)[0] in "LMN" for char in text)
    assert text == " ".join(text.split(" ")).strip()
    assert unicodedata.is_normalized("NFC", text)


@given(TEXTS)
@settings(max_examples=300)
def test_words_joined_give_back_the_text_without_its_spaces(raw: str) -> None:
    text = normalize(raw)
    assert "".join(split_words(text)) == text.replace(" ", "")


def test_words_are_split_at_spaces_or_at_characters_by_script() -> None:
    assert split_words("the cat sat") == ["the", "cat", "sat"]
    assert split_words("你好 ok 吗") == ["你", "好", "ok", "吗"]
    assert split_words("abc你def") == ["abc", "你", "def"]
    assert split_words("กิน") == ["กิ", "น"]
    assert split_words("안녕 하세요") == ["안녕", "하세요"]
    assert split_words("") == []


def test_scripts_without_spaces_are_recognised() -> None:
    assert has_unspaced_script("ok 你")
    assert has_unspaced_script("ไทย")
    assert not has_unspaced_script("안녕 hello हिन्दी")


def test_the_alphabet_is_what_normalised_texts_are_made_of() -> None:
    assert alphabet(["Cab!", "it's Ça"]) == ("'", "a", "b", "c", "i", "s", "t", "ç")
    assert alphabet([]) == ()


HANGUL = st.characters(min_codepoint=0xAC00, max_codepoint=0xD7A3)


@given(st.text(st.one_of(HANGUL, st.sampled_from("a é你 ")), max_size=20))
def test_korean_syllables_come_apart_and_together_again(text: str) -> None:
    letters = to_jamo(text)
    assert from_jamo(letters) == text
    assert not any("가" <= char <= "힣" for char in letters)


@given(HANGUL)
def test_the_letters_of_a_syllable_are_those_of_unicode(syllable: str) -> None:
    # the compatibility letters' own decomposition, and the syllable's, end in the same conjoining jamo by name
    names = [unicodedata.name(char).split(maxsplit=2)[2] for char in to_jamo(syllable)]
    parts = [unicodedata.name(char).split(maxsplit=2)[2] for char in unicodedata.normalize("NFD", syllable)]
    assert names == parts


def test_korean_letters_that_form_no_syllable_stay() -> None:
    assert from_jamo("ㅋㅋ ㅏ 하ㄴ") == "ㅋㅋ ㅏ 하ㄴ"
    assert from_jamo("ㄱㅏㄱㅏ ㄱㅏㄱㄱㅏ ㄷㅏㄺ") == "가가 각가 닭"


def test_vowel_signs_that_may_be_left_out_go_when_asked() -> None:
    assert normalize("كَتَبَ الرَّجُلُ", vowels=False) == "كتب الرجل"
    assert normalize("שָׁלוֹם", vowels=False) == "שלום"
    assert normalize("رأى آدم مؤمن", vowels=False) == "رأى آدم مؤمن"
    assert normalize(unicodedata.normalize("NFD", "رأى آدم"), vowels=False) == "رأى آدم"
    assert normalize("हिन्दी น้ำ", vowels=False) == "हिन्दी น้ำ"


@given(st.text(st.one_of(st.characters(min_codepoint=0x590, max_codepoint=0x6FF), st.sampled_from("aé ")), max_size=20))
def test_leaving_vowel_signs_out_is_done_after_once_and_shortens_only(raw: str) -> None:
    bare = normalize(raw, vowels=False)
    assert normalize(bare, vowels=False) == bare == normalize(normalize(raw), vowels=False)
    assert len(bare) <= len(normalize(raw))


def test_radicals_are_the_ideographs_they_stand_for() -> None:
    assert normalize("⼈⽔") == "人水"


@pytest.mark.parametrize(("raw", "expected"), [("İSTANBUL", "istanbul"), ("I\u0307zmir", "izmir"), ("IĞDIR", "ığdır")])
def test_turkish_dots_are_kept_apart(raw: str, expected: str) -> None:
    assert normalize(raw, "tr") == normalize(raw, "tr-TR") == normalize(raw, "az") == expected


@given(TEXTS, st.sampled_from([None, "tr", "hi", "ko", "zh", "ar"]), st.booleans())
@settings(max_examples=200)
def test_normalising_twice_changes_nothing_in_any_language(raw: str, language: str | None, vowels: bool) -> None:
    once = normalize(raw, language, vowels=vowels)
    assert normalize(once, language, vowels=vowels) == once


@given(st.text(st.sampled_from("हिन्दीमेंकखगातुமிழ் ंः"), max_size=15))
def test_no_mark_of_a_letter_is_lost(raw: str) -> None:
    composed = unicodedata.normalize("NFC", raw)
    assert normalize(raw).replace(" ", "") == composed.replace(" ", "")


def test_what_was_written_keeps_case_and_punctuation() -> None:
    assert as_written(" Cafe\u0301,\n  OK! ") == "Café, OK!"
