"""What is aligned and what is shown: texts as people write them against spellings written out by hand."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.asr.decode import Alphabet
from speechkit.asr.targets import STAR, Spelling, spell
from speechkit.errors import DataError
from speechkit.text import normalize, split_words

BLANK, GAP = 0, 1


def alphabet(letters: str, gap: int | None = GAP) -> Alphabet:
    return Alphabet(("", "", *letters), BLANK, gap)


LATIN = "abcdefghijklmnopqrstuvwxyz"
ENGLISH = alphabet(LATIN + "'")


def written(spelling: Spelling, known: Alphabet) -> str:
    """Tokens as text: `|` for a word gap, `*` for a star."""
    return "".join("*" if t == STAR else "|" if t == known.delimiter else known.symbols[t] for t in spelling.tokens)


@pytest.mark.parametrize(
    ("text", "tokens", "words"),
    [
        ("Hello, World!", "hello|world", ["Hello,", "World!"]),
        ("one\n two\u00a0three", "one|two|three", ["one", "two", "three"]),
        ("don’t 'quote' rock'n'roll", "don't|quote|rock'n'roll", ["don’t", "'quote'", "rock'n'roll"]),
        ("don'\u200bt a''b", "don't|a|b", ["don'\u200bt", "a''b"]),
        ("well-known U.S.A.", "well|known|u|s|a", ["well-known", "U.S.A."]),
        ("co\u00adop\u200berate", "cooperate", ["co\u00adop\u200berate"]),
        ("so - it is", "so|it|is", ["so -", "it", "is"]),
        ("— … so", "so", ["— … so"]),
        ("in 1984", "in|*", ["in", "1984"]),
        ("about 3.14 million", "about|*|million", ["about", "3.14", "million"]),
        ("10-year mp3", "*|year|mp*", ["10-year", "mp3"]),
        ("Привет there", "*|there", ["Привет", "there"]),
        ("café cafe\u0301 naïve", "cafe|cafe|naive", ["café", "café", "naïve"]),
        ("Cæsar", "c*sar", ["Cæsar"]),
        ("ﬁne ＡＢ", "fine|ab", ["ﬁne", "ＡＢ"]),
    ],
    ids=[
        "capitals and punctuation are kept in the word and not aligned",
        "any white space parts words",
        "an apostrophe counts between two letters",
        "an apostrophe is one sign between two letters, unseen ones aside",
        "other punctuation parts what is aligned, not the word",
        "what no reader sees is nothing",
        "a dash between words stays with the first",
        "signs before the first word stay with it",
        "digits are a star",
        "one star for a number with its point",
        "only the unspelt part is a star",
        "a word in foreign script is one star",
        "accents that the alphabet lacks are left out, composed or not",
        "a letter without a plain form is a star",
        "ligatures and full-width letters are their plain forms",
    ],
)
def test_english(text: str, tokens: str, words: list[str]) -> None:
    spelling = spell(text, ENGLISH)
    assert written(spelling, ENGLISH) == tokens
    assert [word.text for word in spelling.words] == words


@pytest.mark.parametrize(
    ("letters", "language", "text", "tokens", "words"),
    [
        (LATIN.upper(), None, "Hello", "HELLO", ["Hello"]),
        ("STRAE", "de", "Straße", "STRASSE", ["Straße"]),
        (LATIN + "ı", "tr", "ISPARTA İzmir", "ısparta|izmir", ["ISPARTA", "İzmir"]),
        ("οδςσ", "el", "ΟΔΟΣ", "οδος", ["ΟΔΟΣ"]),
        (LATIN + "óąćęłńśźż", "pl", "Żółć", "żółć", ["Żółć"]),
        (LATIN + "-", "pt", "guarda-chuva - e", "guarda-chuva|e", ["guarda-chuva -", "e"]),
        (LATIN, None, "don't", "dont", ["don't"]),
        ("你好世界" + LATIN, "zh", "你好，世界。 “你”hi 好 hi", "你好世界你hi|好|hi",
         ["你", "好，", "世", "界。", "“你”", "hi", "好", "hi"]),
        ("第年", "zh", "第2024年", "第*年", ["第", "2024", "年"]),
        ("한국", "ko", "한국!", "한국", ["한국!"]),
        ("हनद\u093f\u094d\u0940", "hi", "हिन्दी", "हिन्दी", ["हिन्दी"]),
        ("سلم", "ar", "س\u064eل\u0640م", "سلم", ["س\u064eل\u0640م"]),
        ("ab\u200c", "fa", "a\u200cb", "a\u200cb", ["a\u200cb"]),
    ],
    ids=[
        "an upper-case alphabet", "sharp s in capitals", "Turkish dotted and dotless i", "final sigma",
        "Polish letters", "a hyphen that the alphabet has", "an apostrophe that it lacks parts nothing",
        "Mandarin, every character a word",
        "a number among ideographs", "Korean by syllables", "Hindi with its vowel signs",
        "Arabic without its short vowels", "a joiner that the alphabet has",
    ],
)  # fmt: skip
def test_other_alphabets(letters: str, language: str | None, text: str, tokens: str, words: list[str]) -> None:
    known = alphabet(letters)
    spelling = spell(text, known, language)
    assert written(spelling, known) == tokens
    assert [word.text for word in spelling.words] == words


def test_letters_point_at_their_tokens_and_keep_the_texts_own_characters() -> None:
    spelling = spell("Straße 7b", alphabet("STRAEB"))
    word, mixed = spelling.words
    assert [(letter.text, letter.first, letter.stop) for letter in word.letters] == [
        ("S", 0, 1), ("t", 1, 2), ("r", 2, 3), ("a", 3, 4), ("ß", 4, 6), ("e", 6, 7),
    ]  # fmt: skip
    assert [(letter.text, letter.starred) for letter in mixed.letters] == [("7", True), ("b", False)]
    assert (word.starred, mixed.starred) == (False, True)


def test_an_alphabet_without_delimiter_has_no_word_gaps_and_a_literal_space_is_one() -> None:
    assert written(spell("a b-a", alphabet("ab", gap=None)), alphabet("ab", gap=None)) == "aba"
    spaced = Alphabet(("", "a", " ", "b"), 0, None)
    assert spell("a b-a", spaced).tokens.tolist() == [1, 2, 3, 2, 1]


def test_of_equal_symbols_the_first_counts() -> None:
    assert spell("é", Alphabet(("", "e\u0301", "é"), 0, None)).tokens.tolist() == [1]


def test_the_warning_names_the_words_with_a_star_and_counts_what_it_does_not_name() -> None:
    assert spell("all fine", ENGLISH).warnings == ()
    (line,) = spell("in “1984” we paid (€5), 7 times", ENGLISH).warnings
    assert line.startswith("not in the model's alphabet: 1984, €5, 7; 3 of 7 words")
    (line,) = spell("a " + " ".join(map(str, range(12))), ENGLISH).warnings
    assert "6, 7 and 4 more; 12 of 13 words" in line


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the text is '', without a word"),
        (" \n", "without a word"),
        ("— (…)", "the text is '— (…)', without a word"),
        ("Привет, мир", "nothing in the text 'Привет, мир' is in the model's alphabet (abcdefghijklmnopqrstuvwxyz')"),
        ("12 %", "nothing in the text"),
    ],
    ids=["empty", "white space", "punctuation", "foreign script", "digits and signs"],
)
def test_text_that_cannot_be_aligned_is_refused(text: str, reason: str) -> None:
    with pytest.raises(DataError, match=re.escape(reason)):
        spell(text, ENGLISH)


@settings(max_examples=300)
@given(st.text(st.sampled_from("abzAZéßЯ'’-.,!? \u200b“”(")) | st.text(st.sampled_from("中文你aZ-.，。！ \u200b“”(")))
def test_what_is_aligned_is_the_normalised_text_and_what_is_shown_is_the_given_one(text: str) -> None:
    known = alphabet(LATIN + "'éß中文你я")
    try:
        spelling = spell(text, known)
    except DataError:
        assert normalize(text) == ""
        return
    assert "".join(word.text for word in spelling.words).replace(" ", "") == spelling.text.replace(" ", "")
    assert written(spelling, known).replace("|", "") == normalize(text).replace(" ", "")
    assert len(spelling.words) <= len(split_words(normalize(text)))
    tokens = [at for word in spelling.words for letter in word.letters for at in range(letter.first, letter.stop)]
    gaps = [at for at, token in enumerate(spelling.tokens.tolist()) if token == GAP]
    assert sorted(tokens + gaps) == list(range(len(spelling.tokens)))
