"""The error board without a browser: what its view is told, sounds, table, twins, mistakes."""

from __future__ import annotations

import csv
import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import soundfile

from speechkit.errors import AudioError, DataError, OutputError
from speechkit.evaluation.errors import ErrorReport
from speechkit.widgets.error_board import PAGE, WHOLE_S, ErrorBoard, error_board_html
from speechkit.widgets.error_html import board_text, confused

sys.path.insert(0, str(Path(__file__).parent))

import error_reports as reports


@pytest.fixture
def report(tmp_path) -> ErrorReport:
    return reports.clinic(tmp_path)


@pytest.fixture
def board(report) -> ErrorBoard:
    return ErrorBoard(report, "clinic")


def many(count: int) -> ErrorReport:
    """Utterance i has i % 5 errors."""
    rows = [
        reports.scored(
            f"clip-{i}", *[(reports.S, f"w{j}", "x") if j < i % 5 else (reports.E, f"w{j}", f"w{j}") for j in range(6)]
        )
        for i in range(count)
    ]
    return ErrorReport(tuple(rows), "en", "many")


def test_the_first_page_is_there_at_once_the_worst_first(board):
    assert [row["name"] for row in board.rows] == ["clip-10.wav", "arabic.wav", "clip-9.wav", "<b>.wav"]
    assert (board.total, board.kinds, board.title) == (4, [2, 1, 1], "clinic")
    assert board.known == ["speaker", "confidence", "seconds", "audio"]
    wer, cer = board.figures
    assert wer["name"] == "WER" and wer["value"].startswith("50.0 %")  # 4 edits over 8 words
    assert cer["name"] == "CER"


def test_pages_of_thousands_come_when_they_are_asked_for():
    board = ErrorBoard(many(2000))
    assert len(board.rows) == PAGE and board.total == 2000
    assert len(json.dumps(board.get_state(), default=str)) < 60_000, "the saved notebook holds one page"
    seen = []
    for first in range(0, 2000, PAGE):
        told, _ = board.answer({"kind": "rows", "first": first, "query": {"sort": "name", "descending": False}})
        seen += [row["name"] for row in told["rows"]]
    assert seen == [f"clip-{i}" for i in range(2000)]
    told, _ = board.answer({"kind": "rows", "first": 0, "query": {"text": "clip-19"}, "seq": "v-7"})
    assert (told["seq"], told["total"], len(told["rows"])) == ("v-7", 111, PAGE)  # 19, 190-199, 1900-1999


def test_a_word_sounds_as_its_stretch_of_the_file(board, report):
    told, (data,) = board.answer({"kind": "audio", "row": 1, "column": 2, "opus": False})
    samples, rate = soundfile.read(io.BytesIO(data), dtype="float32")
    whole, _ = soundfile.read(report.utterances[1].audio, dtype="float32")
    start = round((0.7 - 0.06) * 16000)
    np.testing.assert_allclose(samples, whole[start : start + len(samples)], atol=1e-4)
    assert rate == 16000 and told["mime"] == "audio/wav" and told["seconds"] == pytest.approx(0.56)
    assert not told["cut"]
    assert board.audio_bytes(1, 2, "wav") == data


def test_the_file_is_read_once_for_all_its_words(board, monkeypatch):
    read = []
    load = "speechkit.widgets.error_board.sound.load"
    monkeypatch.setattr(load, lambda path: read.append(path) or np.zeros(64000, np.float32))
    for column in (0, 1, 2, None):
        board.audio_bytes(1, column, "wav")
    assert len(read) == 1


def test_of_a_long_utterance_the_first_minute_is_heard_and_the_view_knows(report, monkeypatch):
    board = ErrorBoard(report)
    monkeypatch.setattr("speechkit.widgets.error_board.sound.load", lambda _: np.zeros(70 * 16000, np.float32))
    told, _ = board.answer({"kind": "audio", "row": 1, "opus": True})
    assert told["cut"] and told["seconds"] == WHOLE_S
    told, _ = board.answer({"kind": "audio", "row": 1, "column": 0})
    assert not told["cut"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"kind": "audio", "row": 4}, "there is no utterance 4; there are 4, counted from 0"),
        ({"kind": "audio", "row": -1}, "row is -1; it counts from 0"),
        ({"kind": "audio", "row": "1"}, "row is '1'; it counts from 0"),
        ({"kind": "audio", "row": 1, "column": 5}, "clip-10.wav has no column 5; it has 5, counted from 0"),
        ({"kind": "audio", "row": 0}, "clip-9.wav has no audio: give `audio=`"),
        ({"kind": "rows", "query": {"sort": "size"}}, "is no question to an error board"),
        ({"kind": "rows", "first": True}, "first is True"),
        ({"kind": "grid", "unit": "jamo"}, "is no question to an error board"),
        ({"kind": "other"}, "the view sent 'other'; known are rows, columns, audio, grid, csv"),
        ({}, "the view sent None"),
    ],
)
def test_a_mistake_is_an_answer(board, content, reason):
    told, data = board.answer({**content, "seq": "v-1"})
    assert (told["kind"], told["of"], told["seq"], data) == ("failed", content.get("kind"), "v-1", [])
    assert reason in told["reason"]


