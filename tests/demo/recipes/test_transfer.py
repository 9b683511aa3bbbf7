"""The recipe behind the data-efficiency curve, in miniature: speech, whole runs, the file, the sentence on a claim."""

from __future__ import annotations

import math
import re
import shlex
from dataclasses import replace
from typing import TYPE_CHECKING

import jiwer
import numpy as np
import pytest
import torch

from speechkit import audio, demo, load_asr
from speechkit.asr import checkpoint
from speechkit.demo.recipes import transfer
from speechkit.demo.recipes.corpus import HELD_OUT_VARIANTS, held_out
from speechkit.demo.recipes.transfer import LONGER, SCRATCH, Start, TransferRecipe, judged, measure, starts
from speechkit.demo.recipes.transfer_speech import Labelled, held_out_clips, speak
from speechkit.errors import DataError, ModelError
from speechkit.evaluation.efficiency import Efficiency
from speechkit.evaluation.savings import Saving
from speechkit.training.data import Example

if TYPE_CHECKING:
    from pathlib import Path

TINY = TransferRecipe("cs", updates=4, growth=0.0, dev_clips=2, test_clips=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("transfer")


@pytest.fixture(scope="module")
def spoken(folder: Path) -> Labelled:
    return TINY.speech(0.2, folder / "speech")


def example(seconds: float) -> Example:
    return Example(None, "a", "a", seconds=seconds)


def test_updates_grow_with_the_minutes_and_are_the_same_for_every_start_but_the_longer_one() -> None:
    recipe = TransferRecipe(updates=100, growth=0.5)
    assert [recipe.steps(minutes) for minutes in (1, 4, 25)] == [100, 200, 500]
    assert {recipe.steps(3, start.times) for start in starts() if start.name != LONGER} == {recipe.steps(3)}
    assert recipe.steps(3, next(start.times for start in starts() if start.name == LONGER)) == 6 * recipe.steps(3)
    assert TransferRecipe(updates=1).steps(0.01) == 4, "one for each evaluation"


def test_the_minutes_of_a_point_begin_with_those_of_the_smaller_ones() -> None:
    clips = tuple(example(seconds) for seconds in (20, 30, 20, 40, 80))
    held = Labelled(clips, (), ())
    assert held.first(0.5) == clips[:2] and held.first(1) == clips[:3] and held.first(3) == clips
    with pytest.raises(DataError, match=r"4 min were asked for, 3\.2 min were spoken"):
        held.first(4)
    with pytest.raises(DataError, match=r"1 min were asked for, 0\.0 min"):
        Labelled((), (), ()).first(1)


def test_sentences_and_voices_of_the_score_are_in_neither_of_the_other_sets(spoken: Labelled) -> None:
    assert (len(spoken.dev), len(spoken.test)) == (2, 4)
    assert all(held_out(one.text) for one in spoken.test)
    assert not any(held_out(one.text) for one in (*spoken.train, *spoken.dev))
    assert all(one.speaker.endswith(tuple(HELD_OUT_VARIANTS)) for one in spoken.test)
    assert not any(one.speaker.endswith(tuple(HELD_OUT_VARIANTS)) for one in (*spoken.train, *spoken.dev))
    assert not {one.text for one in spoken.train} & {one.text for one in spoken.dev}
    assert sum(one.seconds or 0 for one in spoken.train) >= 12
    assert re.fullmatch(r"Labelled\(train \d+ clips, .*; dev 2 clips, .*; test 4 clips, .* min\)", repr(spoken))


def test_what_was_spoken_stays_as_it_was(spoken: Labelled, folder: Path) -> None:
    again = TINY.speech(0.2, folder / "speech")
    for one, other in zip((*spoken.train, *spoken.test), (*again.train, *again.test), strict=True):
        assert one.text == other.text and np.array_equal(one.samples(), other.samples())
    with pytest.raises(DataError, match="holds the speech of cs, seed 1, 2 and 4 clips; wanted: sk"):
        speak("sk", 0.1, folder / "speech", (2, 4))


def test_more_minutes_begin_with_the_same_clips(
    spoken: Labelled, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("speechkit.demo.recipes.transfer_speech.PIECE", 8)
    short = speak("cs", 0.1, folder / "grown", (1, 1))
    more = speak("cs", sum(one.seconds or 0 for one in short.train) / 60 + 0.05, folder / "grown", (1, 1))
    assert len(short.train) < len(more.train)
    assert [one.text for one in more.train[: len(short.train)]] == [one.text for one in short.train]
    assert len({one.text for one in more.train}) == len(more.train)


def test_a_point_is_scored_like_any_recognizer_on_the_held_out_clips(spoken: Labelled, folder: Path) -> None:
    found = transfer.train(TINY, Start(SCRATCH), 0.1, spoken, folder)
    best = next(folder.glob("from-scratch-0.1min-1/best"))
    heard = [told.text for told in load_asr(best, device="cpu").transcribe([one.audio for one in spoken.test])]
    assert [row.raw_hypothesis for row in found.report.utterances] == heard
    assert found.report.wer.value == pytest.approx(jiwer.wer([one.text for one in spoken.test], heard))
    assert found.clips == len(spoken.first(0.1)) and found.minutes == 0.1 and found.train_s > 0
    assert found.note.startswith("random weights; 4 updates of 12 s, learning rate 0.001, 20% of the frames hidden")


def test_random_weights_are_those_of_the_seed_and_leave_the_callers_generator_alone(tmp_path: Path) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    folders = [transfer._random_weights(tmp_path / name, seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    assert torch.equal(torch.rand(3), expected)
    first, same, other = (checkpoint.identity_of(one) for one in folders)
    assert first == same != other
    with pytest.raises(ModelError):
        load_asr(folders[0])  # an encoder without a head, as pretrained checkpoints are


def test_the_command_keeps_every_point_and_makes_none_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, work = tmp_path / "figures" / "curve.json", tmp_path / "work"
    sizes = "--updates 4 --growth 0 --dev-clips 2 --test-clips 4".split()
    given = ["--language", "sk", *sizes, "--out", str(out), "--work", str(work)]
    assert transfer.main([*given, "--starts", "scratch", "--minutes", "0.1"]) == 0
    curve = Efficiency.load(out)
    assert (curve.language, curve.name) == ("sk", "4 held-out sentences by held-out voices, seed 1")
    [point] = curve.points
    assert (point.start, point.minutes, point.seed) == (SCRATCH, 0.1, 1) and point.origin.date
    assert "from scratch, 0.1 min: WER" in capsys.readouterr().out
    assert not list(work.glob("from-scratch*")), "the run itself is not kept"

    def trained(*_: object) -> None:
        pytest.fail("a point that the file holds was measured again")

    monkeypatch.setattr(transfer, "train", trained)
    repeat = shlex.split(point.origin.command)
    assert repeat[:3] == ["python", "-m", "speechkit.demo.recipes.transfer"]
    assert transfer.main([*repeat[3:], "--out", str(out), "--work", str(work)]) == 0
    monkeypatch.setattr(transfer, "train", _refused)
    with pytest.raises(DataError, match="asked to train"):
        transfer.main([*given, "--learning-rate", "0.01", "--starts", "scratch", "--minutes", "0.1"])


def _refused(*_: object) -> None:
    raise DataError("asked to train")


def test_the_starts_are_what_the_installation_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [start.name for start in starts()]
    assert names[-2:] == [SCRATCH, LONGER] and "English model" in names
    assert ("multilingual encoder" in names) == ("encoder" in demo.models())
    assert [start.name for start in starts("demo/en")] == names, "the English model is not named twice"
    with pytest.raises(ModelError, match="unknown embedded model 'demo/xx'"):
        starts("demo/xx")
    with pytest.raises(DataError, match="no start and no minutes"):
        measure(TINY, [], transfer.FIGURES)


def test_the_best_donor_speaks_another_language() -> None:
    others = [f"demo/{code}" for code in demo.languages() if code != "pl"]
    assert transfer.best_donor("pl", clips=1) in others


def test_clips_to_compare_models_on_are_the_embedded_ones_and_more_that_can_be_heard(tmp_path: Path) -> None:
    rows = held_out_clips("pl", 2, tmp_path / "clips")
    assert rows[:-2] == demo.clips("pl") and len(rows) == len(demo.clips("pl")) + 2
    for row in rows[-2:]:
        assert held_out(row.text) and row.seconds == pytest.approx(audio.duration(row.path))


def saving(factor: float, bound: str = "exact", wer: float = 0.3) -> Saving:
    return Saving("encoder", SCRATCH, wer, 1.0, factor, factor, bound)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("found", "told"),
    [
        pytest.param(saving(4), "WER of 30%: 4.0 times, less than claimed", id="less"),
        pytest.param(saving(30), "30%: 30 times, within the claim", id="within"),
        pytest.param(saving(3000), "30%: 3,000 times, more than claimed", id="more"),
        pytest.param(saving(4, "at least"), "at least 4.0 times, a bound that neither", id="too low a lower bound"),
        pytest.param(saving(30, "at least"), "at least 30 times, as claimed or more", id="a lower bound within"),
        pytest.param(saving(300, "at least"), "at least 300 times, more than claimed", id="a lower bound above"),
        pytest.param(saving(4, "at most"), "at most 4.0 times, less than claimed", id="an upper bound below"),
        pytest.param(saving(30, "at most"), "at most 30 times, as claimed or less", id="an upper bound within"),
        pytest.param(saving(300, "at most"), "at most 300 times, a bound that neither", id="too high an upper bound"),
        pytest.param(saving(math.nan, "unknown"), "cannot be compared", id="no common rate"),
        pytest.param(saving(30, "at least", 0.97), "97%, at which neither is of use", id="two failures"),
        pytest.param(replace(saving(30, wer=0.4), figure="CER"), "CER that both reach here is 40%", id="by characters"),
    ],
)
def test_a_saving_is_held_against_the_published_claim(found: Saving, told: str) -> None:
    assert told in judged(found)
    assert judged(found).startswith("The claim is 10 to 100 times less labelled data")


def test_stored_points_carry_their_origin_and_were_measured_with_the_models_of_this_package() -> None:
    curve = transfer.stored("cs")
    assert curve.points and curve.language == "cs" and not any(point.fresh for point in curve.points)
    recipe = TransferRecipe("cs")
    for point in curve.points:
        command = shlex.split(point.origin.command)
        donor = command[command.index("--donor") + 1] if "--donor" in command else None
        start = next(one for one in starts(donor) if one.name == point.start)
        assert point.note == start.note(recipe, point.minutes), f"{point}: measure it anew by {point.origin.command}"
        assert point.origin.date.startswith("20") and {"torch", "speechkit"} <= set(point.origin.versions)


def test_a_language_without_stored_points_has_an_empty_curve() -> None:
    assert transfer.stored("xx") == Efficiency((), "xx")
