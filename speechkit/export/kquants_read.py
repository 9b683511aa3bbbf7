"""GGUF's blocks read, compiled by numba. In: (B, bytes) uint8 and their scales as float32. Out: flat float32 weights.

The products are taken in the order of the gguf package's `dequantize`, in float32 at every step: the same numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from speechkit.export.kquants_numba import compiled

__all__ = ["read_affine", "read_eight", "read_nibbles", "read_six"]


@compiled
def read_affine(packed: Any, scales: Any, fifth: bool, x: Any) -> None:
    """Q4_K, Q5_K: (B, 144 or 176) and d, dmin (B, 2) → (B · 256,)."""
    for block in range(len(packed)):
        row, about = packed[block], packed[block, 4:16]
        high, nibbles = packed[block, 16:48], packed[block, 48 if fifth else 16 :]
        for j in range(8):
            if j < 4:
                scale, low = about[j] & 63, about[j + 4] & 63
            else:
                scale, low = row[8 + j] & 15 | row[j] >> 6 << 4, row[8 + j] >> 4 | row[4 + j] >> 6 << 4
            step, shift = scales[block, 0] * np.float32(scale), scales[block, 1] * np.float32(low)
            target, codes = x[block * 256 + j * 32 : block * 256 + j * 32 + 32], nibbles[j // 2 * 32 : j // 2 * 32 + 32]
            for i in range(32):
                code = codes[i] >> 4 * (j & 1) & 15
                if fifth:
                    code |= (high[i] >> j & 1) << 4
                target[i] = step * np.float32(code) - shift


@compiled
def read_six(packed: Any, scales: Any, x: Any) -> None:
    """Q6_K: (B, 210) and d (B, 1) → (B · 256,)."""
    steps = np.empty(256, np.float32)
    for block in range(len(packed)):
        row, target = packed[block], x[block * 256 : block * 256 + 256]
        for j in range(16):
            eight = np.int32(row[192 + j])
            steps[j * 16 : j * 16 + 16] = scales[block, 0] * np.float32(eight - 256 if eight > 127 else eight)
        for part in range(8):  # 32 weights each
            low = row[part // 4 * 64 + part % 2 * 32 :]
            high, shift = row[128 + part // 4 * 32 :], part % 4 // 2 * 4
            for i in range(32):
                code = low[i] >> shift & 15 | (high[i] >> part % 4 * 2 & 3) << 4
                target[part * 32 + i] = steps[part * 32 + i] * np.float32(np.int32(code) - 32)


@compiled
def read_nibbles(packed: Any, scales: Any, begin: int, fifth: bool, middle: Any, x: Any) -> None:
    """Q4_0, Q5_0, Q5_1: (B, bytes), d and minimum (B, 2), `middle` the code of nought → (B · 32,)."""
    for block in range(len(packed)):
        row, target = packed[block], x[block * 32 : block * 32 + 32]
        at, bits = begin, np.int64(0)
        if fifth:
            for i in range(4):
                bits |= np.int64(row[begin + i]) << 8 * i
            at += 4
        for i in range(32):
            code = row[at + i % 16] >> i // 16 * 4 & 15 | (bits >> i & 1) << 4
            target[i] = scales[block, 0] * np.float32(np.int32(code) - middle) + scales[block, 1]


@compiled
def read_eight(packed: Any, scales: Any, x: Any) -> None:
    """Q8_0: (B, 34) and d (B, 1) → (B · 32,)."""
    for block in range(len(packed)):
        codes, target = packed[block, 2:34], x[block * 32 : block * 32 + 32]
        d = scales[block, 0]
        for i in range(32):
            eight = np.int32(codes[i])
            target[i] = np.float32(eight - 256 if eight > 127 else eight) * d
