"""The curve against scipy's optimiser and scikit-learn's logistic regression; known curves found again."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from speechkit.errors import DataError, OutputError
from speechkit.evaluation.calibration import ConfidenceMap, before_and_after, compare
from speechkit.evaluation.judge import Judged
from speechkit.evaluation.reliability import auroc, reliability
from speechkit.types import Char, Transcript, Word

SURE = st.floats(0.01, 0.99)


def overconfident(count: int = 4000, seed: int = 0, power: float = 3.0, per_clip: int = 10) -> Judged:
    """Right as often as confidence ** power."""
    rng = np.random.default_rng(seed)
    sure = rng.beta(4, 1, count)
    return Judged.of(sure, rng.random(count) < sure**power, np.arange(count) // per_clip)


def along(slope: float, offset: float, count: int = 20_000) -> Judged:
    """Right as often as the curve says."""
    rng = np.random.default_rng(1)
    sure = rng.beta(2, 1, count)
    return Judged.of(sure, rng.random(count) < expit(slope * logit(sure) + offset))


@pytest.mark.parametrize(("slope", "offset"), [(1.0, 0.0), (0.5, -0.7), (2.0, 1.0)])
def test_a_known_curve_is_found_again(slope, offset):
    found = ConfidenceMap.fit(along(slope, offset))
    assert (found.slope, found.offset) == (pytest.approx(slope, abs=0.08), pytest.approx(offset, abs=0.08))


def test_without_an_offset_a_known_temperature_of_the_logit_is_found_again():
    found = ConfidenceMap.fit(along(0.5, 0.0), offset=False)
    assert found.offset == 0
    assert 1 / found.slope == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize("count", [12, 300])
def test_the_curve_is_the_one_of_scipys_optimiser_on_platts_targets(count):
    rows = overconfident(count)
    x, right, wrong = logit(rows.confidence), rows.correct.sum(), (~rows.correct).sum()
    target = np.where(rows.correct, (right + 1) / (right + 2), 1 / (wrong + 2))

    def loss(w: np.ndarray) -> float:
        z = w[0] * x + w[1]
        return float(np.sum(np.logaddexp(0, z) - target * z))

    theirs = minimize(loss, [1.0, 0.0], method="BFGS", tol=1e-10).x
    found = ConfidenceMap.fit(rows)
    assert [found.slope, found.offset] == pytest.approx(theirs.tolist(), rel=1e-3, abs=1e-3)


def test_with_many_words_it_is_plain_logistic_regression():
    rows = overconfident(20_000)
    theirs = LogisticRegression(C=np.inf).fit(logit(rows.confidence)[:, None], rows.correct)
    found = ConfidenceMap.fit(rows)
    assert found.slope == pytest.approx(float(theirs.coef_[0, 0]), rel=0.01)
    assert found.offset == pytest.approx(float(theirs.intercept_[0]), abs=0.02)


def test_the_error_falls_to_near_chance_on_clips_that_had_no_part_in_the_fit():
    shown = before_and_after(overconfident())
    assert shown.before.ece > 0.15
    assert shown.after.ece < 2 * shown.after.ece_by_chance
    assert shown.after.brier < shown.before.brier
    assert shown.after.auroc == pytest.approx(shown.before.auroc)
    assert shown.low < shown.change < shown.high < 0
    assert shown.fit_on.clips == shown.clips == 200


def test_the_two_halves_share_no_clip():
    rows = overconfident(400)
    flipped = Judged(rows.confidence, rows.correct.copy(), rows.clip, rows.index, rows.missed)
    _, others = rows.split()
    flipped.correct[np.isin(rows.clip, others)] ^= True
    assert before_and_after(rows).fit_on == before_and_after(flipped).fit_on


def test_groups_stay_on_one_side():
    rows = overconfident(400)
    speakers = [clip % 4 for clip in range(rows.clips)]
    shown = before_and_after(rows, groups=speakers)
    fitting, _ = rows.split(groups=speakers)
    assert shown.fit_on == ConfidenceMap.fit(rows.pick(fitting)).fit_on


def test_the_result_prints_as_one_line_with_what_it_was_measured_on():
    line = repr(before_and_after(overconfident(), bins=10, binning="mass"))
    assert "\n" not in line
    assert line.startswith("ECE 0.1") or line.startswith("ECE 0.2")
    for part in (" → 0.0", "in 10 equal-mass bins (", "by chance, change -0.", "Brier", "2,000 words of 200 clips"):
        assert part in line
    assert line.endswith("; fitted on 2,000 words of 200 other clips")


@pytest.mark.parametrize(
    "curve", [ConfidenceMap(1.0, -0.5), ConfidenceMap.fit(overconfident(100_000))], ids=["half way", "all the way"]
)
def test_the_interval_holds_the_true_change_about_19_times_of_20(curve):
    many = overconfident(200_000, seed=100)
    truth = reliability(many.with_confidence(curve(many.confidence))).ece - reliability(many).ece
    held = 0
    for seed in range(40):
        rows = overconfident(1000, seed)
        shown = compare(rows, rows.with_confidence(curve(rows.confidence)))
        held += shown.low <= truth <= shown.high
    assert held >= 33  # 38 expected; fewer than 33 by accident once in 1,000 times


def test_words_that_err_together_widen_the_interval():
    rng = np.random.default_rng(0)
    sure = np.full(1000, 0.9)
    clip = np.arange(1000) // 20
    together = Judged.of(sure, (rng.random(50) < 0.6)[clip], clip)
    alone = Judged.of(sure, rng.random(1000) < 0.6, clip)
    wide, narrow = (compare(rows, rows.with_confidence(np.full(1000, 0.6))) for rows in (together, alone))
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_one_clip_has_no_interval_and_says_none():
    rows = Judged.of([0.9, 0.8, 0.7], [1, 0, 1], [0, 0, 0])
    shown = compare(rows, rows.with_confidence([0.6, 0.6, 0.6]))
    assert math.isnan(shown.low) and math.isnan(shown.high)
    assert "change" not in repr(shown)


def test_different_words_are_not_compared():
    rows = Judged.of([0.9, 0.8], [1, 0])
    with pytest.raises(DataError, match="not the same units with the same verdicts"):
        compare(rows, Judged.of([0.9, 0.8], [1, 1]))
    with pytest.raises(DataError, match="not the same units"):
        compare(rows, Judged.of([0.9], [1]))


@given(st.floats(0.05, 5), st.floats(-4, 4), st.lists(SURE, min_size=1, max_size=20))
def test_the_inverse_gives_back_what_was_mapped_and_the_order_stays(slope, offset, sure):
    curve = ConfidenceMap(slope, offset)
    mapped = curve(sure)
    assert curve.inverse(mapped) == pytest.approx(np.array(sure), abs=1e-6)
    assert ((mapped >= 0) & (mapped <= 1)).all()
    ranked = curve(sorted(sure))
    assert (np.diff(ranked) >= 0).all()


def test_slope_1_and_offset_0_change_nothing():
    assert ConfidenceMap(1.0, 0.0)([0.1, 0.5, 0.9]) == pytest.approx([0.1, 0.5, 0.9])


def test_certainty_is_held_a_millionth_away():
    assert ConfidenceMap(1.0, 0.0)([0.0, 1.0]) == pytest.approx([1e-6, 1 - 1e-6])


def transcript() -> Transcript:
    def word(text: str, sure: list[float]) -> Word:
        return Word(text, 0, 1, min(sure), tuple(Char(c, 0, 1, p) for c, p in zip(text, sure, strict=True)))

    words = (word("ab", [0.9, 0.7]), word("c", [0.4]))
    return Transcript("ab c", words, "en", 1.0, 0.55, "demo/en")


def test_a_transcript_gets_new_words_and_keeps_all_else():
    curve = ConfidenceMap(0.5, -0.2)
    mapped = curve.apply(transcript())
    wanted = [expit(0.5 * logit(p) - 0.2) for p in (0.7, 0.4)]
    assert [w.confidence for w in mapped.words] == pytest.approx(wanted)
    assert mapped.confidence == pytest.approx(np.mean(wanted))
    assert [w.chars for w in mapped.words] == [w.chars for w in transcript().words]
    assert (mapped.text, mapped.model, mapped.language) == ("ab c", "demo/en", "en")
    assert all(type(w.confidence) is float for w in mapped.words), "JSON takes no numpy numbers"
    assert Transcript.from_json(mapped.to_json()) == mapped


def test_a_map_of_characters_leaves_the_words_alone():
    mapped = ConfidenceMap(0.5, -0.2, "char").apply(transcript())
    assert [c.confidence for w in mapped.words for c in w.chars] == pytest.approx(
        [expit(0.5 * logit(p) - 0.2) for p in (0.9, 0.7, 0.4)]
    )
    assert [w.confidence for w in mapped.words] == [0.7, 0.4]


@pytest.mark.parametrize("unit", ["word", "char"])
def test_undo_gives_the_transcript_back(unit):
    curve = ConfidenceMap(1.7, 0.4, unit)
    back = curve.undo(curve.apply(transcript()))
    assert [w.confidence for w in back.words] == pytest.approx([0.7, 0.4])
    assert [c.confidence for w in back.words for c in w.chars] == pytest.approx([0.9, 0.7, 0.4])


def test_an_empty_transcript_stays_and_one_without_words_is_refused():
    empty = Transcript("", duration_s=2.0)
    assert ConfidenceMap(2.0, 0.0).apply(empty) == empty
    with pytest.raises(DataError, match="a text and no words"):
        ConfidenceMap(2.0, 0.0).apply(Transcript("ab"))


def test_a_nan_in_a_transcript_is_refused():
    words = (replace(transcript().words[0], confidence=math.nan),)
    with pytest.raises(DataError, match="word 1 of 1 is nan"):
        ConfidenceMap(2.0, 0.0).apply(replace(transcript(), words=words))


def test_what_was_saved_is_loaded(tmp_path):
    found = ConfidenceMap.fit(overconfident(100))
    assert ConfidenceMap.load(found.save(tmp_path / "map.json")) == found
    plain = ConfidenceMap(1.5, -0.25, "char")
    assert ConfidenceMap.load(plain.save(tmp_path / "plain.json")) == plain


def test_a_file_that_is_none_of_ours_or_a_folder_that_is_none_is_named(tmp_path):
    (tmp_path / "x.json").write_text('{"kind": "ConfidenceMap", "slope": 1}')
    with pytest.raises(DataError, match=r"wanted ConfidenceMap with slope, offset, unit and fit_on: give a file that"):
        ConfidenceMap.load(tmp_path / "x.json")
    with pytest.raises(OutputError, match="cannot be written"):
        ConfidenceMap(1.0, 0.0).save(tmp_path / "absent" / "x.json")


@pytest.mark.parametrize("bad", [(0.0, 0.0), (-1.0, 0.0), (math.nan, 0.0), (1.0, math.inf)])
def test_a_curve_that_does_not_rise_is_refused(bad):
    with pytest.raises(DataError, match="both are finite numbers, the slope above 0"):
        ConfidenceMap(*bad)


@pytest.mark.parametrize(
    ("right", "message"),
    [
        ([True] * 3, "all 3 words are right in 3 clips: a calibration learns from right and wrong words; give more"),
        ([False] * 3, "all 3 words are wrong in 3 clips"),
        ([], "nothing was heard in 0 clips"),
    ],
    ids=["all right", "all wrong", "no words"],
)
def test_one_sided_verdicts_teach_nothing_and_are_refused(right, message):
    with pytest.raises(DataError, match=message):
        ConfidenceMap.fit(Judged.of([0.5] * len(right), right))


def test_confidences_that_part_right_from_wrong_without_fail_give_a_finite_curve():
    found = ConfidenceMap.fit(Judged.of([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1]))
    assert 0 < found.slope < 100
    assert found([0.1])[0] < 0.5 < found([0.9])[0]
    assert found.fit_on.warnings == ("only 2 words are right: a weak fit", "only 2 words are wrong: a weak fit")


@pytest.mark.parametrize("offset", [True, False])
def test_confidences_that_mislead_give_all_words_nearly_the_same_and_say_so(offset):
    rows = overconfident()
    turned = Judged.of(1 - rows.confidence, rows.correct)
    found = ConfidenceMap.fit(turned, offset=offset)
    assert "confidence tells nothing here: wrong words are as sure as right ones" in found.fit_on.warnings
    mapped = found(turned.confidence)
    assert np.ptp(mapped) < 0.02
    assert auroc(mapped, turned.correct) == pytest.approx(auroc(turned.confidence, turned.correct))
    if offset:
        assert mapped.mean() == pytest.approx(turned.correct.mean(), abs=0.01)


def test_confidences_that_are_all_alike_become_the_share_that_is_right():
    found = ConfidenceMap.fit(Judged.of([0.99] * 200, [True] * 150 + [False] * 50))
    assert found([0.99])[0] == pytest.approx(0.75, abs=0.01)


def test_a_map_after_a_map_changes_nothing_more():
    rows = overconfident(20_000)
    once = rows.with_confidence(ConfidenceMap.fit(rows)(rows.confidence))
    again = ConfidenceMap.fit(once)
    assert (again.slope, again.offset) == (pytest.approx(1, abs=0.01), pytest.approx(0, abs=0.01))
    assert reliability(once).nce > reliability(rows).nce
