"""Scores and the greedy decoder of the training loop, against worked examples and transformers' own decoding."""

import numpy as np
import pytest
from transformers import Wav2Vec2ForCTC

from speechkit.demo.recipes.asr import model_config
from speechkit.demo.recipes.languages import tokens
from speechkit.demo.recipes.publish import processor
from speechkit.demo.recipes.score import greedy, score, training_model


def test_errors_are_summed_over_all_clips_and_not_averaged() -> None:
    heard = ["a", "b x"]
    result = score(lambda clips: heard, [np.zeros(1)] * 2, ["a", "b c d"])
    assert result.wer == pytest.approx(2 / 4)  # one substitution, one deletion, four words
    assert result.pairs == (("a", "a"), ("b c d", "b x"))
    assert str(result).startswith("WER 50.0%, CER ")


def test_greedy_decoding_equals_that_of_transformers_tokenizer() -> None:
    tokenizer = processor().tokenizer
    rng = np.random.default_rng(0)
    for _ in range(50):
        ids = np.repeat(rng.choice([0, 4, *range(5, 32)], 30, p=[0.3, 0.14, *[0.56 / 27] * 27]), rng.integers(1, 4, 30))
        assert greedy(ids, tokens("en")) == " ".join(tokenizer.decode(ids).split())


def test_the_model_in_training_hears_clips_of_any_length_and_goes_on_training() -> None:
    model = Wav2Vec2ForCTC(model_config()).train()
    heard = training_model(model, tokens("en"))(
        [np.zeros(0, np.float32) + 0, np.ones(10, np.float32), np.zeros(16000, np.float32)]
    )
    assert len(heard) == 3 and all(isinstance(text, str) for text in heard)
    assert model.training
