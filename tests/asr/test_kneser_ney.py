"""Kneser-Ney against the formula evaluated with dictionaries, and against the axiom: probabilities sum to one."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_lm import PlainKneserNey

from speechkit.asr.lm import NGram
from speechkit.errors import DataError

WORDS = "a b c d e".split()
CORPUS = st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=7), min_size=1, max_size=25)


def probability(model: NGram, history: tuple[str, ...], unit: str) -> float:
    context = np.array([0])
    for word in history:
        _, context = model.step(context, model.ids([word]))
    return float(np.exp(model.step(context, model.ids([unit]))[0][0]))


@settings(max_examples=40)
@given(CORPUS, st.integers(1, 4))
def test_every_probability_is_the_formulas(sentences: list[list[str]], order: int) -> None:
    model, plain = NGram.train([" ".join(s) for s in sentences], order), PlainKneserNey(sentences, order)
    histories = [h for n in range(order) for h in itertools.product(["<s>", *WORDS], repeat=n) if "<s>" not in h[1:]]
    for history in random.Random(len(sentences)).sample(histories, min(12, len(histories))):
        for unit in plain.vocabulary:
            assert probability(model, history, unit) == pytest.approx(plain.after(history, unit), abs=1e-12)


@settings(max_examples=40)
@given(CORPUS, st.integers(1, 4))
def test_after_every_context_the_probabilities_sum_to_one(sentences: list[list[str]], order: int) -> None:
    model = NGram.train([" ".join(s) for s in sentences], order)
    contexts = np.unique(model.context)
    logp, _ = model.step(contexts[:, None], np.arange(len(model.words))[None])
    assert np.exp(logp).sum(axis=1) == pytest.approx(1.0, abs=1e-9)


def test_discounts_of_a_larger_text_are_estimated_and_not_the_fallback() -> None:
    rng = random.Random(0)
    sentences = [[f"w{int(rng.paretovariate(0.7)) % 400}" for _ in range(8)] for _ in range(150)]
    plain = PlainKneserNey(sentences, 2)
    assert (0.5, 1.0, 1.5) not in plain.discounts, "this text would not tell the two apart"
    model = NGram.train([" ".join(s) for s in sentences], 2)
    for history, unit in itertools.product([(), ("w1",), ("w3",)], ["w1", "w2", "w9", "</s>", "zebra"]):
        assert probability(model, history, unit) == pytest.approx(
            plain.after(history, unit if unit in plain.vocabulary else "<unk>"), abs=1e-12
        )


def test_text_is_normalised_as_transcripts_are() -> None:
    assert NGram.train(["Don't STOP, now!"], 1).words == ("<unk>", "<s>", "</s>", "don't", "now", "stop")
    assert NGram.train(["今天 天气 好。"], 2, "char").words == ("<unk>", "<s>", "</s>", "今", "天", "好", "气")
    assert NGram.train(["a bc"], 1, "char").words == ("<unk>", "<s>", "</s>", "a", "b", "c", "|")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["a b"], 0), "order is 0"),
        ((["a b"], 2, "letter"), "unit is 'letter'"),
        (([], 2), "nothing to train on"),
        ((["…", "  "], 2), "nothing to train on"),
        (("a b c", 2), "texts is one string"),
    ],
    ids=["order-zero", "unknown-unit", "no-sentences", "no-letters", "one-string"],
)
def test_what_cannot_be_trained_on_is_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(DataError, match=message):
        NGram.train(*arguments)
