"""Silence put around an input: the same as padding it by hand, with the times of the input."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile

from speechkit import audio, cli, demo, load_asr
from speechkit.errors import PlanError
from speechkit.evaluation.metrics import wer
from speechkit.training.data import read_examples

if TYPE_CHECKING:
    from pathlib import Path

    from speechkit.asr.model import Recognizer

PAD_S = 0.15
PAD = 2400


@pytest.fixture(scope="module")
def asr() -> Recognizer:
    return load_asr("demo/en", device="cpu")


def test_it_reads_what_the_padded_samples_read_and_times_are_those_of_the_input(asr: Recognizer) -> None:
    for clip in demo.clips("en")[:3]:
        samples = audio.load(clip.path)
        by_hand, told = asr.transcribe(np.pad(samples, PAD)), asr.transcribe(samples, pad_s=PAD_S)
        assert (told.text, told.confidence) == (by_hand.text, by_hand.confidence)
        assert told.duration_s == len(samples) / 16_000
        for ours, padded in zip(told.words, by_hand.words, strict=True):
            expected = np.clip([padded.start_s - PAD_S, padded.end_s - PAD_S], 0, told.duration_s)
            assert [ours.start_s, ours.end_s] == pytest.approx(expected)
            assert [char.text for char in ours.chars] == [char.text for char in padded.chars]
        spans = [char for word in told.words for char in word.chars]
        assert all(0 <= char.start_s <= char.end_s <= told.duration_s for char in spans)


def test_audio_of_several_windows_is_padded_at_its_two_ends_alone() -> None:
    asr = load_asr("demo/en", device="cpu")
    asr.window_s, asr.overlap_s = 4.0, 1.0
    samples = np.concatenate([audio.load(clip.path) for clip in demo.clips("en")[:4]])
    assert asr.transcribe(samples, pad_s=PAD_S).text == asr.transcribe(np.pad(samples, PAD)).text


def test_a_batch_reads_what_each_reads_alone_and_beam_search_is_padded_too(asr: Recognizer) -> None:
    clips = [audio.load(clip.path) for clip in demo.clips("en")[:3]]
    for decoder in (None, "beam"):
        together = asr.transcribe(clips, pad_s=PAD_S, decoder=decoder)
        alone = [asr.transcribe(np.pad(clip, PAD), decoder=decoder) for clip in clips]
        assert [told.text for told in together] == [told.text for told in alone]


def test_silence_stays_silent_and_a_length_that_cannot_be_is_refused(asr: Recognizer) -> None:
    told = asr.transcribe(np.zeros(8000, np.float32), pad_s=PAD_S)
    assert (told.text, told.duration_s) == ("", 0.5) and "silent" in told.warnings[0]
    for wrong in (-0.1, 3.0, float("nan")):
        with pytest.raises(PlanError, match=r"pad_s is .*; it can be 0 to 2 seconds"):
            asr.transcribe(np.zeros(8000, np.float32), pad_s=wrong)
        with pytest.raises(PlanError, match="pad_s is"):
            asr.transcribe_files(["x.wav"], pad_s=wrong)


def test_another_pad_is_another_model_to_a_run_that_goes_on(asr: Recognizer, tmp_path: Path) -> None:
    clip = demo.clips("en")[0].path
    for pad_s, skipped in ((0.0, False), (0.0, True), (PAD_S, False), (PAD_S, True), (0.0, False)):
        (row,) = asr.transcribe_files([clip], tmp_path, pad_s=pad_s)
        assert row.status == ("skipped" if skipped else "ok")


def test_the_command_line_pads(asr: Recognizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = demo.clips("en")[1].path
    soundfile.write(tmp_path / "tight.wav", audio.load(clip), 16_000)
    assert cli.main(["transcribe", str(tmp_path / "tight.wav"), "--pad", "0.15", "--model", "demo/en"]) == 0
    assert asr.transcribe(clip, pad_s=PAD_S).text in capsys.readouterr().out
    assert cli.main(["transcribe", str(tmp_path / "tight.wav"), "--pad", "9", "--model", "demo/en"]) == 2
    assert "it can be 0 to 2 seconds" in capsys.readouterr().err


def test_digits_cut_tightly_by_a_person_never_trained_on_are_read_better(asr: Recognizer, speech_data: Path) -> None:
    rows = (row for row in read_examples(speech_data / "manifest.tsv") if row.speaker == "fsdd-jackson")
    said = list(islice(rows, 0, None, 4))
    texts, sounds = [row.text for row in said], [row.audio for row in said]
    as_is, padded = (asr.transcribe(sounds, words=False, pad_s=pad_s) for pad_s in (0.0, PAD_S))
    rates = [float(wer(texts, [told.text for told in heard])) for heard in (as_is, padded)]
    assert len(said) > 100 and rates[1] < rates[0] - 0.04, rates
