"""Speech without text → windows on disk → batches of equal lengths.

In: whatever `audio.load` takes, folders of it, or rows with an `audio`; texts are not looked at. Out: `Windows`, one
int16 file at 16 kHz that any number of processes read at random, and `PlannedBatches`, of which batch `i` depends on
the seed, the settings and `i` alone: a resumed run sees exactly what it would have seen. Knows no model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

from speechkit import audio as audio_in
from speechkit.asr.batch import normalise
from speechkit.asr.files import SUFFIXES
from speechkit.errors import AudioError, DataError, MissingExtra
from speechkit.training.masking import draw_negatives, span_mask

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from speechkit.asr.frames import FrameGrid

__all__ = ["BatchPlan", "PlannedBatches", "Skipped", "Windows", "sources"]

RATE = 16_000
SILENT = 1e-4  # RMS of full scale, -80 dB: there is nothing to tell apart
CUT = 0.85  # windows share a batch when the shortest is at least this long against the longest; all are cut to it
JITTER = 0.05  # of the length by which windows are sorted, so that neighbours differ from epoch to epoch


@dataclass(frozen=True, slots=True)
class Skipped:
    """Sound that is not trained on, and why."""

    name: str
    reason: str


def sources(audio: Any) -> Iterator[tuple[str, Any]]:
    """Files, folders (searched through), arrays, `(array, rate)`, rows with an "audio", objects with `.audio` → pairs
    of a name and what `audio.load` takes.

    Raises DataError for a folder without audio files.
    """
    items = [audio] if isinstance(audio, (str, os.PathLike, bytes, Mapping, np.ndarray)) else audio
    for number, item in enumerate(items, 1):
        if isinstance(item, (str, os.PathLike)):
            path = Path(item)
            yield from _of_folder(path) if path.is_dir() else [(str(path), path)]
        elif isinstance(item, Mapping) and "audio" in item:
            yield from sources([item["audio"]])
        elif hasattr(item, "audio"):
            yield str(getattr(item, "name", f"item {number}")), item.audio
        else:
            yield f"item {number}", item


def _of_folder(folder: Path) -> list[tuple[str, Path]]:
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        raise DataError(f"no audio files in {folder}; looked for {', '.join(sorted(SUFFIXES))} in it and below")
    return [(str(path), path) for path in found]


class Windows:
    """Pieces of sound on disk: `audio.i16` (all samples end to end) and `windows.npy` (M, 2): first sample, count."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.places: NDArray[np.int64] = np.load(folder / "windows.npy", allow_pickle=False)
        listed = json.loads((folder / "skipped.json").read_text(encoding="utf-8"))
        self.skipped = tuple(Skipped(**row) for row in listed)
        self._audio: NDArray[np.int16] | None = None

    def __len__(self) -> int:
        return len(self.places)

    @property
    def seconds(self) -> float:
        return float(self.places[:, 1].sum()) / RATE

    def __repr__(self) -> str:
        return f"Windows({len(self)} windows, {self.seconds / 60:.1f} min, {len(self.skipped)} sources left out)"

    def samples(self, index: int, offset: int = 0, count: int | None = None) -> NDArray[np.float32]:
        """`count` samples of window `index` from its sample `offset` on; float32 in [-1, 1]."""
        if self._audio is None:
            self._audio = np.memmap(self.folder / "audio.i16", dtype=np.int16, mode="r")
        first, length = (int(value) for value in self.places[index])
        wanted = length - offset if count is None else count
        return self._audio[first + offset : first + offset + wanted].astype(np.float32) / np.float32(32768)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_audio": None}  # a worker process maps the file itself

    @classmethod
    def open_or_write(cls, folder: Path, audio: Any, shortest_s: float, longest_s: float) -> Windows:
        """The windows in `folder`, cut from `audio` now unless they are there already.

        Long sound is cut into windows of `longest_s`; pieces shorter than `shortest_s` and silent ones are left out,
        sound that cannot be read is listed in `skipped`. Raises DataError where nothing is left.
        """
        if not (folder / "windows.npy").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            _write(folder, audio, shortest_s, longest_s)
        return cls(folder)


