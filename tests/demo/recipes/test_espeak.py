"""espeak-ng through its library: voices differ, settings act, a wrong name is told."""

import numpy as np
import pytest

from speechkit.demo.recipes.corpus import ACCENTS, HELD_OUT_VARIANTS, VARIANTS
from speechkit.demo.recipes.espeak import EspeakVoice, synthesize
from speechkit.errors import DataError

TEXT = "please bring the patient in room fourteen"


def test_speech_is_16_khz_float_of_a_plausible_length() -> None:
    samples = synthesize(TEXT, EspeakVoice("en-us"))
    assert samples.dtype == np.float32 and np.abs(samples).max() <= 1
    assert 1.5 < len(samples) / 16000 < 5


def test_more_words_per_minute_make_it_shorter() -> None:
    slow, fast = (len(synthesize(TEXT, EspeakVoice("en-us", words_per_minute=wpm))) for wpm in (110, 220))
    assert fast < 0.7 * slow


def test_every_training_and_held_out_voice_exists() -> None:
    assert len(VARIANTS) >= 20 and not set(VARIANTS) & set(HELD_OUT_VARIANTS)
    for variant in [*VARIANTS, *HELD_OUT_VARIANTS]:
        assert len(synthesize("one", EspeakVoice("en-us", variant))) > 1000
    for accent in set(ACCENTS):
        assert len(synthesize("one", EspeakVoice(accent))) > 1000


@pytest.mark.parametrize(
    ("voice", "message"),
    [
        (EspeakVoice("en-us", "nobody"), "no variant 'nobody'; it has: .*Alicia"),
        (EspeakVoice("xx-nowhere"), "no language 'xx-nowhere'"),
    ],
    ids=["an unknown variant", "an unknown language"],
)
def test_a_voice_that_does_not_exist_is_named_in_the_error(voice: EspeakVoice, message: str) -> None:
    with pytest.raises(DataError, match=message):
        synthesize(TEXT, voice)
