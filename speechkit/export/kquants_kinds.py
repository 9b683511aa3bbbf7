"""What GGUF's block types are made of: weights and bytes of a block, codes, trial scales. Numbers alone, no work.

Layouts and searches are those of llama.cpp (ggml-common.h, ggml-quants.c), described in performance.md 3.7.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["BITS", "BLOCK", "BYTES", "KINDS", "Kind", "trials_of"]


@dataclass(frozen=True)
class Kind:
    """One block type."""

    weights: int  # of a block
    bytes: int  # of a block
    size: int  # weights of a sub-block, which has a scale of its own
    top: int  # the largest code; of the types without minimum the largest magnitude of one
    affine: bool  # with a minimum: weight = scale · code + minimum, else scale · code
    halves: tuple[int, ...]  # where in a block a float16 begins
    # trials lay the range over top + low + step · t codes, t = 0 … count
    low: float = 0.0
    step: float = 0.0
    count: int = -1


KINDS = {
    "Q4_0": Kind(32, 18, 32, 8, False, (0,)),
    "Q5_0": Kind(32, 22, 32, 16, False, (0,)),
    "Q5_1": Kind(32, 24, 32, 31, True, (0, 2)),
    "Q8_0": Kind(32, 34, 32, 127, False, (0,)),
    "Q4_K": Kind(256, 144, 32, 15, True, (0, 2), -1.0, 0.1, 20),
    "Q5_K": Kind(256, 176, 32, 31, True, (0, 2), -0.5, 0.1, 15),
    "Q6_K": Kind(256, 210, 16, 32, False, (208,)),
}
BLOCK = {name: kind.weights for name, kind in KINDS.items()}  # weights of a block: a row's width is a multiple of it
BYTES = {name: kind.bytes for name, kind in KINDS.items()}  # of a block
BITS = {name: 8 * kind.bytes / kind.weights for name, kind in KINDS.items()}  # of a weight, scales included
WEIGHTED = (-0.9, 0.05, 36)  # low, step, count with an importance matrix


def trials_of(kind: Kind, weighted: bool) -> np.ndarray:
    """Over how many codes each trial lays the range, (trials,); in float32 at every step, as in C."""
    if not kind.affine:
        order = np.array([0, *range(-9, 0), *range(1, 10)], np.float32)
        return np.float32(kind.top) + np.float32(0.1) * order
    low, step, count = WEIGHTED if weighted else (kind.low, kind.step, kind.count)
    return (np.float32(low) + np.float32(step) * np.arange(count + 1, dtype=np.float32)) + np.float32(kind.top)
