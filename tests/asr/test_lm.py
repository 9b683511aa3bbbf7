"""Scores of whole arrays, their tables and their searches, against a plain back-off recursion."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

import numpy as np
import pytest
from plain_lm import PlainKatz

from speechkit.asr import lm
from speechkit.asr.lm import NGram
from speechkit.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

TEXTS = ["the cat sat on the mat", "the dog sat on the cat", "a dog and a cat", "on the mat the dog sat", "sat"]


@pytest.fixture(params=[0, lm.CLOSED], ids=["searched", "from-the-closed-table"])
def model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> NGram:
    """One model, answering by search and by table; tables are made on first use."""
    monkeypatch.setattr(lm, "CLOSED", request.param)
    made = NGram.train(TEXTS, 4)
    made.score("the")
    assert (made._closed is None) == (request.param == 0)
    return made


def test_random_walks_score_as_the_plain_recursion_says(model: NGram, tmp_path: Path) -> None:
    model.write(tmp_path / "lm.arpa")
    plain = PlainKatz(tmp_path / "lm.arpa")
    rng = random.Random(1)
    words = [*model.words[3:], "zebra"]
    for _ in range(50):
        sentence = [rng.choice(words) for _ in range(rng.randint(0, 9))]
        assert model.score(" ".join(sentence)) == pytest.approx(plain.sentence(sentence), abs=1e-5)


def test_arrays_of_any_shape_score_as_single_steps_do(model: NGram) -> None:
    rng = np.random.default_rng(2)
    contexts, units = rng.choice(model.context, (3, 4, 1)), rng.integers(0, len(model.words), (3, 1, 5))
    logp, after = model.step(contexts, units)
    assert logp.shape == after.shape == (3, 4, 5)
    for i, j, k in np.ndindex(3, 4, 5):
        one = model.step(contexts[i, j], units[i, 0, k : k + 1])
        assert (logp[i, j, k], after[i, j, k]) == (one[0][0], one[1][0])


def test_contexts_that_answer_alike_are_one_context() -> None:
    model = NGram.train(TEXTS, 4)
    goes_on = np.unique(model.trie.parents[1:])
    assert model.contexts.tolist() == goes_on.tolist(), "what no n-gram goes on from says nothing of its own"
    assert np.unique(model.context).tolist() == list(range(len(goes_on)))


def test_perplexity_is_the_geometric_mean_over_words_and_ends() -> None:
    model = NGram.train(TEXTS, 3)
    total = model.score("the cat") + model.score("zebra")
    assert model.perplexity(["the cat", "zebra"]) == pytest.approx(math.exp(-total / 5))
    with pytest.raises(DataError, match="no text to measure"):
        model.perplexity([])


def test_a_model_fits_the_text_it_saw_better_than_other_text() -> None:
    model = NGram.train(TEXTS, 3)
    assert model.perplexity(["the dog sat on the mat"]) < 8 < model.perplexity(["mat the on sat dog the"])


def test_characters_count_spaces_as_bars_and_ideographs_need_none() -> None:
    model = NGram.train(["ab a"], 2, "char")
    assert model.units("ab a") == ["a", "b", "|", "a"]
    assert NGram.train(["今天 天气"], 2, "char").units("今天 天气") == ["今", "天", "天", "气"]


def test_the_repr_counts_its_n_grams() -> None:
    assert repr(NGram.train(["a b"], 2)) == "NGram(words, 5 1-grams, 3 2-grams)"
