"""Training on ragged speech: our batches, against a plain transformers `Trainer` on random padded ones.

    python kernels/bench/finetune.py --size demo --updates 12

Both train the same weights (copies) on the same clips: the plain way draws clips at random, N to a batch, pads them
with the processor and hands them to `Trainer`; ours plans batches by length under a frame budget, chosen so that an
update sees as many clips on average. They take turns inside one process, so a machine that slows down slows both; the
figure is the median of the ratios of neighbouring turns. The loss on all clips before and after says that neither
learns less.
"""

from __future__ import annotations

import argparse
import copy
import resource
import statistics
import sys
import tempfile
import threading
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PrinterCallback, Trainer, TrainingArguments

from speechkit.asr import masks
from speechkit.asr.checkpoint import quiet
from speechkit.asr.frames import FrameGrid
from speechkit.device import choose_device
from speechkit.training.batches import BatchPlan
from speechkit.training.callbacks import Pace, Watch
from speechkit.training.collate import Batches, Clips
from speechkit.training.config import FinetuneConfig
from speechkit.training.curve import Curve
from speechkit.training.data import Example
from speechkit.training.devset import ctc_per_clip
from speechkit.training.precision import choose_precision
from speechkit.training.runfolder import RunFolder
from speechkit.training.strategies import apply_strategy
from speechkit.training.trainer import CTCTrainer, Parts, arguments
from speechkit.training.vocabulary import Vocabulary

LETTERS = "abcdefghijklmnopqrstuvwxyz"
TOKENS = ("<pad>", "<unk>", "|", *LETTERS)


def model_of(size: str) -> Any:
    """Random weights: the shape of the embedded models, or of wav2vec2-base."""
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    from speechkit.demo.recipes.asr import model_config

    torch.manual_seed(0)
    config = model_config() if size == "demo" else Wav2Vec2Config()
    for name, value in {"vocab_size": len(TOKENS), "pad_token_id": 0, "ctc_zero_infinity": True,
                        "ctc_loss_reduction": "mean", "layerdrop": 0.0, "mask_time_prob": 0.0}.items():  # fmt: skip
        setattr(config, name, value)
    return Wav2Vec2ForCTC(config)


def ragged(count: int, longest_s: float) -> list[Example]:
    """Noise of many lengths, as speech corpora have them (log-normal, median 3 s), with labels that fit."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(count):
        seconds = float(np.clip(np.exp(rng.normal(np.log(3.0), 0.7)), 0.5, longest_s))
        samples = (rng.standard_normal(int(seconds * 16_000)) * 0.1).astype(np.float32)
        text = "".join(rng.choice(list(LETTERS), size=max(1, int(seconds * 6))))
        rows.append(Example(samples, text, f"clip-{number}", seconds=len(samples) / 16_000))
    return rows


class Turns:
    """One way of training, `updates` at a time; `turn` returns seconds of audio heard per second."""

    def __init__(self, rows: list[Example], model: Any, device: str, precision: str) -> None:
        self.rows, self.model, self.device, self.precision = rows, model, device, precision
        self.vocabulary = Vocabulary(TOKENS, 0, 1, 2)
        self.turns = 0

    def turn(self, updates: int) -> float:
        self.turns += 1
        with tempfile.TemporaryDirectory() as folder:
            trainer, seconds = self.trainer(Path(folder), updates)
            began = time.perf_counter()
            trainer.train()
            if self.device != "cpu":
                torch.cuda.synchronize()
            return seconds() / (time.perf_counter() - began)


class Ours(Turns):
    def __init__(self, *given: Any, batch: int) -> None:
        super().__init__(*given)
        mean = sum(row.seconds or 0 for row in self.rows) / len(self.rows)
        self.config = FinetuneConfig(
            steps=1, batch_s=batch * mean, learning_rate=1e-4, precision=self.precision, warmup=0.0, decay=0.0,
            eval_every=10**6, log_every=10**6,
        )  # fmt: skip
        masks.attach(self.model)
        self.applied = apply_strategy(self.model, "all")

    def trainer(self, folder: Path, updates: int) -> tuple[Any, Any]:
        grid = FrameGrid.from_config(self.model.config)
        frames = tuple(grid.frames(round((row.seconds or 0) * 16_000)) for row in self.rows)
        plan = BatchPlan(frames, grid.frames(round(self.config.batch_s * 16_000)), seed=self.turns)
        clips = Clips(self.rows, [self.vocabulary.encode(row.text) for row in self.rows])
        config = replace(self.config, steps=updates, folder=str(folder))
        run = RunFolder.open(folder)
        watch = _Silent(config, Pace(updates, None), None, Curve())
        made = arguments(config, run, updates, self.device, self.precision)
        made.eval_on_start = False
        batches = Batches(clips, plan, updates)
        trainer = CTCTrainer.of(Parts(config, self.applied, batches, None, run, watch), made)  # type: ignore[arg-type]
        return trainer, lambda: batches.seconds(0, updates)


class _Silent(Watch):
    """No evaluation, no checkpoint: only updates are timed."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = state.global_step >= (self.pace.steps or 0)


