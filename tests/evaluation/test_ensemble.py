"""Averages against scipy; the ensemble over fakes that hold an alphabet, a grid and fixed frames."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax, logsumexp

from speechkit.asr.decode import Alphabet, best_path, decode
from speechkit.asr.frames import FrameGrid
from speechkit.errors import DataError, ModelError
from speechkit.evaluation.ensemble import Ensemble, combine

TOY = Alphabet(("", "", "a", "b"), blank=0, delimiter=1)


def frames(seed: int, count: int = 12, tokens: int = 4) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return log_softmax(3 * rng.standard_normal((count, tokens)), axis=1).astype(np.float32)


WEIGHTS = st.lists(st.floats(0.01, 10), min_size=1, max_size=4)


@given(WEIGHTS, st.integers(0, 1000))
def test_the_mean_is_that_of_the_probabilities(weights, seed):
    rows = [frames(seed + i) for i in range(len(weights))]
    share = np.array(weights) / np.sum(weights)
    theirs = logsumexp(np.stack(rows).astype(np.float64), axis=0, b=share[:, None, None])
    assert combine(rows, weights) == pytest.approx(theirs, abs=1e-5)


@given(WEIGHTS, st.integers(0, 1000))
def test_the_product_is_the_mean_of_the_logs_normalised(weights, seed):
    rows = [frames(seed + i) for i in range(len(weights))]
    share = np.array(weights) / np.sum(weights)
    theirs = log_softmax(np.tensordot(share, np.stack(rows).astype(np.float64), 1), axis=1)
    assert combine(rows, weights, "product") == pytest.approx(theirs, abs=1e-5)


@pytest.mark.parametrize("rule", ["mean", "product"])
class TestBothRules:
    def test_one_model_alone_is_itself(self, rule):
        assert combine([frames(0)], rule=rule) == pytest.approx(frames(0), abs=1e-6)

    def test_a_model_of_weight_0_has_no_say_whatever_it_holds(self, rule):
        vetoes = np.full_like(frames(0), -np.inf)
        vetoes[:, 0] = 0
        assert combine([frames(0), vetoes], [2, 0], rule) == pytest.approx(frames(0), abs=1e-6)

    def test_the_order_of_the_models_does_not_matter(self, rule):
        one = combine([frames(0), frames(1)], [1, 3], rule)
        assert one == pytest.approx(combine([frames(1), frames(0)], [3, 1], rule), abs=1e-6)

    def test_every_frame_sums_to_1_in_float32(self, rule):
        found = combine([frames(0), frames(1)], rule=rule)
        assert found.dtype == np.float32
        assert np.exp(found).sum(axis=1) == pytest.approx(np.ones(12), abs=1e-5)

    def test_an_impossible_token_makes_no_nan(self, rule):
        row = frames(0)
        row[:, 2] = -np.inf
        found = combine([row, frames(1)], rule=rule)
        assert not np.isnan(found).any()
        assert np.isneginf(found[:, 2]).all() == (rule == "product")

    def test_no_frames_stay_no_frames(self, rule):
        assert combine([np.zeros((0, 4), np.float32)] * 2, rule=rule).shape == (0, 4)


def test_spikes_a_frame_apart_are_lost_as_the_head_of_the_file_warns():
    early, late = (np.full((3, 4), 0.01, np.float32) for _ in range(2))
    early[:, 0] = late[:, 0] = 0.97
    early[0] = late[2] = [0.38, 0.01, 0.6, 0.01]
    both = combine([np.log(early), np.log(late)])
    alone = [decode(best_path(np.log(row)), TOY, FrameGrid(), 1e9) for row in (early, late)]
    assert [words[0].text for words in alone] == ["a", "a"]
    assert decode(best_path(both), TOY, FrameGrid(), 1e9) == ()


def test_models_that_err_in_different_frames_correct_each_other():
    right = np.full((3, 4), 0.05, np.float32)
    right[[0, 1, 2], [2, 0, 3]] = 0.85
    slips = []
    for frame in range(3):
        row = right.copy()
        row[frame] = np.roll(right[frame], 1)
        slips.append(np.log(row))
    assert all((row.argmax(1) != right.argmax(1)).any() for row in slips)
    assert combine(slips).argmax(1).tolist() == right.argmax(1).tolist()


@pytest.mark.parametrize(
    ("rows", "weights", "rule", "message"),
    [
        ([], None, "mean", r"shapes none; give \(F, V\) of one clip per model"),
        ([frames(0), frames(0, 11)], None, "mean", r"shapes \(12, 4\), \(11, 4\)"),
        ([frames(0), frames(0, 12, 5)], None, "mean", r"shapes \(12, 4\), \(12, 5\)"),
        ([frames(0)[0]], None, "mean", r"shapes \(4,\)"),
        ([frames(0), frames(1)], [1.0], "mean", r"weights of shape \(1,\) for 2 models"),
        ([frames(0), frames(1)], [1, -1], "mean", r"weights are \[1.0, -1.0\]; they are finite numbers from 0 up"),
        ([frames(0), frames(1)], [0, 0], "mean", "at least one above 0"),
        ([frames(0), frames(1)], [1, np.nan], "mean", "finite numbers"),
        ([frames(0), frames(1)], None, "median", 'rule is \'median\'; it can be "mean" or "product"'),
        ([frames(0), frames(1) * np.nan], None, "mean", "model 2 hold NaN"),
    ],
)
def test_what_cannot_be_combined_is_refused(rows, weights, rule, message):
    with pytest.raises(DataError, match=message):
        combine(rows, weights, rule)


def test_models_of_a_product_that_exclude_each_other_are_refused():
    one, other = np.full((2, 2), -np.inf, np.float32), np.full((2, 2), -np.inf, np.float32)
    one[:, 0] = other[:, 1] = 0
    with pytest.raises(DataError, match="in frame 0 no token is possible for all models together; use rule='mean'"):
        combine([one, other], rule="product")
    assert np.exp(combine([one, other])) == pytest.approx(np.full((2, 2), 0.5))


@dataclass
class Fake:
    """Answers with fixed frames per length of clip; keeps what it was asked."""

    seed: int = 0
    name: str = "fake"
    alphabet: Alphabet = TOY
    grid: FrameGrid = field(default_factory=FrameGrid)
    language: str | None = "en"
    asked: list[int] = field(default_factory=list)

    def log_probs(self, clips):
        self.asked += [len(clip) for clip in clips]
        return [frames(self.seed + len(clip), self.grid.frames(len(clip))) for clip in clips]


SOUND = np.linspace(-0.1, 0.1, 4000, dtype=np.float32)


def test_the_ensemble_decodes_the_combined_frames_of_its_members():
    one, other = Fake(1, "one"), Fake(2, "other")
    both = Ensemble((one, other), (3.0, 1.0))
    found = both.transcribe(SOUND)
    rows = combine([frames(4001, 12), frames(4002, 12)], [0.75, 0.25])
    assert np.array_equal(both.log_probs(SOUND), rows)
    assert found.words == decode(best_path(rows), TOY, FrameGrid(), 0.25)
    assert (found.model, found.language, found.duration_s) == ("0.75 one + 0.25 other", "en", 0.25)
    assert found.confidence == pytest.approx(np.mean([word.confidence for word in found.words]))


def test_a_list_in_is_a_list_out_in_the_same_order():
    both = Ensemble((Fake(1), Fake(2)), rule="product")
    clips = [SOUND, SOUND[:1000], SOUND[:2000]]
    many = both.transcribe(clips)
    assert [one.duration_s for one in many] == [0.25, 0.0625, 0.125]
    assert many == [both.transcribe(clip) for clip in clips]
    assert [len(row) for row in both.log_probs(clips)] == [12, 2, 6]


def test_members_of_two_languages_make_a_transcript_of_none():
    assert Ensemble((Fake(1), Fake(2, language="de"))).transcribe(SOUND).language is None


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Fake(alphabet=Alphabet(("", "", "a"), 0, 1)), "vocabularies of 4 and 3 tokens"),
        (Fake(alphabet=Alphabet(("", "", "b", "a"), 0, 1)), "differ in token 2: 'a' and 'b'.*same order"),
        (Fake(alphabet=Alphabet(("", "", "a", "b"), 1, 0)), "blank 0 and 1, word delimiter 1 and 0"),
        (Fake(grid=FrameGrid(160, 400)), "averages frame by frame, so its models need the same hop"),
    ],
)
def test_members_that_do_not_fit_together_are_refused(other, message):
    with pytest.raises(ModelError, match=message):
        Ensemble((Fake(), other))


def test_an_ensemble_of_nobody_or_with_wrong_weights_is_refused():
    with pytest.raises(ModelError, match="an ensemble of no models"):
        Ensemble(())
    with pytest.raises(DataError, match=r"weights of shape \(2,\) for 1 models"):
        Ensemble((Fake(),), (1.0, 2.0))


def test_evaluation_brings_no_torch():
    code = (
        "import sys; from speechkit.evaluation import calibration, ensemble, judge, plots, reliability, review, "
        "temperature; print([name for name in ('torch', 'transformers', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr
