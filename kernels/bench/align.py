"""Forced alignment on this machine: speed beside torchaudio's C++, memory beside int8 back-pointers, an hour, stars.

    python kernels/bench/align.py            about two minutes
    python kernels/bench/align.py --quick    without the hour, without the embedded model

Speed and memory are those of the search alone, over random log-probabilities of 32 tokens: what they hold does not
change its work. Ours and torchaudio's take turns, and their paths are compared. The hour (180,000 frames, 50,000
tokens) runs in a process of its own, whose peak memory is read; so does `Recognizer.align` with the embedded model over
an hour of embedded clips in a file. Cuts: the clips joined, and how far the words beside a joint begin and end from it.
Stars: each word of the clips is made unspellable in turn, and its boundaries are compared with those of the spelt word,
for three definitions of the star.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from speechkit.asr import viterbi

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

FRAMES_S = 50  # frames per second of stock models
TOKENS = 32
SIZES = {"20 s": (1_000, 280), "2 min": (6_000, 1_670), "10 min": (30_000, 8_300)}
HOUR = (180_000, 50_000)
BATCH = 16

# one search in a fresh process: seconds, bytes, and the most memory the process held before and after (VmHWM, KiB)
ALONE = """
import sys, time
import numpy as np
from speechkit.asr import viterbi
frames, tokens = int(sys.argv[1]), int(sys.argv[2])
rng = np.random.default_rng(0)
log_probs = rng.standard_normal((1, frames, 32), dtype=np.float32) * 3
log_probs -= np.log(np.exp(log_probs).sum(axis=-1, keepdims=True))
target = rng.integers(1, 32, (1, tokens))
began = time.perf_counter()
found = viterbi.search(log_probs, target)
wall = time.perf_counter() - began
owners = found.owners[0][found.owners[0] >= 0]
assert (np.unique(owners) == np.arange(tokens)).all() and (np.diff(owners) >= 0).all()
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(wall, found.pointer_bytes, found.score_bytes, int(peak.split()[1]))
"""

# an hour of the embedded clips as a file, aligned by the embedded model: seconds, words, VmHWM in KiB
WHOLE = """
import sys, time
from pathlib import Path
import numpy as np, soundfile
from speechkit import audio, demo, load_asr
clips = demo.clips("en")
parts, words = [audio.load(clip.path) for clip in clips], " ".join(clip.text for clip in clips)
path, rate = Path(sys.argv[1]), 16000
times = round(3600 * rate / sum(map(len, parts)))
soundfile.write(path, np.tile(np.concatenate(parts), times), rate)
del parts
asr = load_asr("demo/en", device="cpu")
began = time.perf_counter()
found = asr.align(path, " ".join([words] * times))
wall = time.perf_counter() - began
assert len(found.words) == times * len(words.split()), found.warnings
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(wall, len(found.words), int(peak.split()[1]), found.duration_s)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="leave out the hour and the embedded model")
    parser.add_argument("--rounds", type=int, default=5, help="turns that each way takes (default: 5)")
    options = parser.parse_args()
    for name, (frames, tokens) in SIZES.items():
        side_by_side(name, frames, tokens, options.rounds)
    batched(options.rounds)
    if not options.quick:
        hour()
        whole_hour()
        cuts()
        stars()


