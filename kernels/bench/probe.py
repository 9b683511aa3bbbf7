"""What do the layers know of real people's speech? Word, speaker and language by layer, and same-or-different speaker.

    python kernels/bench/probe.py                          demo/en, half a minute
    python kernels/bench/probe.py --model en --pool mean
    python kernels/bench/probe.py --speech-data FOLDER     with a manifest.tsv (default: SPEECHKIT_SPEECH_DATA)

One table: layer by question, cross-validated accuracy of a linear probe. For words and languages no speaker stands on
both sides of a split. For speakers that cannot be: there no word does, so a voice is learnt on some words and asked for
on others; every clip is a recording of its own. Languages are 2 s pieces of read sentences, of languages with two
speakers or more. Corpora and speakers differ in their microphones and rooms, and a probe hears those too: the yardstick
is the same probe on the sound itself, mean and deviation of 40 log-mel bands. demo/en met most of the English words in
training (its card names the speakers kept out of it); the Arabic ones are new to it.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
PIECE_S = 2.0
PIECES = 12  # of one speaker at most
BANDS = 40


@dataclass(frozen=True)
class Clips:
    """Sounds (T,) float32, 16 kHz, with what is known of each."""

    sounds: list[Any]
    words: list[str]
    speakers: list[str]
    languages: list[str]

    def __str__(self) -> str:
        seconds = sum(map(len, self.sounds)) / 16000
        return f"{len(self.sounds)} clips of {len(set(self.speakers))} speakers, {seconds / 60:.1f} min"


def words(rows: list[dict[str, Any]], group: str, takes: int, most: int | None = None) -> Clips:
    """`takes` clips of each word by each speaker; `most` words."""
    from speechkit import audio

    rows = [row for row in rows if row["group"] == group]
    wanted = set(list(dict.fromkeys(row["text"] for row in rows))[:most])
    seen: Counter[tuple[str, str]] = Counter()
    kept = []
    for row in rows:
        seen[row["text"], row["speaker"]] += 1
        if row["text"] in wanted and seen[row["text"], row["speaker"]] <= takes:
            kept.append(row)
    columns = ([row[name] for row in kept] for name in ("text", "speaker", "language"))
    return Clips([audio.load(row["audio"]) for row in kept], *columns)


def pieces(rows: list[dict[str, Any]]) -> Clips:
    """Sentences cut into pieces of `PIECE_S`, of languages that two speakers or more speak."""
    from speechkit import audio

    rows = [row for row in rows if row["group"].startswith("sentences_")]
    voices = Counter(language for language, _ in {(row["language"], row["speaker"]) for row in rows})
    count: Counter[str] = Counter()
    found: list[tuple[Any, str, str, str]] = []
    size = round(PIECE_S * 16000)
    for row in (row for row in rows if voices[row["language"]] > 1 and count[row["speaker"]] < PIECES):
        sound = audio.load(row["audio"])
        for start in range(0, len(sound) - size + 1, size):
            if count[row["speaker"]] < PIECES:
                count[row["speaker"]] += 1
                found.append((sound[start : start + size], row["text"], row["speaker"], row["language"]))
    return Clips(*map(list, zip(*found, strict=True)))


def log_mel(sound: np.ndarray) -> np.ndarray:
    """(T,) → (2 * BANDS,): mean and standard deviation of log-mel energies over frames of 25 ms every 10 ms."""
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(sound, (0, 400)), 400)[::160] * np.hanning(400)
    power = np.abs(np.fft.rfft(frames, 512)) ** 2  # (F, 257)
    mel = np.linspace(0, 2595 * np.log10(1 + 8000 / 700), BANDS + 2)
    edges = 700 * (10 ** (mel / 2595) - 1)
    hertz = np.linspace(0, 8000, 257)
    up = (hertz - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    down = (edges[2:, None] - hertz) / (edges[2:] - edges[1:-1])[:, None]
    energy = np.log(power @ np.maximum(0, np.minimum(up, down)).T + 1e-6)
    return np.concatenate([energy.mean(0), energy.std(0)])


def vectors(recognizer: Any, clips: Clips, pool: str) -> tuple[np.ndarray, np.ndarray]:
    """(N, L, D) of the model, (N, 2 * BANDS) of the sound."""
    began = time.perf_counter()
    found = recognizer.embed(clips.sounds, layer="all", pool=pool)
    taken = time.perf_counter() - began
    print(f"{clips}, embedded in {taken:.1f} s")
    return np.stack([one.vectors for one in found]), np.stack([log_mel(sound) for sound in clips.sounds])


def columns(recognizer: Any, rows: list[dict[str, Any]], pool: str) -> dict[str, tuple[float, float, list[float]]]:
    """Question → chance, the yardstick's score, and the score of each layer; shares, of which EERs should be low."""
    from speechkit.evaluation.probe import probe
    from speechkit.evaluation.verification import verify

    table: dict[str, tuple[float, float, list[float]]] = {}

    def ask(title: str, pair: tuple[np.ndarray, np.ndarray], labels: list[str], groups: list[str], folds: int) -> None:
        model, sound = (probe(part, labels, groups, label=title, folds=folds) for part in pair)
        accuracy = [score.accuracy for score in model.layers]
        print(f"  {title}: {model.classes} classes, {model.clips} clips asked about, {model.folds} folds", flush=True)
        table[title] = (model.chance, sound.best.accuracy, accuracy)

    def same(title: str, pair: tuple[np.ndarray, np.ndarray], clips: Clips) -> None:
        model, sound = pair
        layers = [verify(model[:, layer], clips.speakers, clips.words) for layer in range(model.shape[1])]
        print(f"  {title}: {layers[0].same:,} pairs of one speaker, {layers[0].different:,} of two", flush=True)
        table[title] = (0.5, verify(sound, clips.speakers, clips.words).eer, [found.eer for found in layers])

    for name, group, takes, most, folds in (
        ("digits en", "digits_en_fsdd", 10, None, 4),
        ("commands en", "words_en_speechcommands", 10, None, 5),
        ("commands ar", "words_ar_asc", 1, 20, 5),
    ):
        clips = words(rows, group, takes, most)
        pair = vectors(recognizer, clips, pool)
        ask(f"word, {name}", pair, clips.words, clips.speakers, folds)
        if name != "commands en":  # there, most speakers said each word once and few words in all
            ask(f"speaker, {name}", pair, clips.speakers, clips.words, 5)
        same(f"EER, {name}", pair, clips)
    clips = pieces(rows)
    ask("language", vectors(recognizer, clips, pool), clips.languages, clips.speakers, 4)
    return table


