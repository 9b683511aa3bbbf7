"""Whole runs of a miniature: learning, resuming after a kill, continuing from checkpoints, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Wav2Vec2ForCTC, Wav2Vec2ForPreTraining, Wav2Vec2Model

sys.path.insert(0, str(Path(__file__).parent))
from pretrain_models import tiny, tones

from speechkit.asr.codebook import Codebook
from speechkit.errors import DataError, ModelError, PlanError
from speechkit.training.pretrain import PretrainConfig, PretrainCurve, PretrainPoint, PretrainResult, Watch, pretrain

HERE = Path(__file__).parent
SMALL = {
    "steps": 12, "batch_s": 4.0, "longest_s": 2.0, "log_every": 2, "save_every": 4, "codes": 5, "code_width": 8,
    "projection": 6, "negatives": 10, "workers": 0, "learning_rate": 1e-2, "precision": "float32",
}  # fmt: skip


def config(output: Path, **changes: object) -> PretrainConfig:
    return PretrainConfig(**{"output": str(output), **SMALL, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> PretrainResult:
    """One uninterrupted run."""
    return pretrain(config(tmp_path_factory.mktemp("whole")), tones(12), architecture=tiny())


def test_a_run_learns_to_tell_the_masked_frames_apart(tmp_path: Path) -> None:
    seen: list[PretrainPoint] = []
    settings = config(tmp_path, steps=120, log_every=20, save_every=120, code_spread=0.3)
    result = pretrain(settings, tones(30), architecture=tiny(), watch=Watch(on_point=seen.append))
    first, last = result.curve.points[0], result.curve.points[-1]
    assert last.contrastive < first.contrastive - 0.2
    assert last.accuracy > first.accuracy
    assert tuple(seen) == result.curve.points
    assert [point.temperature for point in seen] == sorted((point.temperature for point in seen), reverse=True)


def test_what_a_run_leaves_opens_in_transformers_and_in_the_codebook(done: PretrainResult) -> None:
    assert Wav2Vec2ForPreTraining.from_pretrained(done.model).config.num_codevectors_per_group == 5
    kept = Wav2Vec2ForPreTraining.from_pretrained(done.model).wav2vec2.state_dict()
    ctc = Wav2Vec2ForCTC.from_pretrained(done.model, vocab_size=9).wav2vec2.state_dict()
    assert all(torch.equal(ctc[name], value) for name, value in kept.items())
    units = Codebook.load(done.model, device="cpu").units(tones(1)[0])
    assert units.sizes == (5, 5)
    record = json.loads((done.model.parent / "run.json").read_text())
    assert PretrainConfig(**record["config"]).steps == 12
    assert record["versions"].keys() == {"torch", "transformers"}
    assert PretrainCurve.load(done.model.parent / "curve.jsonl") == done.curve
    assert "12 steps" in str(done)


def test_the_first_step_counts_the_audio_that_was_heard(done: PretrainResult) -> None:
    last = done.curve.last
    assert last is not None
    assert last.step == 12
    assert last.audio_s == pytest.approx(12 * 4.0, rel=0.2)  # batches of 4 s, the last of an epoch smaller


KILLED = """
import sys
sys.path.insert(0, {here!r})
from pretrain_models import tiny, tones
from speechkit.training.pretrain import PretrainConfig, Watch, pretrain
pretrain(PretrainConfig(**{settings!r}), tones(12), architecture=tiny(),
         watch=Watch(on_point=lambda point: print(point.step, flush=True)))
"""


def test_a_killed_run_goes_on_to_the_same_weights(done: PretrainResult, tmp_path: Path) -> None:
    settings = {"output": str(tmp_path), **SMALL}
    command = [sys.executable, "-c", KILLED.format(here=str(HERE), settings=settings)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if line.strip() == "6":  # after the checkpoint of step 4, before that of step 8
                os.kill(child.pid, signal.SIGKILL)
                break
    broken = tmp_path / "checkpoints" / "checkpoint-9"  # one that the kill caught half-written
    broken.mkdir(parents=True)
    (broken / "model.safetensors").write_bytes(b"half")
    resumed = pretrain(config(tmp_path), [], architecture=tiny())
    assert [point.step for point in resumed.curve.points] == [2, 4, 6, 8, 10, 12]
    for ours, whole in zip(resumed.curve.points, done.curve.points, strict=True):
        assert ours.loss == pytest.approx(whole.loss, rel=1e-5)
        assert ours.contrastive == pytest.approx(whole.contrastive, rel=1e-5)
    weights = (Wav2Vec2Model.from_pretrained(folder).state_dict() for folder in (resumed.model, done.model))
    ours, expected = weights
    assert all(torch.allclose(ours[name], value, atol=1e-5) for name, value in expected.items())


FULL = """
import resource, signal, sys
sys.path.insert(0, {here!r})
from pretrain_models import tiny, tones
from speechkit.training.pretrain import PretrainConfig, Watch, pretrain

