"""Make the embedded chat model from nothing: `python -m speechkit.demo.recipes.chat --work DIR --out DIR`.

Dialogues are drawn from seven skills, a tokenizer is learnt from them, a small Llama is trained on the answers with the
transformers `Trainer`, judged on held-out questions, and saved with its card. Every step keeps what it made in
`--work`, so a second start goes on where the first one stopped.
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_utils import get_last_checkpoint

from speechkit.demo.recipes.chat_card import card
from speechkit.demo.recipes.chat_skills import SHARES, draw
from speechkit.demo.recipes.chat_tokenizer import make_tokenizer
from speechkit.demo.recipes.optimizer import MuonWithAdamW
from speechkit.llm.judge import Question, exact_match

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from speechkit.demo.recipes.chat_skills import Dialogue

__all__ = ["Recipe", "main", "model_config", "score", "test_questions"]

LIMIT_BYTES = 8_000_000  # what the package has room for
LONGEST = 512  # tokens of context
IGNORED = -100
POOL = 4000  # dialogues that are sorted by length together


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result; saved beside the weights."""

    dialogues: int = 260_000  # drawn for training; gone through as often as the steps need
    vocabulary: int = 1024  # tokens, bytes and special ones included
    steps: int = 6500
    batch_tokens: int = 4096  # of one step, padding included
    learning_rate: float = 3e-3
    warmup_steps: int = 100
    decay_share: float = 0.7  # the learning rate falls to zero over the last part
    seed: int = 1


