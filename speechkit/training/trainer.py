"""transformers' `Trainer`, taught what CTC fine-tuning needs: planned batches, exact accumulation, whole checkpoints.

In: what a strategy chose, batches, a development set. It knows no configuration beyond what it is handed, and writes
nothing but checkpoints. One process, or several under torchrun or `accelerate launch` (DistributedDataParallel).

The loss of an update is the mean over all utterances of CTC per label, whatever the number of batches and processes
that they were spread over. transformers' own scaling does not do this for CTC: it divides by no number at all, because
the CTC models take its count of labels and ignore it.
"""

from __future__ import annotations

import os
import shutil
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback, Trainer, TrainingArguments

from speechkit import extras
from speechkit.asr.masks import lengths_known
from speechkit.errors import ModelError
from speechkit.training.anatomy import core_of
from speechkit.training.strategies import parameter_groups

if TYPE_CHECKING:
    from collections.abc import Iterator

    from speechkit.training.callbacks import Watch
    from speechkit.training.collate import Batches
    from speechkit.training.config import FinetuneConfig
    from speechkit.training.devset import DevScore, DevSet
    from speechkit.training.runfolder import RunFolder
    from speechkit.training.strategies import Applied

__all__ = ["CTCTrainer", "Parts", "arguments", "learning", "world"]

WEIGHTS = "model.safetensors"


@dataclass
class Parts:
    """What a run is made of."""

    config: FinetuneConfig
    applied: Applied
    batches: Batches
    dev: DevSet
    folder: RunFolder
    watch: Watch
    scores: list[DevScore] = field(default_factory=list)  # of every evaluation of this sitting