def random_case(frames: int, tokens: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """(F, V) natural log and a target (L,)."""
    rng = np.random.default_rng(seed)
    logits = 3 * rng.standard_normal((frames, TOKENS), dtype=np.float32)
    log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return log_probs, rng.integers(1, TOKENS, tokens)


def median_seconds(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median wall time of each way over rounds in which they take turns; one more round before, to warm up."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(row[1:]) for name, row in times.items()}


def side_by_side(name: str, frames: int, tokens: int, rounds: int) -> None:
    log_probs, target = random_case(frames, tokens)
    theirs = torchaudio_path(log_probs, target)
    ours = viterbi.search(log_probs[None], target[None])
    same = (np.where(ours.owners[0] < 0, 0, target[ours.owners[0]]) == theirs).mean()
    ways: dict[str, Callable[[], Any]] = {
        "speechkit": lambda: viterbi.search(log_probs[None], target[None]),
        "torchaudio": lambda: torchaudio_path(log_probs, target),
    }
    taken = median_seconds(ways, rounds)
    table, held = frames * (2 * tokens + 1), ours.pointer_bytes + ours.score_bytes
    print(
        f"{name:>7}: {frames} frames x {tokens} tokens: speechkit {taken['speechkit']:.3f} s, torchaudio "
        f"{taken['torchaudio']:.3f} s ({taken['torchaudio'] / taken['speechkit']:.2f} x ours), path {same:.2%} equal; "
        f"back-pointers and kept scores {held / 2**20:.2f} MiB, {held / table:.3f} x int8 (wanted: at most 0.27)"
    )


def torchaudio_path(log_probs: NDArray[np.float32], target: NDArray[np.int64]) -> NDArray[np.int64]:
    import torch
    from torchaudio.functional import forced_align

    # float64, as ours sums in: in float32 a long sum rounds, and paths differ where two are as good as equal
    path, _ = forced_align(torch.from_numpy(log_probs).double()[None], torch.from_numpy(target)[None], blank=0)
    return path[0].numpy()


def batched(rounds: int) -> None:
    frames, tokens = 300, 80  # six seconds
    cases = [random_case(frames, tokens, seed) for seed in range(BATCH)]
    rows, targets = np.stack([case[0] for case in cases]), np.stack([case[1] for case in cases])
    taken = median_seconds(
        {
            "batch": lambda: viterbi.search(rows, targets),
            "one by one": lambda: [viterbi.search(rows[i : i + 1], targets[i : i + 1]) for i in range(BATCH)],
        },
        rounds,
    )
    print(
        f"{BATCH} clips of 6 s: {taken['batch'] * 1000:.1f} ms in a batch, {taken['one by one'] * 1000:.1f} ms one by "
        f"one ({taken['one by one'] / taken['batch']:.2f} x)"
    )


def hour() -> None:
    frames, tokens = HOUR
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", ALONE, str(frames), str(tokens)],
        capture_output=True, text=True, check=True, cwd=Path(__file__).resolve().parents[2],
    )  # fmt: skip
    wall, pointers, scores, peak = map(float, done.stdout.split())
    print(
        f"an hour: {frames} frames x {tokens} tokens in {wall:.1f} s, {frames / FRAMES_S / wall:.0f} x real time; "
        f"back-pointers {pointers / 2**20:.1f} MiB, kept scores {scores / 2**20:.0f} MiB, together "
        f"{(pointers + scores) / (frames * (2 * tokens + 1)):.4f} x int8; peak of the process {peak / 2**20:.2f} GiB "
        "(wanted: at most 6)"
    )


def whole_hour() -> None:
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-c", WHOLE, f"{folder}/hour.flac"],
            capture_output=True, text=True, check=True, cwd=Path(__file__).resolve().parents[2],
        )  # fmt: skip
    wall, words, peak, seconds = map(float, done.stdout.split())
    print(
        f"an hour in a file, demo/en: {words:.0f} words in {wall:.1f} s, {seconds / wall:.0f} x real time; peak of the "
        f"process {peak / 2**20:.2f} GiB (wanted: at most 6)"
    )


def cuts() -> None:
    """How far the first and last words of the embedded clips are from the joints, when the clips are one recording."""
    from speechkit import audio, demo, load_asr

    clips, recognizer = demo.clips("en"), load_asr("demo/en", device="cpu")
    parts = [audio.load(clip.path) for clip in clips]
    ends = np.cumsum([len(part) for part in parts]) / audio.SAMPLE_RATE
    words = recognizer.align(np.concatenate(parts), " ".join(clip.text for clip in clips)).words
    last = np.cumsum([len(clip.text.split()) for clip in clips]) - 1
    errors = [abs(words[word].end_s - cut) for word, cut in zip(last, ends, strict=True)]
    errors += [abs(words[word + 1].start_s - cut) for word, cut in zip(last[:-1], ends[:-1], strict=True)]
    print(
        f"words beside {len(ends)} known cuts: off by {1000 * np.median(errors):.0f} ms in the median (wanted: at most "
        f"40), {1000 * np.percentile(errors, 90):.0f} ms at the 90th percentile"
    )


def stars() -> None:
    """How far a star's boundaries are from those of the word that it replaces, by definition of the star."""
    from speechkit import demo, load_asr
    from speechkit.asr import align

    recognizer, clips = load_asr("demo/en", device="cpu"), demo.clips("en")
    heard = recognizer.log_probs([clip.path for clip in clips])
    definitions: dict[str, Callable[[NDArray[np.float32]], NDArray[np.float32]] | None] = {
        "ours: none or some token, less 0.1": None,
        "any token (STC): 1 - p(blank)": lambda blank: np.log1p(-np.exp(np.minimum(blank, -1e-6))),
        "certain everywhere (MMS): 1": np.zeros_like,
    }
    for name, star in definitions.items():
        errors = []
        for clip, log_probs in zip(clips, heard, strict=True):
            words = clip.text.split()
            whole = align.align(log_probs, clip.text, recognizer.alphabet, recognizer.grid, clip.seconds)
            for at, word in enumerate(whole):
                text = " ".join([*words[:at], "7", *words[at + 1 :]])
                spellings, columns = align.prepare([text], recognizer.alphabet)
                rows = columns.take(log_probs)
                if star is not None:
                    rows[:, -1] = star(rows[:, columns.blank])
                found = align.place([rows], spellings, columns, recognizer.grid, [clip.seconds])[0][at]
                errors += [abs(found.start_s - word.start_s), abs(found.end_s - word.end_s)]
        print(
            f"star, {name:36} boundaries off by {1000 * np.mean(errors):5.1f} ms on average, "
            f"{1000 * np.percentile(errors, 90):4.0f} ms at the 90th percentile"
        )


if __name__ == "__main__":
    main()
