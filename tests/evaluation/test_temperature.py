"""A known temperature found again; confidences against scipy's log-softmax and `asr.decode`; the words stay."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, log_softmax, logit

from speechkit import audio
from speechkit.asr.decode import Alphabet, best_path, decode
from speechkit.asr.frames import FrameGrid
from speechkit.errors import DataError, OutputError
from speechkit.evaluation.calibration import ConfidenceMap
from speechkit.evaluation.fitted import Fit
from speechkit.evaluation.reliability import log_loss, reliability
from speechkit.evaluation.temperature import (
    FrameCalibration,
    FrameTemperature,
    frames_before_and_after,
    judge_frames,
)

if TYPE_CHECKING:
    from speechkit import Recognizer
    from speechkit.demo import DemoClip

TOY = Alphabet(("", "", "a", "b", "c", "d"), blank=0, delimiter=1)  # V = 6
LETTERS = range(2, 6)


def random_clip(rng: np.random.Generator, frames: int = 30, sharp: float = 3.0) -> np.ndarray:
    """(F, V) natural-log probabilities without meaning."""
    return log_softmax(sharp * rng.standard_normal((frames, 6)), axis=1).astype(np.float32)


def spoken_at(temperature: float, count: int, seed: int = 0) -> tuple[list[np.ndarray], list[str]]:
    """One-letter clips whose letter is right as often as log_softmax(logp / temperature) says, and their texts."""
    rng = np.random.default_rng(seed)
    rows, texts = [], []
    for _ in range(count):
        row = random_clip(rng, 1)
        row[0, :2] -= 50  # a letter wins
        row = log_softmax(row, axis=1).astype(np.float32)
        winner = int(row.argmax())
        right = rng.random() < np.exp(log_softmax(row / temperature, axis=1)[0, winner])
        other = next(letter for letter in LETTERS if letter != winner)
        rows.append(row)
        texts.append(TOY.symbols[winner if right else other])
    return rows, texts


@pytest.mark.parametrize("truth", [0.6, 1.0, 2.5])
def test_a_known_temperature_is_found_again(truth):
    found = FrameTemperature.fit(*spoken_at(truth, 3000), TOY)
    assert found.temperature == pytest.approx(truth, rel=0.1)
    assert found.fit_on.log_loss_after <= found.fit_on.log_loss_before
    assert found.fit_on.warnings == ()


def test_it_lowers_the_calibration_error_on_clips_it_has_not_seen():
    found = FrameTemperature.fit(*spoken_at(2.5, 1500, seed=1), TOY)
    fresh = spoken_at(2.5, 1500, seed=2)
    before, after = (reliability(judge_frames(*fresh, TOY, t)) for t in (1.0, found.temperature))
    assert before.ece > 0.1
    assert after.ece < 2 * after.ece_by_chance
    assert after.auroc == pytest.approx(before.auroc, abs=0.02)


def test_no_temperature_of_a_fine_grid_has_a_lower_loss():
    rng = np.random.default_rng(4)
    rows = [random_clip(rng) for _ in range(40)]
    texts = [" ".join(rng.choice(list("abcd"), 9)) for _ in rows]
    found = FrameTemperature.fit(rows, texts, TOY)

    def loss(temperature: float) -> float:  # by scipy and the decoder, not by the arithmetic of the fit
        warm = [log_softmax(row.astype(np.float64) / temperature, axis=1).astype(np.float32) for row in rows]
        judged = judge_frames(warm, texts, TOY)
        return log_loss(judged.confidence, judged.correct)

    assert loss(found.temperature) == pytest.approx(found.fit_on.log_loss_after, abs=1e-5)
    assert loss(1.0) == pytest.approx(found.fit_on.log_loss_before, abs=1e-5)
    assert found.fit_on.log_loss_after <= min(loss(t) for t in np.geomspace(0.1, 15, 40)) + 1e-5


@given(st.integers(0, 10_000), st.floats(0.1, 10))
def test_words_and_times_stay_and_confidences_are_those_of_the_scaled_frames(seed, temperature):
    row = random_clip(np.random.default_rng(seed))
    warm = FrameTemperature(temperature)
    words = decode(warm.path(row), TOY, FrameGrid(), 1e9)
    plain = decode(best_path(row), TOY, FrameGrid(), 1e9)
    assert [(w.text, w.start_s, w.end_s) for w in words] == [(w.text, w.start_s, w.end_s) for w in plain]
    scaled = log_softmax(row.astype(np.float64) / temperature, axis=1).astype(np.float32)
    theirs = decode(best_path(scaled), TOY, FrameGrid(), 1e9)
    assert [w.confidence for w in words] == pytest.approx([w.confidence for w in theirs], abs=1e-5)


@given(st.integers(0, 10_000), st.floats(0.2, 5))
def test_undo_gives_back_what_was_applied(seed, temperature):
    row = random_clip(np.random.default_rng(seed))
    warm = FrameTemperature(temperature)
    assert warm.undo(warm.apply(row)) == pytest.approx(row, abs=1e-4)
    assert np.exp(warm.apply(row)).sum(axis=1) == pytest.approx(np.ones(len(row)), abs=1e-5)


def test_heat_takes_away_certainty_and_cold_adds_it():
    row = random_clip(np.random.default_rng(0))
    cold, plain, hot = (FrameTemperature(t).path(row).scores for t in (0.5, 1.0, 2.0))
    assert (cold > plain).all() and (plain > hot).all()


def test_a_token_that_cannot_be_stays_impossible():
    row = np.array([[0.0, -np.inf, -1.0]], np.float32)
    assert np.exp(FrameTemperature(2.0).apply(row))[0, 1] == 0


def test_what_was_saved_is_loaded(tmp_path):
    found = FrameTemperature.fit(*spoken_at(2.0, 60), TOY)
    assert FrameTemperature.load(found.save(tmp_path / "t.json")) == found
    assert FrameTemperature.load(FrameTemperature(1.5).save(tmp_path / "plain.json")) == FrameTemperature(1.5)
    assert json.loads((tmp_path / "t.json").read_text())["kind"] == "FrameTemperature"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no json", "cannot be read as a saved FrameTemperature"),
        ('{"kind": "ConfidenceMap", "slope": 1}', "holds ConfidenceMap, wanted FrameTemperature with temperature"),
        ("[1]", "holds something else, wanted FrameTemperature"),
        ('{"kind": "FrameTemperature", "temperature": -1, "fit_on": null}', "temperature is -1; it is a finite number"),
        ('{"kind": "FrameTemperature", "temperature": 1, "fit_on": {"a": 1}}', "whose fit_on cannot be read"),
    ],
)
def test_a_file_that_is_none_of_ours_is_refused(tmp_path, content, message):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(DataError, match=message):
        FrameTemperature.load(tmp_path / "x.json")


def test_a_place_that_cannot_be_read_or_written_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.json cannot be read as a saved FrameTemperature"):
        FrameTemperature.load(tmp_path / "none.json")
    with pytest.raises(OutputError, match=r"x\.json cannot be written: No such file or directory; give a file"):
        FrameTemperature(1.0).save(tmp_path / "absent" / "x.json")


@pytest.mark.parametrize("bad", [0, -1, math.inf, math.nan])
def test_a_temperature_that_is_none_is_refused(bad):
    with pytest.raises(DataError, match=r"it is a finite number above 0 \(1 changes nothing\)"):
        FrameTemperature(bad)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row[0], r"log-probabilities of shape \(6,\); give \(F, V\)"),
        (lambda row: row[:, :4], "log-probabilities of 4 tokens for an alphabet of 6"),
        (lambda row: np.where(np.arange(6) == 3, np.nan, row), "frame 0 of the log-probabilities holds NaN"),
        (lambda row: np.full_like(row, -np.inf), "frame 0 .* no possible token"),
    ],
)
def test_arrays_that_are_no_log_probabilities_are_refused(change, message):
    rows, texts = spoken_at(1.0, 3)
    with pytest.raises(DataError, match=message):
        FrameTemperature.fit([*rows[:2], change(rows[2])], texts, TOY)


def test_lists_of_different_length_are_refused():
    rows, texts = spoken_at(1.0, 3)
    with pytest.raises(DataError, match="3 transcripts and 2 references"):
        FrameTemperature.fit(rows, texts[:2], TOY)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (lambda right: right, "all 5 words are right in 5 clips: a calibration learns from right and wrong words"),
        (lambda right: ["zzz" for _ in right], "all 5 words are wrong in 5 clips"),
    ],
)
def test_one_sided_verdicts_are_refused(texts, message):
    rows, _ = spoken_at(1.0, 5)
    heard = [decode(best_path(row), TOY, FrameGrid(), 1e9)[0].text for row in rows]
    with pytest.raises(DataError, match=message):
        FrameTemperature.fit(rows, texts(heard), TOY)


def test_clips_in_which_nothing_is_heard_take_part_and_alone_are_refused():
    silent = np.full((4, 6), -9.0, np.float32)
    silent[:, 0] = -0.001
    rows, texts = spoken_at(2.0, 200)
    among = FrameTemperature.fit([silent, *rows[:100], silent, *rows[100:]], ["a", *texts[:100], "", *texts[100:]], TOY)
    assert among.temperature == pytest.approx(FrameTemperature.fit(rows, texts, TOY).temperature, rel=1e-3)
    with pytest.raises(DataError, match="nothing was heard in 1 clips"):
        FrameTemperature.fit([silent], ["a"], TOY)


def test_few_words_and_a_temperature_at_the_edge_are_said():
    sure = log_softmax(np.array([[0, 0, 0.4, 0, 0, 0.0]]), axis=1).astype(np.float32)  # right, and hardly above chance
    unsure = log_softmax(np.array([[0, 0, 0, 0.2, 0, 0.0]]), axis=1).astype(np.float32)
    found = FrameTemperature.fit([sure] * 60 + [unsure], ["a"] * 60 + ["c"], TOY)
    assert found.temperature == pytest.approx(0.05, abs=0.02)
    notes = "; ".join(found.fit_on.warnings)
    assert "only 1 words are wrong: a weak fit" in notes
    assert str(found.fit_on).startswith("61 words of 61 clips, 1 wrong, log loss ")
    assert str(found.fit_on).endswith(notes.replace("; ", "; warning: "))


def test_a_record_of_a_fit_prints_as_one_line():
    assert str(Fit(1200, 300, 40, "word", 0.61234, 0.5)) == (
        "1,200 words of 40 clips, 300 wrong, log loss 0.612 → 0.500"
    )


def babble(count: int, seed: int = 0) -> tuple[list[np.ndarray], list[str]]:
    """Clips of random frames; a word of the text is wrong the more often, the flatter its frames were."""
    rng = np.random.default_rng(seed)
    rows, texts = [], []
    for _ in range(count):
        row = random_clip(rng)
        words = decode(FrameTemperature(3.0).path(row), TOY, FrameGrid(), 1e9)
        rows.append(row)
        texts.append(" ".join(word.text if rng.random() < word.confidence else "x" for word in words))
    return rows, texts


def test_temperature_and_curve_together_fit_no_worse_than_either_alone():
    rows, texts = babble(150)
    both, heat = FrameCalibration.fit(rows, texts, TOY), FrameTemperature.fit(rows, texts, TOY)
    alone = ConfidenceMap.fit(judge_frames(rows, texts, TOY))
    assert both.fit_on.log_loss_before == pytest.approx(alone.fit_on.log_loss_before, abs=1e-6)
    assert both.fit_on.log_loss_after < heat.fit_on.log_loss_after
    assert both.fit_on.log_loss_after < alone.fit_on.log_loss_after


def test_the_joint_fit_is_the_best_of_a_fine_grid_of_temperatures():
    rows, texts = babble(100)
    found = FrameCalibration.fit(rows, texts, TOY)
    losses = [
        ConfidenceMap.fit(judge_frames(rows, texts, TOY, t)).fit_on.log_loss_after for t in np.geomspace(0.3, 15, 30)
    ]
    assert found.fit_on.log_loss_after <= min(losses) + 1e-4


def test_calibrated_words_are_the_decoders_with_the_confidence_of_both_steps():
    row = random_clip(np.random.default_rng(3))
    found = FrameCalibration(2.0, 1.5, -0.5).words(row, TOY, FrameGrid(), 1.0)
    warm = decode(FrameTemperature(2.0).path(row), TOY, FrameGrid(), 1.0)
    assert [(w.text, w.start_s, w.chars) for w in found] == [(w.text, w.start_s, w.chars) for w in warm]
    assert [w.confidence for w in found] == pytest.approx([expit(1.5 * logit(w.confidence) - 0.5) for w in warm])
    judged = FrameCalibration(2.0, 1.5, -0.5).judge([row], [" ".join(w.text for w in warm)], TOY)
    assert judged.confidence == pytest.approx(np.array([w.confidence for w in found]))
    assert judged.correct.all()


def test_both_steps_are_saved_and_loaded_together(tmp_path):
    found = FrameCalibration.fit(*babble(30), TOY)
    assert FrameCalibration.load(found.save(tmp_path / "both.json")) == found
    with pytest.raises(DataError, match="holds FrameCalibration, wanted FrameTemperature"):
        FrameTemperature.load(tmp_path / "both.json")
    with pytest.raises(DataError, match="the slope above 0"):
        FrameCalibration(1.0, 0.0, 0.0)


def test_frames_before_and_after_fits_on_one_half_and_shows_the_other():
    rows, texts = babble(120)
    shown = frames_before_and_after(rows, texts, TOY, groups=[clip // 2 for clip in range(120)])
    plain = judge_frames(rows, texts, TOY)
    fitting, others = plain.split(groups=[clip // 2 for clip in range(120)])
    assert shown.before == reliability(plain.pick(others))
    fresh = FrameCalibration.fit([rows[i] for i in fitting], [texts[i] for i in fitting], TOY)
    assert shown.fit_on == fresh.fit_on
    after = fresh.judge([rows[i] for i in others], [texts[i] for i in others], TOY)
    assert shown.after == reliability(after)
    assert shown.after.ece < shown.before.ece


def test_the_embedded_model_gains_on_noisy_clips_that_had_no_part_in_the_fit(
    recognizer: Recognizer, demo_clips: list[DemoClip]
) -> None:
    rng = np.random.default_rng(0)
    sounds = [audio.load(clip.path) for clip in demo_clips]
    noisy = [
        (sound + level * sound.std() * rng.standard_normal(len(sound))).astype(np.float32)
        for sound in sounds
        for level in (0.1, 0.4, 0.8)
    ]
    texts = [clip.text for clip in demo_clips for _ in range(3)]
    sentences = [clip.path.name for clip in demo_clips for _ in range(3)]
    rows = recognizer.log_probs(noisy)
    shown = [frames_before_and_after(rows, texts, recognizer.alphabet, seed=s, groups=sentences) for s in range(5)]
    assert np.mean([one.after.brier for one in shown]) < np.mean([one.before.brier for one in shown])
    assert np.mean([one.after.ece for one in shown]) < np.mean([one.before.ece for one in shown])
