"""`speechkit.evaluation.snr` against noise of known power."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from speechkit import audio
from speechkit.demo.recipes.heldout import with_noise
from speechkit.evaluation.snr import HIGHEST_DB, estimate


@pytest.mark.parametrize("true_db", [0, 5, 10, 15])
def test_white_noise_on_the_embedded_clips_is_found_within_2_db_on_average(demo_clips, true_db):
    found = [estimate(with_noise(audio.load(clip.path), true_db)) for clip in demo_clips]
    assert np.mean(found) == pytest.approx(true_db, abs=2)


def test_sentences_of_people_are_found_within_2_db(speech_data):
    with (speech_data / "manifest.tsv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    clips = [audio.load(speech_data / r["path"]) for r in rows if r["group"] == "sentences_en_librispeech"][:5]
    for true_db in (0, 10, 20):
        assert [estimate(with_noise(clip, true_db)) for clip in clips] == pytest.approx([true_db] * 5, abs=2)


def test_louder_or_softer_is_the_same():
    clip = with_noise(np.sin(np.arange(16000) / 5).astype(np.float32) * (np.arange(16000) > 4000), 10)
    assert estimate(clip * np.float32(0.01)) == pytest.approx(estimate(clip), abs=0.01)


def test_digital_silence_between_words_is_as_clean_as_it_gets():
    clip = np.zeros(16000, np.float32)
    clip[4000:9000] = 0.5
    assert estimate(clip) == HIGHEST_DB


@pytest.mark.parametrize("clip", [np.zeros(0), np.zeros(16000), np.ones(500)], ids=["nothing", "silence", "too short"])
def test_what_holds_no_estimate_has_none(clip):
    assert estimate(clip.astype(np.float32)) is None
