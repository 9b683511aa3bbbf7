"""Ragged clips through a random-weight model: our batches, against transformers one by one, against its pipeline.

    python kernels/bench/asr_batch.py --size base --seconds-budget 120

Random weights cost what trained ones cost. The three ways take turns inside one process, so a machine that slows down
slows all of them; each figure is the median over rounds. Before any timing the log-probabilities are compared.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from speechkit.asr.check import ragged_clips
from speechkit.asr.checkpoint import Checkpoint, quiet
from speechkit.asr.model import Recognizer
from speechkit.device import choose_device

if TYPE_CHECKING:
    from collections.abc import Callable

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
        "conv_dim": (64,) * 7, "num_conv_pos_embedding_groups": 4,
    },
    "base": {},  # the defaults are wav2vec2-base: 768 wide, 12 layers, group norm
    "large": {
        "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
        "feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True,
    },
}  # fmt: skip
LETTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefghijklmnopqrstuvwxyz'"]


def build(size: str, folder: str) -> Checkpoint:
    """Random weights in a published size; group norm for tiny and base, layer norm for large."""
    import json
    from pathlib import Path

    from transformers import Wav2Vec2Config, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

    torch.manual_seed(0)
    vocabulary = Path(folder) / "vocab.json"
    vocabulary.write_text(json.dumps({token: index for index, token in enumerate(LETTERS)}), encoding="utf-8")
    model = Wav2Vec2ForCTC(Wav2Vec2Config(vocab_size=len(LETTERS), **SIZES[size])).eval().requires_grad_(False)
    return Checkpoint(model, Wav2Vec2CTCTokenizer(str(vocabulary)), Wav2Vec2FeatureExtractor(do_normalize=True))


def one_by_one(parts: Checkpoint, device: str, clips: list[np.ndarray]) -> list[np.ndarray]:
    """The documented loop: extractor, model, log-softmax; (F, V) each."""
    rows = []
    with torch.inference_mode():
        for clip in clips:
            values = parts.extractor(clip, sampling_rate=16_000, return_tensors="pt").input_values.to(device)
            rows.append(parts.model(values).logits[0].log_softmax(-1).cpu().numpy())
    return rows


def median_seconds(ways: dict[str, Callable[[], Any]], budget_s: float) -> dict[str, float]:
    """Median wall time of each way over rounds in which they take turns; at least two rounds, the first is warm-up."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    started, rounds = time.perf_counter(), 0
    while rounds < 2 or time.perf_counter() - started < budget_s:
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - began)
        rounds += 1
    return {name: statistics.median(row[1:]) for name, row in times.items()}


def main() -> None:
    import tempfile

    from transformers import pipeline

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="tiny")
    parser.add_argument("--seconds-budget", type=float, default=20.0, help="time for the rounds, after the check")
    parser.add_argument("--clips", type=int, default=12)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)
    device = choose_device(options.device).value
    with tempfile.TemporaryDirectory() as folder, quiet():
        parts = build(options.size, folder)
        ours = Recognizer(parts, f"random {options.size}", device=device)
        clips = ragged_clips(options.clips)
        total = sum(map(len, clips)) / 16_000
        worst = max(
            float(np.abs(a - b).max())
            for a, b in zip(ours.log_probs(clips), one_by_one(parts, device, clips), strict=True)
        )
        print(f"{ours}, {len(clips)} clips, {total:.1f} s, {torch.get_num_threads()} threads")
        print(
            f"batched against transformers one by one: max |Δ log p| {worst:.1e} ({'ok' if worst <= 1e-4 else 'BAD'})"
        )
        theirs = pipeline(
            "automatic-speech-recognition", model=parts.model, tokenizer=parts.tokenizer,
            feature_extractor=parts.extractor, device=device, batch_size=8,
        )  # fmt: skip
        ways: dict[str, Callable[[], Any]] = {
            "speechkit, batched": lambda: ours.transcribe(clips, words=False),
            "transformers, one by one": lambda: [
                parts.tokenizer.decode(row.argmax(-1)) for row in one_by_one(parts, device, clips)
            ],
            "transformers pipeline, batch_size=8": lambda: theirs([{"raw": c, "sampling_rate": 16_000} for c in clips]),
        }
        seconds = median_seconds(ways, options.seconds_budget)
    mine = seconds["speechkit, batched"]
    for name, taken in seconds.items():
        print(f"{name:36} {taken:8.3f} s  real-time factor {taken / total:.4f}  {taken / mine:5.2f} x ours")


if __name__ == "__main__":
    main()
