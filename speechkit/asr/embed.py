"""Hidden layers of a speech model: audio → frame vectors with their times, or one vector for the whole clip.

In: audio and the name of a layer. Out: `Embedding`. Layer 0 is what enters the first transformer block, layer n what
leaves block n (transformers' `hidden_states`); widths and the number of layers come from the model's config.

Which layer is best depends on the question: speaker and sound stand in the early ones, phones and words in the middle
to upper ones, and the last one or two of a fine-tuned model know letters and little else (Pasad et al. 2021,
arXiv:2107.04734; measure it on your own labels with `evaluation.probe`). Knows no labels and no files.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from speechkit.errors import DataError, PlanError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from speechkit.asr.frames import FrameGrid

    Floats = NDArray[np.floating]

__all__ = [
    "DTYPES",
    "POOLS",
    "Embedding",
    "Layers",
    "Pool",
    "Rows",
    "check",
    "joined",
    "pooled",
    "rows",
    "same_weights",
    "speech_frames",
]

Pool = Literal["mean", "mean+std", "max"]
POOLS, DTYPES = ("mean", "mean+std", "max"), ("float32", "float16")
Wanted = int | Literal["all"] | Sequence[int] | Mapping[int, float]
QUIET_DB = 40  # frames further than this below the loudest of their clip are taken for pauses
SILENT_DB = -80  # of full scale: a clip that is nowhere louder has no sound to tell from its pauses
LEAST_DB = -200  # of a frame of zeros


@dataclass(frozen=True, eq=False)
class Embedding:
    """What a model's hidden layers make of one clip.

    `vectors` is (F, D) for frames, (D,) pooled (2 D for "mean+std"), float32 or float16; with several layers asked for
    a layer axis comes first: (L, F, D), (L, D). `times_s` (F,) is the middle of each frame, empty when pooled.
    """

    vectors: Floats = field(repr=False)
    times_s: NDArray[np.float64] = field(repr=False)
    layers: tuple[int, ...]
    pool: Pool | None
    duration_s: float
    model: str

    def __repr__(self) -> str:
        what = f"{self.pool} of" if self.pool else "frames of"
        layers = f"layer {self.layers[0]}" if len(self.layers) == 1 else f"{len(self.layers)} layers"
        return f"Embedding({what} {layers} of {self.model}, {self.duration_s:.2f} s, shape {self.vectors.shape})"


@dataclass(frozen=True)
class Layers:
    """Layers of a model of `depth` blocks; `weights` (one per layer, their sum 1) make one layer of several."""

    ids: tuple[int, ...]
    weights: tuple[float, ...] | None
    single: bool  # no layer axis in the result

    @classmethod
    def of(cls, wanted: Wanted, depth: int) -> Layers:
        """`3`, `-1` (the last), `"all"`, `[3, 6]` (a layer axis) or `{3: 0.3, 6: 0.7}` (their weighted mean).

        Raises PlanError for a layer that the model does not have, or weights that are negative or all zero.
        """
        if isinstance(wanted, str) and wanted == "all":
            return cls(tuple(range(depth + 1)), None, single=False)
        if isinstance(wanted, Mapping):
            ids = tuple(_layer(layer, depth) for layer in wanted)
            given = list(wanted.values())
            usable = all(isinstance(w, numbers.Real) and math.isfinite(w) and w >= 0 for w in given)
            if not usable or not any(given):
                raise PlanError(f"layer weights are {given}; give numbers of 0 or more, at least one above 0")
            total = float(sum(given))
            return cls(ids, tuple(float(weight) / total for weight in given), single=True)
        if isinstance(wanted, Sequence) and not isinstance(wanted, str):
            if not wanted:
                raise PlanError(f"no layer is asked for; this model has layers 0 to {depth}")
            return cls(tuple(_layer(layer, depth) for layer in wanted), None, single=False)
        return cls((_layer(wanted, depth),), None, single=True)

    def take(self, states: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """States (F, D) of the layers `ids`, in that order → (L, F, D); weighted: (1, F, D)."""
        if self.weights is None:
            return np.stack(states)
        mixed = np.zeros_like(states[0])
        for state, weight in zip(states, self.weights, strict=True):
            mixed += np.float32(weight) * state
        return mixed[None]


def _layer(layer: object, depth: int) -> int:
    if not isinstance(layer, int | np.integer) or isinstance(layer, bool):
        raise PlanError(
            f'layer is {layer!r}; it can be a number, "all", a list of numbers, or a dict of layers and weights'
        )
    if not -depth - 1 <= layer <= depth:
        raise PlanError(
            f"layer {layer} does not exist: this model has {depth} blocks, so layers 0 to {depth} "
            f"(0 enters the first block; -1 is layer {depth})"
        )
    return int(layer) % (depth + 1)


def check(pool: object, dtype: object) -> None:
    """Raise PlanError unless `pool` is None or one of `POOLS`, and `dtype` one of `DTYPES`."""
    if pool is not None and pool not in POOLS:
        raise PlanError(f"pool is {pool!r}; it can be None (every frame), {', '.join(map(repr, POOLS))}")
    if dtype not in DTYPES:
        raise PlanError(f"dtype is {dtype!r}; embeddings are kept as {' or '.join(map(repr, DTYPES))}")


def speech_frames(samples: NDArray[np.float32], frames: int, grid: FrameGrid) -> NDArray[np.bool_]:
    """(T,) → (frames,) True where a frame's level is within 40 dB of the loudest; all True where there is no sound.

    Levels are counted in whole dB. Pauses and room noise would otherwise be averaged into the vector of the clip. A
    level, not a voice detector: it leaves a loud noise in, and costs nothing.
    """
    levels = _levels(samples, frames, grid)
    return np.asarray(levels >= _floor(levels))


def _floor(levels: NDArray[np.int64]) -> int:
    """The lowest level that is speech where these are all there are."""
    loudest = int(levels.max(initial=LEAST_DB))
    return LEAST_DB if loudest < SILENT_DB else loudest - QUIET_DB


def _levels(samples: NDArray[np.float32], frames: int, grid: FrameGrid) -> NDArray[np.int64]:
    """(T,) → (frames,) root mean square of each frame's field, in whole dB of full scale."""
    energy = np.concatenate([[0.0], np.cumsum(samples.astype(np.float64) ** 2)])
    first = np.arange(frames) * grid.hop
    power = (energy[first + grid.field] - energy[first]) / grid.field
    return np.rint(10 * np.log10(np.maximum(power, 10 ** (LEAST_DB / 10)))).astype(np.int64)


