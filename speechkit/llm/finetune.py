"""Rows and a configuration → a language model that has learnt them: the whole of a run. `LlmResult` is what comes out.

What each step does stands elsewhere: `data` makes tokens of rows, `batches` packs them, `base` opens the model and puts
the adapter in, `trainer` trains, `watch` gives the orders, `llm_folder` keeps it all.

Several GPUs or machines: start a script that calls `finetune` (or the command line) under `torchrun`, `accelerate
launch` or `deepspeed`; every process takes its share of the batches, so the batch of an update grows with their number.
`config.distributed` names the file with DeepSpeed's or FSDP's settings. The folder must be one that all of them see.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from speechkit import extras
from speechkit.device import choose_device, detect
from speechkit.errors import DataError, PlanError
from speechkit.llm.four_bits import differentiable
from speechkit.llm.llm_folder import LlmFolder
from speechkit.llm.llm_result import LlmResult, llm_card
from speechkit.llm.optimizers import check_optimizer
from speechkit.llm.quiet import quiet
from speechkit.training.curve import Curve
from speechkit.training.origin import versions
from speechkit.training.process import import_notes_off, random_state_kept

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from speechkit.llm.base import Base
    from speechkit.llm.batches import Batch, Batches
    from speechkit.llm.llm_config import LlmConfig
    from speechkit.llm.trainer import LlmTrainer
    from speechkit.llm.watch import LlmWatch, Pace
    from speechkit.training.curve import Point
    from speechkit.training.runfolder import RunFolder

__all__ = ["finetune"]

ENDLESS = 10_000_000  # updates, where only the clock ends the run


def finetune(
    config: LlmConfig,
    train_rows: Any,
    dev_rows: Any = (),
    *,
    model: Any = None,
    tokenizer: Any = None,
    on_point: Callable[[Point], None] | None = None,
    stop: Any = None,
) -> LlmResult:
    """Fine-tune a language model on the answers in `train_rows`; keep what does best on `dev_rows`.

    Rows are whatever `read_rows` takes: a path, dicts, a datasets.Dataset, or `Row`s. Without `dev_rows` the last
    weights are kept. `model` and `tokenizer` are trained in place where they are given; otherwise `config.model` is
    loaded. on_point: called with each point of the curve as it is made (`LiveMetrics.add`). stop: a callable, or an
    object with `requested`; when it says True the run ends after the update at hand and leaves a checkpoint. The same
    call goes on from the last checkpoint, and meets the batches and random numbers that it would have met.

    `config.folder` then holds run.json, origin.json (data, versions), curve.jsonl, checkpoints, best/ (an adapter that
    any user of peft can load, or a whole model), result.json and a model card.

    Raises DataError (no usable row, nothing to learn from), ModelError (the model cannot be opened), PlanError
    (settings that cannot work, or a folder that holds another run: the message lists the differences), OutputError
    (folder cannot be written, disk full: the last whole checkpoint survives), MissingExtra (trl, peft, bitsandbytes).
    """
    with import_notes_off(), quiet(), random_state_kept():
        extras.require("trl", extra="llm", purpose="fine-tuning a language model")
        if config.method != "full":
            extras.require("peft", extra="llm", purpose=f'method "{config.method}"')
        run = _Run(config, train_rows, dev_rows, (model, tokenizer))
        return run.go(on_point, stop)


class _Run:
    """The parts of one run, made in the order in which one needs the other."""

    def __init__(self, config: LlmConfig, train: Any, dev: Any, given: tuple[Any, Any]) -> None:
        from transformers import set_seed

        from speechkit.llm.base import make_learn, open_base
        from speechkit.llm.distributed import training_arguments_for

        self.config = config
        self.device = _device(config)
        self.more = training_arguments_for(config.distributed, self.device)
        self.strategy = _strategy(self.more)
        self.folder = LlmFolder.open(config.folder)
        set_seed(config.seed)  # of the adapter's weights
        self.base = open_base(config, self.device, *given)
        self.notes: list[str] = []
        self.train, self.left_out = self._tokens(train, "training", lint=True)
        if not self.train:
            raise DataError("none of the training rows can be used: " + "; ".join(self.notes))
        self.dev, _ = self._tokens(dev, "kept-out")
        self.items = self._batches_of(self.train)
        self.kept_out = self._batches_of(self.dev) if self.dev else ()
        self.base = make_learn(self.base, config)  # last: a model that was given is not changed for a run that fails
        self.notes += self.base.notes

    def go(self, on_point: Callable[[Point], None] | None, stop: Any) -> LlmResult:
        """Raises PlanError, naming it, where another process of the run ends before its time."""
        from speechkit.llm.ranks import join, lost_rank

        with lost_rank(join()):  # they met when the settings were read
            return self._trained(on_point, stop)

    def _trained(self, on_point: Callable[[Point], None] | None, stop: Any) -> LlmResult:
        from speechkit.llm.base import forward_kept, mode_kept
        from speechkit.llm.trainer import LlmTrainer, Parts, arguments
        from speechkit.llm.watch import LlmWatch, Memory, Pace

        main = _rank() == 0
        batches, steps = self._planned()
        pace = Pace(steps, self.config.minutes)
        last = self.folder.start(self.config, self._origin()) if main else max(self.folder.steps(), default=0)
        self._check_pieces(last)
        curve = self.folder.rewind(last, pace.steps or 0) if main else _curve_of(self.folder, last)
        pace.before_s = curve.last.elapsed_s if last and curve.last else 0.0
        watch = LlmWatch(self.config, pace, self.folder if main else None, curve, on_point if main else None, stop)
        watch.has_dev = bool(self.kept_out)
        watch.scaled = self.base.precision.value == "float16"
        watch.memory = Memory(self.device, (curve.last.memory_mib or 0.0) if last and curve.last else 0.0)
        model, tokenizer = self.base.model, self.base.tokenizer
        limit = steps or ENDLESS
        with _no_cpu_flag(self.strategy):
            made = arguments(self.config, self.folder, limit, self.device, self.base.precision.value, **self.more)
        parts = Parts(self.config, model, tokenizer, batches, self.kept_out, self.folder, watch, _fused_loss(model))
        parts.strategy = self.strategy
        with forward_kept(model), mode_kept(model), differentiable(model) as rearranged, _no_cpu_flag(self.strategy):
            if rearranged:
                self.notes.append(f"{rearranged} 4-bit weights had been rearranged by bitsandbytes and were put back")
            trainer = LlmTrainer.of(parts, made)
            watch.save_best = lambda: self._keep_best(trainer)
            self._train(trainer, watch, pace, last)
            self._finish(trainer, watch, batches, trainer.state.global_step or last)
        trainer.accelerator.wait_for_everyone()
        return replace(LlmResult.load(self.folder.path), model=model, tokenizer=tokenizer)

    def _check_pieces(self, last: int) -> None:
        """What several processes left in pieces belongs to as many; raises PlanError where these are others."""
        from speechkit.llm import checkpoints
        from speechkit.llm.trainer import world

        if last and {self.strategy, checkpoints.written(self.folder.checkpoint(last)).strategy} != {"one"}:
            checkpoints.check(self.folder.checkpoint(last), self.strategy, world())

    def _train(self, trainer: LlmTrainer, watch: LlmWatch, pace: Pace, last: int) -> None:
        if last and pace.share(last) >= 1:
            watch.ending = "minutes" if pace.steps is None or last < pace.steps else "steps"
            trainer.load_weights(self.folder.checkpoint(last))
        elif last and watch.out_of_patience:
            watch.ending = "patience"
            trainer.load_weights(self.folder.checkpoint(last))
        else:
            trainer.train(resume_from_checkpoint=str(self.folder.checkpoint(last)) if last else None)

    def _tokens(self, rows: Any, what: str, lint: bool = False) -> tuple[tuple[Any, ...], int]:
        """Tokens of the rows that can be used, and how many cannot; with `lint` the template is looked at as well."""
        from speechkit.llm.data import tokenize
        from speechkit.llm.rows import Row, Rows, read_rows

        if not isinstance(rows, (str, os.PathLike, Rows)) and not len(rows):
            return (), 0
        of_ours = isinstance(rows, (list, tuple)) and all(isinstance(row, Row) for row in rows)
        read = Rows(tuple(rows), (), what) if of_ours else rows if isinstance(rows, Rows) else read_rows(rows)
        if lint:
            self.notes += _lint(self.base, read.rows)
        longest = min(self.config.max_len or self.config.batch_tokens, self.base.longest)
        report = tokenize(read.rows, self.base.tokenizer, longest)
        left = [(one.where, one.reason) for one in read.broken]
        left += [(one.where, one.reason) for one in report.left_out]
        if left:
            few = "; ".join(f"{where}: {reason}" for where, reason in left[:3])
            more = f"; and {len(left) - 3} more" if len(left) > 3 else ""
            self.notes.append(f"left out of the {what} rows: {len(left)} ({few}{more})")
        told = [note for note in report.notes if not note.startswith("answers found by marks")]  # the usual way
        self.notes += [f"{what} rows: {note}" for note in told]
        return tuple(report.rows), len(left)

    def _batches_of(self, tokens: Sequence[Any]) -> tuple[Batch, ...]:
        from speechkit.llm.batches import batches_of

        pad = self.base.tokenizer.pad_token_id or 0
        return batches_of(tokens, self.config.batch_tokens, self.config.packing, pad, self.config.seed)

    def _planned(self) -> tuple[Batches, int | None]:
        from speechkit.llm.batches import Batches
        from speechkit.llm.trainer import world

        config, per_update = self.config, self.config.accumulation * world()
        limits = [config.steps] if config.steps else []
        if config.epochs:
            limits.append(max(1, -(-round(len(self.items) * config.epochs) // per_update)))
        steps = min(limits) if limits else None
        return Batches(self.items, (steps or ENDLESS) * per_update, config.seed), steps

    def _origin(self) -> dict[str, Any]:
        return {
            "same": {"data": self._data_digest(), "model": self.base.identity},
            "model": self.base.name,
            "published": self.base.published,
            "adapter": self.base.adapter,
            "precision": str(self.base.precision),
            "notes": self.notes,
            "data": {"train_rows": len(self.train), "dev_rows": len(self.dev), "left_out": self.left_out},
            "versions": versions() | _more_versions(),
            "hardware": str(detect()),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": sys.argv,
        }

    def _data_digest(self) -> str:
        digest = hashlib.sha256()
        for rows in (self.train, self.dev):
            for row in rows:
                digest.update(repr((row.input_ids, row.labels)).encode())
            digest.update(b"\n")
        return f"{digest.hexdigest()[:12]} ({len(self.train)}, {len(self.dev)} rows)"

    def _keep_best(self, trainer: LlmTrainer) -> None:
        """Write the model as it is now to best/, whole or not at all; called by all processes."""
        fresh = self.folder.path / "best.new"
        weights = trainer.whole_weights()
        if _rank():
            return
        shutil.rmtree(fresh, ignore_errors=True)
        with self.folder.writing("best"):
            trainer.write_model(fresh, weights)
            self.base.tokenizer.save_pretrained(fresh)
            self.folder.publish(fresh, self.folder.best)

    def _finish(self, trainer: LlmTrainer, watch: LlmWatch, batches: Batches, step: int) -> None:
        # without rows kept out the last weights are the best there are
        if watch.ending != "diverged" and (not self.kept_out or not self.folder.best.is_dir()):
            self._keep_best(trainer)
        elif self.folder.best.is_dir() and (watch.best is None or watch.best.step != step):
            trainer.load_best(self.folder.best)
        if _rank():
            return
        result = self._result(trainer, watch, batches, step)
        with self.folder.writing("result.json"):
            self.folder.write_json("result.json", result.to_dict())
            text = llm_card(result, self.config, self._origin())
            self.folder.write("README.md", text)
            if result.best:
                self.folder.write("best/README.md", text)

    def _result(self, trainer: LlmTrainer, watch: LlmWatch, batches: Batches, step: int) -> LlmResult:
        curve, best = watch.curve, watch.best
        points = curve.points
        first = next((point for point in points if point.step == 0), None)
        trainable, total = trainer.sizes()
        last, computed = curve.last, sum(item.computed for item in self.items)
        return LlmResult(
            folder=self.folder.path,
            best=self.folder.best if self.folder.best.is_dir() else None,
            method=self.config.method,
            ending=watch.ending or "steps",
            steps=step,
            best_step=best.step if best else step,
            loss=next((point.loss for point in reversed(points) if point.loss is not None), None),
            dev_loss=best.dev_loss if best else None,
            dev_loss_before=first.dev_loss if first else None,
            trainable=trainable,
            total=total,
            minutes=(last.elapsed_s if last else 0.0) / 60,
            tokens=watch.tokens(step),
            fill=sum(item.useful for item in self.items) / computed,
            memory_mib=last.memory_mib if last else None,
            memory_of=watch.memory.what,
            precision=str(self.base.precision),
            train_rows=len(self.train),
            train_tokens=sum(len(row.input_ids) for row in self.train),
            dev_rows=len(self.dev),
            left_out=self.left_out,
            notes=(*self.notes, *_about_curve(watch)),
            curve=curve,
        )


def _device(config: LlmConfig) -> str:
    kind = choose_device(config.device).value
    if ":" in kind:
        raise PlanError(
            f'device is "{kind}": training takes the first device that it sees, so set CUDA_VISIBLE_DEVICES='
            f'{kind.partition(":")[2]} and device="cuda"'
        )
    check_optimizer(config.optimizer, kind)
    if config.checkpointing == "offload" and not kind.startswith("cuda"):
        raise PlanError(
            f'checkpointing is "offload", which moves activations from a GPU to main memory, and the device is {kind}; '
            'use "layers", which keeps few of them'
        )
    return kind


def _strategy(more: dict[str, Any]) -> str:
    """Who keeps the weights and the optimiser's memory: "one" (every process all of it), or several in pieces."""
    from speechkit.llm.distributed import strategy_of

    return strategy_of(more["deepspeed"]) if "deepspeed" in more else "fsdp2" if "fsdp" in more else "one"