def show(table: dict[str, tuple[float, float, list[float]]]) -> None:
    head = [title.split(", ") if ", " in title else [title, "sentences"] for title in table]
    width = 13
    print("\n" + " " * 9 + "".join(f"{first:>{width}}" for first, _ in head))
    print(f"{'layer':9}" + "".join(f"{second:>{width}}" for _, second in head))
    depth = len(next(iter(table.values()))[2])
    best = {title: (min if title.startswith("EER") else max)(scores) for title, (*_, scores) in table.items()}
    for layer in range(depth):
        cells = (
            f"{scores[layer]:.1%}{'*' if scores[layer] == best[title] else ' '}"
            for title, (*_, scores) in table.items()
        )
        print(f"{layer:<9}" + "".join(f"{cell:>{width}}" for cell in cells))
    print(f"{'log-mel':9}" + "".join(f"{sound:>{width - 1}.1%} " for _, sound, _ in table.values()))
    print(f"{'chance':9}" + "".join(f"{chance:>{width - 1}.1%} " for chance, *_ in table.values()))
    gain = {
        title: sound / best[title] if title.startswith("EER") else best[title] / sound
        for title, (_, sound, _) in table.items()
    }
    print(f"{'x log-mel':9}" + "".join(f"{ratio:>{width - 1}.2f} " for ratio in gain.values()))
    print("* the best layer; an EER (equal error rate) is better when low. x log-mel: how much better than the sound")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = os.environ.get("SPEECHKIT_SPEECH_DATA", ROOT.parent / "shared/data/speech")
    parser.add_argument(
        "--speech-data", type=Path, default=Path(default), help="folder of recordings with manifest.tsv"
    )
    parser.add_argument("--model", default="demo/en")
    parser.add_argument("--pool", default="mean+std", choices=["mean", "mean+std", "max"])
    options = parser.parse_args()
    if not (options.speech_data / "manifest.tsv").is_file():
        print(f"no manifest.tsv in {options.speech_data}: nothing to measure; name the folder with --speech-data")
        return 0
    from speechkit import load_asr
    from speechkit.asr.rows import manifest_rows

    rows = list(manifest_rows(options.speech_data / "manifest.tsv"))
    recognizer = load_asr(options.model)
    print(f"{recognizer!r}, layers 0 to {recognizer.config.num_hidden_layers}, pooled by {options.pool}")
    show(columns(recognizer, rows, options.pool))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
