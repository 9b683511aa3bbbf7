"""Clips → training batches of one length, composed and augmented on the fly.

In: stores. Out: tensors for `Wav2Vec2ForCTC`.

Batch `i` depends on the seed, the settings and `i` alone, so a resumed run sees exactly the batches that it would have
seen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

from speechkit.demo.recipes.augment import Augmentation, augment, colored_noise
from speechkit.demo.recipes.corpus import Clip, Store
from speechkit.demo.recipes.languages import tokens

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Batches", "Mix", "encode", "normalized", "voice_of"]

TRIES = 12  # at a clip of a voice that is wanted more often
MIXED_FROM_S = 3.0  # shorter ones would hold a word of each speaker
REAL = Augmentation(
    speed=(0.8, 1.25),
    speed_p=0.9,
    formants=(0.84, 1.2),
    formants_p=0.6,
    room_p=0.35,
    equalizer_p=0.6,
    band_p=0.45,
    noise_p=0.7,
)
SYNTHETIC = Augmentation(  # there are many voices already: gentler
    speed_p=0.4, formants_p=0.1, room_p=0.1, equalizer_p=0.3, band_p=0.15, noise_p=0.3, snr_db=(10.0, 40.0)
)

SETTLED = replace(SYNTHETIC, speed_p=0.2, formants_p=0.05, room_p=0.05, equalizer_p=0.15, band_p=0.08, noise_p=0.15)


def encode(text: str, ids: Mapping[str, int]) -> list[int]:
    """Normalised text → token ids; spaces become the delimiter, and what has no token is left out."""
    return [ids[character] for character in text.replace(" ", "|") if character in ids]


def normalized(x: np.ndarray) -> np.ndarray:
    """Zero mean, unit variance, as `Wav2Vec2FeatureExtractor(do_normalize=True)` does."""
    return ((x - x.mean()) / np.sqrt(x.var() + 1e-7)).astype(np.float32)


@dataclass(frozen=True)
class Mix:
    """Share of each pool among the clips of a batch, and the lengths that batches aim at."""

    shares: tuple[tuple[str, float], ...] = (
        ("synthetic", 0.87),
        ("flite", 0.03),
        ("digits", 0.06),
        ("words", 0.03),
        ("sentences", 0.01),
    )
    # few people spoke the digits and command words, and these recordings are all that the model hears of people
    short_shares: tuple[tuple[str, float], ...] = (
        ("synthetic", 0.45),
        ("flite", 0.05),
        ("digits", 0.35),
        ("words", 0.15),
    )
    short_share: float = 0.13  # batches of single words
    mixed_share: float = 0.35  # of the longer clips: several speakers, one after the other
    tight_share: float = 0.5  # cut where the sound begins and ends, as recordings of single words are
    wordless_share: float = 0.02  # silence and noise with an empty text: the model must not invent words
    settle_at: float = 0.5  # share of the batches; from here on synthetic clips are changed half as often
    longest_s: float = 16.0
    budget_s: float = 24.0  # seconds of audio per batch, padding included


class Batches(Dataset[dict[str, torch.Tensor]]):
    """A planned sequence of `count` batches.

    `warmup` first batches hold short clips only: CTC leaves the all-blank plateau sooner on them. `focus` says how
    often a synthetic voice is heard beside the others (see `focus.py`).
    """

    def __init__(
        self,
        stores: list[Store],
        count: int,
        seed: int,
        warmup: int = 0,
        mix: Mix | None = None,
        focus: Mapping[str, float] | None = None,
        language: str = "en",
    ) -> None:
        self.ids = {token: number for number, token in enumerate(tokens(language))}
        self.folders = [store.folder for store in stores]
        self.count, self.seed, self.warmup = count, seed, warmup
        self.mix, self.focus = mix or Mix(), dict(focus or {})
        pools: dict[str, list[tuple[int, Clip]]] = {}
        for number, store in enumerate(stores):
            for clip in store.clips:
                # its statistical voices are synthetic too, but learnt more slowly: they get a share of their own
                pools.setdefault("flite" if clip.speaker == "flite" else clip.pool, []).append((number, clip))
        self.pools = {name: sorted(rows, key=lambda row: row[1].count) for name, rows in pools.items()}
        self.joinable = [name for name in self.pools if name != "sentences"]  # too long to go between others
        self.lengths = {name: np.array([clip.seconds for _, clip in rows]) for name, rows in self.pools.items()}
        self.speakers: dict[str, list[tuple[int, Clip]]] = {}
        for rows in self.pools.values():
            for row in rows:
                self.speakers.setdefault(row[1].speaker, []).append(row)
        self._open: list[Store] | None = None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng([self.seed, index])
        mix = self.mix
        settled = index >= mix.settle_at * self.count
        short = rng.random() < mix.short_share
        if short:
            target = float(rng.uniform(0.5, 1.3))
        else:
            target = float(np.exp(rng.uniform(np.log(1.3), np.log(4.0 if index < self.warmup else mix.longest_s))))
        shares = mix.short_shares if short else mix.shares
        present = [(name, share) for name, share in shares if name in self.pools]
        # a pool without any clip short enough would pad the whole batch
        fitting = [row for row in present if self.lengths[row[0]][0] <= target * 1.1] or present
        names = [name for name, _ in fitting]
        weights = np.array([share for _, share in fitting])
        items = []
        for _ in range(max(1, int(mix.budget_s / (target + 0.4)))):
            pool = names[rng.choice(len(names), p=weights / weights.sum())]
            wordless = rng.random() < mix.wordless_share
            items.append(_wordless(target, rng) if wordless else self._item(pool, target, rng, settled))
        return _collate(items, self.ids)

    def _item(self, pool: str, target: float, rng: np.random.Generator, settled: bool) -> tuple[np.ndarray, str]:
        """About `target` seconds: a clip that long, or several with pauses between, of one speaker or of many."""
        mixed = target > MIXED_FROM_S and rng.random() < self.mix.mixed_share
        number, clip = self._of_length(pool, target * float(rng.uniform(0.1, 0.7)) if mixed else target, rng)
        pieces, texts = [_leveled(self._samples(number, clip), mixed, rng)], [clip.text]
        seconds = clip.seconds
        others = self.speakers[clip.speaker]
        while seconds < target * 0.75:
            if mixed:
                others = self.pools[
                    pool if rng.random() < 0.5 else self.joinable[int(rng.integers(len(self.joinable)))]
                ]
            number, clip = others[int(rng.integers(len(others)))]
            if seconds + clip.seconds > target * 1.15:
                break
            pause = np.zeros(int(rng.exponential(0.12) * 16000) + 320, dtype=np.float32)
            pieces += [pause, _leveled(self._samples(number, clip), mixed, rng)]
            texts.append(clip.text)
            seconds += clip.seconds + len(pause) / 16000
        real = pool not in ("synthetic", "flite") and not mixed
        silence = 0.03 if rng.random() < self.mix.tight_share else 0.4
        how = replace(REAL if real else SETTLED if settled else SYNTHETIC, pad_s=(0.0, silence))
        return normalized(augment(np.concatenate(pieces), rng, how)), " ".join(texts)

    def _of_length(self, pool: str, target: float, rng: np.random.Generator) -> tuple[int, Clip]:
        """A clip of about `target` seconds, or a shorter one where few are that long."""
        lengths = self.lengths[pool]
        low, high = np.searchsorted(lengths, [target * 0.9, target * 1.05])
        if high - low < 8:
            high = max(int(high), 1)
            low = 0 if pool in ("digits", "words") or high < 64 else high // 2
        most = max(self.focus.values(), default=1.0)
        for _ in range(TRIES):
            number, clip = self.pools[pool][int(rng.integers(low, high))]
            if not self.focus or pool != "synthetic" or rng.random() * most < self.focus.get(voice_of(clip), 1.0):
                break
        return number, clip

    def _samples(self, number: int, clip: Clip) -> np.ndarray:
        if self._open is None:
            self._open = [Store(folder) for folder in self.folders]
        return self._open[number].samples(clip)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None}


def voice_of(clip: Clip) -> str:
    """`en-us+f3` → `f3`: the speaker, whatever the accent."""
    return clip.speaker.partition("+")[2]


def _leveled(samples: np.ndarray, mixed: bool, rng: np.random.Generator) -> np.ndarray:
    """Different speakers are not equally loud."""
    return samples * np.float32(10 ** (rng.uniform(-9, 3) / 20)) if mixed else samples


def _wordless(seconds: float, rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """Digital silence, or noise, and the empty text."""
    count = int(seconds * 16000)
    level = 0.0 if rng.random() < 0.3 else 10 ** rng.uniform(-4, -1)
    return normalized(level * colored_noise(rng, count, float(rng.uniform(0, 2)))), ""


def _collate(items: list[tuple[np.ndarray, str]], ids: Mapping[str, int]) -> dict[str, torch.Tensor]:
    longest = max(len(samples) for samples, _ in items)
    labels = [encode(text, ids) for _, text in items]
    width = max(1, *map(len, labels))  # one padding column where nobody speaks: the model wants a maximum
    values = torch.zeros(len(items), longest)
    mask = torch.zeros(len(items), longest, dtype=torch.long)
    targets = torch.full((len(items), width), -100)
    for row, ((samples, _), label) in enumerate(zip(items, labels, strict=True)):
        values[row, : len(samples)] = torch.from_numpy(samples)
        mask[row, : len(samples)] = 1
        targets[row, : len(label)] = torch.tensor(label)
    return {"input_values": values, "attention_mask": mask, "labels": targets}