@dataclass(frozen=True)
class Rows:
    """The layers of one window, frame by frame: (L, F, D), and with `pool` the level (F,) of each frame in dB.

    A slice of frames is what is kept of a window: the frames themselves, or with `pool` no more than their sums.
    """

    states: Floats
    levels: NDArray[np.int64]
    pool: Pool | None

    def __getitem__(self, frames: slice) -> Floats | _Sums:
        states = self.states[:, frames]
        return states if self.pool is None else _Sums.of(states, self.levels[frames], self.pool)


@dataclass(frozen=True)
class _Sums:
    """What pooling needs of some frames: float64 sums per level, for how loud the rest of the clip is shows later.

    Of the levels of one window at most `QUIET_DB` + 1 can be speech (all, where it is silent): more frames take no more
    room.
    """

    levels: NDArray[np.int64]  # (N,) dB, ascending
    counts: NDArray[np.int64]  # (N,)
    kept: Floats  # (L, N, D) sums, for "max" the highest values
    squares: Floats | None  # (L, N, D) for "mean+std"

    @classmethod
    def of(cls, states: Floats, levels: NDArray[np.int64], pool: Pool) -> _Sums:
        """States (L, F, D) and levels (F,) → their sums; what is a pause beside these frames is one in the clip too."""
        order = np.argsort(levels, kind="stable")
        order = order[levels[order] >= _floor(levels)]
        found, first, counts = np.unique(levels[order], return_index=True, return_counts=True)
        ordered = states[:, order].astype(np.float64)
        join = np.maximum if pool == "max" else np.add
        squares = np.add.reduceat(ordered**2, first, axis=1) if pool == "mean+std" else None
        return cls(found, counts, join.reduceat(ordered, first, axis=1), squares)


def rows(
    states: NDArray[np.float32],
    samples: NDArray[np.float32],
    grid: FrameGrid,
    pool: Pool | None,
    speech_only: bool,
    dtype: str,
) -> Rows:
    """States (L, F, D) of one window and its samples (T,) → rows ready to be cut."""
    frames = states.shape[1]
    if pool is None:
        return Rows(_stored(states, dtype), np.zeros(frames, np.int64), None)
    return Rows(states, _levels(samples, frames, grid) if speech_only else np.zeros(frames, np.int64), pool)


def _stored(vectors: NDArray[np.float32], dtype: str) -> Floats:
    with np.errstate(over="ignore"):
        found = vectors.astype(dtype)
    if np.isinf(found).any() and np.isfinite(vectors).all():
        most = float(np.abs(vectors).max())
        raise DataError(f"the vectors reach {most:.3g} and float16 ends at 65504: take dtype='float32'")
    return found


def joined(
    parts: Sequence[Any], layers: Layers, pool: Pool | None, dtype: str, grid: FrameGrid, samples: int, model: str
) -> Embedding:
    """The kept rows of a clip's windows, in order → its embedding."""
    vectors = _stored(pooled(parts, pool), dtype) if pool else np.concatenate(parts, axis=1)
    frames = 0 if pool else vectors.shape[1]
    times_s = (np.arange(frames) * grid.hop + grid.field / 2) / grid.rate
    shaped = vectors[0] if layers.single else vectors
    return Embedding(shaped, times_s, layers.ids, pool, samples / grid.rate, model)


def pooled(parts: Sequence[_Sums], pool: Pool) -> NDArray[np.float32]:
    """Sums of a clip's windows → (L, D); (L, 2 D) for "mean+std" (population standard deviation).

    What is speech is decided here, by the loudest frame of all windows, so it does not depend on where they were cut.
    """
    floor = _floor(np.concatenate([part.levels for part in parts]))
    heard = [part.levels >= floor for part in parts]
    kept = [part.kept[:, loud] for part, loud in zip(parts, heard, strict=True)]
    if pool == "max":
        return np.concatenate(kept, axis=1).max(axis=1).astype(np.float32)
    count = sum(int(part.counts[loud].sum()) for part, loud in zip(parts, heard, strict=True))
    mean = np.sum([sums.sum(axis=1) for sums in kept], axis=0) / count
    if pool == "mean":
        return np.asarray(mean, np.float32)
    squares = [part.squares[:, loud] for part, loud in zip(parts, heard, strict=True) if part.squares is not None]
    variance = np.sum([sums.sum(axis=1) for sums in squares], axis=0) / count - mean**2
    return np.concatenate([mean, np.sqrt(np.maximum(variance, 0.0))], axis=1).astype(np.float32)


def same_weights(one: str, other: str) -> bool:
    """Whether two models' identities (`Recognizer.identity`) end in the same digest: a folder may have moved."""
    return one.rpartition(" ")[2] == other.rpartition(" ")[2]
