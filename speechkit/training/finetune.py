"""Examples and a configuration → a better model: the whole of a fine-tuning run. `FinetuneResult` is what comes out.

What each step does stands elsewhere: `check` judges the rows, `base` opens the model and fits its alphabet,
`strategies` chooses what learns, `batches` and `collate` feed it, `trainer` trains, `callbacks` gives the orders,
`runfolder` keeps it all.

Several GPUs or machines: start a script that calls `finetune` (or the command line) under `torchrun` or `accelerate
launch`; every process takes its share of the batches, so the batch of an update grows with their number. The folder
must be one that all of them see.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from speechkit import extras
from speechkit.asr import checkpoint, decode
from speechkit.device import choose_device, cpu_cores, detect
from speechkit.errors import DataError, PlanError
from speechkit.evaluation import metrics
from speechkit.training import adapters, check, strategies
from speechkit.training import base as bases
from speechkit.training.batches import BatchPlan
from speechkit.training.card import card
from speechkit.training.collate import Batches, Clips
from speechkit.training.devset import DevSet
from speechkit.training.origin import about_speakers, digest_of, language_of, seconds_of, versions
from speechkit.training.precision import choose_precision
from speechkit.training.process import import_notes_off, random_state_kept
from speechkit.training.report import FinetuneResult
from speechkit.training.runfolder import RunFolder
from speechkit.training.vocabulary_report import vocabulary_doctor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np

    from speechkit.training.callbacks import Watch
    from speechkit.training.config import FinetuneConfig
    from speechkit.training.curve import Point
    from speechkit.training.data import Example
    from speechkit.training.data_report import DataReport

__all__ = ["finetune"]

SETS = ("training", "development")
REPORTS = ("data.json", "data-dev.json")
ENDLESS = 10_000_000  # updates, where only the clock ends the run
FAILED = 0.9  # word error rate from which the model itself is looked at


def finetune(
    config: FinetuneConfig,
    train: Sequence[Example],
    dev: Sequence[Example],
    *,
    on_data: Callable[[str, DataReport], Any] | None = None,
    on_point: Callable[[Point], None] | None = None,
    stop: Any = None,
) -> FinetuneResult:
    """Fine-tune a CTC model on `train`, keep what does best on `dev`.

    on_data: called with "training" and "development" and what was found in each set, before anything trains.
    on_point: called with each point of the curve as it is made (`LiveMetrics.add`). stop: a callable, or an object with
    `requested`; when it says True the run ends after the update at hand and leaves a checkpoint. The same call goes on
    from the last checkpoint, and meets the batches and random numbers that it would have met.

    `config.folder` then holds run.json, origin.json (data, versions), data.json (rows left out), curve.jsonl,
    checkpoints, best/ (a transformers folder that `load_asr` opens), result.json and a model card.

    Raises DataError (no usable row, empty development set), ModelError (nothing to fine-tune), PlanError (settings that
    cannot work, or a folder that holds another run: the message lists the differences), OutputError (folder cannot be
    written, disk full: the last whole checkpoint survives), MissingExtra (accelerate; for LoRA peft).
    """
    extras.require("accelerate", extra="train", purpose="fine-tuning")
    with checkpoint.quiet(), import_notes_off(), random_state_kept():
        run = _Run(config, train, dev)
        if on_data is not None and _rank() == 0:
            for name, report in zip(SETS, run.reports, strict=True):
                on_data(name, report)
        return run.go(on_point, stop)


class _Run:
    """The parts of one run, made in the order in which one needs the other."""

    def __init__(self, config: FinetuneConfig, train: Sequence[Example], dev: Sequence[Example]) -> None:
        self.config = config
        self.device = _device(config)
        self.precision = choose_precision(self.device, config.precision)
        self.folder = RunFolder.open(config.folder)
        if not dev:
            raise DataError(
                "the development set is empty: give some clips that are not trained on (split_examples makes them)"
            )
        self.base = bases.open_base(config.model, config.language or language_of(train))
        # what a malformed row has in the place of its text is no reason for a new output
        texts = [one.text for one in train if not one.fault] or [one.text for one in train]
        vocabulary = self.base.spell(texts, config.vocabulary, config.seed)
        self.reports = [self._checked(train, SETS[0])]
        self.reports.append(self._checked(dev, SETS[1], self.reports[0]))
        self.train, self.dev = (tuple(report.kept) for report in self.reports)
        self.base.configure(config, self.device)
        self.applied = strategies.apply_strategy(self.base.model, config.strategy, config.strategy_options)
        if config.checkpointing:
            strategies.enable_checkpointing(self.applied.model)
        self.vocabulary = vocabulary
        self.notes = [*self.base.notes, *self._left_out(), *self._spelt(), *about_speakers(self.train, self.dev)]

    def go(self, on_point: Callable[[Point], None] | None, stop: Any) -> FinetuneResult:
        from speechkit.training.callbacks import Pace, Watch
        from speechkit.training.trainer import CTCTrainer, Parts, arguments, world

        main = _rank() == 0
        batches, steps = self._planned(world())
        pace, updates = Pace(steps, self.config.minutes), steps or ENDLESS
        last = self._begin(main)
        curve = self.folder.rewind(last, pace.steps or 0) if main else _curve_of(self.folder, last)
        pace.before_s = curve.last.elapsed_s if last and curve.last else 0.0
        watch = Watch(self.config, pace, self.folder if main else None, curve, on_point if main else None, stop)
        dev = self._dev_set()
        config = replace(self.config, workers=self._workers())
        made = arguments(config, self.folder, updates, self.device, self.precision.value)
        trainer = CTCTrainer.of(Parts(config, self.applied, batches, dev, self.folder, watch), made)
        watch.scaled = self.precision.value == "float16"
        watch.save_best = self._keep_best if main else watch.save_best
        if last and pace.share(last) >= 1:
            watch.ending = "minutes" if pace.steps is None or last < pace.steps else "steps"
        elif last and watch.out_of_patience:
            watch.ending = "patience"
        else:
            trainer.train(resume_from_checkpoint=str(self.folder.checkpoint(last)) if last else None)
        if main:
            self._finish(watch, batches, trainer.state.global_step or last)
        trainer.accelerator.wait_for_everyone()
        return FinetuneResult.load(self.folder.path)

    def _checked(self, rows: Sequence[Example], what: str, trained_on: DataReport | None = None) -> DataReport:
        try:
            return check.check_examples(
                list(rows),
                vocabulary=self.base.vocabulary,
                min_s=self.config.min_s,
                max_s=self.config.max_s,
                grid=self.base.grid,
                trained_on=trained_on,
            )
        except DataError as error:
            raise DataError(f"the {what} data: {error}") from error

    def _left_out(self) -> list[str]:
        notes = []
        for name, file, report in zip(SETS, REPORTS, self.reports, strict=True):
            kinds = Counter(problem.kind for problem in report.left_out)
            if kinds:
                said = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
                notes.append(f"left out of {report.rows:,} {name} rows: {said} ({file} lists them)")
        return notes

    def _spelt(self) -> list[str]:
        """What the vocabulary doctor finds in the alphabet, the head and the texts that are trained on."""
        found = vocabulary_doctor(self.vocabulary, (row.text for row in self.train), self.base.model).findings
        return [f"{one.kind}: {one.detail}. {one.fix}" for one in found if one.severity != "note"]

    def _clips(self, rows: Sequence[Example], augmented: bool) -> Clips:
        seconds = sum(row.seconds or 0.0 for row in rows)
        return Clips(
            rows,
            [self.vocabulary.encode(row.text) for row in rows],
            normalized=bool(self.base.extractor.do_normalize),
            augment=_augmentation(self.config) if augmented else None,
            seed=self.config.seed,
            cache=seconds * 64_000 <= self.config.cache_mb * 2**20,
            at_least=self.base.grid.field,
        )

    def _planned(self, processes: int) -> tuple[Batches, int | None]:
        config, grid = self.config, self.base.grid
        frames = tuple(max(1, grid.frames(round((row.seconds or 0.0) * grid.rate))) for row in self.train)
        plan = BatchPlan(frames, self._budget(), config.seed, self.base.ragged)
        per_update = config.accumulation * processes
        limits = [config.steps] if config.steps else []
        if config.epochs:
            limits.append(-(-plan.count(config.epochs) // per_update))
        steps = min(limits) if limits else None
        batches = Batches(self._clips(self.train, augmented=True), plan, (steps or ENDLESS) * per_update)
        return batches, steps

    def _budget(self) -> int:
        return max(1, self.base.grid.frames(round(self.config.batch_s * self.base.grid.rate)))

    def _dev_set(self) -> DevSet:
        alphabet = decode.Alphabet.from_tokenizer(self.vocabulary.tokenizer(), len(self.vocabulary))
        clips = self._clips(self.dev, augmented=False)
        return DevSet(clips, alphabet, self.base.grid, self._budget(), self.base.ragged, self.base.language)

    def _workers(self) -> int:
        """None where decoded audio is in memory or there are no cores to spare."""
        if self.config.workers is not None:
            return self.config.workers
        if self.device == "cpu" or (not self.config.augmentation and self._fits()):
            return 0
        return min(4, max(0, cpu_cores() - 1))

    def _fits(self) -> bool:
        return sum(row.seconds or 0.0 for row in self.train) * 64_000 <= self.config.cache_mb * 2**20

    def _begin(self, main: bool) -> int:
        """Record the run, or see that the one in the folder is this one; the step to go on from."""
        if not main:
            return max(self.folder.steps(), default=0)
        last = self.folder.begin(self.config, self._origin())
        for report, name in zip(self.reports, REPORTS, strict=True):
            with self.folder.writing(name):
                report.save(self.folder.path / name)
        return last

    def _origin(self) -> dict[str, Any]:
        left_out = sum(len(report.left_out) for report in self.reports)
        return {
            "same": {"data": digest_of(self.train, self.dev), "model": self.base.identity},
            "model": self.base.name,
            "language": self.base.language,
            "licence": self.base.licence,
            "reason": self.applied.reason,
            "precision": str(self.precision),
            "notes": self.notes,
            "data": {
                "train_clips": len(self.train),
                "train_minutes": seconds_of(self.train) / 60,
                "dev_clips": len(self.dev),
                "dev_minutes": seconds_of(self.dev) / 60,
                "speakers": len({row.speaker for row in self.train if row.speaker}),
                "left_out": left_out,
            },
            "versions": versions(),
            "hardware": str(detect()),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": sys.argv,
        }

    def _keep_best(self) -> None:
        """Write the model as it is now to best/, whole or not at all."""
        fresh = self.folder.path / "best.new"
        shutil.rmtree(fresh, ignore_errors=True)
        with self.folder.writing("best"):
            self.applied.plain().save_pretrained(fresh)
            self.base.processor.save_pretrained(fresh)
            if self.config.strategy == "adapters":  # apart too, to be swapped in
                name = re.sub(r"[^\w-]+", "-", self.base.language or "domain")
                tokenizer = self.vocabulary.tokenizer()
                adapters.save_adapter(adapters.take_adapter(self.applied.model, name, tokenizer), fresh)
            self.folder.publish(fresh, self.folder.best)

    def _finish(self, watch: Watch, batches: Batches, step: int) -> None:
        if not self.folder.best.is_dir() and watch.ending != "diverged":
            self._keep_best()  # stopped before the first evaluation
        result = self._result(watch, batches, step)
        origin = self._origin()
        with self.folder.writing("result.json"):
            self.folder.write_json("result.json", result.to_dict())
            text = card(result, self.config, origin)
            self.folder.write("README.md", text)
            if result.best:
                self.folder.write("best/README.md", text)

    def _result(self, watch: Watch, batches: Batches, step: int) -> FinetuneResult:
        curve, best = watch.curve, watch.best
        kept = self.folder.best if self.folder.best.is_dir() else None
        wer, cer = self._rates() if kept else (None, None)
        first = next((point for point in curve.points if point.step == 0), None)
        per_update = max(1, batches.count // max(1, watch.pace.steps or ENDLESS))
        last = curve.last
        return FinetuneResult(
            folder=self.folder.path,
            best=kept,
            strategy=self.applied.strategy,
            ending=watch.ending or "steps",
            steps=step,
            best_step=best.step if best else step,
            wer=wer,
            cer=cer,
            wer_before=first.wer if first else None,
            cer_before=first.cer if first else None,
            trainable=self.applied.trainable,
            total=self.applied.total,
            minutes=(last.elapsed_s if last else 0.0) / 60,
            audio_s=batches.seconds(0, step * per_update),
            padding=batches.plan.padding(min(step * per_update, 200)),
            precision=str(self.precision),
            train_clips=len(self.train),
            train_s=seconds_of(self.train),
            dev_clips=len(self.dev),
            dev_s=seconds_of(self.dev),
            notes=(*self.notes, *_about_curve(watch), *self._diagnosed(watch, batches)),
            curve=curve,
        )

    def _diagnosed(self, watch: Watch, batches: Batches) -> list[str]:
        """What the CTC doctor finds in the curve; where the run failed, in the model and a batch as well."""
        from speechkit.training.ctc_doctor import diagnose

        failed = watch.ending == "diverged" or (watch.best is not None and (watch.best.wer or 0.0) >= FAILED)
        given: dict[str, Any] = {}
        if failed:
            model = self.applied.model
            batch = {name: value for name, value in batches[0].items() if torch.is_tensor(value)}
            device = next(model.parameters()).device
            given = {
                "model": model,
                "batch": {name: tensor.to(device) for name, tensor in batch.items()},
                "tokenizer": self.vocabulary.tokenizer(),
            }
        found = diagnose(watch.curve, **given)
        return [f"{one.name}: {one.symptom}. {one.cause} {one.remedy}" for one in found.findings]

    def _rates(self) -> tuple[metrics.Rate, metrics.Rate]:
        """The best model on the development set as users will have it: loaded from its folder."""
        from speechkit.asr.model import load_asr

        recognizer = load_asr(self.folder.best, self.device, "float32" if self.device == "cpu" else "auto")
        heard = [told.text for told in recognizer.transcribe([row.source() for row in self.dev], words=False)]
        said = [row.text for row in self.dev]
        language = self.base.language
        return (
            metrics.error_rate(said, heard, unit="word", language=language),
            metrics.error_rate(said, heard, unit="char", language=language),
        )


def _device(config: FinetuneConfig) -> str:
    kind = choose_device(config.device).value
    if ":" in kind:
        raise PlanError(
            f'device is "{kind}": training takes the first device that it sees, so set CUDA_VISIBLE_DEVICES='
            f'{kind.partition(":")[2]} and device="cuda"'
        )
    return kind


def _rank() -> int:
    import os

    return int(os.environ.get("RANK", "0"))


def _curve_of(folder: RunFolder, last: int) -> Any:
    """The points up to `last`, read without writing: for the processes that leave the folder to the first one."""
    from speechkit.training.curve import Curve

    path = folder.path / "curve.jsonl"
    points = Curve.load(path).points if last and path.is_file() else ()
    return Curve(tuple(point for point in points if point.step <= last))


def _augmentation(config: FinetuneConfig) -> Any:
    if config.augmentation is None:
        return None
    from speechkit.training import augment

    # not a lambda: processes that prepare batches are sent it
    return partial(_augmented, how=augment.Augmentation.of(config.augmentation))


def _augmented(samples: Any, rng: np.random.Generator, how: Any) -> Any:
    from speechkit.training.augment import augment

    return augment(samples, rng, how)


def _about_curve(watch: Watch) -> list[str]:
    """What the curve gives reason to say."""
    first = next((point for point in watch.curve.points if point.step == 0 and point.wer is not None), None)
    best = watch.best
    if first and best and (best.wer or 0.0) > (first.wer or 0.0):
        return [f"the model before was better on this set: WER {first.wer:.1%}; a lower learning rate may help"]
    return []
