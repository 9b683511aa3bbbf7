"""trl's `SFTTrainer`, taught what the runs here need: planned batches, exact accumulation, whole checkpoints.

In: a model whose learning weights are chosen, batches, kept-out batches. It knows no configuration beyond what it is
handed, and writes nothing but checkpoints. Imports trl, so import it late.

The loss of an update is the mean over all its labelled tokens, whatever the number of batches and processes that they
were spread over. With the fused loss in the model it is computed there, without logits; else by trl's head, in chunks.
trl takes no collator of ours when it packs, so it is handed what was packed before.
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
from transformers import PrinterCallback
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from speechkit.errors import ModelError, PlanError
from speechkit.llm import checkpoints
from speechkit.llm.batches import UNLABELLED, Consumed
from speechkit.llm.distributed import gathered
from speechkit.llm.offload import Offload
from speechkit.llm.optimizers import make_optimizer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from speechkit.llm.batches import Batch, Batches
    from speechkit.llm.llm_config import LlmConfig
    from speechkit.llm.watch import LlmWatch
    from speechkit.training.runfolder import RunFolder

__all__ = ["LlmTrainer", "Parts", "arguments", "learning", "world"]

WEIGHTS = "model.safetensors"


@dataclass
class Parts:
    """What a run is made of."""

    config: LlmConfig
    model: Any
    tokenizer: Any
    batches: Batches
    dev: Sequence[Batch]
    folder: RunFolder
    watch: LlmWatch
    fused_loss: bool = False  # whether the model computes its loss by our kernel
    strategy: str = "one"  # or "zero2", "zero3", "fsdp2": who keeps what of the weights and of the optimiser's memory
    losses: list[float] = field(default_factory=list)  # of every evaluation of this sitting


def world() -> int:
    """How many processes torchrun or accelerate started; 1 without them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def arguments(config: LlmConfig, folder: RunFolder, updates: int, device: str, precision: str, **more: Any) -> Any:
    """The run in the terms of trl; reports, evaluations and saves are ordered by the watch.

    more: of trl's settings, what several processes need.
    """
    on_cpu = device == "cpu"
    zero = "deepspeed" in more  # which accelerate leaves out, without a word, where it is told to use a CPU
    layers = config.checkpointing != "none"
    if zero and on_cpu:
        _deepspeed_on_cpus()
        more["accelerator_config"] = {"use_configured_state": True}
    made = SFTConfig(
        output_dir=str(folder.checkpoints),
        max_steps=updates,
        per_device_train_batch_size=1,  # one planned batch
        per_device_eval_batch_size=1,
        gradient_accumulation_steps=config.accumulation,
        gradient_checkpointing=layers,
        gradient_checkpointing_kwargs={"use_reentrant": _reentrant(config, more)} if layers else None,
        learning_rate=config.learning_rate,
        max_grad_norm=config.max_grad_norm,
        bf16=precision == "bfloat16",
        fp16=precision == "float16",
        use_cpu=on_cpu and not zero,
        ddp_backend="gloo" if on_cpu and world() > 1 and not zero else None,
        dataloader_pin_memory=not on_cpu,
        eval_on_start=False,
        logging_strategy="no",
        eval_strategy="no",
        save_strategy="no",
        logging_nan_inf_filter=False,  # what is not a number should be seen
        remove_unused_columns=False,
        packing=False,  # done before
        padding_free=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        report_to=[],
        disable_tqdm=True,
        seed=config.seed,
        **more,
    )
    # a notebook on a machine with several GPUs: not nn.DataParallel, which would cut a planned batch in pieces
    made._n_gpu = min(1, made.n_gpu)
    return made


def _reentrant(config: LlmConfig, more: dict[str, Any]) -> bool:
    """Under ZeRO-3 the other way finds adapters' weights in pieces when a layer is computed again (transformers#47254).

    trl would set it by itself, with a warning.
    """
    stage = more.get("deepspeed", {}).get("zero_optimization", {}).get("stage")
    return stage == 3 and config.method != "full"


def _deepspeed_on_cpus() -> None:
    """accelerate's state as DeepSpeed over gloo wants it: by itself it takes each process for the only one."""
    from accelerate.state import AcceleratorState, PartialState

    AcceleratorState._reset_state(reset_partial_state=True)
    before = os.environ.get("ACCELERATE_USE_DEEPSPEED")
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    try:
        PartialState(backend="gloo")
    finally:
        if before is None:
            del os.environ["ACCELERATE_USE_DEEPSPEED"]


