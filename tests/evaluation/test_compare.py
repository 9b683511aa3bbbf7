"""`speechkit.evaluation.compare`: what two reports on the same clips say, against the binomial and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from speechkit.errors import DataError
from speechkit.evaluation.compare import compare
from speechkit.evaluation.errors import ErrorReport, ScoreOptions, score


def reports(wrong_a, wrong_b, words: int = 10, **more) -> tuple[ErrorReport, ErrorReport]:
    """Two reports with so many wrong words in each clip."""
    said = ["w " * words] * len(wrong_a)
    heard = [["x " * bad + "w " * (words - bad) for bad in row] for row in (wrong_a, wrong_b)]
    return tuple(
        score(said, lines, options=ScoreOptions(name=name), **more) for name, lines in zip("ab", heard, strict=True)
    )


def test_difference_wins_and_probability_are_those_of_b():
    found = compare(*reports([3, 3, 3, 3], [1, 3, 4, 3]))
    assert (found.a.errors, found.b.errors) == (12, 11)
    assert found.difference == pytest.approx(-1 / 40)
    assert (found.wins, found.ties, found.losses) == (1, 2, 1)
    assert [(row.name, row.gain) for row in found.changed] == [("1", 2), ("3", -1)]
    assert [row.name for row in found.better()] == ["1"] and [row.name for row in found.worse()] == ["3"]


def test_probability_is_the_share_of_draws_that_b_wins_ties_counted_half():
    # one clip better by 1, one worse by 1: of four equally likely draws b wins one, loses one and ties two
    assert compare(*reports([1, 0], [0, 1])).probability == pytest.approx(0.5, abs=0.02)
    # one clip better, two alike: no draw holds the first one with probability (2/3)^3
    tied = (2 / 3) ** 3
    assert compare(*reports([1, 0, 0], [0, 0, 0])).probability == pytest.approx(1 - tied / 2, abs=0.02)


def test_a_small_steady_gain_is_found_that_two_intervals_hide():
    rng = np.random.default_rng(0)
    hard = rng.integers(1, 9, 120)
    found = compare(*reports(hard, hard - (rng.random(120) < 0.3)))
    assert found.sure and found.high < 0 and found.probability > 0.999
    assert found.b.high > found.a.low, "the intervals of the two rates overlap"


def test_the_same_system_twice_is_a_coin_toss():
    same = compare(*reports([1, 2, 3], [1, 2, 3]))
    assert (same.difference, same.low, same.high, same.probability) == (0, 0, 0, 0.5)
    assert not same.sure and same.changed == ()
    assert "within chance" in repr(same)


def test_clips_are_matched_by_name_whatever_their_order():
    a, b = reports([1, 2, 3], [3, 1, 2], names=["x", "y", "z"])
    turned = ErrorReport(tuple(reversed(b.utterances)), b.language, b.name)
    assert compare(a, turned) == compare(a, b)


def test_characters_and_speakers_may_be_asked_for():
    a, b = reports([1, 2, 3, 0], [3, 1, 2, 0], speakers=["s", "s", "t", ""])
    found = compare(a, b, "char", by_speaker=True)
    assert (found.a.unit, found.a.blocks, found.a.drawn) == ("char", 3, "speakers")
    assert "paired bootstrap, 3 speakers" in repr(found)


def test_one_clip_has_no_interval_and_no_probability():
    found = compare(*reports([1], [0]))
    assert math.isnan(found.low) and math.isnan(found.probability) and not found.sure
    assert "no interval" in repr(found) and "unknown" in repr(found)


def test_a_sure_thing_is_never_printed_as_certain():
    assert "> 0.999" in repr(compare(*reports([5] * 20, [0] * 20)))
    assert "< 0.001" in repr(compare(*reports([0] * 20, [5] * 20)))


def test_the_table_shows_what_changed():
    told = compare(*reports([2, 0], [0, 1])).table()
    assert "b gains:" in told and "2 → 0 errors  1" in told and "b loses:" in told and "0 → 1 errors  2" in told


def test_a_changed_clip_names_the_systems_and_lines_up_what_they_heard():
    base, tuned = (
        score(["so it is"], [line], options=ScoreOptions(name=n)) for n, line in (("base", "x"), ("更好", "so"))
    )
    assert str(compare(base, tuned).changed[0]).splitlines() == [
        "3 → 2 errors  1", "     said  so it is", "     base  x", "     更好  so",
    ]  # fmt: skip


def test_systems_of_one_name_are_told_apart():
    a, b = reports([1, 2], [2, 2])
    assert compare(a, ErrorReport(b.utterances, None, "a")).names == ("a (a)", "a (b)")


def test_less_than_one_draw_is_told():
    with pytest.raises(DataError, match="draws is 0; draw one set or more"):
        compare(*reports([1, 0], [0, 1]), draws=0)


def test_other_clips_or_other_references_are_refused():
    one = score(["a", "b"], ["a", "b"], names=["x", "y"])
    with pytest.raises(DataError, match="not on the same clips: 2 and 2 clips, only the first has y, only the second"):
        compare(one, score(["a", "b"], ["a", "b"], names=["x", "z"]))
    with pytest.raises(DataError, match="2 and 1 clips, only the first has y"):
        compare(one, score(["a"], ["a"], names=["x"]))
    with pytest.raises(DataError, match="the references of y differ: 'b' and 'c'"):
        compare(one, score(["a", "c"], ["a", "b"], names=["x", "y"]))
    with pytest.raises(DataError, match="names occur twice and the order differs"):
        compare(*(score(["a"] * 3, ["a"] * 3, names=list(names)) for names in ("xxy", "yxx")))
