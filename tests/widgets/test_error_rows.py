"""What the error board shows of a report: order, filters, rows, stretches to hear, grids."""

from __future__ import annotations

import json
import math
import random
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechkit.errors import DataError
from speechkit.evaluation.errors import ErrorReport, score
from speechkit.widgets.error_rows import CUT, Index, Query, columns_of, direction, grid, row_of, stretch

sys.path.insert(0, str(Path(__file__).parent))

import error_reports as reports

S, D, I, E = reports.S, reports.D, reports.I, reports.E  # noqa: E741 (as in every table of edits)


@pytest.fixture
def report(tmp_path) -> ErrorReport:
    return reports.clinic(tmp_path)


@pytest.mark.parametrize(
    ("sort", "descending", "order"),
    [
        ("errors", True, [1, 2, 0, 3]),
        ("errors", False, [0, 3, 2, 1]),
        ("wer", True, [1, 2, 0, 3]),
        ("name", False, [3, 2, 0, 1]),  # clip-9 before clip-10
        ("name", True, [1, 0, 2, 3]),
        ("speaker", False, [0, 1, 2, 3]),  # one has none: last either way
        ("speaker", True, [1, 2, 0, 3]),
        ("confidence", False, [1, 2, 0, 3]),
        ("confidence", True, [0, 2, 1, 3]),
        ("seconds", True, [1, 0, 2, 3]),
    ],
)
def test_utterances_come_in_the_order_asked_for(report, sort, descending, order):
    assert Index(report).chosen(Query(sort=sort, descending=descending)) == order


@pytest.mark.parametrize(
    ("query", "found"),
    [
        (Query(text="FORTY"), [1]),  # heard
        (Query(text="fourteen bo"), [1]),  # every word somewhere: said, and the speaker
        (Query(text="clip-"), [1, 0]),
        (Query(text="fourteen anna"), []),
        (Query(kinds=("substitute",)), [1, 2]),
        (Query(kinds=("insert", "delete")), [1]),
        (Query(below=0.7), [1]),
        (Query(below=0.71, kinds=("substitute",)), [1, 2]),
        (Query(pair=("fourteen", "forty")), [1]),
        (Query(pair=("", "red")), [1]),
        (Query(pair=("the", "")), [1]),
        (Query(pair=("wait", "wait")), []),  # heard as said is no confusion
        (Query(pair=("ا", ""), unit="char"), [2]),
    ],
)
def test_filters_leave_what_fits_all_of_them(report, query, found):
    assert Index(report).chosen(query) == found


def test_text_is_found_however_it_is_composed():
    report = score(["caf\u00e9 au lait"], ["cafe au lait"])
    assert Index(report).chosen(Query(text="CAFE\u0301")) == [0]
    assert Index(report).chosen(Query(text="caf\u00e8")) == []


def test_a_confidence_that_is_no_number_is_not_known(report):
    odd = replace(report, utterances=(replace(report.utterances[0], confidence=math.nan), *report.utterances[1:]))
    assert Index(odd).chosen(Query(sort="confidence", descending=False)) == [1, 2, 0, 3]
    assert Index(odd).chosen(Query(below=1.0)) == [1, 2]
    assert json.loads(json.dumps(row_of(odd.utterances[0], 0), allow_nan=False))["confidence"] is None


def test_a_question_survives_its_way_through_json_and_nonsense_is_told():
    query = Query("name", False, "a", ("insert",), 0.5, ("x", ""), "char")
    sent = {name: getattr(query, name) for name in Query.__slots__}
    assert Query.parse(json.loads(json.dumps(sent))) == query
    assert Query.parse({}) == Query()
    for bad in (
        {"sort": "size"},
        {"kinds": ["equal"]},
        {"unit": "jamo"},
        {"below": "low"},
        {"pair": ["a"]},
        {"kinds": 3},
        {"sort": []},
        "errors",
    ):
        with pytest.raises(DataError, match="is no question to an error board"):
            Query.parse(bad)


def test_a_row_tells_its_figures_and_its_columns(report):
    row = row_of(report.utterances[1], 1)
    assert (row["row"], row["name"], row["speaker"], row["dir"], row["language"]) == (
        1,
        "clip-10.wav",
        "bo",
        "ltr",
        "en",
    )
    assert (row["errors"], row["kinds"], row["words"], row["wer"]) == (3, [1, 1, 1], 4, 0.75)
    assert [column[:3] for column in row["columns"]] == [
        [E, "bring", "bring"], [D, "the", ""], [S, "fourteen", "forty"], [I, "", "red"], [E, "pens", "pens"],
    ]  # fmt: skip
    assert all(start is not None for *_, start in row["columns"])
    silent = row_of(replace(report.utterances[1], audio=None), 1)
    assert all(start is None for *_, start in silent["columns"]), "nothing to hear without audio"