class Plain(Turns):
    """What the published examples do: `Trainer`, a processor, padding to the longest of a random batch."""

    def __init__(self, *given: Any, batch: int) -> None:
        super().__init__(*given)
        self.batch = batch
        self.processor = self.vocabulary.processor()
        self.model.requires_grad_(True)
        self.model.freeze_feature_encoder()
        self.heard = 0

    def __call__(self, rows: list[Example]) -> dict[str, torch.Tensor]:
        clips = [row.samples() for row in rows]
        self.heard += sum(map(len, clips))
        batch = self.processor.feature_extractor(clips, sampling_rate=16_000, padding=True, return_tensors="pt")
        ids = [self.vocabulary.encode(row.text) for row in rows]
        labels = torch.full((len(rows), max(map(len, ids))), -100)
        for row, found in zip(labels, ids, strict=True):
            row[: len(found)] = torch.tensor(found)
        return {**batch, "labels": labels}

    def trainer(self, folder: Path, updates: int) -> tuple[Any, Any]:
        made = TrainingArguments(
            output_dir=str(folder), max_steps=updates, per_device_train_batch_size=self.batch, learning_rate=1e-4,
            lr_scheduler_type="constant", bf16=self.precision == "bfloat16", fp16=self.precision == "float16",
            use_cpu=self.device == "cpu", report_to=[], disable_tqdm=True, logging_strategy="no", save_strategy="no",
            remove_unused_columns=False, seed=self.turns, weight_decay=0.01, adam_beta2=0.98,
        )  # fmt: skip
        trainer = Trainer(model=self.model, args=made, train_dataset=self.rows, data_collator=self)
        trainer.remove_callback(PrinterCallback)
        self.heard = 0
        # the loader prepares one batch more than it trains on
        return trainer, lambda: self.heard / 16_000 * updates / (updates + (updates * self.batch < len(self.rows)))


def loss_of(way: Turns) -> float:
    """Mean CTC per label over all clips, one by one."""
    model, found = way.model.eval(), []
    clips = Clips(way.rows, [way.vocabulary.encode(row.text) for row in way.rows])
    grid = FrameGrid.from_config(model.config)
    with torch.inference_mode():
        for index in range(len(way.rows)):
            batch = clips.batch([index])
            logits = model(batch["input_values"].to(model.device)).logits
            found.append(float(ctc_per_clip(logits, batch["labels"], [grid.frames(batch["samples"][0])], 0)))
    return statistics.fmean(found)


class Memory:
    """Largest resident set while open, in MiB, sampled; of a GPU what torch allocated at most."""

    def __init__(self, device: str) -> None:
        self.device, self.peak, self._open = device, 0.0, True

    def __enter__(self) -> Memory:
        if self.device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._open = False
        self._thread.join()
        if self.device != "cpu":
            self.peak = torch.cuda.max_memory_allocated() / 2**20

    def _watch(self) -> None:
        page = resource.getpagesize()
        while self._open:
            self.peak = max(self.peak, int(Path("/proc/self/statm").read_text().split()[1]) * page / 2**20)
            time.sleep(0.02)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["demo", "base"], default="demo")
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8, help="clips in a plain batch")
    parser.add_argument("--updates", type=int, default=8, help="per turn: enough to hear most clips once")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--longest-s", type=float, default=16.0)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds is 2 or more: the first turn of each way warms up and is not counted")
    warnings.filterwarnings("ignore")
    device = choose_device(options.device).value
    precision = choose_precision(device)
    with quiet():
        rows, start = ragged(options.clips, options.longest_s), model_of(options.size)
        if device == "cpu":
            start.set_attn_implementation("eager")
        given = [(rows, copy.deepcopy(start).to(device), device, precision.value) for _ in range(2)]
        ours, plain = Ours(*given[0], batch=options.batch), Plain(*given[1], batch=options.batch)
        before = loss_of(plain)
        speeds: dict[str, list[float]] = {"ours": [], "plain": []}
        peaks = {"ours": 0.0, "plain": 0.0}
        for _ in range(options.rounds):
            for name, way in (("ours", ours), ("plain", plain)):
                with Memory(device) as memory:
                    speeds[name].append(way.turn(options.updates))
                peaks[name] = max(peaks[name], memory.peak)
        after = {"ours": loss_of(ours), "plain": loss_of(plain)}
    total = sum(row.seconds or 0 for row in rows)
    print(f"{options.size}, {device}, {precision}, {len(rows)} clips, {total:.0f} s, {torch.get_num_threads()} threads")
    print(f"loss per label before {before:.3f}; after {options.rounds * options.updates} updates each:", end=" ")
    print(", ".join(f"{name} {loss:.3f}" for name, loss in after.items()))
    for name, rates in speeds.items():
        print(f"{name:6} {statistics.median(rates[1:]):8.1f} s of audio per second, peak memory {peaks[name]:.0f} MiB")
    ratios = [a / b for a, b in zip(speeds["ours"][1:], speeds["plain"][1:], strict=True)]
    print(f"ours / plain: {statistics.median(ratios):.2f} (turns: {', '.join(f'{ratio:.2f}' for ratio in ratios)})")


if __name__ == "__main__":
    sys.exit(main())
