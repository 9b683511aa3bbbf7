"""Clips of many lengths → padded batches under a frame budget → results in input order. Knows no files and no text.

Clips are sorted by length, so a batch holds neighbours, and a batch is cut where padding would pass a sixth of it. When
the device runs out of memory the budget is halved once, with a warning, and the work goes on.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from speechkit.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from speechkit.asr.frames import FrameGrid

__all__ = ["Batcher", "default_budget", "default_slack", "is_out_of_memory", "normalise", "pad", "plan"]

R = TypeVar("R")

PADDING = 1 / 6  # largest share of a batch's frames that may be padding: what sorting cannot avoid is a few per cent
CPU_FRAMES = 500  # 10 s: only short clips share a batch on a CPU; long ones fill its caches and cores alone
SLACK_FRAMES = 13  # arithmetic on a weight and frame, against reading the weight once
SLACK_WEIGHTS = 5e8  # weights whose arithmetic on one frame takes as long as the calls of one pass
GPU_FRAMES_PER_GIB = 600  # the front-end of a large model takes about half a MiB per frame; this leaves two thirds free
GPU_FRAMES = (3000, 60_000)


def default_budget(device: str) -> int:
    """Padded frames per batch on `device`: 10 s of audio on a CPU, up to 20 minutes on a GPU with memory for it."""
    if not device.startswith("cuda"):
        return CPU_FRAMES
    import torch

    gib = torch.cuda.get_device_properties(device).total_memory / 2**30
    return int(np.clip(gib * GPU_FRAMES_PER_GIB, *GPU_FRAMES))


def default_slack(device: str, weights: int) -> int | None:
    """Frames by which a clip may be padded on `device` before it had better go alone; None: no matter how many.

    On a CPU a pass of its own costs a clip the calls and one more reading of all weights, padding costs arithmetic. The
    two are alike at `SLACK_FRAMES` for a large model and at more the smaller it is: an estimate from 15 GB/s of memory
    and 100 GFLOP/s. What comes of it is measured by `kernels/bench/asr_batch.py`.
    """
    return None if device.startswith("cuda") else SLACK_FRAMES + int(SLACK_WEIGHTS / max(weights, 1))


def normalise(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """(T,) → zero mean, unit variance, as `Wav2Vec2FeatureExtractor` does for one clip with `do_normalize`."""
    return (samples - samples.mean()) / np.sqrt(samples.var() + np.float32(1e-7))


def pad(clips: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """(T_b,) each → (B, max T_b), zeros behind the shorter ones."""
    out = np.zeros((len(clips), max(map(len, clips))), dtype=np.float32)
    for row, clip in zip(out, clips, strict=True):
        row[: len(clip)] = clip
    return out


def plan(frames: Sequence[int], budget: int, ragged: bool = True, slack: int | None = None) -> list[list[int]]:
    """Frame counts → batches of indices, the longest clips first (so that memory runs out early or not at all).

    A batch's padded size (clips x longest) stays within `budget` unless it is one clip; `ragged=False` puts only equal
    lengths together, and no clip is padded by more than `slack` frames.
    """
    batches: list[list[int]] = []
    longest = useful = 0
    for index in sorted(range(len(frames)), key=lambda i: (-frames[i], i)):
        size = frames[index]
        if batches:
            padded = (len(batches[-1]) + 1) * longest
            waste = 1 - (useful + size) / padded
            near = slack is None or longest - size <= slack
            if padded <= budget and near and waste <= (PADDING if ragged else 0):
                batches[-1].append(index)
                useful += size
                continue
        batches.append([index])
        longest = useful = size
    return batches


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` is the device's or the system's way of saying that memory ran out."""
    if isinstance(error, MemoryError):
        return True
    text = str(error).lower()
    # torch.OutOfMemoryError is a RuntimeError; the CPU allocator raises a plain one
    return isinstance(error, RuntimeError) and ("out of memory" in text or "not enough memory" in text)


@dataclass
class Batcher:
    """Plans, runs and repairs batches. `frame_budget` is state: once halved it stays halved."""

    grid: FrameGrid
    frame_budget: int
    ragged: bool = True
    slack: int | None = None
    halved: bool = False

    def run(self, clips: Sequence[NDArray[np.float32]], forward: Callable[[list[Any]], Sequence[R]]) -> list[R]:
        """`forward` over batches of `clips`; its results in the order of `clips`.

        Raises PlanError when memory runs out again after the budget was halved, or with a single clip.
        """
        frames = [self.grid.frames(len(clip)) for clip in clips]
        results: dict[int, R] = {}
        pending = plan(frames, self.frame_budget, self.ragged, self.slack)
        while pending:
            batch = pending[0]
            problem = ""
            try:
                results.update(zip(batch, forward([clips[i] for i in batch]), strict=True))
                pending.pop(0)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                problem = str(error).splitlines()[0] if str(error) else type(error).__name__
            if problem:  # outside the handler, whose traceback would keep the failed batch's tensors alive
                self._halve(frames, batch, problem)
                left = [i for batch in pending for i in batch]
                again = plan([frames[i] for i in left], self.frame_budget, self.ragged, self.slack)
                pending = [[left[i] for i in group] for group in again]
        return [results[index] for index in range(len(clips))]

    def _halve(self, frames: Sequence[int], batch: Sequence[int], problem: str) -> None:
        size = len(batch) * max(frames[i] for i in batch)
        if self.halved or len(batch) == 1:
            raise PlanError(
                f"out of memory with {len(batch)} clips ({size * self.grid.hop / self.grid.rate:.0f} s) in one batch: "
                f"{problem}. Lower recognizer.frame_budget or recognizer.window_s, or use a smaller model"
            )
        self.frame_budget = max(1, min(self.frame_budget, size) // 2)
        self.halved = True
        _release()
        warnings.warn(
            f"out of memory with {len(batch)} clips in one batch: frame budget halved to {self.frame_budget}, going on",
            ResourceWarning,
            stacklevel=2,
        )


def _release() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
