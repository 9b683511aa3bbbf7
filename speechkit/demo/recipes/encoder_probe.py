"""Does the encoder help? A CTC model on a few minutes of one language, from the encoder and from nothing.

In: a model folder or None, a language, minutes, steps. Out: a `Probe`, the CER on held-out voices and sentences as it
fell. Small and plain on purpose: the figures compare two starts, they are not what fine-tuning can reach.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments, Wav2Vec2ForCTC
from transformers.trainer_utils import set_seed

from speechkit.asr.batch import normalise, pad
from speechkit.demo.recipes.asr import model_config
from speechkit.demo.recipes.corpus import HELD_OUT_VARIANTS, VARIANTS, held_out
from speechkit.demo.recipes.espeak import EspeakVoice, synthesize
from speechkit.demo.recipes.grammar import Grammar
from speechkit.demo.recipes.languages import language, tokens
from speechkit.demo.recipes.optimizer import MuonWithAdamW
from speechkit.demo.recipes.score import score
from speechkit.training.pretrain_config import precision

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["Probe", "probe"]

BATCH_S = 24.0
TEST_CLIPS = 60


@dataclass(frozen=True)
class Probe:
    """Held-out CER by step, of one start."""

    start: str
    language: str
    minutes: float  # labelled speech
    steps: tuple[int, ...]
    cer: tuple[float, ...]
    wer: tuple[float, ...]

    def __str__(self) -> str:
        rows = [f"{step:6d}  {c:6.1%}  {w:6.1%}" for step, c, w in zip(self.steps, self.cer, self.wer, strict=True)]
        return "\n".join([f"{self.start}, {self.minutes:g} min of {self.language}", "  step     CER     WER", *rows])


Spoken = tuple[np.ndarray, str]


def probe(
    encoder: Path | None,
    code: str = "pl",
    minutes: float = 3.0,
    steps: int = 400,
    learning_rate: float = 1e-3,
    seed: int = 1,
) -> Probe:
    """Fine-tune all weights with CTC; score on 60 held-out sentences by held-out voices every quarter of the steps."""
    train, test = _spoken(code, minutes * 60, seed, False), _spoken(code, 1e9, seed, True)
    known = {token: number for number, token in enumerate(tokens(code))}
    set_seed(seed)
    settings = model_config()
    settings.vocab_size = len(known)
    if encoder is None:
        model = Wav2Vec2ForCTC._from_config(settings, attn_implementation="eager").float()
    else:
        model = Wav2Vec2ForCTC.from_pretrained(
            encoder, config=settings, dtype=torch.float32, attn_implementation="eager"
        )
    watch = _Watch(test, tokens(code), max(1, steps // 4))
    trainer = _Trainer(
        model=model,
        args=_arguments(steps, learning_rate, seed),
        train_dataset=_batches(train, known, steps, seed),
        data_collator=lambda rows: rows[0],
        callbacks=[watch],
    )
    trainer.train()
    cer, wer = (tuple(rates) for rates in zip(*watch.rates, strict=True))
    return Probe("from the encoder" if encoder else "from scratch", code, minutes, tuple(watch.steps), cer, wer)


class _Trainer(Trainer):
    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler[int]:
        return torch.utils.data.SequentialSampler(self.train_dataset)  # type: ignore[arg-type]

    def create_optimizer(self, *_: Any) -> torch.optim.Optimizer:
        self.optimizer = MuonWithAdamW(self.model, self.args.learning_rate)  # type: ignore[arg-type]
        return self.optimizer


class _Watch(TrainerCallback):
    def __init__(self, test: Sequence[Spoken], names: Sequence[str], every: int) -> None:
        self.test, self.names, self.every = test, names, every
        self.steps: list[int] = []
        self.rates: list[tuple[float, float]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.every:
            return
        model = kwargs["model"].eval()
        with torch.inference_mode():
            heard = [_read(model, samples, self.names) for samples, _ in self.test]
        model.train()
        found = score(lambda _: heard, [], [text for _, text in self.test])
        self.steps.append(state.global_step)
        self.rates.append((found.cer, found.wer))


def _read(model: Any, samples: np.ndarray, names: Sequence[str]) -> str:
    ids = model(torch.from_numpy(normalise(samples))[None]).logits[0].argmax(dim=-1).numpy()
    kept = ids[np.flatnonzero(np.diff(ids, prepend=-1))]
    return " ".join("".join(names[i] for i in kept if i > 3).replace("|", " ").split())


def _spoken(code: str, seconds: float, seed: int, test: bool) -> list[Spoken]:
    """Sentences of the grammar: held-out ones by held-out voices if `test` (60), others by others until `seconds`."""
    rng, grammar = random.Random(f"probe {code} {seed} {test}"), Grammar(code)
    found: list[Spoken] = []
    heard = 0.0
    while heard < seconds and not (test and len(found) == TEST_CLIPS):
        text = grammar.sentence(rng)
        if held_out(text) != test:
            continue
        variant = rng.choice(HELD_OUT_VARIANTS if test else VARIANTS)
        voice = EspeakVoice(rng.choice(language(code).accents), variant, rng.randint(130, 200), rng.randint(25, 75))
        samples = synthesize(text, voice)
        found.append((samples, text))
        heard += len(samples) / 16_000
    return found


def _batches(clips: list[Spoken], known: dict[str, int], steps: int, seed: int) -> list[dict[str, torch.Tensor]]:
    """`steps` batches of neighbours in length."""
    rng = random.Random(seed)
    ordered = sorted(clips, key=lambda clip: len(clip[0]))
    out = []
    for _ in range(steps):
        first = rng.randrange(len(ordered))
        count = max(1, int(BATCH_S * 16_000 / len(ordered[first][0])))
        out.append(_collate(ordered[max(0, first - count) : first + 1], known))
    return out


def _collate(clips: Sequence[Spoken], known: dict[str, int]) -> dict[str, torch.Tensor]:
    labels = [[known[c] for c in text.replace(" ", "|") if c in known] for _, text in clips]
    targets = torch.full((len(labels), max(map(len, labels))), -100)
    mask = torch.zeros(len(clips), max(len(samples) for samples, _ in clips), dtype=torch.long)
    for row, ((samples, _), label) in enumerate(zip(clips, labels, strict=True)):
        targets[row, : len(label)] = torch.tensor(label)
        mask[row, : len(samples)] = 1
    values = torch.from_numpy(pad([normalise(samples) for samples, _ in clips]))
    return {"input_values": values, "attention_mask": mask, "labels": targets}


def _arguments(steps: int, learning_rate: float, seed: int) -> TrainingArguments:
    return TrainingArguments(
        output_dir="probe",  # nothing is written
        max_steps=steps,
        per_device_train_batch_size=1,
        learning_rate=learning_rate,
        warmup_steps=max(1, steps // 10),
        max_grad_norm=1.0,
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        bf16=precision().value == "bfloat16",
        use_cpu=not torch.cuda.is_available(),
        remove_unused_columns=False,
        seed=seed,
    )