def _write(folder: Path, audio: Any, shortest_s: float, longest_s: float) -> None:
    places: list[tuple[int, int]] = []
    skipped: list[Skipped] = []
    written = 0
    with (folder / "audio.i16").open("wb") as file:
        for name, item in sources(audio):
            kept = []
            try:
                for piece in audio_in.blocks(item, longest_s):
                    if len(piece) >= shortest_s * RATE and np.sqrt(np.mean(np.square(piece))) > SILENT:
                        kept.append(piece)
                if not kept:
                    skipped.append(Skipped(name, f"nothing in it is longer than {shortest_s:g} s and not silent"))
            except (AudioError, MissingExtra) as error:  # what was read before it is kept
                skipped.append(Skipped(name, str(error)))
            for piece in kept:
                peak = max(1.0, float(np.abs(piece).max()))  # float audio may pass full scale
                file.write((piece / peak * 32767).astype(np.int16).tobytes())
                places.append((written, len(piece)))
                written += len(piece)
    if not places:
        reasons = "; ".join(f"{row.name}: {row.reason}" for row in skipped[:3]) or "no sound was given"
        raise DataError(f"no usable audio to pretrain on ({reasons}); give files, folders or arrays with speech")
    rows = [{"name": row.name, "reason": row.reason} for row in skipped]
    (folder / "skipped.json").write_text(json.dumps(rows, ensure_ascii=False) + "\n", encoding="utf-8")
    partial = folder / "windows.partial.npy"
    np.save(partial, np.array(places, dtype=np.int64), allow_pickle=False)
    partial.replace(folder / "windows.npy")  # last: a folder that has it is whole


@dataclass(frozen=True)
class BatchPlan:
    """How windows become batches."""

    steps: int  # batches in all
    budget_s: float  # seconds of sound per batch
    mask_start: float
    mask_frames: int
    negatives: int
    seed: int
    normalise: bool = True  # each window to zero mean and unit variance
    transform: Callable[[NDArray[np.float32], np.random.Generator], NDArray[np.float32]] | None = None


class PlannedBatches(Dataset[dict[str, torch.Tensor]]):
    """`plan.steps` batches; every epoch goes through all windows once, in a new order and in new company.

    A batch holds windows of nearly one length, each cut to the shortest at a random place: nothing is padded, so a
    model with group norm sees each as it would see it alone.
    """

    def __init__(self, windows: Windows, plan: BatchPlan, grid: FrameGrid) -> None:
        self.windows, self.plan, self.grid = windows, plan, grid
        self._epochs: list[list[NDArray[np.int64]]] = []

    def __len__(self) -> int:
        return self.plan.steps

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        """input_values (B, T), mask (B, F), negatives (B, S, K)."""
        plan, rng = self.plan, np.random.default_rng([self.plan.seed, step])
        indices = self.batch(step)
        count = int(self.windows.places[indices, 1].min())
        rows = np.stack([self._row(int(index), count, rng) for index in indices])
        mask = span_mask([self.grid.frames(rows.shape[1])] * len(rows), plan.mask_start, plan.mask_frames, rng)
        return {
            "input_values": torch.from_numpy(rows),
            "mask": torch.from_numpy(mask),
            "negatives": torch.from_numpy(draw_negatives(mask, plan.negatives, rng)),
        }

    def batch(self, step: int) -> NDArray[np.int64]:
        """The windows of batch `step`."""
        epoch = 0
        while step >= len(self._epoch(epoch)):
            step -= len(self._epoch(epoch))
            epoch += 1
        return self._epoch(epoch)[step]

    def _row(self, index: int, count: int, rng: np.random.Generator) -> NDArray[np.float32]:
        spare = int(self.windows.places[index, 1]) - count
        samples = self.windows.samples(index, int(rng.integers(spare + 1)), count)
        if self.plan.transform is not None:
            samples = self.plan.transform(samples, rng)[:count]
            samples = np.pad(samples, (0, count - len(samples)))
        return normalise(samples) if self.plan.normalise else samples

    def _epoch(self, number: int) -> list[NDArray[np.int64]]:
        while len(self._epochs) <= number:
            self._epochs.append(self._planned(len(self._epochs)))
        return self._epochs[number]

    def _planned(self, epoch: int) -> list[NDArray[np.int64]]:
        rng = np.random.default_rng([self.plan.seed, epoch, 1])  # batches use [seed, step]: not these
        lengths = self.windows.places[:, 1]
        order = np.argsort(lengths * rng.uniform(1 - JITTER, 1 + JITTER, len(lengths)), kind="stable")
        batches: list[list[int]] = [[]]
        shortest = longest = 0
        for index in order:
            length = int(lengths[index])
            low, high = min(shortest or length, length), max(longest, length)
            full = (len(batches[-1]) + 1) * low > self.plan.budget_s * RATE
            if batches[-1] and (full or low < CUT * high):
                batches.append([])
                low = high = length
            batches[-1].append(int(index))
            shortest, longest = low, high
        return [np.array(batches[i], dtype=np.int64) for i in rng.permutation(len(batches))]
