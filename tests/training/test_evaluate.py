"""Recogniser and examples → report. Oracle: jiwer on what the recogniser says itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jiwer
import numpy as np
import pytest

from speechkit.errors import AudioError, DataError
from speechkit.training.data import Example
from speechkit.training.evaluate import evaluate

if TYPE_CHECKING:
    from pathlib import Path

    from speechkit import Recognizer
    from speechkit.demo import DemoClip


@pytest.fixture
def some(demo_clips: list[DemoClip]) -> list[Example]:
    return [Example(clip.path, f"{clip.text}.", clip.path.name, clip.voice) for clip in demo_clips[:4]]


def test_the_rate_is_jiwers_on_the_recognisers_own_texts(recognizer: Recognizer, some: list[Example]) -> None:
    report = evaluate(recognizer, some)
    heard = [recognizer.transcribe(row.audio).text for row in some]
    assert report.wer.value == pytest.approx(jiwer.wer([row.text.rstrip(".") for row in some], heard))
    assert report.wer.value > 0, "a report without an error would agree with anything"


def test_it_knows_names_speakers_language_sounds_and_times(recognizer: Recognizer, some: list[Example]) -> None:
    report = evaluate(recognizer, some, "now")
    assert report.name == "now" and report.language == "en"
    for row, scored in zip(some, report.utterances, strict=True):
        assert (scored.name, scored.speaker, scored.audio) == (row.name, row.speaker, row.audio)
        assert scored.words and scored.seconds == pytest.approx(row.length_s(), abs=0.05)


def test_samples_in_memory_are_scored_like_their_file(recognizer: Recognizer, some: list[Example]) -> None:
    inside = [Example(row.samples(), row.text, row.name) for row in some]
    assert evaluate(recognizer, inside).wer == evaluate(recognizer, some).wer


def test_no_example_is_told(recognizer: Recognizer) -> None:
    with pytest.raises(DataError, match="no examples to evaluate on; give at least one"):
        evaluate(recognizer, [])


def test_an_unreadable_recording_is_told(recognizer: Recognizer, tmp_path: Path) -> None:
    (tmp_path / "no.wav").write_bytes(b"no sound")
    with pytest.raises(AudioError, match=r"no\.wav"):
        evaluate(recognizer, [Example(tmp_path / "no.wav", "one", "no.wav")])


def test_a_row_without_audio_is_told(recognizer: Recognizer) -> None:
    rows = [Example(np.zeros(16_000, np.float32), "one", "first"), Example(None, "two", "second")]
    with pytest.raises(DataError, match="second has no audio"):
        evaluate(recognizer, rows)