def test_a_word_is_heard_with_a_little_around_it_and_a_missing_one_between_its_neighbours(report):
    row = report.utterances[1]  # heard: bring 0.2-0.6, forty 0.7-1.1, red 1.2-1.6, pens 1.7-2.1
    for column, (start, end) in {0: (0.2, 0.6), 2: (0.7, 1.1), 3: (1.2, 1.6), 4: (1.7, 2.1)}.items():
        first, last = stretch(row, column)
        assert first <= start and end <= last and last - first < 0.6
    first, last = stretch(row, 1)
    assert 0.2 <= first < 0.6 and 0.7 < last <= 1.1, "the gap, and some of both neighbours"


def test_missing_words_at_the_ends_and_in_silence_have_a_place_too():
    ends = reports.scored("a", (D, "oh", ""), (E, "no", "no"), (D, "way", ""), timed=True, seconds=3.0)
    assert stretch(ends, 0)[0] == 0 and stretch(ends, 0)[1] > 0.2
    assert stretch(ends, 2)[0] < 0.6 and stretch(ends, 2)[1] >= 3.0
    nothing = reports.scored("b", (D, "oh", ""), seconds=3.0)
    untimed = reports.scored("c", (S, "oh", "no"), (D, "oh", ""))
    assert stretch(nothing, 0) is None and stretch(untimed, 0) is None and stretch(untimed, 1) is None


def test_an_utterance_of_an_hour_comes_in_parts():
    long = reports.scored("hour", *[(E, f"w{i}", f"w{i}") for i in range(600)])
    assert row_of(long, 0)["length"] == 600 and len(row_of(long, 0)["columns"]) == CUT
    said = [column[1] for first in range(0, 600, CUT) for column in columns_of(long, first)]
    assert said == [f"w{i}" for i in range(600)]
    assert columns_of(long, 600) == []


@pytest.mark.parametrize(
    ("text", "way"),
    [
        ("hello", "ltr"),
        ("مرحبا", "rtl"),
        ("שלום ok", "rtl"),
        ("abc ש", "ltr"),
        ("", "ltr"),
        ("12", "ltr"),
        ("ש a", "rtl"),
    ],
)
def test_a_text_runs_as_most_of_its_letters_do(text, way):
    assert direction(text) == way


words = st.lists(st.sampled_from("abcdefghij"), max_size=8).map(" ".join)


@given(st.lists(st.tuples(words.filter(bool), words), min_size=1, max_size=6), st.integers(2, 8))
def test_a_grid_counts_every_error_once(pairs, most):
    report = score([said for said, _ in pairs], [heard for _, heard in pairs])
    made = grid(Index(report).pairs("word"), most)
    assert made.labels[0] == "" and len(set(made.labels)) == len(made.labels) <= most + 1
    inside = sum(made.counts[i][j] for i in range(len(made.labels)) for j in range(len(made.labels)) if i != j)
    assert inside + made.left_out == report.wer.errors, "what has no room is counted too"
    edits = Counter((edit.reference, edit.hypothesis) for row in report.utterances for edit in row.edits)
    for i, said in enumerate(made.labels):
        for j, heard in enumerate(made.labels):
            assert made.counts[i][j] == edits[said, heard]
    assert made.top == tuple(sorted(made.top, key=lambda row: -row[2]))


def test_the_characters_of_the_grid_are_those_of_the_report():
    report = score(["bad man", "bat"], ["bet man", "pat"])
    made, oracle = grid(Index(report).pairs("char")), report.characters()
    for i, said in enumerate(made.labels):
        for j, heard in enumerate(made.labels):
            if said and heard:
                assert made.counts[i][j] == oracle.counts[oracle.labels.index(said), oracle.labels.index(heard)]
    assert {(said, heard) for said, heard, _ in made.top} == {("a", "e"), ("d", "t"), ("b", "p")}


def test_thousands_of_utterances_are_searched_as_few_are():
    rng = random.Random(0)
    lines = [" ".join(rng.choices("one two three four five six".split(), k=6)) for _ in range(3000)]
    heard = [line.replace("five", "fine") if i % 3 else line for i, line in enumerate(lines)]
    index = Index(score(lines, heard))
    found = index.chosen(Query(pair=("five", "fine"), text="six"))
    assert set(found) == {i for i, line in enumerate(lines) if i % 3 and "five" in line and "six" in line}