def test_sound_that_cannot_be_is_told(report):
    gone = replace(report.utterances[1], audio=Path("gone.wav"))
    short = replace(
        report.utterances[1],
        words=tuple(replace(w, start_s=w.start_s + 9, end_s=w.end_s + 9) for w in report.utterances[1].words),
    )
    untimed = replace(
        report.utterances[1], words=(), edits=tuple(replace(e, word=None) for e in report.utterances[1].edits)
    )
    board = ErrorBoard(ErrorReport((gone, short, untimed)))
    with pytest.raises(AudioError, match=r"gone\.wav"):
        board.audio_bytes(0, 0)
    with pytest.raises(DataError, match=r"the word begins at 9\.14 s, but .*clip-10\.wav ends at 4\.00 s"):
        board.audio_bytes(1, 0)
    with pytest.raises(DataError, match=r"nobody knows where clip-10\.wav says this: give `transcripts=`"):
        board.audio_bytes(2, 0)
    assert "no such file" in board.answer({"kind": "audio", "row": 0})[0]["reason"]


def test_grids_are_plain_values_in_both_units(board):
    told, _ = board.answer({"kind": "grid", "unit": "word"})
    assert json.loads(json.dumps(told))["top"][0] == ["fourteen", "forty", 1]
    assert ["", "red", 1] in json.loads(json.dumps(told))["top"]
    told, _ = board.answer({"kind": "grid", "unit": "char"})
    assert told["unit"] == "char" and told["labels"][0] == "" and len(told["counts"]) == len(told["labels"])


def test_the_table_is_that_of_the_report_from_python_and_from_the_button(board, tmp_path):
    path = board.to_csv(tmp_path / "errors.csv")
    told, (data,) = board.answer({"kind": "csv"})
    assert (told["name"], told["mime"]) == ("clinic.csv", "text/csv")
    assert data == path.read_bytes()
    rows = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"))))
    assert [row["name"] for row in rows] == ["clip-9.wav", "clip-10.wav", "arabic.wav", "<b>.wav"]
    assert [row["errors"] for row in rows] == ["0", "3", "1", "0"]
    assert rows[2]["reference"] == "افتح الباب"
    with pytest.raises(OutputError):
        board.to_csv(tmp_path / "none" / "errors.csv")
    odd = ErrorBoard(board.report, '../a "b"/c:d')
    assert odd.answer({"kind": "csv"})[0]["name"] == "a--b--c-d.csv"


def test_the_static_twin_marks_each_error_by_element_and_sign_and_escapes(report):
    html = error_board_html(report, "<i>")
    tree = ElementTree.fromstring(html.replace("&nbsp;", " ").replace("<br>", "<br/>"))  # noqa: S314 (our own text)
    assert tree.findtext("strong") == "<i>"
    assert [mark.findtext("bdi") for mark in tree.iter("del")][:2] == ["the", "fourteen"]
    assert [mark.findtext("bdi") for mark in tree.iter("ins")][:2] == ["forty", "red"]
    diffs = [div for div in tree.iter("div") if div.get("dir")]
    assert [(div.get("dir"), div.get("lang")) for div in diffs] == [("ltr", "en"), ("rtl", "ar")]
    said = "".join(diffs[0].itertext())
    assert [sign for sign in said if sign in "≠−+"] == ["−", "≠", "+"]
    assert "most confused: fourteen → forty 1" in html and "<script" not in html
    assert "clip-9" not in html, "what is right needs no look"


def test_a_report_without_an_error_says_so():
    right = ErrorReport((reports.scored("a", (reports.E, "yes", "yes")),))
    assert "No error." in error_board_html(right) and confused(right) == ""
    assert board_text(right).splitlines()[0].startswith("1 utterance · WER 0.0 %")


def test_the_bundle_holds_the_view_and_both_twins(board, report):
    data, _ = board._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    assert data["text/html"] == error_board_html(report, "clinic")
    assert data["text/plain"] == repr(board) and "fourteen" in repr(board)
    assert not any(isinstance(value, bytes) for value in board.get_state().values())


def test_a_report_without_an_utterance_is_told():
    with pytest.raises(DataError, match="the report has no utterance; score at least one"):
        ErrorBoard(ErrorReport(()))
