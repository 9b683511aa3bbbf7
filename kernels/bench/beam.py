"""The prefix beam search against a textbook one in plain Python, and what a language model and hotwords cost and bring.

    python kernels/bench/beam.py                    about half a minute
    python kernels/bench/beam.py --beam 64 --rounds 9

Log-probabilities are the embedded model's, of the embedded clips, clean and with white noise. The yardstick is
`tests/asr/plain_beam.py`: once as textbooks have it (every token of every frame), once with our pruning of tokens. All
ways take turns inside one process; a figure is the median over rounds of the CPU time of this one thread, so that other
programs on the machine do not count. Before any timing, the best hypotheses are compared.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from speechkit import audio, demo, load_asr
from speechkit.asr.beam import BeamDecoder, BeamOptions
from speechkit.asr.lm import NGram
from speechkit.demo.recipes.grammar import Grammar
from speechkit.evaluation.metrics import wer

if TYPE_CHECKING:
    from collections.abc import Callable

    from speechkit.asr.decode import Alphabet

    Clips = list[np.ndarray]  # (F, V) each

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "asr"))
from plain_beam import plain_beam

SNRS_DB = (None, 15, 5)


def log_probs() -> tuple[dict[float | None, Clips], list[str], Alphabet]:
    """Signal-to-noise ratio → log-probabilities of the embedded clips; their texts; the model's alphabet."""
    recognizer, clips = load_asr("demo/en", device="cpu"), demo.clips("en")
    samples, rng = [audio.load(clip.path) for clip in clips], np.random.default_rng(0)
    rows = {}
    for snr_db in SNRS_DB:
        level = 0.0 if snr_db is None else 10 ** (-snr_db / 20)
        noisy = [x + level * x.std() * rng.standard_normal(len(x)).astype(np.float32) for x in samples]
        rows[snr_db] = recognizer.log_probs(noisy)
    return rows, [clip.text for clip in clips], recognizer.alphabet


def models(sentences: int, said: list[str]) -> tuple[NGram, NGram, list[str]]:
    """Word and character model of freshly drawn grammar sentences, and a hundred words: of the clips, and others."""
    grammar, rng = Grammar("en"), random.Random(1)
    texts = [grammar.sentence(rng) for _ in range(sentences)]
    hotwords = sorted({word for text in said for word in text.split() if len(word) > 4})
    others = sorted(word for word in grammar.vocabulary() if len(word) > 4 and word not in hotwords)
    hotwords += random.Random(2).sample(others, 100 - len(hotwords))
    return NGram.train(texts, 3), NGram.train(texts, 6, "char"), hotwords


def median_seconds(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median CPU time of each way over rounds in which they take turns, after one round of warm-up."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            began = time.process_time()
            way()
            times[name].append(time.process_time() - began)
    return {name: statistics.median(row[1:]) for name, row in times.items()}


def table(seconds: dict[str, float], against: str, clips: int) -> str:
    base = seconds[against]
    return "\n".join(
        f"  {name:<44} {taken / clips * 1000:8.2f} ms a clip {taken / base:7.2f} x" for name, taken in seconds.items()
    )


def speed(clips: Clips, alphabet: Alphabet, options: BeamOptions, rounds: int) -> None:
    ours, beam, prune = BeamDecoder(alphabet, options), options.beam, options.token_threshold
    rows = [clip.tolist() for clip in clips]
    whole = BeamDecoder(alphabet, replace(options, token_threshold=0.0, blank_skip=1.0))
    plain = {
        threshold: [plain_beam(row, alphabet.blank, beam, threshold)[0][0] for row in rows]
        for threshold in (0.0, prune)
    }
    print("best hypothesis as plain Python's:")
    for name, decoder, threshold in (
        ("neither prunes", whole, 0.0),
        ("both prune", ours, prune),
        ("ours alone prunes", ours, 0.0),
    ):
        same = sum(h.tokens == tokens for (h,), tokens in zip(decoder.decode(clips), plain[threshold], strict=True))
        print(f"  {name:<44} {same} of {len(clips)} clips")
    batched = f"speechkit, {len(clips)} clips at once"
    ways: dict[str, Callable[[], Any]] = {
        batched: lambda: ours.decode(clips),
        f"speechkit, {len(clips)} at once, nothing pruned": lambda: whole.decode(clips),
        "speechkit, one by one": lambda: [ours.decode([clip]) for clip in clips],
        "plain Python": lambda: [plain_beam(row, alphabet.blank, beam) for row in rows],
        f"plain Python, tokens above {prune:g}": lambda: [plain_beam(row, alphabet.blank, beam, prune) for row in rows],
    }
    print(table(median_seconds(ways, rounds), batched, len(clips)))


def extras(clips: Clips, decoders: dict[str, BeamDecoder], rounds: int) -> None:
    ways: dict[str, Callable[[], Any]] = {name: (lambda d=d: d.decode(clips)) for name, d in decoders.items()}
    print(f"\nwhat the rest costs, {len(clips)} clips at once")
    print(table(median_seconds(ways, rounds), next(iter(ways)), len(clips)))


def quality(rows: dict[float | None, Clips], texts: list[str], decoders: dict[str, BeamDecoder]) -> None:
    print(
        f"\nword error rate over {len(texts)} clips {'':<12}"
        + "".join(f"{f'{s} dB' if s else 'clean':>9}" for s in rows)
    )
    for name, decoder in decoders.items():
        rates = [wer(texts, [found[0].text for found in decoder.decode(clips)]) for clips in rows.values()]
        print(f"  {name:<36}" + "".join(f"{rate:9.1%}" for rate in rates))


def unsaid(clips: Clips, texts: list[str], alphabet: Alphabet, beam: int) -> None:
    """What a hotword costs that begins as the clip does and is not said: its first four words and an "s"."""
    print("\nword error rate with one hotword per clip that begins like it and is not said")
    for weight in (0.0, 1.0, 4.0, 6.0):
        options = BeamOptions(beam=beam, hotword_weight=weight)
        phrases = [" ".join(text.split()[:4]) + "s" for text in texts]
        heard = [
            BeamDecoder(alphabet, options, hotwords=[phrase]).decode([clip])[0][0].text
            for phrase, clip in zip(phrases, clips, strict=True)
        ]
        print(f"  hotword_weight {weight:g}{wer(texts, heard):9.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beam", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sentences", type=int, default=3000, help="grammar sentences that the models are trained on")
    arguments = parser.parse_args()
    rows, texts, alphabet = log_probs()
    clips = [clip for group in rows.values() for clip in group]
    clips = (clips * 2)[:32]
    options = BeamOptions(beam=arguments.beam)
    print(f"{len(clips)} clips, {sum(map(len, clips))} frames, {len(alphabet.symbols)} tokens, beam {options.beam}")
    speed(clips, alphabet, options, arguments.rounds)
    word, char, hotwords = models(arguments.sentences, texts)
    decoders = {
        "beam alone": BeamDecoder(alphabet, options),
        "100 hotwords, a third of them said": BeamDecoder(alphabet, options, hotwords=hotwords),
        "3-gram of words": BeamDecoder(alphabet, options, word),
        "6-gram of characters": BeamDecoder(alphabet, options, char),
    }
    extras(clips, decoders, arguments.rounds)
    quality(rows, texts, decoders)
    unsaid(rows[None], texts, alphabet, arguments.beam)


if __name__ == "__main__":
    main()
