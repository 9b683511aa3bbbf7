"""Results: round trips, printing, and that they cannot be changed."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from speechkit.types import Char, FileResult, Transcript, Word

WORDS = (
    Word("don't", 0.1, 0.42, 0.9, (Char("d", 0.1, 0.14, 0.95), Char("o", 0.16, 0.2, 0.9))),
    Word("<b>&", 0.5, 0.9, 0.4),
)
SPOKEN = Transcript("don't <b>&", WORDS, "en", 1.25, 0.65, "demo/en", ("the recording is clipped",))


def test_a_transcript_survives_json_with_words_characters_and_warnings() -> None:
    assert Transcript.from_json(SPOKEN.to_json()) == SPOKEN
    assert Transcript.from_json(Transcript("").to_json()) == Transcript("")


def test_json_keeps_other_scripts_readable() -> None:
    text = Transcript("你好", (Word("你", 0.0, 0.1, 1.0),)).to_json(indent=None)
    assert "你好" in text
    assert json.loads(text)["words"][0] == {"text": "你", "start_s": 0.0, "end_s": 0.1, "confidence": 1.0, "chars": []}


def test_a_file_result_survives_its_manifest_row() -> None:
    result = FileResult(Path("in/a.wav"), "ok", SPOKEN, audio_s=1.25, wall_s=0.1, outputs=(Path("out/a.srt"),))
    row = json.loads(json.dumps(result.to_dict()))
    assert FileResult.from_dict(row) == result
    failed = FileResult(Path("b.wav"), "error", reason="b.wav is empty (0 bytes)")
    assert FileResult.from_dict(json.loads(json.dumps(failed.to_dict()))) == failed


def test_only_an_error_is_not_ok() -> None:
    assert [FileResult(Path("x"), status).ok for status in ("ok", "skipped", "error")] == [True, True, False]


def test_a_transcript_prints_text_length_model_and_warnings() -> None:
    assert str(SPOKEN).splitlines() == [
        "don't <b>&",
        "[1.2 s, demo/en, mean confidence 0.65]",
        "warning: the recording is clipped",
    ]
    assert str(Transcript("", duration_s=3.0, model="m")).startswith("(no speech)")


def test_the_table_has_a_line_per_word() -> None:
    head, first, second = SPOKEN.table().splitlines()
    assert head.split() == ["start", "end", "conf", "word"]
    assert first.split() == ["0.10", "0.42", "0.90", "don't"]
    assert second.split() == ["0.50", "0.90", "0.40", "<b>&"]


def test_the_notebook_view_escapes_what_was_said() -> None:
    html = SPOKEN._repr_html_()
    assert "&lt;b&gt;&amp;" in html
    assert "<b>" not in html
    assert "warning: the recording is clipped" in html
    assert "(no speech)" in Transcript("")._repr_html_()


def test_results_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        SPOKEN.text = "other"  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        WORDS[0].confidence = 1.0  # type: ignore[misc]


def test_subtitles_of_a_transcript_are_those_of_its_words() -> None:
    assert SPOKEN.to_srt() == "1\n00:00:00,100 --> 00:00:00,900\ndon't <b>&\n"
    assert SPOKEN.to_vtt() == "WEBVTT\n\n00:00:00.100 --> 00:00:00.900\ndon't &lt;b>&amp;\n"
    assert Transcript("").to_srt() == ""
    assert Transcript("").to_vtt() == "WEBVTT\n"