def world() -> int:
    """How many processes torchrun or accelerate started; 1 without them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def arguments(config: FinetuneConfig, folder: RunFolder, updates: int, device: str, precision: str) -> Any:
    """The run in the terms of transformers; reports, evaluations and saves are ordered by `Watch`."""
    on_cpu = device == "cpu"
    made = TrainingArguments(
        output_dir=str(folder.checkpoints),
        max_steps=updates,
        per_device_train_batch_size=1,  # one planned batch
        per_device_eval_batch_size=1,
        gradient_accumulation_steps=config.accumulation,
        learning_rate=config.learning_rate,
        max_grad_norm=config.max_grad_norm,
        bf16=precision == "bfloat16",
        fp16=precision == "float16",
        use_cpu=on_cpu,
        ddp_backend="gloo" if on_cpu and world() > 1 else None,
        ddp_find_unused_parameters=True,  # the mask vector is not used where nothing was masked
        dataloader_num_workers=config.workers or 0,
        dataloader_persistent_workers=bool(config.workers),
        dataloader_pin_memory=not on_cpu,
        eval_on_start=not folder.steps(),
        logging_strategy="no",
        eval_strategy="no",
        save_strategy="no",
        logging_nan_inf_filter=False,  # what is not a number should be seen
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
        seed=config.seed,
    )
    # a notebook on a machine with several GPUs: not nn.DataParallel, which would cut a planned batch in pieces
    made._n_gpu = min(1, made.n_gpu)
    return made


class CTCTrainer(Trainer):
    """See the head of the file. `parts` is set right after construction, by :meth:`of`."""

    parts: Parts

    @classmethod
    def of(cls, parts: Parts, made: Any) -> CTCTrainer:
        """A trainer whose callbacks are ours alone."""
        trainer = cls(
            model=parts.applied.model,
            args=made,
            train_dataset=parts.batches,
            data_collator=_only,
            callbacks=[parts.watch],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.parts = parts
        # both say: the loss comes scaled for accumulation, leave it as it is (attributes of different releases)
        trainer.model_accepts_loss_kwargs = True
        trainer.loss_is_scaled_for_ga = True
        per_update = made.gradient_accumulation_steps * made.world_size
        parts.watch.agree = trainer._agreed
        parts.watch.heard_s = _Heard(parts.batches, per_update)
        return trainer

    @property
    def core(self) -> Any:
        """The CTC model itself, whatever is wrapped around it."""
        return core_of(self.model)

    def _get_train_sampler(self, *_: Any) -> Any:
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]

    def create_optimizer(self, *_: Any) -> torch.optim.Optimizer:
        if self.optimizer is None:
            config = self.parts.config
            groups = parameter_groups(
                self.model, config.learning_rate, config.layer_decay, config.weight_decay, config.head_learning_rate
            )
            plain = [{key: value for key, value in group.items() if key != "names"} for group in groups]
            self.optimizer = torch.optim.AdamW(plain, betas=(0.9, 0.98), eps=1e-8)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        config, pace = self.parts.config, self.parts.watch.pace

        def factor(step: int) -> float:
            return pace.factor(step, config.warmup, config.decay)

        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.create_optimizer(), factor)
        return self.lr_scheduler

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, *_: Any) -> Any:
        """The batches of one update, and how many utterances are in them, over all processes."""
        batches = list(islice(epoch_iterator, num_batches))
        rows = torch.tensor(sum(len(batch["samples"]) for batch in batches), device=self.args.device)
        return batches, int(self.accelerator.reduce(rows, "sum"))

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        samples = inputs.pop("samples")
        ragged = samples if "attention_mask" in inputs else None
        # until the backward pass is over: activations that are computed twice need the lengths again
        with lengths_known(self.core, ragged), _maskable(self.core, max(samples)):
            return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        outputs = model(**inputs)
        share = len(inputs["input_values"]) / (num_items_in_batch or len(inputs["input_values"]))
        # gradients are averaged over processes, and this should be a sum over them
        loss = outputs["loss"] * (share * self.args.world_size)
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """WER, CER and loss on the development set; each process hears its share of it."""
        dev = self.parts.dev
        # a CPU scores in float32, as the recogniser that is made of the result; a GPU in the precision of training
        context = nullcontext if self.args.device.type == "cpu" else self.accelerator.autocast
        rows = dev.hear(self.core, context, self.args.process_index, self.args.world_size)
        score = dev.score(_accelerate().gather_object(rows) if self.args.world_size > 1 else rows)
        self.parts.scores.append(score)
        metrics = {"eval_wer": score.wer, "eval_cer": score.cer, "eval_loss": score.loss}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The weights that learn; the others are those of the model that the run started from."""
        if not self.args.should_save:
            return
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: weight.detach().cpu().contiguous() for name, weight in learning(self.model)}
        save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        weights = load_file(Path(resume_from_checkpoint) / WEIGHTS)
        wanted = dict(learning(model or self.model))
        if weights.keys() != wanted.keys():
            differing = sorted(weights.keys() ^ wanted.keys())
            raise ModelError(
                f"{resume_from_checkpoint} holds other weights than those that learn here ({differing[0]} and "
                f"{len(differing) - 1} more differ); start over in another folder"
            )
        with torch.no_grad():
            for name, weight in wanted.items():
                weight.copy_(weights[name])

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Beside its place, then renamed: what is called a checkpoint is whole."""
        folder, step = self.parts.folder, self.state.global_step
        final = folder.checkpoint(step)
        self.args.output_dir = str(folder.staging)
        try:
            with folder.writing(f"checkpoints/{final.name}"):
                super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    fresh = folder.staging / final.name
                    (fresh / "training_args.bin").unlink(missing_ok=True)  # a pickle that nobody here reads
                    folder.publish(fresh, final)
                    folder.prune(self.parts.config.keep)
        finally:
            self.args.output_dir = str(folder.checkpoints)
            if self.args.should_save:
                shutil.rmtree(folder.staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def _agreed(self, row: list[float]) -> list[float]:
        """The first process's numbers."""
        if self.args.world_size == 1:
            return row
        shared = list(row)
        _accelerate().broadcast_object_list(shared)
        return shared


class _Heard:
    """Seconds of audio in the first updates; asked in rising order, it adds up only what is new."""

    def __init__(self, batches: Batches, per_update: int) -> None:
        self.batches, self.per_update = batches, per_update
        self.step, self.seconds = 0, 0.0

    def __call__(self, step: int) -> float:
        if step < self.step:
            self.step, self.seconds = 0, 0.0
        self.seconds += self.batches.seconds(self.step * self.per_update, step * self.per_update)
        self.step = step
        return self.seconds


class _maskable:
    """SpecAugment for a batch that may be shorter than one mask, at which transformers raises: shorter masks then."""

    def __init__(self, model: Any, samples: int) -> None:
        self.settings = model.config
        frames = int(model._get_feat_extract_output_lengths(samples))
        self.before = self.settings.mask_time_length
        self.length = max(1, min(self.before, frames // 2))

    def __enter__(self) -> None:
        self.settings.mask_time_length = self.length

    def __exit__(self, *_: object) -> None:
        self.settings.mask_time_length = self.before


def _accelerate() -> Any:
    return extras.require("accelerate.utils", extra="train", purpose="training with several processes")


def _only(rows: list[Any]) -> Any:
    """The planned batch that a data loader of batch size 1 wraps in a list."""
    return rows[0]


def learning(model: Any) -> list[tuple[str, torch.nn.Parameter]]:
    """The weights that learn, by name."""
    return [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
