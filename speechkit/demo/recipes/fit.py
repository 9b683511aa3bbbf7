"""CTC training with the transformers `Trainer`, on planned batches. In: a recipe and stores. Out: a trained model.

Knows nothing of where the clips come from, nor of how the result is published.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from speechkit.demo.recipes.batches import Batches, Mix
from speechkit.demo.recipes.focus import focus
from speechkit.demo.recipes.optimizer import MuonWithAdamW

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from transformers import Wav2Vec2ForCTC

    from speechkit.demo.recipes.asr import Recipe
    from speechkit.demo.recipes.corpus import Store
    from speechkit.demo.recipes.score import Score

__all__ = ["fit"]

SCORE_EVERY = 2000  # steps


class CTCTrainer(Trainer):
    """Feeds the planned batches in order, and sets the learning rate: warm-up, plateau, linear decay."""

    recipe: Recipe

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler[int]:
        return torch.utils.data.SequentialSampler(cast("Batches", self.train_dataset))

    def create_optimizer(self, *_: Any) -> torch.optim.Optimizer:
        if self.recipe.optimizer == "adamw":
            return super().create_optimizer()
        self.optimizer = MuonWithAdamW(cast("torch.nn.Module", self.model), self.recipe.learning_rate)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        recipe = self.recipe
        decay = max(1, int(recipe.steps * recipe.decay_share))

        def factor(step: int) -> float:
            return min(1.0, step / recipe.warmup_steps, max(0.0, (recipe.steps - step) / decay))

        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(cast("torch.optim.Optimizer", self.optimizer), factor)
        return self.lr_scheduler


class Watch(TrainerCallback):
    """Scores the model on held-out clips and writes one line of the curve."""

    def __init__(self, scores: Callable[[Wav2Vec2ForCTC], dict[str, Score]], curve: Path) -> None:
        self.scores, self.curve = scores, curve

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % SCORE_EVERY:
            return
        rates = {name: round(value.wer, 4) for name, value in self.scores(kwargs["model"]).items()}
        line = json.dumps({"step": state.global_step} | rates)
        print(line, flush=True)
        with self.curve.open("a") as file:
            file.write(line + "\n")


def fit(model: Wav2Vec2ForCTC, recipe: Recipe, stores: list[Store], work: Path, watch: Callable[..., Any]) -> None:
    """Train `model` in place, from the last checkpoint in `work/checkpoints` if there is one.

    From `recipe.focus_at` of the steps on, the voices that it misread there are heard more often.
    """
    turn, folder = int(recipe.steps * recipe.focus_at), work / "checkpoints"
    curve, mix = Watch(watch, work / "curve.jsonl"), Mix(budget_s=recipe.budget_s)

    def batches(shares: dict[str, float] | None) -> Batches:
        return Batches(stores, recipe.steps, recipe.seed, recipe.easy_steps, mix, shares, recipe.language)

    if turn and _reached(folder) < turn:
        _run(model, recipe, batches(None), folder, curve, turn)
    shares = None
    if turn:
        now = type(model).from_pretrained(get_last_checkpoint(str(folder)), dtype=torch.float32)
        shares = focus(now, stores[0], work / "focus.json", recipe.language)
    _run(model, recipe, batches(shares), folder, curve, recipe.steps)


def _run(model: Wav2Vec2ForCTC, recipe: Recipe, batches: Batches, folder: Path, curve: Watch, until: int) -> None:
    """Train from the last checkpoint in `folder`, or from the start, to step `until`, and leave a checkpoint there."""
    trainer = CTCTrainer(
        model=model,
        args=_arguments(recipe, folder, until),
        train_dataset=batches,
        data_collator=lambda rows: rows[0],
        callbacks=[curve],
    )
    trainer.recipe = recipe
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)) if folder.is_dir() else None)


def _reached(folder: Path) -> int:
    """Steps of the last checkpoint; 0 without one."""
    last = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    return int(last.rpartition("-")[2]) if last else 0


def _arguments(recipe: Recipe, folder: Path, until: int) -> TrainingArguments:
    on_gpu = torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=until,
        per_device_train_batch_size=1,  # one planned batch
        learning_rate=recipe.learning_rate,
        weight_decay=0.01,
        adam_beta2=0.98,
        max_grad_norm=1.0,
        logging_steps=50,
        save_steps=250,
        save_total_limit=3,
        dataloader_num_workers=recipe.workers,
        dataloader_prefetch_factor=4 if recipe.workers else None,
        dataloader_persistent_workers=bool(recipe.workers),
        report_to=[],
        disable_tqdm=True,
        bf16=on_gpu or _has_fast_bf16(),  # the weights stay float32, and CTC is computed in float32
        use_cpu=not on_gpu,
        remove_unused_columns=False,
        seed=recipe.seed,
    )


def _has_fast_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware; elsewhere it would be slower than float32."""
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))
