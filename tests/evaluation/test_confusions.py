"""`speechkit.evaluation.confusions` against counts by hand."""

from __future__ import annotations

import math

import numpy as np

from speechkit.evaluation.confusions import NOTHING, Confusion, count_matrix
from speechkit.evaluation.errors import score


def test_word_errors_are_counted_most_frequent_first():
    report = score(["the cat sat", "the cat ran", "the dog"], ["the hat sat", "a hat ran off", "dog"])
    found = report.confusions()
    assert found.substitutions == (Confusion("cat", "hat", 2, 2), Confusion("the", "a", 1, 3))
    assert found.deletions == (Confusion("the", "", 1, 3),)
    assert found.insertions == (Confusion("", "off", 1, 0),)
    assert found.totals == (3, 1, 1)
    assert report.confusions(1).substitutions == found.substitutions[:1] and report.confusions(1).totals == (3, 1, 1)
    assert found.substitutions[0].share == 1.0 and math.isnan(found.insertions[0].share)
    assert "2  cat → hat  (100% of 2)" in found.table() and "1  ∅ → off" in found.table()


def test_equally_frequent_errors_stand_in_the_order_of_the_alphabet():
    found = score(["c a b"], ["x x x"]).confusions().substitutions
    assert [row.reference for row in found] == ["a", "b", "c"]


def test_the_character_matrix_has_a_row_for_what_was_inserted_and_a_column_for_what_was_deleted():
    found = score(["abba", "ca b"], ["abbax", "cab"]).characters()
    assert found.labels == (NOTHING, "a", "b", "c", "␣", "x")
    a, b, c, gap, x = range(1, 6)
    expected = np.zeros((6, 6), int)
    expected[a, a], expected[b, b], expected[c, c] = 3, 3, 1
    expected[0, x], expected[gap, 0] = 1, 1
    assert found.counts.tolist() == expected.tolist()
    assert found.right == 7
    assert found.row("␣") == {NOTHING: 1} and found.row("a") == {"a": 3} and found.row("q") == {}
    assert found.top() == (Confusion("", "x", 1, 0), Confusion("␣", "", 1, 1))
    assert "7 of 8 characters" in repr(found)


def test_rows_sum_to_what_was_said_and_columns_to_what_was_heard():
    said, heard = ["good morning", "ice cream"], ["god mourning", "i scream"]
    counts = score(said, heard).characters()
    assert counts.counts[1:].sum() == sum(map(len, said))
    assert counts.counts[:, 1:].sum() == sum(map(len, heard))
    assert counts.counts[0, 0] == 0
    assert counts.counts.sum() - counts.right == score(said, heard).cer.errors


def test_the_text_twin_puts_a_combining_mark_on_a_circle():
    assert "◌ि" in score("हि", "ह").characters().table()


def test_nothing_makes_an_empty_matrix():
    empty = score([""], [""]).characters()
    assert empty.labels == (NOTHING,) and empty.right == 0 and empty.top() == ()
    assert count_matrix([("a", "b")]).row("a") == {"b": 1}