def full(point):
    if point.step == 6:  # after the checkpoint of step 4
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

pretrain(PretrainConfig(**{settings!r}), tones(12), architecture=tiny(), watch=Watch(on_point=full))
"""


def test_a_full_disk_is_a_typed_error_and_the_run_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    settings = {"output": str(tmp_path), **SMALL}
    command = [sys.executable, "-c", FULL.format(here=str(HERE), settings=settings)]
    failed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert "OutputError" in failed.stderr and "checkpoint-4 is whole" in failed.stderr
    resumed = pretrain(config(tmp_path), [], architecture=tiny())
    assert [point.step for point in resumed.curve.points] == [2, 4, 6, 8, 10, 12]


def test_random_generators_of_the_caller_go_on_as_if_nothing_had_been_trained(tmp_path: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    pretrain(config(tmp_path, steps=1), tones(4), architecture=tiny())
    assert torch.equal(torch.rand(2), expected)


def test_a_resume_with_other_settings_is_refused_and_names_them(done: PretrainResult) -> None:
    settings = config(done.model.parent, mask_frames=5)
    with pytest.raises(PlanError, match=r"mask_frames: 10 → 5.*only .*steps.* may change"):
        pretrain(settings, [], architecture=tiny())


def test_a_stopped_run_leaves_a_checkpoint_and_may_be_made_longer(tmp_path: Path) -> None:
    steps: list[int] = []

    def stop() -> bool:
        steps.append(1)
        return len(steps) == 3

    first = pretrain(config(tmp_path), tones(12), architecture=tiny(), watch=Watch(stop=stop))
    assert first.curve.last is not None
    assert first.curve.last.step == 3
    assert (tmp_path / "checkpoints" / "checkpoint-3" / "trainer_state.json").is_file()
    longer = pretrain(config(tmp_path, steps=14), [], architecture=tiny())
    assert longer.curve.last is not None
    assert longer.curve.last.step == 14


def test_units_are_named_besides_and_a_stopped_run_goes_on_with_the_same_ones(tmp_path: Path) -> None:
    settings = {"unit_weight": 1.0, "units": 4}
    whole = pretrain(config(tmp_path / "whole", **settings), tones(12), architecture=tiny())
    points: list[PretrainPoint] = []
    early = Watch(on_point=points.append, stop=lambda: bool(points) and points[-1].step >= 4)
    for watch in (early, Watch()):
        pieces = pretrain(config(tmp_path / "pieces", **settings), tones(12), architecture=tiny(), watch=watch)
    ends = [[point.unit_accuracy for point in found.curve.points if point.step >= 8] for found in (whole, pieces)]
    assert len(ends[0]) == 3 and ends[0] == pytest.approx(ends[1])
    one, other = (Wav2Vec2ForPreTraining.from_pretrained(found.model).state_dict() for found in (whole, pieces))
    assert all(torch.allclose(one[name], other[name], atol=1e-5) for name in one)
    assert not any(name.startswith("units") for name in one), "the reader of the units is no part of the model"


def test_a_pretraining_checkpoint_keeps_its_quantiser(done: PretrainResult, tmp_path: Path) -> None:
    settings = config(tmp_path, start=str(done.model), steps=1, log_every=1, learning_rate=1e-9)
    result = pretrain(settings, tones(4))
    before, after = (Wav2Vec2ForPreTraining.from_pretrained(folder) for folder in (done.model, result.model))
    assert torch.allclose(before.quantizer.codevectors, after.quantizer.codevectors, atol=1e-6)
    assert "its own quantiser" in result.start


def test_a_ctc_model_gives_its_encoder_and_gets_a_fresh_quantiser(tmp_path: Path) -> None:
    torch.manual_seed(4)
    Wav2Vec2ForCTC(tiny(vocab_size=7, apply_spec_augment=False)).save_pretrained(tmp_path / "ctc")
    settings = config(tmp_path / "run", start=str(tmp_path / "ctc"), steps=1, log_every=1, learning_rate=1e-9, codes=7)
    result = pretrain(settings, tones(4))
    before, after = (
        Wav2Vec2Model.from_pretrained(tmp_path / "ctc"),
        Wav2Vec2ForPreTraining.from_pretrained(result.model),
    )
    for name, value in before.state_dict().items():
        if name != "masked_spec_embed":
            assert torch.allclose(after.wav2vec2.state_dict()[name], value, atol=1e-6), name
    assert after.quantizer.codevectors.shape == (1, 2 * 7, 4)
    assert "a fresh quantiser" in result.start


def test_augmentation_and_another_optimizer_are_used(tmp_path: Path) -> None:
    heard: list[int] = []

    def louder(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        heard.append(len(samples))
        return samples * np.float32(rng.uniform(0.5, 2))

    made: list[float] = []

    def sgd(model: torch.nn.Module, rate: float) -> torch.optim.Optimizer:
        made.append(rate)
        return torch.optim.SGD(model.parameters(), lr=rate)

    watch = Watch(transform=louder, optimizer=sgd)
    pretrain(config(tmp_path, steps=2), tones(4), architecture=tiny(), watch=watch)
    assert heard
    assert made == [1e-2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps is 0; it must be at least 1"),
        ({"codes": 1}, "codes is 1; it must be at least 2"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0; it must be above 0"),
        ({"longest_s": 30.0}, "a window has to fit into a batch"),
        ({"temperature": (0.5, 2.0)}, "it falls from the first to the second"),
        ({"code_width": 7}, "cannot be shared by 2 codebooks evenly"),
        ({"save_every": 5}, "save_every 5 is no multiple of log_every 2"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=message):
        config(tmp_path, **changes)


def test_settings_survive_being_written_and_a_misspelt_one_is_named(tmp_path: Path) -> None:
    settings = config(tmp_path, temperature=(1.5, 0.2))
    assert PretrainConfig.from_json(settings.to_json()) == settings
    with pytest.raises(PlanError, match=r"'learning_rat'; did you mean 'learning_rate'\?"):
        PretrainConfig.from_json('{"output": "x", "learning_rat": 1}')
    for text, said in [
        ("{", "the configuration is not JSON"),
        ("[1]", "the configuration holds a list; it should be an object of settings"),
        ('{"steps": 3}', "wrong type"),
        ('{"output": "x", "steps": "many"}', "wrong type"),
    ]:
        with pytest.raises(PlanError, match=said):
            PretrainConfig.from_json(text)


def test_features_of_a_trained_model_are_not_penalised_for_their_size(tmp_path: Path) -> None:
    assert config(tmp_path).penalty == 10.0
    assert config(tmp_path, start="demo/en").penalty == 0.0
    assert config(tmp_path, start="demo/en", feature_penalty=2.0).penalty == 2.0


def test_two_processes_share_the_batches_of_one_run(tmp_path: Path) -> None:
    """Each hears other batches: 3 steps of two processes hear what 6 steps of one hear."""
    settings = {"output": str(tmp_path / "two"), **SMALL, "steps": 3, "log_every": 1, "save_every": 3}
    script = tmp_path / "run.py"
    script.write_text(KILLED.format(here=str(HERE), settings=settings))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    done = subprocess.run([*command, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    two = PretrainCurve.load(tmp_path / "two" / "curve.jsonl")
    one = pretrain(config(tmp_path / "one", steps=6), tones(12), architecture=tiny()).curve
    assert [point.step for point in two.points] == [1, 2, 3]
    assert two.points[-1].audio_s == pytest.approx(one.points[-1].audio_s)
    assert (tmp_path / "two" / "model" / "model.safetensors").is_file()


def test_the_temperature_falls_from_its_first_to_its_last_value(tmp_path: Path) -> None:
    settings = config(tmp_path, steps=100, temperature_share=0.5)
    assert settings.temperature_at(0) == 2.0
    assert settings.temperature_at(25) == pytest.approx(1.0)  # half-way on a log scale
    assert settings.temperature_at(50) == pytest.approx(0.5)
    assert settings.temperature_at(99) == pytest.approx(0.5)


def test_a_start_is_needed_and_only_one(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="neither was given: continue from a checkpoint"):
        pretrain(config(tmp_path), tones(2))
    with pytest.raises(PlanError, match="both were given"):
        pretrain(config(tmp_path, start="demo/en"), tones(2), architecture=tiny())


def test_a_model_of_another_family_has_no_such_objective(tmp_path: Path) -> None:
    (tmp_path / "hubert").mkdir()
    (tmp_path / "hubert" / "config.json").write_text('{"model_type": "hubert"}')
    with pytest.raises(ModelError, match="'hubert'; only wav2vec2 has this pretraining objective"):
        pretrain(config(tmp_path / "run", start=str(tmp_path / "hubert")), tones(2))


def test_a_curve_cut_short_by_a_crash_is_read_up_to_there(done: PretrainResult, tmp_path: Path) -> None:
    text = (done.model.parent / "curve.jsonl").read_text()
    (tmp_path / "cut.jsonl").write_text(text[:-20])
    assert PretrainCurve.load(tmp_path / "cut.jsonl").points == done.curve.points[:-1]
    (tmp_path / "other.jsonl").write_text('{"nothing": 1}\n')
    with pytest.raises(DataError, match="is no training curve"):
        PretrainCurve.load(tmp_path / "other.jsonl")
