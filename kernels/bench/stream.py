"""Streaming: how long after a word ends is it stable on screen, and what does that cost in word errors and in time?

    python kernels/bench/stream.py                     demo/en on the embedded clips: the curve, and time for base
    python kernels/bench/stream.py --cpu-time          the same on a machine that is busy with other things
    python kernels/bench/stream.py --spoken 60         on fresh sentences by held-out voices too (extra `synth`)
    python kernels/bench/stream.py --speech FOLDER     on real recordings too (a folder with manifest.tsv)
    python kernels/bench/stream.py --cache large       what kept convolution features save in a model of XLSR's size

How sound is played and counted stands in `speechkit/evaluation/latency.py`: a simulated clock that adds the computing
time measured here to the time of the audio. The yardstick of the words is each clip transcribed at once; that of the
time is the pace of speech; that of `--cache` is the same stream without, which takes turns with it hop by hop.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from speechkit import Recognizer

    Timer = Callable[[], float]

sys.path.insert(0, str(Path(__file__).resolve().parent))

# the third is the default; each is played under fixed lag alone and with local agreement
SETTINGS: tuple[dict[str, Any], ...] = (
    {"window_s": 4.0, "hop_s": 0.08, "lookahead_s": 0.16},
    {"window_s": 6.0, "hop_s": 0.08, "lookahead_s": 0.28},
    {"window_s": 6.0, "hop_s": 0.12, "lookahead_s": 0.34},
    {"window_s": 6.0, "hop_s": 0.16, "lookahead_s": 0.48},
    {"window_s": 8.0, "hop_s": 0.32, "lookahead_s": 0.80},
)
AGREE = 3
BASE_SETTINGS = (SETTINGS[2], SETTINGS[4], {"window_s": 4.0, "hop_s": 0.60, "lookahead_s": 0.60})
HEAD = "window    hop  lookahead  rule        p50      p95  committed WER  final WER   load  partials left out"
SEED = 11

Material = tuple[list[Any], list[str]]  # clips and their texts


def embedded() -> Material:
    from speechkit import demo

    clips = demo.clips("en")
    return [clip.path for clip in clips], [clip.text for clip in clips]


def spoken(count: int) -> Material:
    """Sentences and voices that the embedded model never met, spoken now."""
    from speechkit.demo.recipes.corpus import render, sentences
    from speechkit.demo.recipes.grammar import Grammar

    texts = sentences(Grammar("en"), random.Random(SEED), count, test=True)
    return [row[0].astype(np.float32) for row in render(texts, test=True, seed=SEED, processes=1)], texts


def real(folder: Path, count: int) -> Material:
    from speechkit.demo.recipes.corpus import real_clips

    rows = [(samples, text) for samples, text, _, pool in real_clips(folder) if pool == "sentences"][:count]
    return [row[0] for row in rows], [row[1] for row in rows]


def curve(
    recognizer: Recognizer, what: str, material: Material, settings: Sequence[dict[str, Any]], timer: Timer
) -> None:
    """One line for each setting, under fixed lag and under local agreement."""
    from speechkit.evaluation.latency import stream_score
    from speechkit.evaluation.metrics import wer

    clips, texts = material
    whole = wer(texts, [found.text for found in recognizer.transcribe(clips)])
    print(f"\n{what}: {len(clips)} clips, {sum(len(t.split()) for t in texts)} words; each at once: WER {whole:.1%}")
    print(HEAD)
    for setting in settings:
        for agree in (0, AGREE):
            row = stream_score(recognizer, clips, texts, setting | {"agree": agree}, timer)
            print(
                f"{_name(setting)}  {'agreement' if agree else 'lag      '}  {row.p50_s * 1000:4.0f} ms  "
                f"{row.p95_s * 1000:5.0f} ms  {row.committed_wer:6.1%} ({100 * (row.committed_wer - whole):+4.1f})  "
                f"{row.final_wer:9.1%}  {row.load:5.2f}  {row.left_out:17.0%}",
                flush=True,
            )
    if settings:
        print(
            "p50 and p95 run from the model's end of a word; the last sound of a clip comes "
            f"{1000 * row.tail_s:+.0f} ms after that of its last word (median): take that off for the wait after it"
        )


def pace(size: str, seconds: float, settings: Sequence[dict[str, Any]], timer: Timer) -> None:
    """A model of a published size with random weights: what does one partial take, and can this machine keep up?"""
    from speechkit.evaluation.latency import played

    recognizer = random_model(size)
    print(f"\n{recognizer!r}, {seconds:.0f} s of noise: for time only")
    print("window    hop  lookahead  one partial     p95   load  partials left out")
    for setting in settings:
        stream, busy, partials, took_s = recognizer.stream(vad=False, **setting), [], 0, 0.0
        for step in played(stream, noise(seconds), timer):
            took_s += step.took_s
            if stream.report.partials > partials:
                busy.append(step.took_s)
            partials = stream.report.partials
        print(
            f"{_name(setting)}  {1000 * statistics.median(busy):8.0f} ms  {1000 * np.percentile(busy, 95):5.0f} ms  "
            f"{took_s / seconds:5.2f}  {stream.report.left_out:17.0%}",
            flush=True,
        )


def cache(size: str, seconds: float, window_s: float = 6.0, hop_s: float = 0.32) -> None:
    """Two streams, one with kept features and one without, fed hop by hop in turn, once their windows are full.

    CPU time of this process, so that other programs on the machine do not count.
    """
    recognizer = random_model(size)
    streams = {kept: recognizer.stream(vad=False, window_s=window_s, hop_s=hop_s, cache=kept) for kept in (True, False)}
    print(f"\n{recognizer!r}, windows of {window_s:g} s, a partial every {hop_s:g} s")
    print(f"kept features: {streams[True].cache}")
    full, hop = round(window_s * 16_000), round(hop_s * 16_000)
    samples, ratios = noise(window_s + seconds), []
    times: dict[bool, list[float]] = {True: [], False: []}
    for stream in streams.values():
        stream.push(samples[:full])
    for number, at in enumerate(range(full, len(samples) - hop, hop)):
        took = {}
        for kept in (True, False) if number % 2 else (False, True):
            began = time.process_time()
            streams[kept].push(samples[at : at + hop])
            took[kept] = time.process_time() - began
        ratios.append(took[False] / took[True])
        for kept, value in took.items():
            times[kept].append(value)
    print(
        f"CPU time of a partial: {1000 * statistics.median(times[True]):.0f} ms with kept features, "
        f"{1000 * statistics.median(times[False]):.0f} ms without: {statistics.median(ratios):.2f} x "
        f"(median of {len(ratios)} pairs, {min(ratios):.2f} to {max(ratios):.2f})"
    )


def random_model(size: str) -> Recognizer:
    """Random weights in a published size, made to write blanks: windows then have the length that was asked for."""
    import torch
    from asr_batch import build

    from speechkit.asr.checkpoint import quiet
    from speechkit.asr.model import Recognizer

    with tempfile.TemporaryDirectory() as folder, quiet():
        parts = build(size, folder)
    with torch.no_grad():
        parts.model.lm_head.bias[parts.tokenizer.pad_token_id] += 100
    return Recognizer(parts, f"random {size}")


def noise(seconds: float) -> np.ndarray:
    return (0.1 * np.random.default_rng(SEED).standard_normal(round(seconds * 16_000))).astype(np.float32)


def _name(setting: dict[str, Any]) -> str:
    return f"{setting['window_s']:4.1f} s  {setting['hop_s']:4.2f} s     {setting['lookahead_s']:4.2f} s"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spoken", type=int, default=0, metavar="N", help="sentences to speak (default: none)")
    parser.add_argument("--speech", type=Path, metavar="FOLDER", help="real recordings with manifest.tsv")
    parser.add_argument("--count", type=int, default=20, help="real recordings used (default: 20)")
    parser.add_argument("--settings", type=int, default=len(SETTINGS), help="how many of the settings (default: all)")
    parser.add_argument("--seconds", type=float, default=12.0, help="of noise for the time of base (default: 12)")
    parser.add_argument("--cpu-time", action="store_true", help="one thread, CPU time: for a machine that others use")
    parser.add_argument("--cache", choices=["large"], help="only measure what kept features save in this size")
    options = parser.parse_args()
    import torch

    from speechkit import load_asr

    if options.cpu_time:
        torch.set_num_threads(1)
    timer = time.process_time if options.cpu_time else time.perf_counter
    load = f", load average {os.getloadavg()[0]:.1f} before the start" if hasattr(os, "getloadavg") else ""
    clock = "CPU time" if options.cpu_time or options.cache else "wall time"
    print(f"{torch.get_num_threads()} threads, {clock}{load}")
    if options.cache:
        cache(options.cache, options.seconds)
        return 0
    sets = {"embedded clips": embedded()}
    if options.spoken:
        sets["fresh sentences, held-out voices"] = spoken(options.spoken)
    if options.speech:
        sets["real sentences"] = real(options.speech, options.count)
    recognizer = load_asr("demo/en", device="cpu")
    for what, material in sets.items():
        curve(recognizer, what, material, SETTINGS[: options.settings], timer)
    pace("base", options.seconds, BASE_SETTINGS, timer)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
