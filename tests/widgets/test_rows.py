"""The rows that every view draws."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from speechkit.types import Transcript, Word
from speechkit.widgets.rows import about, audio_title, clock, peaks, plain_text, word_rows


def test_each_peak_is_the_largest_magnitude_of_its_stretch():
    samples = np.array([0.1, -0.4, 0.2, 0.0, -0.8, 0.3], np.float32)
    assert peaks(samples, buckets=3) == [0.5, 0.25, 1.0]


def test_peaks_cover_every_sample_when_the_length_does_not_divide(samples):
    odd = np.append(samples[:10007] * 0, np.float32(0.9))
    assert peaks(odd, buckets=600)[-1] == 1.0
    assert len(peaks(odd, buckets=600)) == 600


def test_fewer_samples_than_buckets_give_one_peak_each():
    assert peaks(np.array([0.5, 1.0], np.float32)) == [0.5, 1.0]


def test_silence_gives_zeros_and_empty_audio_gives_none():
    assert peaks(np.zeros(1000, np.float32), buckets=4) == [0.0] * 4
    assert peaks(np.zeros(0, np.float32)) == []


def test_zero_buckets_are_refused_with_the_rule(samples):
    with pytest.raises(ValueError, match="buckets is 0, must be 1 or more"):
        peaks(samples, buckets=0)


def test_rows_are_json_with_level_and_spacing(transcript):
    rows = word_rows(transcript)
    assert json.loads(json.dumps(rows)) == rows
    assert [row["level"] for row in rows] == ["high", "high", "mid", "low"]
    assert [row["spaced"] for row in rows] == [False, True, True, True]


def test_words_of_an_unspaced_script_stand_without_spaces():
    words = tuple(Word(char, i * 0.2, i * 0.2 + 0.1, 0.9) for i, char in enumerate("你好吗"))
    assert [row["spaced"] for row in word_rows(Transcript("你好吗", words, "zh", 1.0))] == [False, False, False]


def test_times_outside_the_audio_are_clamped_to_it(transcript):
    late = replace(transcript, words=(Word("late", 1.4, 9.0, 0.9), Word("early", -0.2, 0.1, 0.9)))
    spans = [(row["start_s"], row["end_s"]) for row in word_rows(late, duration_s=1.5)]
    assert spans == [(1.4, 1.5), (0.0, 0.1)]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00.0"), (4.84, "0:04.8"), (59.96, "1:00.0"), (3599.97, "1:00:00.0"), (7325.5, "2:02:05.5"), (-1, "0:00.0")],
)
def test_a_clock_rounds_tenths_across_minutes_and_hours(seconds, text):
    assert clock(seconds) == text


def test_the_line_beside_the_title_holds_length_model_confidence_and_warnings(transcript):
    noted = replace(transcript, warnings=("clipped",))
    assert about(noted, 1.5) == "1.5 s · demo/en · mean confidence 0.73 · warning: clipped"
    assert about(Transcript("", duration_s=2.0), 2.0) == "2.0 s"


def test_only_a_path_names_the_audio(samples):
    assert audio_title(Path("/some/where/clinic-07.flac")) == audio_title("clinic-07.flac") == "clinic-07.flac"
    assert audio_title(samples) == audio_title(b"RIFF") == ""


def test_plain_text_writes_the_confidence_behind_unsure_words_only(transcript):
    assert plain_text(transcript, "clinic-07.flac").splitlines() == [
        "clinic-07.flac · 1.5 s · demo/en · mean confidence 0.73",
        "bring the room(0.71) fourteen(0.38)",
    ]
    assert plain_text(Transcript("")).endswith("(no speech)")
