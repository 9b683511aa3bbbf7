"""Embeddings on this machine: speed beside transformers, what half precision costs, units by number of clusters.

    python kernels/bench/embed.py             half a minute
    python kernels/bench/embed.py --size base --rounds 2

Speed: clips of many lengths, pooled, beside the loop that transformers documents (one clip at a time, all hidden
states, mean over frames); both take turns, and their vectors are compared. Half precision: neighbours that stay the
nearest. Units: k-means fitted on every other embedded clip and judged on the rest: bitrate and purity against the
characters of the forced alignment, beside frames in random order (what purity is worth by chance).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

sys.path.insert(0, str(Path(__file__).resolve().parent))

CLUSTERS = (25, 50, 100, 200)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["demo", "base"], default="demo", help="base: random weights, for time")
    parser.add_argument("--rounds", type=int, default=4, help="turns that each way takes (default: 4)")
    parser.add_argument("--clips", type=int, default=24)
    options = parser.parse_args()
    recognizer = loaded(options.size)
    speed(recognizer, options.clips, options.rounds)
    if options.size == "demo":
        half(recognizer)
        units(recognizer)


def loaded(size: str) -> Any:
    from speechkit import load_asr
    from speechkit.asr.model import Recognizer

    if size == "demo":
        return load_asr("demo/en", device="cpu")
    from asr_batch import build

    with tempfile.TemporaryDirectory() as folder:
        return Recognizer(build(size, folder), f"random {size}")


def one_by_one(recognizer: Any, clips: list[np.ndarray]) -> np.ndarray:
    """What transformers documents: extractor, model, mean over the frames of the last hidden state; (N, D)."""
    import torch

    found = []
    with torch.inference_mode():
        for clip in clips:
            values = recognizer.extractor(clip, sampling_rate=16_000, return_tensors="pt").input_values
            states = recognizer.model(values.to(recognizer.device), output_hidden_states=True).hidden_states
            found.append(states[-1][0].mean(0).float().cpu().numpy())
    return np.stack(found)


def speed(recognizer: Any, count: int, rounds: int) -> None:
    import torch
    from asr_batch import ragged_clips

    clips = ragged_clips(count)
    seconds = sum(map(len, clips)) / 16_000

    def ours() -> np.ndarray:
        return np.stack([e.vectors for e in recognizer.embed(clips, pool="mean", speech_only=False)])

    ways: dict[str, Callable[[], np.ndarray]] = {
        "speechkit": ours,
        "transformers": lambda: one_by_one(recognizer, clips),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    vectors = {}
    for _ in range(rounds + 1):  # the first is warm-up
        for name, way in ways.items():
            began = time.perf_counter()
            vectors[name] = way()
            times[name].append(time.perf_counter() - began)
    taken = {name: statistics.median(row[1:]) for name, row in times.items()}
    worst = float(np.abs(vectors["speechkit"] - vectors["transformers"]).max() / np.abs(vectors["transformers"]).max())
    print(
        f"{recognizer!r}, {count} clips, {seconds:.0f} s, {torch.get_num_threads()} threads\n"
        f"speed: speechkit {taken['speechkit']:.2f} s, transformers one by one {taken['transformers']:.2f} s "
        f"({taken['transformers'] / taken['speechkit']:.2f} x ours)\n"
        f"real-time factor {taken['speechkit'] / seconds:.4f}; exactness: vectors differ by {worst:.1e} of the largest"
    )


def half(recognizer: Any) -> None:
    """Nearest neighbours in float16 beside those in float32, over one-second pieces of the embedded clips."""
    from speechkit import audio, demo

    sounds = [audio.load(clip.path) for clip in demo.clips("en")]
    cut = [sound[at : at + 16_000] for sound in sounds for at in range(0, len(sound) - 15_999, 8_000)]
    nearest = []
    for dtype in ("float32", "float16"):
        stack = np.stack([e.vectors for e in recognizer.embed(cut, pool="mean", dtype=dtype)]).astype(np.float32)
        unit = stack / np.linalg.norm(stack, axis=1, keepdims=True)
        nearest.append((unit @ unit.T - 2 * np.eye(len(unit))).argmax(axis=1))
    kept = (nearest[0] == nearest[1]).mean()
    print(f"half precision: half the bytes, {kept:.1%} of {len(cut)} pieces keep their nearest neighbour")


def units(recognizer: Any) -> None:
    from speechkit import demo
    from speechkit.asr.kmeans import KMeansUnits
    from speechkit.asr.units import Units, bitrate, purity, usage

    clips = demo.clips("en")
    heard = recognizer.align([clip.path for clip in clips[1::2]], [clip.text for clip in clips[1::2]])
    rng = np.random.default_rng(0)
    print("clusters  bits per second  perplexity  unit purity  entropy known  by chance")
    for clusters in CLUSTERS:
        kmeans = KMeansUnits.fit(recognizer, [clip.path for clip in clips[::2]], clusters)
        found = kmeans.units(recognizer, [clip.path for clip in clips[1::2]])
        mixed = [Units(rng.permutation(u.ids), u.sizes, u.grid, u.duration_s, u.model) for u in found]
        judged, chance = purity(found, heard), purity(mixed, heard)
        print(
            f"{clusters:8}  {bitrate(found):15.0f}  {usage(found)[0].perplexity:10.1f}  {judged.unit:11.1%}  "
            f"{judged.information:13.1%}  {chance.information:9.1%}"
        )


if __name__ == "__main__":
    main()
