"""One normal form for training and scoring."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.text import alphabet, has_unspaced_script, normalize, split_words


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
