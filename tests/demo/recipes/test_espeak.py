"""espeak-ng through its library: voices differ, settings act, a wrong name is told."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path

import numpy as np
import pytest

from speechkit.demo.recipes import espeak
from speechkit.demo.recipes.corpus import DRAWN_VARIANTS, HELD_OUT_VARIANTS, VARIANTS
from speechkit.demo.recipes.espeak import EspeakVoice, synthesize
from speechkit.demo.recipes.languages import LANGUAGES
from speechkit.demo.recipes.variants import drawn_variant
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
    for accent in {accent for row in LANGUAGES.values() for accent in row.accents}:
        assert len(synthesize("one", EspeakVoice(accent))) > 1000


def colour(samples: np.ndarray) -> np.ndarray:
    """Log energy in 64 bands: the voice, whatever the phase."""
    return np.log([band.sum() for band in np.array_split(np.abs(np.fft.rfft(samples)) ** 2, 64)])


def test_a_made_up_speaker_is_always_the_same_and_unlike_the_next() -> None:
    first, again, other = (synthesize("one", EspeakVoice("en-us", name)) for name in ("drawn1", "drawn1", "drawn2"))
    # not sample by sample: espeak-ng draws flutter and breath anew
    alike, unlike = (np.corrcoef(colour(first), colour(samples))[0, 1] for samples in (again, other))
    assert abs(len(first) - len(again)) < 32 and alike > 0.99 > unlike


def test_made_up_speakers_all_differ_and_span_low_to_high_plain_to_breathy() -> None:
    texts = [drawn_variant(number) for number in range(DRAWN_VARIANTS)]
    assert len(set(texts)) == DRAWN_VARIANTS
    pitches = [int(text.split("pitch ")[1].split()[0]) for text in texts]
    assert min(pitches) < 75 and max(pitches) > 200
    assert all(0.2 * len(texts) < sum(key in text for text in texts) < 0.8 * len(texts) for key in ("breathw", "klatt"))


def _folder_of_a_worker(_: int) -> str:
    espeak._data.cache_clear()  # a fork has its parent's folder; this one makes its own
    return str(espeak._data())


@pytest.mark.skipif("fork" not in get_all_start_methods(), reason="forked processes, which skip atexit, are POSIX")
def test_a_forked_pool_leaves_no_folders_behind() -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        folder = Path(pool.submit(_folder_of_a_worker, 0).result())
        assert folder.is_dir()
    assert not folder.parent.exists()


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
