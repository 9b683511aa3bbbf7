"""A run that is killed, stopped or short of disk goes on from its last whole checkpoint, as if nothing had happened."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from typing import TYPE_CHECKING

from tiny_runs import NOISY, examples, losses, model_folder, small

from speechkit.asr.model import load_asr
from speechkit.errors import PlanError
from speechkit.training.curve import Curve
from speechkit.training.finetune import finetune

if TYPE_CHECKING:
    from speechkit.training.config import FinetuneConfig

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("base") / "model", **NOISY)


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in one sitting, with dropout, masking and layers left out: all that draws random numbers."""
    folder = tmp_path_factory.mktemp("whole")
    finetune(small(folder, model, layerdrop=0.2), examples(40), examples(8, seed=1))
    return folder


def run(config: FinetuneConfig, tmp_path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """The run in a process of its own."""
    file = tmp_path / "config.json"
    file.write_text(config.to_json())
    command = [sys.executable, str(HERE / "tiny_runs.py"), str(file), *options]
    # as many threads as here: sums of other parts round otherwise, and a small net trained fast makes more of it
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900, check=False)


@pytest.mark.slow
def test_a_run_killed_between_checkpoints_goes_on_to_the_same_curve(model: Path, whole: Path, tmp_path: Path) -> None:
    config = small(tmp_path / "run", model, layerdrop=0.2)
    killed = run(config, tmp_path, "--kill-at", "7")
    assert killed.returncode == -9, killed.stderr[-2000:]
    assert Curve.load(tmp_path / "run/curve.jsonl").last.step == 7  # type: ignore[union-attr]
    result = finetune(config, examples(40), examples(8, seed=1))
    assert result.steps == 12
    before, after = Curve.load(whole / "curve.jsonl"), Curve.load(tmp_path / "run/curve.jsonl")
    assert [point.step for point in after.points] == list(range(13))
    assert losses(tmp_path / "run") == pytest.approx(losses(whole), rel=1e-5)
    for one, other in zip(before.points, after.points, strict=True):
        assert (one.wer, one.cer, one.learning_rate) == (other.wer, other.cer, other.learning_rate)
        assert one.audio_s == pytest.approx(other.audio_s)
    seconds = [point.elapsed_s for point in after.points]
    assert seconds == sorted(seconds), "time goes on over the sittings"


def test_the_random_numbers_of_the_run_matter(model: Path, whole: Path, tmp_path: Path) -> None:
    finetune(small(tmp_path, model, layerdrop=0.2, steps=4, seed=1), examples(40), examples(8, seed=1))
    assert losses(tmp_path)[:4] != pytest.approx(losses(whole)[:4], rel=1e-3)


@pytest.mark.slow
def test_a_full_disk_ends_the_run_with_its_last_checkpoint_and_best_model_whole(model: Path, tmp_path: Path) -> None:
    config = small(tmp_path / "run", model)
    failed = run(config, tmp_path, "--limit", "4000")
    assert failed.returncode == 1
    assert "OutputError" in failed.stderr and "checkpoint-4 is whole" in failed.stderr
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["checkpoint-4"]
    assert load_asr(tmp_path / "run/best").config.vocab_size == 13
    result = finetune(config, examples(40), examples(8, seed=1))
    assert (result.steps, result.ending) == (12, "steps")
    steps = [point.step for point in result.curve.points]
    assert steps == list(range(13))


def test_stop_ends_the_run_after_the_step_at_hand_and_the_same_call_goes_on(model: Path, tmp_path: Path) -> None:
    heard: list[int] = []

    class Button:
        requested = False

    def tell(point: object) -> None:
        heard.append(point.step)  # type: ignore[attr-defined]
        Button.requested = point.step == 5  # type: ignore[attr-defined]

    config = small(tmp_path, model)
    result = finetune(config, examples(40), examples(8, seed=1), on_point=tell, stop=Button())
    assert (result.ending, result.steps, heard) == ("stopped", 6, [0, 1, 2, 3, 4, 5, 6])
    assert (tmp_path / "checkpoints/checkpoint-6/model.safetensors").is_file()
    heard.clear()
    again = finetune(config, examples(40), examples(8, seed=1), on_point=lambda point: heard.append(point.step))
    assert (again.ending, again.steps, heard) == ("steps", 12, list(range(7, 13)))


