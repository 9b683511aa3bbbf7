"""Every language of the recipes: its grammar can be spelt, drawn from at length, and spoken."""

import random
import unicodedata
from collections import Counter

import pytest

from speechkit.demo.recipes import asr, clips
from speechkit.demo.recipes.corpus import HELD_OUT_VARIANTS, held_out, sentences, single_words
from speechkit.demo.recipes.espeak import EspeakVoice, synthesize
from speechkit.demo.recipes.grammar import Grammar
from speechkit.demo.recipes.languages import LANGUAGES, SPECIAL, language, tokens
from speechkit.errors import DataError
from speechkit.text import normalize, split_words

CODES = sorted(LANGUAGES)


@pytest.mark.parametrize("code", CODES)
def test_a_grammar_has_at_least_300_words_in_its_own_letters(code: str) -> None:
    words = Grammar(code).vocabulary()
    assert len(words) >= 300
    assert set("".join(words)) <= set(tokens(code)) - set(SPECIAL)
    assert all(normalize(word, code) == word == unicodedata.normalize("NFC", word) for word in words)


@pytest.mark.parametrize("code", CODES)
def test_sentences_differ_come_without_marks_and_split_into_held_out_and_others(code: str) -> None:
    drawn = [sentences(Grammar(code), random.Random(5), count, test) for count, test in ((400, False), (20, True))]
    assert all(text == normalize(text, code) for texts in drawn for text in texts)
    assert not set(drawn[0]) & set(drawn[1]) and all(held_out(text) for text in drawn[1])
    assert all(len(split_words(text)) > 2 for text in drawn[1])


@pytest.mark.parametrize("code", CODES)
def test_no_character_is_too_rare_to_be_learnt(code: str) -> None:
    drawn = sentences(Grammar(code), random.Random(6), 4000, test=False)
    seen = Counter(char for text in drawn for char in set(text))
    rare = {char for char in "".join(Grammar(code).vocabulary()) if seen[char] == 0}
    assert not rare


@pytest.mark.parametrize("code", sorted(set(CODES) - {"zh", "ko"}))
def test_no_letter_is_spoken_alone_because_its_name_would_be_said(code: str) -> None:
    assert all(len(word) > 1 for word in single_words(Grammar(code), random.Random(0), 600))


def test_in_mandarin_and_korean_a_single_character_may_be_spoken_alone() -> None:
    for code in ("zh", "ko"):
        assert any(len(word) == 1 for word in single_words(Grammar(code), random.Random(0), 200))


def test_the_ukrainian_apostrophe_is_spoken_inside_the_word() -> None:
    voice = EspeakVoice("uk", "Michael")
    with_sign, without = (len(synthesize(text, voice)) for text in ("п'ятниця", "пятниця"))
    assert with_sign < 1.25 * without, "a pause would lengthen it by half"


def test_the_head_has_a_row_for_every_token() -> None:
    for code in CODES:
        assert asr.model_config(code).vocab_size == len(tokens(code)) == len(set(tokens(code)))


@pytest.mark.parametrize("code", CODES)
def test_embedded_clips_are_of_held_out_voices_in_words_that_the_grammar_has(code: str) -> None:
    grammar = Grammar(code)
    characters = set("".join(grammar.vocabulary()))
    for text, voice in clips.SPOKEN[code]:
        assert voice.language in language(code).accents and voice.variant in HELD_OUT_VARIANTS
        assert text == normalize(text, code) and set(text) <= characters | {" "}


def test_a_language_without_a_recipe_lists_those_that_have_one() -> None:
    with pytest.raises(DataError, match="no recipe for the language 'xx'; there are recipes for: en, zh, ko"):
        language("xx")
