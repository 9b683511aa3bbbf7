"""Unlabelled speech for the encoder: eight languages by espeak-ng, and people whose recordings may be used for weights.

In: a seed, hours, and the folder of real speech. Out: arrays (T,) float32 at 16 kHz, each of one speaker, augmented.
Who is kept out is decided here, in one place, for training and for tests.
"""

from __future__ import annotations

import csv
import random
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import soundfile
import soxr

from speechkit.demo.recipes.augment import Augmentation, augment
from speechkit.demo.recipes.corpus import HELD_OUT_VARIANTS, VARIANTS, held_out
from speechkit.demo.recipes.espeak import EspeakVoice, synthesize
from speechkit.demo.recipes.grammar import Grammar
from speechkit.demo.recipes.languages import language
from speechkit.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

__all__ = ["HELD_OUT_ARABIC", "LANGUAGES", "Chain", "kept_out", "real_speech", "synthetic_speech"]

LANGUAGES = ("en", "zh", "ko", "pt", "pl", "cs", "sk", "uk")
RATE = 16_000
CLIP_S = (1.0, 15.0)  # a clip's length is drawn between, short ones as often as long ones on a log scale
DRAWN_SHARE, DRAWN_VARIANTS = 0.5, 800  # made-up speakers (variants.py)
MADE_UP_WORDS = 0.4  # share of the phrases: a grammar has a few hundred words, a language more sounds in a row
RUNS = (2, 9)  # letters of a made-up word

# six of the 24 Arabic speakers: what is fine-tuned from the encoder is evaluated on them
HELD_OUT_ARABIC = ("asc-00000003", "asc-00000008", "asc-00000013", "asc-00000018", "asc-00000023", "asc-00000028")
# Groups whose licences allow shipped weights (CC BY, CC BY-SA, Apache-2.0) and that are large enough to train on. The
# single sentences of other languages stay unheard: they are the only real people to test those languages with.
REAL_GROUPS = (
    "words_ar_asc",
    "sentences_en_librispeech",
    "words_en_speechcommands",
    "words_en_wakeword",
    "intent_en_barista",
    "digits_en_fsdd",
)
SYNTHETIC = Augmentation(speed_p=0.3, formants_p=0.1, room_p=0.2, equalizer_p=0.4, band_p=0.15, noise_p=0.4)
REAL = Augmentation(
    speed=(0.85, 1.18), speed_p=0.6, formants=(0.88, 1.15), formants_p=0.4, room_p=0.2, equalizer_p=0.5, band_p=0.3,
    noise_p=0.5, snr_db=(10.0, 40.0),
)  # fmt: skip


class Chain:
    """Made-up words in a language's own spelling: each letter follows the one before as often as in its words."""

    def __init__(self, words: Sequence[str]) -> None:
        self.after: dict[str, list[str]] = {}
        for word in sorted(words):
            for first, second in zip(f" {word}", f"{word} ", strict=True):
                self.after.setdefault(first, []).append(second)

    def word(self, rng: random.Random) -> str:
        """A word of two to nine letters; of none when the words had none."""
        for _ in range(100):
            letters: list[str] = []
            while len(letters) <= RUNS[1]:
                following = rng.choice(self.after[letters[-1] if letters else " "])
                if following == " ":
                    break
                letters.append(following)
            if RUNS[0] <= len(letters) <= RUNS[1]:
                return "".join(letters)
        return "".join(letters)


@cache
def _language(code: str) -> tuple[Grammar, Chain]:
    grammar = Grammar(code)
    return grammar, Chain(sorted(grammar.vocabulary()))


def _phrase(code: str, rng: random.Random) -> str:
    """A sentence of the grammar that no test uses, or made-up words."""
    grammar, chain = _language(code)
    if rng.random() < MADE_UP_WORDS:
        return " ".join(chain.word(rng) for _ in range(rng.randint(2, 7)))
    text = grammar.sentence(rng)
    while held_out(text):
        text = grammar.sentence(rng)
    return text


def synthetic_speech(
    hours: float, seed: int = 1, processes: int = 1, codes: Sequence[str] = LANGUAGES
) -> Iterator[np.ndarray]:
    """About `hours` of clips, as much of each language of `codes`, in turn; the held-out voices never speak."""
    seconds = dict.fromkeys(codes, 0.0)
    with ProcessPoolExecutor(processes) as pool:
        number = 0
        while min(seconds.values()) < hours * 3600 / len(codes):
            jobs = [(code, seed * 1_000_003 + number + at) for at, code in enumerate([*codes] * 16)]
            number += len(jobs)
            for (code, _), samples in zip(jobs, pool.map(_clip, jobs, chunksize=8), strict=True):
                if len(samples):
                    seconds[code] += len(samples) / RATE
                    yield samples