class LlmTrainer(SFTTrainer):
    """See the head of the file. `parts` is set right after construction, by :meth:`of`."""

    parts: Parts
    model: Any
    model_wrapped: Any
    train_dataset: Any
    loss_is_scaled_for_ga: Any
    offloads: bool = False

    @classmethod
    def of(cls, parts: Parts, made: Any) -> LlmTrainer:
        """A trainer whose callbacks are ours alone."""
        from datasets import Dataset

        kinds = {name: weight.dtype for name, weight in learning(parts.model)}
        trainer = cls(
            model=parts.model,
            args=made,
            # trl looks at the first row, and wants a class of its own for the rest
            train_dataset=Dataset.from_list([{"input_ids": [0], "labels": [0]}]),
            data_collator=_only,
            processing_class=parts.tokenizer,
            callbacks=[parts.watch],
        )
        if parts.strategy.startswith("zero") and (not trainer.is_deepspeed_enabled or made.world_size != world()):
            raise PlanError(
                f"{parts.strategy} is asked for and accelerate leaves DeepSpeed out: start the run with torchrun, "
                "accelerate launch or deepspeed, without ACCELERATE_USE_CPU"
            )
        trainer.train_dataset = parts.batches
        trainer.remove_callback(PrinterCallback)
        trainer.parts = parts
        for name, weight in learning(trainer.model):
            # trl makes adapters on a quantised base bfloat16, where small updates are lost
            weight.data = weight.data.to(kinds[name])
        # both say: the loss comes scaled for accumulation, leave it as it is (attributes of different releases)
        trainer.model_accepts_loss_kwargs = True
        trainer.loss_is_scaled_for_ga = True
        made.eval_on_start = bool(parts.dev) and not parts.folder.steps()
        parts.watch.agree = trainer._agreed
        parts.watch.tokens = Consumed(parts.batches, made.gradient_accumulation_steps * made.world_size)
        trainer.offloads = parts.config.checkpointing == "offload"
        return trainer

    def _get_train_sampler(self, *_: Any) -> Any:
        return SequentialSampler(self.train_dataset)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = make_optimizer(self.model if model is None else model, self.parts.config)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        config, pace = self.parts.config, self.parts.watch.pace

        def factor(step: int) -> float:
            return pace.factor(step, config.warmup, config.decay)

        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.create_optimizer(), factor)
        return self.lr_scheduler

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, *_: Any) -> Any:
        """The batches of one update, and how many labelled tokens are in them, over all processes."""
        batches = list(islice(epoch_iterator, num_batches))
        count = sum(int((batch["labels"][..., 1:] != UNLABELLED).sum()) for batch in batches)
        labelled = torch.tensor(count, device=self.args.device)
        return batches, max(1, int(self.accelerator.reduce(labelled, "sum")))

    def training_step(self, *args: Any, **more: Any) -> torch.Tensor:
        context = Offload(tuple(self.model.parameters())) if self.offloads else nullcontext()
        with context:
            step: torch.Tensor = super().training_step(*args, **more)  # type: ignore[no-untyped-call]
        return step

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if not self.parts.fused_loss:
            loss = super().compute_loss(model, inputs, False, num_items_in_batch)  # type: ignore[no-untyped-call]
            self._metrics["train"].clear()
            return loss
        outputs = model(**{**inputs, "use_cache": False}, num_items_in_batch=num_items_in_batch)
        balance = self._balance(outputs)  # of experts: a mean per batch, and so shared by those of an update
        # gradients are averaged over processes, and the loss should be a sum over them
        return (outputs.loss - balance) * self.args.world_size + balance / self.current_gradient_accumulation_steps

    def _balance(self, outputs: Any) -> Any:
        """What a mixture of experts adds to its loss."""
        found = getattr(outputs, "aux_loss", None) if self.aux_loss_enabled else None
        return 0.0 if found is None else self.router_aux_loss_coef * found

    @torch.no_grad()
    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """The loss per labelled token on the rows kept out; each process takes its share of them."""
        self.model.eval()
        rank, processes = self.args.process_index, self.args.world_size
        total = torch.zeros(2, dtype=torch.float64 if self.args.device.type != "mps" else torch.float32)
        # as many forward passes in every process: sharded weights are gathered by all together
        for first in range(0, len(self.parts.dev), processes):
            place = first + rank
            batch = self.parts.dev[min(place, len(self.parts.dev) - 1)]
            loss = self._loss_of(batch)
            if place < len(self.parts.dev):
                total += torch.tensor([loss, batch.labelled], dtype=total.dtype)
        total = self.accelerator.reduce(total.to(self.args.device), "sum")
        loss = float(total[0] / total[1])
        self.model.train()
        self.parts.losses.append(loss)
        metrics = {"eval_loss": loss}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _loss_of(self, batch: Batch) -> float:
        """Sum over the labelled tokens of one batch."""
        inputs = {**self._prepare_inputs(batch.tensors()), "use_cache": False}
        model = self.model_wrapped
        with self.compute_loss_context_manager():
            if self.parts.fused_loss:
                outputs = model(**inputs, num_items_in_batch=1, skip_logits=True)
                return float(outputs.loss - self._balance(outputs))
            outputs = model(**inputs, fused_lm_head=True)
            return float(-outputs.log_probs.double().sum())

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The weights that learn; the others are those of the model that the run started from.

        Sharded ones are written by DeepSpeed or FSDP with the state of the optimiser, a part by each process.
        """
        if not self.args.should_save or self.sharded:
            return
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: weight.detach().cpu().contiguous() for name, weight in learning(self.model)}
        save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})

    @property
    def sharded(self) -> bool:
        """Whether each process holds but a part of the weights (ZeRO-3, FSDP)."""
        return self.parts.strategy in ("zero3", "fsdp2")

    def whole_weights(self) -> dict[str, torch.Tensor] | None:
        """All weights gathered from the processes that share them, which all call this; None where they are whole."""
        if not self.sharded:
            return None
        if self.parts.config.method == "full":
            state: dict[str, torch.Tensor] = self.accelerator.get_state_dict(self.model_wrapped)
            return state
        with gathered(self.accelerator.unwrap_model(self.model)) as weights:  # the base is not gathered for it
            return {name: weight.cpu().clone() for name, weight in weights.items()}

    def write_model(self, folder: Path, weights: dict[str, torch.Tensor] | None = None) -> None:
        """An adapter in peft's format, or the whole model."""
        bare = self.accelerator.unwrap_model(self.model)
        folder.mkdir(parents=True, exist_ok=True)
        bare.save_pretrained(folder, **({} if weights is None else {"state_dict": weights}))

    def load_weights(self, checkpoint: Path) -> None:
        """Those of a checkpoint of this run, where nothing is trained any more."""
        if not self.sharded:
            self._load_from_checkpoint(str(checkpoint))

    def load_best(self, folder: Path) -> None:
        """The weights that :meth:`write_model` wrote, back into the model."""
        if self.sharded:
            return
        files = sorted(folder.glob("*.safetensors"))
        weights = {name: tensor for file in files for name, tensor in load_file(file).items()}
        if self.parts.config.method == "full":
            self.model.load_state_dict(weights, strict=False)  # tied weights are written once
            return
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(self.model, weights)

    def sizes(self) -> tuple[int, int]:
        """How many numbers learn, and how many there are; of a 4-bit base as many as it stands for."""
        if hasattr(self.model, "get_nb_trainable_parameters"):
            trained, total = self.model.get_nb_trainable_parameters()
            return int(trained), int(total)
        counts = [(getattr(w, "ds_numel", w.numel()), w.requires_grad) for w in self.model.parameters()]
        return sum(count for count, learns in counts if learns), sum(count for count, _ in counts)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
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
                # not trl's, which writes a card of its own beside
                super(SFTTrainer, self)._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    fresh = folder.staging / final.name
                    if self.parts.strategy != "one":
                        checkpoints.record(fresh, self.parts.strategy, self.args.world_size)
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
        from accelerate.utils import broadcast_object_list

        shared = list(row)
        broadcast_object_list(shared)
        return shared


def _only(rows: list[Any]) -> Any:
    """The planned batch that a data loader of batch size 1 wraps in a list."""
    return rows[0].tensors()


def learning(model: Any) -> list[tuple[str, torch.nn.Parameter]]:
    """The weights that learn, by name."""
    return [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