@contextmanager
def _no_cpu_flag(strategy: str) -> Iterator[None]:
    """With ACCELERATE_USE_CPU accelerate leaves DeepSpeed out, without a word; DS_ACCELERATOR says it instead."""
    name = "ACCELERATE_USE_CPU"
    before = os.environ.pop(name, None) if strategy.startswith("zero") else None
    try:
        yield
    finally:
        if before is not None:
            os.environ[name] = before


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _curve_of(folder: RunFolder, last: int) -> Curve:
    """The points up to `last`, read without writing: for the processes that leave the folder to the first one."""
    path = folder.path / "curve.jsonl"
    points = Curve.load(path).points if last and path.is_file() else ()
    return Curve(tuple(point for point in points if point.step <= last))


def _fused_loss(model: Any) -> bool:
    """Whether the model computes its loss by our kernel, without logits."""
    from speechkit.llm.base import bare_of
    from speechkit.llm.exchange import recipe_of
    from speechkit.llm.loss import head_reason

    bare = bare_of(model)
    recipe = recipe_of(bare)
    return recipe is not None and recipe.kind == "loss" and not head_reason(bare)


def _more_versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("trl", "bitsandbytes", "deepspeed"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _lint(base: Base, rows: Sequence[Any]) -> list[str]:
    """What is wrong or doubtful about the chat template, where there are chats; a run goes on in spite of it.

    Rows that it leaves without labels are left out, and a run without labels ends with an error.
    """
    from speechkit.llm.base import bare_of
    from speechkit.llm.template_lint import NOTE, lint

    if all(row.kind == "completion" for row in rows):
        return []
    found = lint(base.tokenizer, rows, generation_config=getattr(bare_of(base.model), "generation_config", None))
    return [f"lint: {one}" for one in found.findings if one.level != NOTE]


def _about_curve(watch: LlmWatch) -> list[str]:
    """What the curve gives reason to say."""
    first = next((p for p in watch.curve.points if p.step == 0 and p.dev_loss is not None), None)
    best = watch.best
    if first and best and (best.dev_loss or 0.0) > (first.dev_loss or 0.0):
        return ["the model before had the lower loss on the rows kept out; a lower learning rate may help"]
    return []