def model_config(vocabulary: int, tokenizer: Any) -> LlamaConfig:
    """3.4 M parameters; widths are multiples of 256, so that every K-quant of GGUF fits."""
    return LlamaConfig(
        vocab_size=vocabulary, hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=LONGEST, tie_word_embeddings=True,
        rms_norm_eps=1e-5, bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip


def test_questions(skill: str, count: int, seed: int = 0) -> list[Question]:
    """Held-out questions of one skill: all but the last message, which is the answer."""
    rng = random.Random(f"test {skill} {seed}")
    drawn = [draw(rng, skill, test=True) for _ in range(count)]
    return [Question(one.messages[:-1], one.answer, one.tools) for one in drawn]


def score(model: Any, tokenizer: Any, count: int) -> dict[str, float]:
    """Share of held-out questions answered to the letter, by skill."""
    return {name: round(exact_match(model, tokenizer, test_questions(name, count)).share, 4) for name in sorted(SHARES)}


class Corpus(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Batches of dialogues of like length; labels are what the assistant says. Item i is the batch of step i."""

    def __init__(self, file: Path, recipe: Recipe, pad: int) -> None:
        made = np.load(file)
        self.ids, self.said, self.ends = made["ids"], made["said"], made["ends"]
        self.recipe, self.pad = recipe, pad
        self.order = self._planned()

    def _planned(self) -> list[np.ndarray]:
        lengths = np.diff(self.ends, prepend=0)
        rng = np.random.default_rng(self.recipe.seed)
        plan: list[np.ndarray] = []
        while len(plan) < self.recipe.steps:
            shuffled = rng.permutation(len(lengths))
            pools = np.array_split(shuffled, len(lengths) // POOL + 1)
            # near in length within a pool, so that little is padding
            ordered = np.concatenate([pool[np.argsort(lengths[pool], kind="stable")] for pool in pools])
            batches = list(_cut(ordered.tolist(), lengths, self.recipe.batch_tokens))
            plan += [batches[i] for i in rng.permutation(len(batches))]
        return plan[: self.recipe.steps]

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        spans = [(self.ends[i - 1] if i else 0, self.ends[i]) for i in self.order[step]]
        longest = max(int(end - start) for start, end in spans)
        ids = torch.full((len(spans), longest), self.pad)
        labels = torch.full((len(spans), longest), IGNORED)
        for row, (start, end) in enumerate(spans):
            tokens = torch.from_numpy(self.ids[start:end].astype(np.int64))
            ids[row, : end - start] = tokens
            labels[row, : end - start] = torch.where(torch.from_numpy(self.said[start:end]), tokens, IGNORED)
        return {"input_ids": ids, "labels": labels}


def _cut(ordered: list[int], lengths: np.ndarray, budget: int) -> Iterator[np.ndarray]:
    """Dialogues in this order, in batches of at most `budget` tokens, padding included."""
    batch: list[int] = []
    longest = 0
    for index in ordered:
        wide = max(longest, int(lengths[index]))
        if batch and wide * (len(batch) + 1) > budget:
            yield np.array(batch)
            batch, wide = [], int(lengths[index])
        batch.append(index)
        longest = wide
    yield np.array(batch)


class ChatTrainer(Trainer):
    """Feeds the planned batches in order. Logits are made where there is a label alone."""

    recipe: Recipe

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler[int]:
        return torch.utils.data.SequentialSampler(cast("Corpus", self.train_dataset))

    def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> torch.Tensor:
        hidden = model.model(input_ids=inputs["input_ids"], use_cache=False).last_hidden_state[:, :-1]
        labels = inputs["labels"][:, 1:]
        here = labels != IGNORED
        return torch.nn.functional.cross_entropy(model.lm_head(hidden[here]).float(), labels[here])

    def create_optimizer(self, *_: Any) -> torch.optim.Optimizer:
        self.optimizer = MuonWithAdamW(cast("torch.nn.Module", self.model), self.recipe.learning_rate)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        recipe = self.recipe
        decay = max(1, int(recipe.steps * recipe.decay_share))

        def factor(step: int) -> float:
            return min(1.0, (step + 1) / recipe.warmup_steps, max(0.0, (recipe.steps - step) / decay))

        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(cast("torch.optim.Optimizer", self.optimizer), factor)
        return self.lr_scheduler


class Watch(TrainerCallback):
    """Judges the model on held-out questions now and then, and writes one line of the curve."""

    def __init__(self, tokenizer: Any, curve: Path, every: int) -> None:
        self.tokenizer, self.curve, self.every = tokenizer, curve, every

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.every:
            return
        line = json.dumps({"step": state.global_step} | score(kwargs["model"], self.tokenizer, 60))
        print(line, flush=True)
        with self.curve.open("a") as file:
            file.write(line + "\n")


def _prepare(recipe: Recipe, work: Path) -> tuple[PreTrainedTokenizerFast, Path]:
    """Tokenizer and tokens of all dialogues, made now or earlier."""
    folder, file = work / "tokenizer", work / "corpus.npz"
    if not file.is_file():
        work.mkdir(parents=True, exist_ok=True)
        rng = random.Random(recipe.seed)
        drawn = [draw(rng) for _ in range(recipe.dialogues)]
        texts = (" ".join(str(each["content"]) for each in one.messages) for one in drawn[:40_000])
        signs = [" weather(city) timer(minutes) transcribe(file, language) call(name) translate(text, language) tools:"]
        tokenizer = make_tokenizer([*texts, *(signs * 400), *(["system user assistant tool\n"] * 400)],
                                   recipe.vocabulary, LONGEST)  # fmt: skip
        tokenizer.save_pretrained(folder)
        _write(file, drawn, tokenizer)
    return PreTrainedTokenizerFast.from_pretrained(folder), file


def _write(file: Path, drawn: list[Dialogue], tokenizer: Any) -> None:
    ids: list[int] = []
    said: list[int] = []
    ends: list[int] = []
    for one in drawn:
        made = tokenizer.apply_chat_template(
            list(one.messages), tools=list(one.tools) or None, return_dict=True, return_assistant_tokens_mask=True
        )
        if len(made["input_ids"]) > LONGEST:
            continue
        ids += made["input_ids"]
        said += made["assistant_masks"]
        ends.append(len(ids))
    part = file.with_suffix(".part.npz")
    np.savez(part, ids=np.array(ids, np.uint16), said=np.array(said, bool), ends=np.array(ends, np.int64))
    part.replace(file)


def train(recipe: Recipe, work: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The trained model with its tokenizer; goes on from the last checkpoint in `work`."""
    tokenizer, file = _prepare(recipe, work)
    torch.manual_seed(recipe.seed)
    config = model_config(len(tokenizer), tokenizer)
    config.use_cache = True
    model = LlamaForCausalLM(config)
    folder = work / "checkpoints"
    on_gpu = torch.cuda.is_available()
    trainer = ChatTrainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder), max_steps=recipe.steps, per_device_train_batch_size=1, max_grad_norm=1.0,
            logging_steps=50, save_steps=250, save_total_limit=2, report_to=[], disable_tqdm=True, use_cpu=not on_gpu,
            bf16=on_gpu, remove_unused_columns=False, seed=recipe.seed, dataloader_num_workers=0,
        ),
        train_dataset=Corpus(file, recipe, cast("int", tokenizer.pad_token_id)),
        data_collator=lambda rows: rows[0],
        callbacks=[Watch(tokenizer, work / "curve.jsonl", 500)],
    )  # fmt: skip
    trainer.recipe = recipe
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)) if folder.is_dir() else None)
    return model, tokenizer


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Weights rounded to fp16, with tokenizer and generation settings. Raises ValueError over the limit of 8 MB."""
    out.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    weights = out / "model.safetensors"
    weights.chmod(0o644)  # safetensors writes for the owner alone
    if (size := weights.stat().st_size) > LIMIT_BYTES:
        raise ValueError(f"the weights take {size / 1e6:.1f} MB, the limit is {LIMIT_BYTES / 1e6:.0f} MB")


def describe(recipe: Recipe, scores: Mapping[str, float], count: int, out: Path) -> None:
    """Write `recipe.json` (settings, results, versions) and the card into a saved folder."""
    results = {name: {"exact": share, "questions": count} for name, share in scores.items()}
    versions = {name: version(name) for name in ("torch", "transformers", "tokenizers")}
    row = {"recipe": asdict(recipe), "results": results, "versions": versions}
    (out / "recipe.json").write_text(json.dumps(row, indent=2) + "\n", encoding="utf-8")
    (out / "README.md").write_text(card(asdict(recipe), scores, count), encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    """Train and publish, or `--evaluate` a model folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--work", type=Path, help="folder for what is made on the way; a second start goes on there")
    parser.add_argument("--out", type=Path, help="folder for the finished model")
    parser.add_argument("--evaluate", type=Path, metavar="DIR", help="judge this model instead of training one")
    parser.add_argument("--questions", type=int, default=200, help="held-out questions per skill (default: 200)")
    for one in fields(Recipe):
        parser.add_argument(f"--{one.name.replace('_', '-')}", type=type(one.default), default=one.default)
    arguments = parser.parse_args(argv)
    if arguments.evaluate:
        model = LlamaForCausalLM.from_pretrained(arguments.evaluate, dtype=torch.float32)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(arguments.evaluate)
        print(json.dumps(score(model, tokenizer, arguments.questions), indent=2))
        return
    if not (arguments.work and arguments.out):
        parser.error("training needs --work and --out; --evaluate DIR judges a model")
    recipe = Recipe(**{one.name: getattr(arguments, one.name) for one in fields(Recipe)})
    model, tokenizer = train(recipe, arguments.work)
    save(model, tokenizer, arguments.out)
    # what is published is what is judged: rounded weights, read back from the folder
    saved = LlamaForCausalLM.from_pretrained(arguments.out, dtype=torch.float32)
    scores = score(saved, tokenizer, arguments.questions)
    describe(recipe, scores, arguments.questions, arguments.out)
    print(json.dumps(scores, indent=2))


if __name__ == "__main__":
    main()
