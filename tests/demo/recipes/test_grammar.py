"""The grammar: broad, clean text, and split by sentence."""

import random
import re

from speechkit.demo.recipes.corpus import held_out
from speechkit.demo.recipes.grammar import Grammar
from speechkit.demo.recipes.languages import tokens


def test_the_english_grammar_has_at_least_600_words() -> None:
    assert len(Grammar("en").vocabulary()) >= 600


def test_every_word_can_be_spelled_with_the_models_alphabet() -> None:
    letters = set("".join(Grammar("en").vocabulary()))
    assert letters <= set(tokens("en"))


def test_sentences_are_filled_in_completely_and_differ() -> None:
    rng = random.Random(3)
    sentences = [Grammar("en").sentence(rng) for _ in range(500)]
    assert all(re.fullmatch(r"[a-z' ]+", text) for text in sentences)
    assert len(set(sentences)) > 400


def test_the_same_seed_draws_the_same_sentences() -> None:
    first, second = ([Grammar("en").sentence(random.Random(9)) for _ in range(3)] for _ in range(2))
    assert first == second


def test_about_one_sentence_in_twenty_is_held_out() -> None:
    rng = random.Random(1)
    share = sum(held_out(Grammar("en").sentence(rng)) for _ in range(4000)) / 4000
    assert 0.02 < share < 0.09
