"""Clips → training batches of one length, composed and augmented on the fly.

In: stores. Out: tensors for `Wav2Vec2ForCTC`.

Batch `i` depends on the seed and on `i` alone, so a resumed run sees exactly the batches that it would have seen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from speechkit.demo.recipes.augment import Augmentation, augment, colored_noise
from speechkit.demo.recipes.corpus import Clip, Store

__all__ = ["ALPHABET", "Batches", "encode", "normalized"]

ALPHABET = ["<pad>", "<s>", "</s>", "<unk>", "|", *"etaonihsrdlumwcfgypbvk'xjqz"]
IDS = {character: number for number, character in enumerate(ALPHABET)}
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


def encode(text: str) -> list[int]:
    """Lower-case text → token ids; spaces become the delimiter."""
    return [IDS[character] for character in text.replace(" ", "|") if character in IDS]


def normalized(x: np.ndarray) -> np.ndarray:
    """Zero mean, unit variance, as `Wav2Vec2FeatureExtractor(do_normalize=True)` does."""
    return ((x - x.mean()) / np.sqrt(x.var() + 1e-7)).astype(np.float32)


@dataclass(frozen=True)
class Mix:
    """Share of each pool among the clips of a batch, and the lengths that batches aim at."""

    shares: tuple[tuple[str, float], ...] = (
        ("synthetic", 0.8),
        ("flite", 0.05),
        ("digits", 0.07),
        ("words", 0.03),
        ("sentences", 0.05),
    )
    short_share: float = 0.12  # batches of single words
    wordless_share: float = 0.02  # silence and noise with an empty text: the model must not invent words
    longest_s: float = 12.0
    budget_s: float = 24.0  # seconds of audio per batch, padding included


class Batches(Dataset[dict[str, torch.Tensor]]):
    """A planned sequence of `count` batches.

    `warmup` first batches hold short clips only: CTC leaves the all-blank plateau sooner on them.
    """

    def __init__(self, stores: list[Store], count: int, seed: int, warmup: int = 0, mix: Mix | None = None) -> None:
        self.folders = [store.folder for store in stores]
        self.count, self.seed, self.warmup = count, seed, warmup
        self.mix = mix or Mix()
        pools: dict[str, list[tuple[int, Clip]]] = {}
        for number, store in enumerate(stores):
            for clip in store.clips:
                # its statistical voices are synthetic too, but learnt more slowly: they get a share of their own
                pools.setdefault("flite" if clip.speaker == "flite" else clip.pool, []).append((number, clip))
        self.pools = {name: sorted(rows, key=lambda row: row[1].count) for name, rows in pools.items()}
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
        if rng.random() < mix.short_share:
            target = float(rng.uniform(0.5, 1.3))
        else:
            target = float(np.exp(rng.uniform(np.log(1.3), np.log(4.0 if index < self.warmup else mix.longest_s))))
        present = [(name, share) for name, share in mix.shares if name in self.pools]
        # a pool without any clip short enough would pad the whole batch
        fitting = [row for row in present if self.lengths[row[0]][0] <= target * 1.1] or present
        names = [name for name, _ in fitting]
        weights = np.array([share for _, share in fitting])
        items = []
        for _ in range(max(1, int(mix.budget_s / (target + 0.4)))):
            pool = names[rng.choice(len(names), p=weights / weights.sum())]
            wordless = rng.random() < mix.wordless_share
            items.append(_wordless(target, rng) if wordless else self._item(pool, target, rng))
        return _collate(items)

    def _item(self, pool: str, target: float, rng: np.random.Generator) -> tuple[np.ndarray, str]:
        """One clip of about `target` seconds: a clip that long, or several of one speaker with pauses between."""
        lengths = self.lengths[pool]
        low, high = np.searchsorted(lengths, [target * 0.9, target * 1.05])
        if high - low < 8:  # few clips are that long: compose, or take the nearest shorter ones
            high = max(int(high), 1)
            low = 0 if pool in ("digits", "words") or high < 64 else high // 2
        number, clip = self.pools[pool][int(rng.integers(low, high))]
        pieces, texts = [self._samples(number, clip)], [clip.text]
        seconds = clip.seconds
        others = self.speakers[clip.speaker]
        while seconds < target * 0.75:
            number, clip = others[int(rng.integers(len(others)))]
            if seconds + clip.seconds > target * 1.15:
                break
            pause = np.zeros(int(rng.exponential(0.12) * 16000) + 320, dtype=np.float32)
            pieces += [pause, self._samples(number, clip)]
            texts.append(clip.text)
            seconds += clip.seconds + len(pause) / 16000
        real = pool not in ("synthetic", "flite")
        how = replace(REAL if real else SYNTHETIC, pad_s=(0.0, 0.4 if rng.random() < 0.7 else 0.03))
        return normalized(augment(np.concatenate(pieces), rng, how)), " ".join(texts)

    def _samples(self, number: int, clip: Clip) -> np.ndarray:
        if self._open is None:
            self._open = [Store(folder) for folder in self.folders]
        return self._open[number].samples(clip)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None}


def _wordless(seconds: float, rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """Digital silence, or noise, and the empty text."""
    count = int(seconds * 16000)
    level = 0.0 if rng.random() < 0.3 else 10 ** rng.uniform(-4, -1)
    return normalized(level * colored_noise(rng, count, float(rng.uniform(0, 2)))), ""


def _collate(items: list[tuple[np.ndarray, str]]) -> dict[str, torch.Tensor]:
    longest = max(len(samples) for samples, _ in items)
    labels = [encode(text) for _, text in items]
    width = max(1, *map(len, labels))  # one padding column where nobody speaks: the model wants a maximum
    values = torch.zeros(len(items), longest)
    mask = torch.zeros(len(items), longest, dtype=torch.long)
    targets = torch.full((len(items), width), -100)
    for row, ((samples, _), label) in enumerate(zip(items, labels, strict=True)):
        values[row, : len(samples)] = torch.from_numpy(samples)
        mask[row, : len(samples)] = 1
        targets[row, : len(label)] = torch.tensor(label)
    return {"input_values": values, "attention_mask": mask, "labels": targets}
