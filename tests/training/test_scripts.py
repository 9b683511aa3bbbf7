"""Scripts of letters: against Unicode's own blocks for whole alphabets."""

from __future__ import annotations

import pytest

from speechkit.training.scripts import described, expected, main_script, script_of, scripts


@pytest.mark.parametrize(
    ("first", "last", "name"),
    [
        ("a", "z", "Latin"), ("а", "я", "Cyrillic"), ("α", "ω", "Greek"), ("א", "ת", "Hebrew"), ("一", "龥", "Han"),
        ("가", "힣", "Hangul"), ("ᄀ", "ᄒ", "Hangul"), ("ぁ", "ゖ", "Kana"), ("ァ", "ヺ", "Kana"),
        ("क", "ह", "Devanagari"),
    ],
)  # fmt: skip
def test_whole_alphabets_have_one_script(first: str, last: str, name: str) -> None:
    assert {script_of(chr(code)) for code in range(ord(first), ord(last) + 1)} == {name}


def test_digits_marks_and_punctuation_have_none() -> None:
    assert [script_of(char) for char in "1٣!्\u0301 'ʼ"] == [""] * 8
    assert scripts(["12, 'ʼ"]) == {}


def test_letters_are_counted_and_described() -> None:
    found = scripts(["hello мир", "ok"])
    assert found == {"Latin": 7, "Cyrillic": 3}
    assert main_script(found) == "Latin"
    assert described(found) == "Latin 70.0 %, Cyrillic 30.0 %"
    assert (main_script({}), described({})) == ("", "no letters")


@pytest.mark.parametrize(
    ("language", "wanted"),
    [
        ("pl", ("Latin",)),
        ("uk-UA", ("Cyrillic",)),
        ("zh_CN", ("Han",)),
        ("ja", ("Kana", "Han")),
        ("xx", ()),
        (None, ()),
    ],
)
def test_a_language_names_its_scripts(language: str | None, wanted: tuple[str, ...]) -> None:
    assert expected(language) == wanted
