"""Fine-tuning runs in miniature: tones for letters, a model folder, a script to start runs in processes of their own.

No module to importlib mode: a test puts this folder on its path. Run as a script it is one run:
`python tiny_runs.py CONFIG.json [--kill-at STEP] [--limit BYTES]`, under torchrun too.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from tiny_ctc import TOKENS, tiny

from speechkit.training.config import FinetuneConfig
from speechkit.training.data import Example

LETTERS = "abcdefghij"
# two updates' worth of everything that draws random numbers
NOISY = {"hidden_dropout": 0.1, "attention_dropout": 0.1, "mask_time_prob": 0.2, "mask_time_length": 4}


def spoken(text: str, rng: np.random.Generator) -> np.ndarray:
    """Each letter a tone of its own, 120 ms, with a pause of 40 ms; (T,) float32 at 16 kHz."""
    time = np.arange(1920) / 16_000
    parts = []
    for letter in text:
        tone = 0 * time if letter == " " else np.sin(2 * np.pi * (300 + 250 * LETTERS.index(letter)) * time)
        parts += [tone * rng.uniform(0.3, 1.0), np.zeros(640)]
    sound = np.concatenate(parts)
    return (sound + 0.01 * rng.standard_normal(len(sound))).astype(np.float32)


def examples(count: int, seed: int = 0, longest: int = 12) -> list[Example]:
    """Random words of tones, of many lengths, by four speakers."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        text = (
            "".join(rng.choice(list(LETTERS), size=int(rng.integers(2, longest)))) + " " + str(rng.choice(list("ab")))
        )
        made.append(Example(spoken(text, rng), text, f"clip-{seed}-{number}", f"speaker-{number % 4}"))
    return made


def model_folder(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A Wav2Vec2ForCTC folder with processor, random weights."""
    from speechkit.training.vocabulary import Vocabulary

    model = tiny(seed, **{"apply_spec_augment": "mask_time_prob" in changes, **changes})
    model.save_pretrained(folder)
    Vocabulary(TOKENS, 0, 1, 2).processor().save_pretrained(folder)
    return folder


def small(folder: Path, model: Path, **changes: Any) -> FinetuneConfig:
    """Twelve updates of 4 s each, in float32 on the CPU; `changes` win."""
    settings: dict[str, Any] = {
        "model": str(model), "folder": str(folder), "steps": 12, "batch_s": 4.0, "learning_rate": 1e-2,
        "eval_every": 4, "log_every": 1, "precision": "float32", "device": "cpu", "vocabulary": "keep",
        "strategy_options": {"freeze_features": False},
    }  # fmt: skip
    return FinetuneConfig(**{**settings, **changes})


def losses(folder: Path) -> list[float]:
    """The loss of every point of a run, step by step."""
    rows = [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()[1:]]
    return [row["loss"] for row in rows if "loss" in row]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("config", type=Path)
    parser.add_argument("--kill-at", type=int, default=0)
    parser.add_argument("--limit", type=int, default=0, help="bytes that a file may have, from the first checkpoint on")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    from speechkit.training.finetune import finetune

    def watch(point: Any) -> None:
        if options.kill_at and point.step >= options.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if options.limit and point.step >= 5:
            resource.setrlimit(resource.RLIMIT_FSIZE, (options.limit, resource.RLIM_INFINITY))

    config = FinetuneConfig.load(options.config)
    print(finetune(config, examples(40), examples(8, seed=1), on_point=watch))


if __name__ == "__main__":
    main()
