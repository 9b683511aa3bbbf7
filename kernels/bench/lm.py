"""What a language model brings to noisy speech: word error rate of the embedded model before and after.

    python kernels/bench/lm.py                     about three minutes
    python kernels/bench/lm.py --tune              also tries weights, on other clips than those reported

Clips: sentences held out from the grammar, spoken by espeak-ng voices held out from the training of demo/en, with white
noise added. The models are trained on other sentences of the same grammar. So text and language model come from one
source: on your own domain expect this only where you have text of it.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from speechkit import load_asr
from speechkit.asr.beam import BeamDecoder, BeamOptions
from speechkit.asr.decode import best_path, decode, text_of
from speechkit.asr.lm import NGram
from speechkit.demo.recipes.heldout import other_sentences, spoken, with_noise
from speechkit.evaluation.metrics import wer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from speechkit.asr.decode import Alphabet
    from speechkit.asr.frames import FrameGrid
    from speechkit.asr.model import Recognizer

    Rows = list[NDArray[np.float32]]  # (F, V) each, natural log

SNRS_DB = (None, 15, 10, 5)
WEIGHTS = (0.5, 0.75, 1.0, 1.25)
BONUSES = (0.0, 1.0, 2.0, 3.0)


@dataclass(frozen=True)
class Heard:
    """Clips as the model hears them at each signal-to-noise ratio (None: clean), and what was said."""

    texts: list[str]
    log_probs: dict[float | None, Rows]


def hear(recognizer: Recognizer, count: int, seed: int) -> Heard:
    """Held-out sentences by held-out voices → log-probabilities at each ratio."""
    clips, rows = spoken(count, seed), {}
    for snr_db in SNRS_DB:
        noisy = [c.samples if snr_db is None else with_noise(c.samples, snr_db, i) for i, c in enumerate(clips)]
        rows[snr_db] = recognizer.log_probs(noisy)
    return Heard([clip.text for clip in clips], rows)


def greedy(rows: Rows, alphabet: Alphabet, grid: FrameGrid) -> list[str]:
    return [text_of(decode(best_path(row), alphabet, grid, float("inf"))) for row in rows]


def beamed(rows: Rows, decoder: BeamDecoder) -> list[str]:
    return [found[0].text for found in decoder.decode(rows)]


def tune(heard: Heard, alphabet: Alphabet, models: dict[str, NGram]) -> None:
    """Mean word error rate over the ratios for each pair of weights."""
    for name, model in models.items():
        print(f"\n{name}: mean WER over the ratios, {len(heard.texts)} clips; rows lm_weight, columns word_bonus")
        print(" " * 6 + "".join(f"{bonus:8.2f}" for bonus in BONUSES))
        rates = {}
        for weight, bonus in product(WEIGHTS, BONUSES):
            decoder = BeamDecoder(alphabet, BeamOptions(lm_weight=weight, word_bonus=bonus), model)
            said = [beamed(rows, decoder) for rows in heard.log_probs.values()]
            rates[weight, bonus] = float(np.mean([wer(heard.texts, texts) for texts in said]))
        for weight in WEIGHTS:
            print(f"{weight:6.2f}" + "".join(f"{rates[weight, bonus]:8.1%}" for bonus in BONUSES), flush=True)


def line(name: str, rates: Sequence[float]) -> str:
    return f"  {name:<36}" + "".join(f"{rate:9.1%}" for rate in rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--sentences", type=int, default=20_000, help="sentences the models are trained on")
    parser.add_argument("--tune", action="store_true")
    arguments = parser.parse_args()
    recognizer = load_asr("demo/en", device="cpu")
    alphabet = recognizer.alphabet
    texts = other_sentences(arguments.sentences)
    models = {"3-gram of words": NGram.train(texts, 3), "6-gram of characters": NGram.train(texts, 6, "char")}
    if arguments.tune:
        tune(hear(recognizer, arguments.clips // 2, seed=7), alphabet, models)
    heard = hear(recognizer, arguments.clips, seed=11)
    print(f"\nword error rate, {arguments.clips} clips{'':<12}", end="")
    print("".join(f"{f'{snr} dB' if snr is not None else 'clean':>9}" for snr in SNRS_DB))
    rows = heard.log_probs.values()
    print(line("greedy", [wer(heard.texts, greedy(row, alphabet, recognizer.grid)) for row in rows]))
    decoders = {"beam alone": BeamDecoder(alphabet)} | {
        name: BeamDecoder(alphabet, lm=model) for name, model in models.items()
    }
    for name, decoder in decoders.items():
        print(line(name, [wer(heard.texts, beamed(row, decoder)) for row in rows]), flush=True)


if __name__ == "__main__":
    main()
