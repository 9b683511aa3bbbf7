"""Clips and their labels → padded tensors for a CTC model, exactly as `Recognizer` feeds it. Knows no model.

Each clip is normalised by itself and padded with zeros; the attention mask is there where lengths differ, and the
lengths travel with the batch for the group norms that need them (`asr.masks`). So a clip gives in a batch what it
gives alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

from speechkit.asr.batch import normalise, pad

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from speechkit.training.batches import BatchPlan
    from speechkit.training.data import Example

    Samples = NDArray[np.float32]
    Augment = Callable[[Samples, np.random.Generator], Samples]

__all__ = ["IGNORED", "Batches", "Clips", "collate"]

IGNORED = -100  # what transformers' models leave out of `labels`


def collate(clips: Sequence[Samples], labels: Sequence[Sequence[int]]) -> dict[str, Any]:
    """(T_b,) float32 each, as the model wants them; token ids each → a batch.

    `input_values` (B, T) float32; `attention_mask` (B, T) int64, only where lengths differ; `labels` (B, L) int64,
    padded with -100, at least one column; `samples`, the B lengths as a list.
    """
    samples = [len(clip) for clip in clips]
    targets = torch.full((len(clips), max(1, *map(len, labels))), IGNORED)
    for row, ids in zip(targets, labels, strict=True):
        row[: len(ids)] = torch.as_tensor(ids, dtype=torch.long)
    batch: dict[str, Any] = {"input_values": torch.from_numpy(pad(clips)), "labels": targets, "samples": samples}
    if min(samples) < max(samples):
        lengths = torch.tensor(samples)[:, None]
        batch["attention_mask"] = (torch.arange(max(samples))[None, :] < lengths).long()
    return batch


@dataclass
class Clips:
    """Examples with their labels, decoded when they are needed, and kept decoded where `cache` says so.

    `augment` changes a clip before it is normalised; `at_least` is the fewest samples that give a frame: what
    augmentation makes shorter is padded to it. Clip i of epoch e is changed in the same way however often it is asked.
    """

    examples: Sequence[Example] = field(repr=False)
    labels: Sequence[Sequence[int]] = field(repr=False)
    normalized: bool = True  # the model's feature extractor has `do_normalize`
    augment: Augment | None = None
    seed: int = 0
    cache: bool = False
    at_least: int = 400
    _decoded: dict[int, Samples] = field(default_factory=dict, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.examples)

    def samples(self, index: int, epoch: int = 0) -> Samples:
        """(T,) float32, as the model wants it."""
        ready = self._decoded.get(index)
        if ready is None:
            ready = self.examples[index].samples()
            if self.augment is None:
                ready = self._ready(ready)
            if self.cache:
                self._decoded[index] = ready
        if self.augment is None:
            return ready
        # the second number keeps these draws apart from those of the order of the batches
        rng = np.random.default_rng([self.seed, 1, epoch, index])
        return self._ready(self.augment(ready, rng))

    def batch(self, indices: Sequence[int], epoch: int = 0) -> dict[str, Any]:
        """Clips → their batch; see :func:`collate`."""
        return collate([self.samples(index, epoch) for index in indices], [self.labels[index] for index in indices])

    def _ready(self, samples: Samples) -> Samples:
        if len(samples) < self.at_least:
            samples = np.pad(samples, (0, self.at_least - len(samples)))
        return normalise(samples) if self.normalized else samples


class Batches(Dataset[dict[str, Any]]):
    """The first `count` batches of a plan as a torch dataset: item i is batch i, ready for the model."""

    def __init__(self, clips: Clips, plan: BatchPlan, count: int) -> None:
        self.clips, self.plan, self.count = clips, plan, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        batch = self.plan[index]
        return self.clips.batch(batch.clips, batch.epoch)

    def seconds(self, first: int, stop: int) -> float:
        """Audio in the batches `first` … `stop` - 1, padding not counted."""
        return sum(
            self.clips.examples[clip].seconds or 0.0 for index in range(first, stop) for clip in self.plan[index].clips
        )
