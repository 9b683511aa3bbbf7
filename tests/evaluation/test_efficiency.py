"""`speechkit.evaluation.efficiency` and `savings`: factors against curves whose answer is known, files, merging."""

from __future__ import annotations

import json
import math
from dataclasses import astuple

import numpy as np
import pytest

from speechkit.errors import DataError, OutputError
from speechkit.evaluation.efficiency import Efficiency, EfficiencyPoint, Origin, Trained, efficiency_curve
from speechkit.evaluation.errors import score
from speechkit.evaluation.metrics import Rate
from speechkit.evaluation.savings import minutes_for, saving

MINUTES = (1, 3, 10, 30)


def rate(value: float) -> Rate:
    return Rate(value, value - 0.01, value + 0.01, round(1000 * value), 1000, "word", 50)


def point(start: str, minutes: float, value: float, **more) -> EfficiencyPoint:
    return EfficiencyPoint(start, minutes, rate(value), **more)


def heard(share: float, count: int = 20):
    """A report in which about `share` of the words are wrong."""
    wrong = round(share * 5)
    return score(["w w w w w"] * count, [" ".join(["x"] * wrong + ["w"] * (5 - wrong))] * count, language="cs")


@pytest.mark.parametrize("factor", [0.25, 1.0, 3.0, 10.0])
@pytest.mark.parametrize("level", [None, 0.3, 0.45])
def test_a_curve_moved_along_the_logarithm_saves_by_how_far_it_was_moved(factor, level):
    def wer(minutes: float) -> float:
        return 0.6 - 0.1 * math.log(minutes)

    many = np.geomspace(0.1, 200, 12)
    found = saving(("a", "b"), ([(m, wer(m * factor)) for m in many], [(m, wer(m)) for m in many]), level)
    assert found.factor == pytest.approx(factor) and found.bound == "exact"
    told = f"{factor:.1f} times less" if factor >= 1 else f"{1 / factor:.1f} times more"
    assert f"{told} data than b" in repr(found)


def test_the_level_is_the_lowest_that_both_reach():
    found = saving(("a", "b"), ([(1, 0.5), (10, 0.1)], [(1, 0.9), (10, 0.3)]))
    assert found.rate == 0.3 and found.against_minutes == pytest.approx(10)
    assert found.minutes == pytest.approx(math.sqrt(10)) and found.factor == pytest.approx(math.sqrt(10))


@pytest.mark.parametrize(
    ("a", "b", "level", "factor", "bound"),
    [
        pytest.param([(1, 0.2), (10, 0.1)], [(1, 0.9), (10, 0.4)], None, 10, "at least", id="a starts below b's best"),
        pytest.param([(1, 0.9), (10, 0.4)], [(1, 0.2), (10, 0.1)], None, 0.1, "at most", id="b starts below a's best"),
        pytest.param([(1, 0.5), (10, 0.1)], [(1, 0.9), (10, 0.4)], 0.1, 1, "at least", id="b never gets there"),
        pytest.param([(1, 0.9), (10, 0.4)], [(1, 0.5), (10, 0.1)], 0.1, 1, "at most", id="a never gets there"),
        pytest.param([(1, 0.2), (10, 0.1)], [(1, 0.3), (10, 0.2)], 0.5, None, "unknown", id="both are below at once"),
        pytest.param([(1, 0.2), (10, 0.1)], [(1, 0.3), (10, 0.2)], 0.01, None, "unknown", id="neither gets there"),
    ],
)
def test_curves_that_do_not_cross_give_a_bound_and_say_so(a, b, level, factor, bound):
    found = saving(("a", "b"), (a, b), level)
    assert found.bound == bound and "do not cross" in repr(found)
    assert math.isnan(found.factor) if factor is None else found.factor == pytest.approx(factor)
    if factor is not None:
        flipped = {"at most": "at least"}
        told = f"{bound} {factor:.1f} times less" if factor >= 1 else f"{flipped[bound]} {1 / factor:.1f} times more"
        assert f"{told} data" in repr(found)


def test_the_fewest_minutes_count_where_a_curve_rises_again():
    assert minutes_for([(1, 0.5), (10, 0.1), (30, 0.4)], 0.3) == (pytest.approx(math.sqrt(10)), "on")
    assert minutes_for([(2, 0.3)], 0.3) == (2, "on")


def test_runs_of_equal_minutes_count_by_their_mean():
    assert saving(("a", "b"), ([(1, 0.5), (1, 0.3)], [(1, 0.9), (2, 0.4)])).minutes == 1


def test_points_that_make_no_curve_are_told():
    with pytest.raises(DataError, match="no points for 'a'"):
        saving(("a", "b"), ([], [(1, 0.5)]))
    with pytest.raises(DataError, match="'b' has rate nan at 1 minutes"):
        saving(("a", "b"), ([(1, 0.5)], [(1, math.nan)]))
    with pytest.raises(DataError, match="rate is inf; it is a share of errors"):
        saving(("a", "b"), ([(1, 0.5)], [(1, 0.5)]), math.inf)
    with pytest.raises(DataError, match="minutes is 0; labelled minutes are a finite number above 0"):
        point("a", 0, 0.5)
    with pytest.raises(DataError, match="a, 1 min has no WER: the held-out texts hold no word"):
        efficiency_curve(lambda start, minutes: score(["..."], ["oh"]), ["a"], [1])


