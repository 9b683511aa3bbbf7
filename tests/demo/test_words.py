"""Words by many voices: as many as asked for, loud enough, the same again with the same seed."""

import numpy as np
import pytest

from speechkit.demo.words import VOICES, spoken_words
from speechkit.errors import DataError


def test_every_word_is_spoken_by_every_voice_as_often_as_asked() -> None:
    found = spoken_words(("seven", "coffee"), VOICES[:3], takes=2)
    assert sorted((w.text, w.voice) for w in found) == sorted(
        (word, voice) for word in ("seven", "coffee") for voice in VOICES[:3] for _ in range(2)
    )
    for word in found:
        assert word.samples.dtype == np.float32 and 0.2 < len(word.samples) / 16000 < 2
        assert np.abs(word.samples).max() == pytest.approx(0.7, abs=1e-3)


def test_the_same_seed_gives_the_same_deliveries_and_takes_differ() -> None:
    first, again, other = (spoken_words(("five",), VOICES[:1], takes=2, seed=seed) for seed in (1, 1, 2))
    for one, two in zip(first, again, strict=True):
        assert len(one.samples) == len(two.samples)
    assert len(first[0].samples) != len(first[1].samples)
    assert any(len(a.samples) != len(b.samples) for a, b in zip(first, other, strict=True))


def test_a_voice_that_does_not_exist_is_told() -> None:
    with pytest.raises(DataError, match="nobody"):
        spoken_words(("five",), ("nobody",))
