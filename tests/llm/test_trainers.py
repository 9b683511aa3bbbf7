"""Real trainers on a tiny model: their losses with kernels in, the loss among them, are those without."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast, Trainer, TrainingArguments

sys.path.insert(0, str(Path(__file__).parent))

from tiny_llms import tiny

from speechkit.llm import apply_kernels, explain, undo_kernels

if TYPE_CHECKING:
    from collections.abc import Callable

WORDS = 60
USUAL: dict[str, Any] = {
    "learning_rate": 1e-2, "lr_scheduler_type": "constant", "max_steps": 8, "logging_steps": 1, "report_to": [],
    "save_strategy": "no", "use_cpu": True, "seed": 3, "disable_tqdm": True, "bf16": False, "fp16": False,
}  # fmt: skip


def rows(count: int = 24) -> list[dict[str, list[int]]]:
    """Of 2 to 17 tokens, so that batches hold uneven numbers of them."""
    return [{"input_ids": [(n * 7 + i * 3) % WORDS + 3 for i in range(2 + n * n % 16)]} for n in range(count)]


def collate(batch: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    longest = max(len(row["input_ids"]) for row in batch)
    ids = torch.tensor([row["input_ids"] + [0] * (longest - len(row["input_ids"])) for row in batch])
    return {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": ids.masked_fill(ids == 0, -100)}


def losses(trainer: Any) -> list[float]:
    trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def with_and_without(make: Callable[[Any], Any], kind: str = "llama") -> tuple[list[float], list[float]]:
    curves = []
    for kernels in (True, False):
        model = tiny(kind)
        if kernels:
            assert apply_kernels(model).counts["loss"] == 1
        curves.append(losses(make(model)))
    return curves[0], curves[1]


@pytest.mark.parametrize(("size", "steps"), [(4, 1), (1, 4), (2, 3)])
def test_transformers_trainer(size: int, steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from speechkit_kernels import linear_cross_entropy as kernel

    calls, real = [], kernel.linear_cross_entropy
    monkeypatch.setattr(
        kernel, "linear_cross_entropy", lambda *args, **more: calls.append(more["reduction"]) or real(*args, **more)
    )
    args = TrainingArguments(
        str(tmp_path), per_device_train_batch_size=size, gradient_accumulation_steps=steps, **USUAL
    )
    ours, theirs = with_and_without(lambda m: Trainer(m, args, train_dataset=rows(), data_collator=collate))
    assert calls == 8 * steps * ["sum"], "the kernel's loss, divided by the items of all batches of an update"
    assert ours == pytest.approx(theirs, rel=1e-3) and len(ours) == 8
    assert theirs[-1] < theirs[0], "it learns"


def test_accumulated_batches_of_uneven_length_equal_one_large_one(tmp_path: Path) -> None:
    """Every token counts the same: four rows at once, or one by one, divided by their tokens together."""
    curves = []
    for size, steps in ((4, 1), (1, 4)):
        args = TrainingArguments(
            str(tmp_path), per_device_train_batch_size=size, gradient_accumulation_steps=steps, **USUAL
        )
        model = tiny("llama")
        apply_kernels(model)
        curves.append(losses(Trainer(model, args, train_dataset=rows(), data_collator=collate)))
    assert curves[0] == pytest.approx(curves[1], rel=1e-3)


def test_evaluation_within_training_has_logits_and_the_same_figures(tmp_path: Path) -> None:
    def right(found: Any) -> dict[str, float]:
        known = found.label_ids[:, 1:] != -100
        return {"right": float((found.predictions[:, :-1].argmax(-1) == found.label_ids[:, 1:])[known].mean())}

    found = []
    for kernels in (True, False):
        model = tiny("llama")
        if kernels:
            apply_kernels(model)
        args = TrainingArguments(str(tmp_path), eval_strategy="steps", eval_steps=4, **USUAL)
        data = {"train_dataset": rows(), "eval_dataset": rows(8), "data_collator": collate}
        trainer = Trainer(model, args, compute_metrics=right, **data)
        losses(trainer)
        found.append([line for line in trainer.state.log_history if "eval_loss" in line])
    assert len(found[0]) == 2
    for name in ("eval_loss", "eval_right"):
        assert [x[name] for x in found[0]] == pytest.approx([x[name] for x in found[1]], rel=1e-3, abs=1e-6)


def test_label_smoothing_which_needs_logits_gets_them(tmp_path: Path) -> None:
    args = TrainingArguments(str(tmp_path), label_smoothing_factor=0.1, **USUAL)
    ours, theirs = with_and_without(lambda m: Trainer(m, args, train_dataset=rows(), data_collator=collate))
    assert ours == pytest.approx(theirs, rel=1e-3)


def test_training_in_bfloat16_autocast_stays_beside(tmp_path: Path) -> None:
    args = TrainingArguments(str(tmp_path), **{**USUAL, "bf16": True})
    ours, theirs = with_and_without(lambda m: Trainer(m, args, train_dataset=rows(), data_collator=collate))
    assert ours == pytest.approx(theirs, rel=1e-2)


def tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models

    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{n}": n + 3 for n in range(WORDS + 4)}
    made = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocabulary, "<pad>")))
    made.add_special_tokens({"pad_token": "<pad>", "eos_token": "</s>"})
    return made


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        pytest.param("llama", {}, id="padded"),
        pytest.param("llama", {"packing": True, "max_length": 32}, id="packed"),
        pytest.param("llama", {"gradient_accumulation_steps": 3, "per_device_train_batch_size": 2}, id="accumulated"),
        pytest.param("qwen3_moe", {}, id="experts"),
    ],
)
def test_trls_trainer(kind: str, more: dict[str, Any], tmp_path: Path) -> None:
    """trl reads log-probabilities, entropy and accuracy from a head of its own, with the kernels' hidden states."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    def trainer(model: Any) -> Any:
        args = SFTConfig(str(tmp_path), **{**USUAL, **more}, dataset_num_proc=None)
        return SFTTrainer(model, args, train_dataset=Dataset.from_list(rows()), processing_class=tokenizer())

    ours, theirs = with_and_without(trainer, kind)
    assert ours == pytest.approx(theirs, rel=1e-3) and theirs[-1] < theirs[0]


def test_trls_trainer_around_adapters_and_kernels_out_again_after_it(tmp_path: Path) -> None:
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    def trainer(model: Any) -> Any:
        lora = LoraConfig(r=4, target_modules=["q_proj", "gate_proj", "down_proj"], task_type="CAUSAL_LM")
        data = Dataset.from_list(rows())
        args = SFTConfig(str(tmp_path), **USUAL)
        return SFTTrainer(model, args, train_dataset=data, processing_class=tokenizer(), peft_config=lora)

    ours, theirs = with_and_without(trainer)
    assert ours == pytest.approx(theirs, rel=1e-3) and theirs[-1] < theirs[0]
    model = tiny("llama")
    apply_kernels(model)
    trained = trainer(model)
    trained.train()
    ids = torch.tensor([[3, 9, 27]])
    logits = trained.model(ids).logits
    assert undo_kernels(trained.model) == 11 and not explain(trained.model).counts
    torch.testing.assert_close(trained.model(ids).logits, logits, atol=2e-5, rtol=1e-4)
    assert trained.model(ids, labels=ids).logits is not None