def test_savings_are_counted_in_characters_where_no_word_is_right():
    points = [point("a", 1, 1.0, cer=rate(0.3)), point("b", 1, 1.0, cer=rate(0.9)), point("b", 30, 1.0, cer=rate(0.6))]
    assert Efficiency(tuple(points)).saving("a", "b").factor == 1
    told = repr(Efficiency(tuple(points)).saving("a", "b", figure="CER"))
    assert told.startswith("a reaches a CER of 60.0 % with at least 30.0 times less data than b")
    with pytest.raises(DataError, match="a, 1 min has no CER"):
        Efficiency((point("a", 1, 0.5),)).saving("a", "a", figure="CER")


def stored() -> Efficiency:
    origin = Origin("2026-11-20T10:00:00+00:00", "python -m bench", "Linux x86_64", {"torch": "2.14"})
    rows = [("encoder", (0.6, 0.4, 0.2, 0.1)), ("scratch", (1.0, 0.95, 0.6, 0.3))]
    points = [point(s, m, v, origin=origin) for s, values in rows for m, v in zip(MINUTES, values, strict=True)]
    return Efficiency((*points, EfficiencyPoint("one", 1, Rate.of([1], [2]), origin=origin)), "cs", "clips")


def test_a_curve_survives_a_file_with_its_origin(tmp_path):
    held = stored()
    path = held.save(tmp_path / "curve.json")
    again = Efficiency.load(path)
    # as text: an interval of too few clips is NaN, which equals nothing
    assert [repr(astuple(p)) for p in again.points] == [repr(astuple(p)) for p in held.points]
    assert repr(again) == repr(held)
    assert (again.language, again.name) == ("cs", "clips")
    assert again.points[0].origin.versions == {"torch": "2.14"} and math.isnan(again.points[8].wer.low)
    row = json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)["points"][0]
    assert row["origin"]["command"] == "python -m bench" and row["origin"]["date"].startswith("2026-11-20")
    with pytest.raises(OutputError, match="cannot be written"):
        held.save(tmp_path / "none" / "curve.json")


@pytest.mark.parametrize("content", ["", "{}", '{"kind": "x"}', '{"kind": "data-efficiency curve", "points": [{}]}'])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(DataError, match=r"x\.json is no file that Efficiency\.save wrote"):
        Efficiency.load(tmp_path / "x.json")


def test_fresh_points_take_the_place_of_stored_ones_and_are_marked():
    fresh = [point("encoder", 1, 0.55, fresh=True), point("scratch", 2, 0.97, fresh=True)]
    merged = stored().merge(fresh)
    assert [p.wer.value for p in merged.curve("encoder")] == [0.55, 0.4, 0.2, 0.1]
    assert [p.minutes for p in merged.curve("scratch")] == [1, 2, 3, 10, 30]
    assert "*55.0 % [54.0, 56.0]" in merged.table() and "*40.0" not in merged.table()
    assert len(stored().merge([point("encoder", 1, 0.5, seed=1)]).points) == 10, "another seed is another run"
    assert stored().merge(Efficiency(tuple(fresh))).language == "cs"
    with pytest.raises(DataError, match="these points are of language 'cs', the others of 'sk'"):
        stored().merge(Efficiency((), "sk"))


def test_the_print_holds_table_and_savings():
    told = repr(stored())
    assert "30.0 % [29.0, 31.0]" in told and "30 min" in told
    assert "encoder reaches a WER of 30.0 % with 5." in told
    assert stored().saving("encoder", "scratch").minutes == pytest.approx(math.sqrt(30))
    assert repr(Efficiency(())) == "no points of a data-efficiency curve"
    assert "(stored, 2026-11-20)" in str(stored().points[0])
    with pytest.raises(DataError, match="no points for start 'x'; there are 'encoder', 'scratch'"):
        stored().curve("x")


def test_every_start_is_trained_on_every_number_of_minutes_and_carries_its_origin():
    asked: list[tuple[str, float]] = []

    def train(start: str, minutes: float) -> Trained:
        asked.append((start, minutes))
        return Trained(heard(0.6 / minutes), train_s=60 * minutes, minutes=minutes * 0.99, clips=7)

    lines: list[str] = []
    found = efficiency_curve(train, ["encoder", "scratch"], [3, 1], command="make bench", progress=lines.append)
    assert asked == [("encoder", 1), ("encoder", 3), ("scratch", 1), ("scratch", 3)]
    first = found.points[0]
    assert (first.wer.value, first.minutes, first.train_s, first.clips) == (0.6, 0.99, 60, 7)
    assert found.language == "cs" and first.fresh and len(lines) == 4 and "measured now" in lines[0]
    assert first.origin.command == "make bench" and {"python", "jiwer", "speechkit"} <= set(first.origin.versions)
    assert first.cer is not None and first.wer.low == first.wer.high == pytest.approx(0.6)


def test_a_report_alone_is_timed():
    found = efficiency_curve(lambda start, minutes: heard(0.2), ["a"], [1])
    assert found.points[0].train_s > 0


def test_runs_that_cannot_be_compared_are_refused():
    with pytest.raises(DataError, match=r"train\('a', 2\) was scored on other held-out texts"):
        efficiency_curve(lambda start, minutes: heard(0.2, int(minutes)), ["a"], [1, 2])
    with pytest.raises(DataError, match=r"train\('a', 1\) gave float; it gives Trained or ErrorReport"):
        efficiency_curve(lambda start, minutes: 0.5, ["a"], [1])
    with pytest.raises(DataError, match="0 starts and 1 numbers of minutes"):
        efficiency_curve(lambda start, minutes: heard(0.2), [], [1])
