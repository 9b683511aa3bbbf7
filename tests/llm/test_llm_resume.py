"""A language model's run that is killed, stopped or short of disk goes on from its last whole checkpoint."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from tiny_llm_runs import chats, losses, model_folder, no_kernels, small

from speechkit.errors import PlanError
from speechkit.llm.finetune import finetune
from speechkit.training.curve import Curve

if TYPE_CHECKING:
    from speechkit.llm.llm_config import LlmConfig

HERE = Path(__file__).parent
TRAIN, DEV = chats(48), chats(8, first=100)
NOISY = {"dropout": 0.2, "accumulation": 2}  # random numbers in every step


definitions = pytest.fixture(scope="module", autouse=True)(no_kernels)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in one sitting."""
    folder = tmp_path_factory.mktemp("whole")
    finetune(small(folder, model, **NOISY), TRAIN, DEV)
    return folder


def run(config: LlmConfig, tmp_path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """The run in a process of its own."""
    file = tmp_path / "config.json"
    config.save(file)
    command = [sys.executable, str(HERE / "tiny_llm_runs.py"), str(file), *options]
    # as many threads as here: sums of other parts round otherwise
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900, check=False)


@pytest.mark.slow
def test_a_run_killed_between_checkpoints_goes_on_to_the_same_curve(model: Path, whole: Path, tmp_path: Path) -> None:
    config = small(tmp_path / "run", model, **NOISY)
    killed = run(config, tmp_path, "--kill-at", "5")
    assert killed.returncode == -9, killed.stderr[-2000:]
    assert Curve.load(tmp_path / "run/curve.jsonl").last.step == 5  # type: ignore[union-attr]
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["checkpoint-3"]
    result = finetune(config, TRAIN, DEV)
    assert result.steps == 8
    before, after = Curve.load(whole / "curve.jsonl"), Curve.load(tmp_path / "run/curve.jsonl")
    assert [point.step for point in after.points] == list(range(9))
    assert losses(tmp_path / "run") == pytest.approx(losses(whole), rel=1e-5)
    for one, other in zip(before.points, after.points, strict=True):
        assert (one.tokens, one.learning_rate) == (other.tokens, other.learning_rate)
        assert (one.dev_loss or 0.0) == pytest.approx(other.dev_loss or 0.0, rel=1e-5)
    seconds = [point.elapsed_s for point in after.points]
    assert seconds == sorted(seconds), "time goes on over the sittings"


def test_the_random_numbers_of_the_run_matter(model: Path, whole: Path, tmp_path: Path) -> None:
    finetune(small(tmp_path, model, **NOISY, steps=4, seed=1), TRAIN, DEV)
    assert losses(tmp_path)[:4] != pytest.approx(losses(whole)[:4], rel=1e-4)


@pytest.mark.slow
def test_a_full_disk_ends_the_run_with_its_last_checkpoint_and_best_model_whole(model: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    config = small(tmp_path / "run", model)
    failed = run(config, tmp_path, "--limit", "4000")
    assert failed.returncode == 1
    assert "OutputError" in failed.stderr and "checkpoint-3 is whole" in failed.stderr
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["checkpoint-3"]
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), tmp_path / "run/best")
    result = finetune(config, TRAIN, DEV)
    assert (result.steps, result.ending) == (8, "steps")
    assert [point.step for point in result.curve.points] == list(range(9))


def test_stop_ends_the_run_after_the_step_at_hand_and_the_same_call_goes_on(model: Path, tmp_path: Path) -> None:
    heard: list[int] = []

    class Button:
        requested = False

    def tell(point: object) -> None:
        heard.append(point.step)  # type: ignore[attr-defined]
        Button.requested = point.step == 4  # type: ignore[attr-defined]

    config = small(tmp_path, model)
    result = finetune(config, TRAIN, DEV, on_point=tell, stop=Button())
    assert (result.ending, result.steps, heard) == ("stopped", 5, [0, 1, 2, 3, 4, 5])
    assert (tmp_path / "checkpoints/checkpoint-5/model.safetensors").is_file()
    assert result.best is not None and result.best_step == 3
    heard.clear()
    again = finetune(config, TRAIN, DEV, on_point=lambda point: heard.append(point.step))
    assert (again.ending, again.steps, heard) == ("steps", 8, [6, 7, 8])


def test_a_finished_run_is_not_trained_again_and_hands_back_its_best_model(whole: Path, model: Path) -> None:
    heard: list[object] = []
    result = finetune(small(whole, model, **NOISY), TRAIN, DEV, on_point=heard.append)
    assert not heard and (result.steps, result.ending) == (8, "steps")
    learnt = [weight for name, weight in result.model.named_parameters() if "lora_B" in name]
    assert any(bool(weight.any()) for weight in learnt), "the weights of the run, not those before it"


def test_other_settings_data_and_models_are_refused_with_every_difference(
    whole: Path, model: Path, tmp_path: Path
) -> None:
    with pytest.raises(PlanError) as caught:
        finetune(small(whole, model, **NOISY, learning_rate=2e-2, rank=8), TRAIN, DEV)
    text = str(caught.value)
    assert "learning_rate is 0.02, was 0.01" in text and "rank is 8, was 4" in text
    assert "checkpointing, epochs" in text.rpartition("Only these may change:")[2]
    with pytest.raises(PlanError, match=r"data .* \(47, 8 rows\), was .* \(48, 8 rows\)"):
        finetune(small(whole, model, **NOISY), TRAIN[1:], DEV)
    other = model_folder(tmp_path / "other", tie_word_embeddings=True)
    kept = tmp_path / "kept"
    shutil.copytree(model, kept)
    try:
        shutil.copytree(other, model, dirs_exist_ok=True)  # the folder keeps its name
        with pytest.raises(PlanError, match=r"model \w{12}, was \w{12}"):
            finetune(small(whole, model, **NOISY), TRAIN, DEV)
    finally:
        shutil.copytree(kept, model, dirs_exist_ok=True)


def test_without_resume_a_folder_that_holds_a_run_is_left_alone(whole: Path, model: Path) -> None:
    with pytest.raises(PlanError, match=r"reached step 8, and resume is False"):
        finetune(small(whole, model, **NOISY, resume=False), TRAIN, DEV)
