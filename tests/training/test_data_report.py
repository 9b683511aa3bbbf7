"""What a report says, shows and stores."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import numpy as np
import pytest

from speechkit.errors import DataError, OutputError
from speechkit.training.data import Example
from speechkit.training.data_report import DataReport, Problem

if TYPE_CHECKING:
    from pathlib import Path

KEPT = (
    Example("/data/a.wav", "zażółć", "a.wav", "anna", "pl", 30.0),
    Example("/data/b.wav", "gęślą", "b.wav", "", "pl", 90.0, 8000.0),
)
LEFT = tuple(Problem(n, f"{n}.wav", "unreadable", f"no such file: {n}.wav") for n in range(2, 7))
REPORT = DataReport(KEPT, (*LEFT, Problem(7, "<b>.wav", "too short", "0.01 s")), (Problem(1, "b.wav", "silent", "!"),))


def test_totals_are_those_of_the_kept_rows() -> None:
    assert (REPORT.rows, REPORT.seconds, REPORT.speakers, REPORT.characters) == (8, 120.0, 1, 11)
    assert REPORT.counts == {"unreadable": 5, "too short": 1, "silent": 1}
    assert [problem.row for problem in REPORT.of_kind("unreadable")] == [2, 3, 4, 5, 6]


def test_it_prints_counts_and_a_few_examples_of_each_kind() -> None:
    assert str(REPORT).splitlines() == [
        "2 of 8 rows can be used: 2.0 min, 1 speaker, 11 characters",
        "left out: 6 rows",
        "       5  unreadable",
        "          row 2 (2.wav): no such file: 2.wav",
        "          row 3 (3.wav): no such file: 3.wav",
        "          row 4 (4.wav): no such file: 4.wav",
        "          …",
        "       1  too short",
        "          row 7 (<b>.wav): 0.01 s",
        "kept, with a remark: 1 row",
        "       1  silent",
        "          row 1 (b.wav): !",
    ]


def test_its_html_is_escaped_and_well_formed() -> None:
    opened: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            if tag != "br":
                opened.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert opened.pop() == tag

    page = REPORT._repr_html_()
    Reader().feed(page)
    assert not opened
    assert "&lt;b&gt;.wav" in page and "<b>" not in page
    assert "<table>" not in DataReport(KEPT)._repr_html_()


def test_words_stand_to_the_left_in_its_html_and_numbers_to_the_right() -> None:
    cells = re.findall(r"<(t[hd]) style=\"text-align:(left|right)\">(.*?)</", REPORT._repr_html_())
    assert [(side, text) for kind, side, text in cells if kind == "th"] == [
        ("left", "row is"), ("left", "why"), ("right", "rows"), ("left", "for example"),
    ]  # fmt: skip
    assert {side for kind, side, text in cells if kind == "td" and text.isdigit()} == {"right"}
    assert {side for kind, side, text in cells if kind == "td" and not text.isdigit()} == {"left"}


def test_a_saved_report_comes_back(tmp_path: Path) -> None:
    path = REPORT.save(tmp_path / "new folder" / "report.json")
    assert DataReport.load(path) == REPORT
    assert "zażółć" in path.read_text(encoding="utf-8")


def test_audio_in_memory_is_not_stored_and_says_so_when_asked_for(tmp_path: Path) -> None:
    report = DataReport((Example(np.zeros(16000), "hi", "row 0", seconds=1.0),))
    (row,) = DataReport.load(report.save(tmp_path / "report.json")).kept
    assert (row.text, row.seconds) == ("hi", 1.0)
    with pytest.raises(DataError, match="row 0 has no audio"):
        row.samples()


def test_a_report_that_cannot_be_written_or_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot write"):
        REPORT.save(tmp_path / "file" / "report.json")
    for text in ("{", "[]", "{}", json.dumps({"format": "another"})):
        (tmp_path / "other.json").write_text(text)
        with pytest.raises(DataError, match="is no report"):
            DataReport.load(tmp_path / "other.json")
    with pytest.raises(DataError, match="is no report"):
        DataReport.load(tmp_path / "missing.json")