def _clip(job: tuple[str, int]) -> np.ndarray:
    """One speaker of one language: phrases with pauses between, until a drawn length is reached."""
    code, seed = job
    rng = random.Random(f"{code} {seed}")
    made_up = rng.random() < DRAWN_SHARE
    variant = f"drawn{rng.randrange(DRAWN_VARIANTS)}" if made_up else rng.choice([*VARIANTS, "", ""])
    assert variant not in HELD_OUT_VARIANTS
    voice = EspeakVoice(
        rng.choice(language(code).accents),
        variant,
        rng.randint(115, 215),
        rng.randint(15, 85),
        rng.choice([20, 40, 60, 80]),
    )
    wanted = CLIP_S[0] * (CLIP_S[1] / CLIP_S[0]) ** rng.random() * RATE
    pieces: list[np.ndarray] = []
    while sum(map(len, pieces)) < wanted * 0.8:
        pieces += [_trimmed(synthesize(_phrase(code, rng), voice)), np.zeros(round(rng.uniform(0.05, 0.4) * RATE))]
    return _finished(pieces, int(wanted), np.random.default_rng(seed), SYNTHETIC)


def _trimmed(samples: np.ndarray, keep_s: float = 0.05) -> np.ndarray:
    loud = np.flatnonzero(np.abs(samples) > 0.01 * (np.abs(samples).max(initial=0.0) + 1e-9))
    keep = int(keep_s * RATE)
    return samples[max(0, loud[0] - keep) : loud[-1] + keep] if len(loud) else samples


def _finished(pieces: list[np.ndarray], longest: int, rng: np.random.Generator, how: Augmentation) -> np.ndarray:
    """Joined, cut to `longest` samples and half as much again, at a common level, augmented."""
    samples = np.concatenate(pieces).astype(np.float32)[: longest + longest // 2]
    peak = float(np.abs(samples).max(initial=0.0))
    return augment(samples * (0.7 / peak), rng, how)[: int(CLIP_S[1] * RATE)] if peak else samples[:0]


def kept_out(speaker: str) -> bool:
    """Speakers that later tests evaluate on: all digit speakers, six of Arabic, a fifth of Speech Commands'."""
    return speaker.startswith(("fsdd-", "sc-3", "sc-a")) or speaker in HELD_OUT_ARABIC


def real_speech(folder: Path, seed: int = 1, times: int = 4, digits: bool = False) -> Iterator[np.ndarray]:
    """Every recording that may be used, `times` over, each time changed otherwise and joined to others of its speaker.

    `digits=True` takes the digit speakers as well: such an encoder must not be evaluated on them. Raises DataError for
    a folder without manifest.tsv.
    """
    manifest = folder / "manifest.tsv"
    if not manifest.is_file():
        raise DataError(f"no manifest.tsv in {folder}; name the folder of real speech, or leave --speech-data out")
    with manifest.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    speakers: dict[str, list[str]] = {}
    for row in rows:
        wanted = not kept_out(row["speaker"]) or (digits and row["speaker"].startswith("fsdd-"))
        if row["group"] in REAL_GROUPS and wanted:
            known = not row["speaker"].startswith("unknown")
            speakers.setdefault(row["speaker"] if known else row["path"], []).append(row["path"])
    rng = random.Random(f"real {seed}")
    for turn in range(times):
        for paths in speakers.values():
            waiting = rng.sample(paths, len(paths))
            while waiting:
                wanted = CLIP_S[0] * (CLIP_S[1] / CLIP_S[0]) ** rng.random() * RATE
                pieces: list[np.ndarray] = []
                while waiting and (not pieces or sum(map(len, pieces)) < wanted * 0.8):
                    pieces += [_read(folder / waiting.pop()), np.zeros(round(rng.uniform(0.05, 0.4) * RATE))]
                changed = np.random.default_rng([seed, turn, len(waiting)])
                yield _finished(pieces, int(CLIP_S[1] * RATE), changed, REAL)


def _read(path: Path) -> np.ndarray:
    samples, rate = soundfile.read(path, dtype="float32")
    return soxr.resample(samples, rate, RATE) if rate != RATE else samples