def test_a_callable_stops_a_run_before_its_first_evaluation_and_a_model_is_left(model: Path, tmp_path: Path) -> None:
    result = finetune(small(tmp_path, model), examples(40), examples(8, seed=1), stop=lambda: True)
    assert (result.ending, result.steps) == ("stopped", 1)
    assert result.best is not None and load_asr(result.best).transcribe(examples(1)[0].audio).text is not None


def test_a_finished_run_is_not_trained_again(whole: Path, model: Path) -> None:
    heard: list[object] = []
    result = finetune(small(whole, model, layerdrop=0.2), examples(40), examples(8, seed=1), on_point=heard.append)
    assert not heard and (result.steps, result.ending) == (12, "steps")


def test_a_finished_run_may_be_made_longer(model: Path, tmp_path: Path) -> None:
    finetune(small(tmp_path, model, steps=2), examples(40), examples(8, seed=1))
    result = finetune(small(tmp_path, model, steps=3, eval_every=1), examples(40), examples(8, seed=1))
    assert result.steps == 3 and [point.step for point in result.curve.points] == [0, 1, 2, 3]


def test_other_settings_are_refused_with_every_difference(whole: Path, model: Path) -> None:
    changed = small(whole, model, layerdrop=0.2, learning_rate=2e-2, seed=3)
    with pytest.raises(PlanError) as caught:
        finetune(changed, examples(40), examples(8, seed=1))
    text = str(caught.value)
    assert "learning_rate is 0.02, was 0.01" in text and "seed is 3, was 0" in text
    assert "layerdrop" not in text.partition("Name another folder")[0] and "steps" in text.rpartition("change:")[2]


def test_other_data_and_another_base_model_are_refused(whole: Path, model: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"data .* \(39, 8 clips\), was .* \(40, 8 clips\)"):
        finetune(small(whole, model, layerdrop=0.2), examples(40)[1:], examples(8, seed=1))
    other = model_folder(tmp_path / "model", seed=5, **NOISY)
    config = small(whole, model, layerdrop=0.2)
    weights = model / "model.safetensors"  # the folder keeps its name
    original = weights.read_bytes()
    try:
        weights.write_bytes((other / "model.safetensors").read_bytes())
        with pytest.raises(PlanError, match=r"model \w{12}, was \w{12}"):
            finetune(config, examples(40), examples(8, seed=1))
    finally:
        weights.write_bytes(original)


def test_without_resume_a_folder_that_holds_a_run_is_left_alone(whole: Path, model: Path) -> None:
    with pytest.raises(PlanError, match=r"reached step 12, and resume is False"):
        finetune(small(whole, model, layerdrop=0.2, resume=False), examples(40), examples(8, seed=1))


def test_a_kill_while_the_best_model_is_replaced_loses_none(whole: Path, model: Path, tmp_path: Path) -> None:
    from speechkit.training.runfolder import RunFolder

    folder = RunFolder.open(tmp_path)
    (tmp_path / "best.old").mkdir()
    (tmp_path / "best.old/model.safetensors").write_text("weights")
    (tmp_path / "best.new").mkdir()
    folder.staging.mkdir()
    folder.recover()
    assert (tmp_path / "best/model.safetensors").read_text() == "weights"
    assert {path.name for path in tmp_path.iterdir()} == {"best", "checkpoints"}
    assert not list(folder.checkpoints.iterdir())


def test_checkpoints_hold_the_weights_that_learn_and_no_pickle_of_arguments(whole: Path) -> None:
    from safetensors import safe_open

    with safe_open(whole / "checkpoints/checkpoint-12/model.safetensors", framework="pt") as weights:
        names = set(weights.keys())
    assert "lm_head.weight" in names and "wav2vec2.encoder.layers.1.attention.q_proj.weight" in names
    assert not list(whole.rglob("training_args.bin"))
    assert json.loads((whole / "run.json").read_text())["layerdrop"] == 0.2
