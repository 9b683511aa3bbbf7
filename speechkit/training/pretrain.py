"""Pretraining on speech without text: the wav2vec 2.0 objective with the transformers `Trainer`.

In: a frozen `PretrainConfig`, sound, and where to begin (an architecture, a pretraining checkpoint, or the encoder of a
CTC model). Out: a `PretrainResult` and a folder: `model/` (a genuine `Wav2Vec2ForPreTraining` that CTC fine-tuning can
start from), `curve.jsonl`, `run.json` (settings and versions), `audio/` (the windows), `checkpoints/`.

A run that was killed goes on from its last whole checkpoint when it is called again with the same settings, and sees
the batches that it would have seen. Knows no text and no vocabulary.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainerCallback, TrainingArguments

from speechkit.asr.frames import FrameGrid
from speechkit.errors import PlanError
from speechkit.training.masked_units import MaskedUnits, fit_units
from speechkit.training.objective import Pretraining, perplexity
from speechkit.training.pretrain_config import PretrainConfig, PretrainCurve, PretrainPoint, precision
from speechkit.training.pretrain_doctor import diagnose
from speechkit.training.pretrain_start import begin, save_model
from speechkit.training.process import random_state_kept
from speechkit.training.storage import writing
from speechkit.training.unlabelled import BatchPlan, PlannedBatches, Skipped, Windows

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import Wav2Vec2Config

    from speechkit.training.findings import Finding
    from speechkit.training.objective import Objective

__all__ = ["PretrainConfig", "PretrainCurve", "PretrainPoint", "PretrainResult", "Watch", "pretrain"]


@dataclass(frozen=True)
class PretrainResult:
    """What a run made and how it went."""

    model: Path  # folder of a Wav2Vec2ForPreTraining with its feature extractor
    curve: PretrainCurve
    audio_s: float  # seconds of different sound that there was to hear
    skipped: tuple[Skipped, ...]  # sources that could not be used
    findings: tuple[Finding, ...]  # what the doctor says about the curve
    start: str  # what the weights were before, in words

    def __str__(self) -> str:
        last = self.curve.last
        heard = f"{(last.audio_s or 0) / 3600:.1f} h heard of {self.audio_s / 60:.1f} min" if last else "nothing heard"
        lines = [f"pretrained {self.start}: {last.step if last else 0} steps, {heard}, in {self.model}"]
        lines += [str(last)] if last else []
        lines += [f"left out: {row.name}: {row.reason}" for row in self.skipped[:5]]
        return "\n".join([*lines, *(str(finding) for finding in self.findings)])


@dataclass(frozen=True)
class Watch:
    """What may look into a run and intervene; all optional."""

    on_point: Callable[[PretrainPoint], object] | None = None  # called for each point of the curve
    stop: Callable[[], bool] | None = None  # asked after each step; True ends the run with a checkpoint
    optimizer: Callable[[torch.nn.Module, float], torch.optim.Optimizer] | None = None  # instead of AdamW
    transform: Any = None  # (samples (T,), np.random.Generator) → samples: augmentation on the fly


def pretrain(
    config: PretrainConfig, audio: Any, *, architecture: Wav2Vec2Config | None = None, watch: Watch | None = None
) -> PretrainResult:
    """Train a wav2vec 2.0 encoder on `audio`, which needs no text (Baevski et al. 2020, arXiv:2006.11477).

    `audio` is a folder, files, arrays at 16 kHz, `(array, rate)`, rows with an "audio", or `Windows`. It is cut into
    windows once, in `config.output/audio`, and is not looked at again when a run is resumed. With `config.start` the
    run continues from that checkpoint, otherwise it begins from random weights of `architecture`.

    Raises:
        DataError: no usable sound.
        ModelError: `config.start` cannot be loaded or is no wav2vec 2.0.
        PlanError: neither or both of `config.start` and `architecture`, a setting out of its range, or a folder that
            holds a run with other settings (the message names them).
        OutputError: the disk is full or cannot be written; the last whole checkpoint survives.
    """
    with random_state_kept():
        return _pretrained(config, audio, architecture, watch or Watch())


def _pretrained(
    config: PretrainConfig, audio: Any, architecture: Wav2Vec2Config | None, watch: Watch
) -> PretrainResult:
    output = Path(config.output)
    checkpoints = output / "checkpoints"
    last = _last_whole(checkpoints)
    _same_run(config, output, resumed=last is not None)
    torch.manual_seed(config.seed)
    net, extractor, start = begin(config, architecture)
    grid = FrameGrid.from_config(net.config)
    chosen = precision(config.precision)
    arguments = _arguments(config, checkpoints, chosen.value)
    with arguments.main_process_first(local=False, desc="cutting the windows"):  # of several, one writes the files
        windows = audio if isinstance(audio, Windows) else _windows(config, audio)
        if arguments.process_index == 0:
            _write_record(config, output, start, str(chosen))
    module = Pretraining(net, config.cnn_gradient, config.penalty)
    batches = PlannedBatches(windows, _plan(config, watch, extractor.do_normalize, arguments.world_size), grid)
    if config.unit_weight:
        with arguments.main_process_first(local=False, desc="fitting the units"):
            module.units = _units(config, batches, grid, net.config.hidden_size)
        module.unit_weight = config.unit_weight
    curve = _Curve(config, output / "curve.jsonl", watch, from_step=int(last.name.partition("-")[2]) if last else 0)
    trainer = PretrainTrainer(
        model=module,
        args=arguments,
        train_dataset=batches,
        data_collator=lambda rows: rows[0],
        callbacks=[curve],
    )
    trainer.make_optimizer, trainer.curve, trainer.checkpoints = watch.optimizer, curve, checkpoints
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    if trainer.is_world_process_zero():
        with writing(output / "model", partial(_survives, checkpoints)):
            save_model(net, extractor, output / "model")
    found = tuple(diagnose(curve.curve, config.codes, config.negatives))
    return PretrainResult(output / "model", curve.curve, windows.seconds, windows.skipped, found, start)


class PretrainTrainer(Trainer):
    """Feeds the planned batches in order and hands each loss in its parts to the curve."""

    make_optimizer: Callable[[torch.nn.Module, float], torch.optim.Optimizer] | None = None
    curve: _Curve
    checkpoints: Path

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        place = self.checkpoints / f"checkpoint-{self.state.global_step}"
        with writing(place, partial(_survives, self.checkpoints)):
            super()._save_checkpoint(model, trial)

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler[int]:
        return torch.utils.data.SequentialSampler(cast("PlannedBatches", self.train_dataset))

    def create_optimizer(self, *_: Any) -> torch.optim.Optimizer:
        if self.make_optimizer is None:
            return super().create_optimizer()
        self.optimizer = self.make_optimizer(cast("torch.nn.Module", self.model), self.args.learning_rate)
        return self.optimizer

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        found: Objective = model(**inputs)
        self.curve.add(found, inputs["input_values"].numel() * self.args.world_size)
        return (found.loss, found) if return_outputs else found.loss


class _Curve(TrainerCallback):
    """Sums up the steps between two points, writes the points, sets the temperature, and listens for a stop."""

    def __init__(self, config: PretrainConfig, path: Path, watch: Watch, from_step: int) -> None:
        self.config, self.path, self.watch = config, path, watch
        self.curve = PretrainCurve((), config.steps, config.name)
        if from_step and path.is_file():
            before = PretrainCurve.load(path)
            self.curve = replace(before, points=tuple(p for p in before.points if p.step <= from_step))
        last = self.curve.last
        self.heard_s, self.elapsed_s = (last.audio_s or 0.0, last.elapsed_s) if last else (0.0, 0.0)
        self.begun = time.monotonic()
        self.parts: list[torch.Tensor] = []
        self.counts: torch.Tensor | None = None

    def add(self, found: Objective, samples: int) -> None:
        """One batch; nothing is copied from the device before a point is due."""
        scalars = (found.contrastive, found.diversity, found.correct, found.masked, found.unit_accuracy)
        self.parts.append(torch.stack([value.detach().float() for value in scalars]))
        self.counts = found.counts if self.counts is None else self.counts + found.counts
        self.heard_s += samples / 16_000

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.begun = time.monotonic()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        kwargs["model"].temperature = self.config.temperature_at(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_log = True  # the curve ends where the run does
        if self.watch.stop is not None and self.watch.stop():
            control.should_save = control.should_training_stop = control.should_log = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not logs or "loss" not in logs or not self.parts:
            return  # the summary at the end
        contrastive, diversity, correct, masked, named = torch.stack(self.parts).double().cpu().unbind(dim=1)
        counts = cast("torch.Tensor", self.counts).double().cpu()
        point = PretrainPoint(
            step=int(state.global_step),
            elapsed_s=self.elapsed_s + time.monotonic() - self.begun,
            loss=float(logs["loss"]),
            learning_rate=logs.get("learning_rate"),
            grad_norm=float(logs["grad_norm"]) if "grad_norm" in logs else None,
            audio_s=self.heard_s,
            contrastive=float((contrastive * masked).sum() / masked.sum()),
            diversity=float(diversity.mean()),
            accuracy=float(correct.sum() / masked.sum()),
            perplexity=float(perplexity(counts / counts.sum(dim=1, keepdim=True)).mean()),
            temperature=self.config.temperature_at(state.global_step - 1),
            unit_accuracy=float(named.mean()) if self.config.unit_weight else None,
        )
        self.parts, self.counts = [], None
        self.curve = replace(self.curve, points=(*self.curve.points, point))
        if state.is_world_process_zero:
            with writing(self.path, partial(_survives, self.path.parent / "checkpoints")):
                self.curve.save(self.path)
            if self.watch.on_point is not None:
                self.watch.on_point(point)


def _arguments(config: PretrainConfig, folder: Path, mixed: str) -> TrainingArguments:
    on_gpu = torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=config.steps,
        per_device_train_batch_size=1,  # one planned batch
        gradient_accumulation_steps=config.accumulation,
        learning_rate=config.learning_rate,
        warmup_steps=max(1, round(config.warmup * config.steps)),
        lr_scheduler_type="linear",
        weight_decay=0.01,
        adam_beta2=0.98,
        adam_epsilon=1e-6,
        max_grad_norm=config.max_grad_norm,
        logging_steps=config.log_every,
        save_steps=config.save_every,
        save_total_limit=2,
        dataloader_num_workers=config.workers,
        dataloader_prefetch_factor=4 if config.workers else None,
        dataloader_persistent_workers=bool(config.workers),
        report_to=[],
        disable_tqdm=True,
        bf16=mixed == "bfloat16",  # the weights stay float32, and the loss is computed in float32
        fp16=mixed == "float16",
        use_cpu=not on_gpu,
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,  # every weight takes part in every loss
        seed=config.seed,
    )


def _windows(config: PretrainConfig, audio: Any) -> Windows:
    return Windows.open_or_write(Path(config.output) / "audio", audio, config.shortest_s, config.longest_s)


def _plan(config: PretrainConfig, watch: Watch, normalise: bool, processes: int) -> BatchPlan:
    return BatchPlan(
        steps=config.steps * config.accumulation * processes,
        budget_s=config.batch_s,
        mask_start=config.mask_start,
        mask_frames=config.mask_frames,
        negatives=config.negatives,
        seed=config.seed,
        normalise=normalise,
        transform=watch.transform,
    )


def _units(config: PretrainConfig, batches: PlannedBatches, grid: FrameGrid, width: int) -> MaskedUnits:
    """The clusters of this run, fitted on its own first batches or read from its folder."""
    path = Path(config.output) / "units.safetensors"
    if not path.is_file():
        rows = (row.numpy() for step in range(len(batches)) for row in batches[step]["input_values"])
        centroids = fit_units(rows, grid, config.units, config.seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"centroids": centroids}, path.with_suffix(".partial"))
        path.with_suffix(".partial").replace(path)
    return MaskedUnits(load_file(path)["centroids"], width, grid)


def _last_whole(folder: Path) -> Path | None:
    """The checkpoint with the most steps that was written to its end: `Trainer` writes its state last."""
    found = []
    for path in folder.glob("checkpoint-*"):
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
            found.append((int(path.name.partition("-")[2]), path))
        except (OSError, ValueError):
            continue
    return max(found)[1] if found else None


def _survives(checkpoints: Path) -> str:
    last = _last_whole(checkpoints)
    return f"{last.name} is whole" if last else ""


def _same_run(config: PretrainConfig, output: Path, resumed: bool) -> None:
    """Raise PlanError where checkpoints come from other settings; `PretrainConfig.FREE` may differ."""
    record = output / "run.json"
    if not resumed or not record.is_file():
        return
    try:
        made = dict(json.loads(record.read_text(encoding="utf-8"))["config"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PlanError(f"{record} does not say what the checkpoints beside it come from: {error}") from error
    wanted = json.loads(json.dumps(asdict(config)))
    differing = [f"{key}: {made.get(key)} → {wanted[key]}" for key in wanted if made.get(key) != wanted[key]]
    differing = [row for row in differing if row.partition(":")[0] not in PretrainConfig.FREE]
    if differing:
        raise PlanError(
            f"{output} holds a run with other settings ({'; '.join(differing)}); only "
            f"{', '.join(sorted(PretrainConfig.FREE))} may change on the way: name another output, or remove "
            f"{output / 'checkpoints'} to start over"
        )


def _write_record(config: PretrainConfig, output: Path, start: str, mixed: str) -> None:
    versions = {name: version(name) for name in ("torch", "transformers")}
    row = {"config": asdict(config), "start": start, "precision": mixed, "versions": versions}
    output.mkdir(parents=True, exist_ok=True)
    partial = output / "run.json.partial"
    partial.write_text(json.dumps(row, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(output / "run.json")
