"""`speechkit.evaluation.romanize` against published romanisations of names, and pairs of words that sound alike."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechkit.errors import DataError, MissingExtra
from speechkit.evaluation.romanize import letters, romanize, sounds


@pytest.mark.parametrize(
    ("language", "written", "latin"),
    [
        # examples of the resolution of the Cabinet of Ukraine No. 55 of 27 January 2010
        ("uk", "Алушта Андрій", "alushta andrii"),
        ("uk", "Згурський Розгон", "zghurskyi rozghon"),
        ("uk", "Ґалаґан Ґорґани", "galagan gorgany"),
        ("uk", "Єнакієве Гаєвич", "yenakiieve haievych"),
        ("uk", "Їжакевич Мар'їне", "yizhakevych marine"),
        ("uk", "Йосипівка Стрий", "yosypivka stryi"),
        ("uk", "Щербухи Гоща", "shcherbukhy hoshcha"),
        ("uk", "Юрій Корюківка Яготин Костянтин", "yurii koriukivka yahotyn kostiantyn"),
        # examples of the Revised Romanization, National Institute of Korean Language
        ("ko", "구미 영동 백암 옥천 합덕", "gumi yeongdong baegam okcheon hapdeok"),
        ("ko", "월곶 벚꽃 한밭", "wolgot beotkkot hanbat"),
        ("ko", "구리 설악 칠곡 임실", "guri seorak chilgok imsil"),
        ("ko", "울릉 대관령", "ulleung daegwanryeong"),  # the second is daegwallyeong: ㄴㄹ is left out
        ("ko", "백마 종로", "baengma jongro"),
        ("ko", "닭이 값이 앉아 싫어", "dalgi gapsi anja sireo"),
        ("pl", "Zażółć gęślą jaźń", "zazolc gesla jazn"),
        ("cs", "Příliš žluťoučký kůň", "prilis zlutoucky kun"),
        ("sk", "Ľúbostný vôl", "lubostny vol"),
        ("pt", "Ação, avô e avó", "acao avo e avo"),
        ("ru", "Щёлково подъезд", "shchyolkovo podezd"),
        ("de", "Straße", "strasse"),
        (None, "Їжак", "yizhak"),
        ("zh", "你好，银行长大了", "ni hao yin hang zhang da le"),
        ("en", "don't STOP 5", "don't stop 5"),
        ("en", "", ""),
    ],
)
def test_letters_are_those_of_the_published_systems(language, written, latin):
    assert letters(written, language) == romanize(written, language) == latin


@pytest.mark.parametrize(
    "words",
    [
        [("pl", "szkoda"), ("cs", "škoda"), ("sk", "škoda"), ("uk", "шкода")],
        [("pl", "noc"), ("cs", "noc"), ("uk", "ноц")],
        [("pl", "mucha"), ("cs", "mucha"), ("sk", "mucha"), ("uk", "муха")],
        [("pl", "czas"), ("cs", "čas"), ("sk", "čas"), ("uk", "час")],
        [("pl", "może"), ("uk", "може"), ("sk", "može")],
        [("pl", "wada"), ("cs", "vada"), ("uk", "вада")],
        [("pl", "Jan"), ("cs", "Ján"), ("uk", "Ян")],
        [("pl", "bania"), ("uk", "баня"), ("pt", "banha"), ("cs", "baňa")],
        [("pl", "dżem"), ("sk", "džem"), ("uk", "джем")],
        [("ko", "나무"), ("pl", "namu")],
        [("zh", "妈妈"), ("pl", "mama"), ("uk", "мама")],
        [("ko", "워"), ("pl", "wo")],
        [("zh", "二"), ("cs", "er")],
        [("zh", "日"), ("pl", "żi")],
    ],
    ids=lambda words: words[0][1],
)
def test_words_that_sound_alike_are_written_alike(words):
    heard = {sounds(word, language).replace(" ", "") for language, word in words}  # in Mandarin a character is a word
    assert len(heard) == 1, heard


def test_spelling_that_differs_by_sound_stays_apart():
    assert sounds("kot", "pl") != sounds("kod", "pl")
    assert sounds("был", "ru") != sounds("бил", "ru")
    assert sounds("syn", "pl") != sounds("sin", "pl")


LATIN = st.text(st.sampled_from("aąbcćčdďeęěéfghiíjklłmnńňoóôpqrřsśštťuúůvwxyýzźżž '"), max_size=20)


@given(LATIN, st.sampled_from(["pl", "cs", "sk", "pt", "en", "de", None]))
def test_letters_are_ascii_and_romanising_them_again_changes_nothing(written, language):
    once = letters(written, language)
    assert once.isascii() and letters(once, language) == once
    assert set(sounds(written, language)) <= set("abcčdefghijklmnňopqrsštuvwyzžǯ ")


@given(st.text(st.characters(min_codepoint=0xAC00, max_codepoint=0xD7A3), max_size=8))
def test_every_korean_syllable_has_letters(written):
    latin = letters(written, "ko")
    assert latin.isascii() and len(latin) >= len(written)


@given(st.text(st.sampled_from("абвгґдеєжзиіїйклмнопрстуфхцчшщьюя'ыэёъў "), max_size=20))
def test_every_cyrillic_letter_has_letters(written):
    assert letters(written, "uk").isascii() and letters(written, "ru").isascii()


def test_scripts_without_a_table_are_told():
    with pytest.raises(DataError, match=r"no romanisation for .*HEBREW LETTER.*tables for Latin, Cyrillic, Hangul"):
        letters("שלום", "he")
    with pytest.raises(DataError, match='scheme is \'ipa\'; it can be "letters" or "sounds"'):
        romanize("a", "en", "ipa")


def test_chinese_without_pypinyin_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pypinyin", None)
    with pytest.raises(MissingExtra, match=r"romanising Chinese characters needs the package 'pypinyin'.*train"):
        letters("你好", "zh")
