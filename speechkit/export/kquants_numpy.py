"""GGUF's blocks by NumPy alone: the same bytes as the compiled searches, an order of magnitude later.

In: rows of float32 weights. Out: (B, bytes) uint8, and back. Sub-blocks lie along the *last* axis of every array, and
sums over the weights of one are taken row after row, in the order of llama.cpp's loops: that makes the bytes equal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from speechkit import extras
from speechkit.export.kquants_kinds import KINDS, Kind, trials_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Bytes = NDArray[np.uint8]

__all__ = ["read", "write"]

SMALLEST = np.float32(1e-15)  # below, a sub-block without minimum is nought
SIXTY_THREE = np.float32(63)


def write(x: Floats, kind: str, importance: Floats | None, packed: Bytes) -> bool:
    """(N, K) → packed (B, bytes of a block); whether all weights are finite. importance: (K,), where any is given."""
    with np.errstate(all="ignore"):
        packed[:] = _blocks(x, np.ascontiguousarray(x.reshape(-1, KINDS[kind].size).T), kind, importance)
        return bool(np.isfinite(x).all())


def _blocks(x: Floats, columns: Floats, kind: str, importance: Floats | None) -> Bytes:
    """columns: x as sub-blocks, (size, S)."""
    about, weighted = KINDS[kind], importance is not None
    if kind == "Q8_0":
        return _eight_bit(columns)
    if about.weights == 32 and not weighted:
        return _pack_range(columns, about) if about.affine else _pack_signed(columns, about)
    weight, trials = _weights(x, columns, importance, about), trials_of(about, weighted)
    if not about.affine:
        found = _search_symmetric(columns, weight, trials, about.top)
        return _pack_six(columns, found) if kind == "Q6_K" else _pack_found(columns, found, about)
    found = _search_affine(columns, weight, trials, np.float32(about.top))
    return _pack_ranged(columns, found, about) if kind == "Q5_1" else _pack_affine(columns, found, about, weighted)


def _weights(x: Floats, columns: Floats, importance: Floats | None, about: Kind) -> Floats:
    """(size, S): how much each weight's error counts."""
    if importance is None:
        if not about.affine:
            return columns * columns
        return np.sqrt(_sum(columns * columns) / np.float32(32)) + np.abs(columns)
    given = np.tile(importance.reshape(-1, about.size).T, (1, len(x)))  # (size, S)
    if about.size == 16:
        return given
    groups = x.reshape(-1, 256) if about.weights == 256 else x  # the spread is that of a block, or of the whole row
    factor = np.float32(2 if about.weights == 256 else 1)
    spread = factor * _sum(np.ascontiguousarray((groups * groups).T)) / np.float32(groups.shape[1])
    each = np.repeat(spread, groups.shape[1] // about.size)
    return given * np.sqrt(each + columns * columns)


def _search_affine(x: Floats, weight: Floats, trials: Floats, top: np.float32) -> Floats:
    """(32, S) → (5, S): scale, minimum, inverse scale and minimum that the best codes were rounded with, Σ weights."""
    total, sum_x = _sum(weight), _sum(weight * x)
    low, high = np.minimum(x.min(axis=0), np.float32(0)), x.max(axis=0)
    flat = high <= low
    inverse = top / (high - low)
    scale, used_low = np.float32(1) / inverse, low
    inverse = used = np.where(inverse < np.inf, inverse, np.float32(0))
    best = _sum(weight * np.square(scale * _codes(x, inverse, low, top) + low - x))
    for wanted in trials:
        inverse = wanted / (high - low)
        inverse = np.where(np.abs(inverse) < np.inf, inverse, np.float32(0))
        codes = _codes(x, inverse, low, top)
        weighted = weight * codes
        s_l, s_ll, s_xl = _sum(weighted), _sum(weighted * codes), _sum(weighted * x)
        det = total * s_ll - s_l * s_l
        this_scale, this_low = (total * s_xl - sum_x * s_l) / det, (s_ll * sum_x - s_l * s_xl) / det
        this_scale = np.where(this_low > 0, s_xl / s_ll, this_scale)
        this_low = np.where(this_low > 0, np.float32(0), this_low)
        error = _sum(weight * np.square(this_scale * codes + this_low - x))
        better = (det > 0) & (error < best)
        best, scale = np.where(better, error, best), np.where(better, this_scale, scale)
        used, used_low = np.where(better, inverse, used), np.where(better, low, used_low)
        low = np.where(better, this_low, low)
    scale, used = np.where(flat, np.float32(0), scale), np.where(flat, np.float32(0), used)
    return np.stack([scale, low, used, used_low, total])


def _search_symmetric(x: Floats, weight: Floats, trials: Floats, top: int) -> Floats:
    """(size, S) → (3, S): scale, 1 where all is nought, inverse scale of the codes."""
    peak = _peak(x)
    nothing = np.abs(peak) < SMALLEST
    peak = np.where(nothing, np.float32(1), peak)
    pulled = weight * x
    scale = best = used = np.zeros_like(peak)
    for trial, wanted in enumerate(trials):
        inverse = -wanted / peak
        codes = np.clip(np.rint(inverse * x), -top, top - 1)
        s_xl, s_ll = _sum(pulled * codes), _sum(weight * codes * codes)
        this = np.where(s_ll > 0, s_xl / s_ll, np.float32(0))
        better = (s_ll > 0) & (s_xl * s_xl > best * s_ll) if trial else np.ones(len(peak), bool)
        scale, used = np.where(better, this, scale), np.where(better, inverse, used)
        best = np.where(better, this * s_xl, best)
    return np.stack([np.where(nothing, np.float32(0), scale), nothing.astype(np.float32), used])


def _shares(parts: Floats, weight: Floats) -> tuple[Floats, Floats]:
    """(8, B) in whole shares 0 … 63 of one scale: shares and the scale (B,). Nine trials, then one part at a time."""
    most = np.maximum(parts.max(axis=0), np.float32(0))
    nothing = most < SMALLEST
    best = used = np.zeros_like(most)
    for trial in (0, -4, -3, -2, -1, 1, 2, 3, 4):
        inverse = (np.float32(0.1) * np.float32(trial) + SIXTY_THREE) / most
        off = parts - (np.float32(1) / inverse) * np.minimum(np.rint(inverse * parts), SIXTY_THREE)
        error = _sum(weight * off * off)
        better = error < best if trial else np.ones(len(most), bool)
        best, used = np.where(better, error, best), np.where(better, inverse, used)
    shares = np.minimum(np.rint(used * parts), SIXTY_THREE)
    s_xl, s_ll = _sum(weight * parts * shares), _sum(weight * shares * shares)
    for i in [*range(8)] * 5:
        w, part, share = weight[i], parts[i], shares[i]
        xl, ll = s_xl - w * part * share, s_ll - w * share * share
        new = np.minimum(np.rint(part * ll / xl), SIXTY_THREE)
        tried = (xl > 0) & (ll > 0) & (new != share)
        xl, ll = xl + w * part * new, ll + w * new * new
        better = tried & (xl * xl * s_ll > s_xl * s_xl * ll)
        shares[i] = np.where(better, new, share)
        s_xl, s_ll = np.where(better, xl, s_xl), np.where(better, ll, s_ll)
    scale = np.where(s_ll > 0, s_xl / s_ll, np.float32(0))
    return np.where(nothing, np.float32(0), shares), np.where(nothing, np.float32(0), scale)


def _shares_of_largest(parts: Floats) -> tuple[Floats, Floats]:
    most = np.maximum(parts.max(axis=0), np.float32(0))
    inverse = SIXTY_THREE / most
    inverse = np.where(inverse < np.inf, inverse, np.float32(0))
    return np.clip(np.rint(inverse * parts), 0, SIXTY_THREE), most / SIXTY_THREE


def _pack_affine(x: Floats, found: Floats, about: Kind, weighted: bool) -> Bytes:
    """d, dmin, 8 + 8 shares of 6 bits, codes: rounded again for the scales as stored."""
    scale, low, inverse, used_low, total = found
    scales, lows, weight = (np.ascontiguousarray(part.reshape(-1, 8).T) for part in (scale, -low, total))  # (8, B)
    six, d = _shares(scales, weight) if weighted else _shares_of_largest(scales)
    six_low, d_low = _shares(lows, weight) if weighted else _shares_of_largest(lows)
    half, half_low = d.astype(np.float16), d_low.astype(np.float16)
    step, shift = ((part.astype(np.float32) * share).T.ravel() for part, share in ((half, six), (half_low, six_low)))
    again = np.clip(np.rint((x + shift) / step), 0, about.top)
    codes = np.where(step == 0, _codes(x, inverse, used_low, np.float32(about.top)), again)
    bits = _whole(codes).T.reshape(-1, 4, 2, 32)  # (B, pairs, low or high nibble, 32)
    first, second = _whole(six).T, _whole(six_low).T  # (B, 8)
    parts = [
        _bytes(half),
        _bytes(half_low),
        first[:, :4] | first[:, 4:] >> 4 << 6,
        second[:, :4] | second[:, 4:] >> 4 << 6,
    ]
    parts.append(first[:, 4:] & 15 | (second[:, 4:] & 15) << 4)
    if about.top == 31:
        places = np.arange(8, dtype=np.uint8).reshape(1, 4, 2, 1)
        parts.append((bits >> 4 << places).sum(axis=(1, 2), dtype=np.uint8))
    parts.append((bits[:, :, 0] & 15 | (bits[:, :, 1] & 15) << 4).reshape(-1, 128))
    return np.concatenate(parts, axis=1)


def _pack_six(x: Floats, found: Floats) -> Bytes:
    """4 low bits, 2 high bits, 16 scales int8, d."""
    scale, nothing, used = found
    scales = np.ascontiguousarray(scale.reshape(-1, 16).T)  # (16, B)
    peak = _peak(scales)
    empty = np.abs(peak) < SMALLEST
    inverse = np.float32(-128) / peak
    d = (np.float32(1) / inverse).astype(np.float16)
    eight = np.minimum(np.rint(inverse * scales), np.float32(127))
    step = (d.astype(np.float32) * eight).T.ravel()
    kept = np.where(nothing > 0, np.float32(-32), np.clip(np.rint(used * x), -32, 31))
    codes = np.where(step == 0, kept, np.clip(np.rint(x / step), -32, 31)) + np.float32(32)
    bits = _whole(codes).T.reshape(-1, 2, 4, 32)
    low, high = bits & 15, bits >> 4
    places = np.arange(0, 8, 2, dtype=np.uint8).reshape(1, 1, 4, 1)
    packed = np.concatenate(
        [(low[:, :, :2] | low[:, :, 2:] << 4).reshape(-1, 128),
         (high << places).sum(axis=2, dtype=np.uint8).reshape(-1, 64),
         np.nan_to_num(eight).astype(np.int8).T.view(np.uint8), _bytes(d)], axis=1,
    )  # fmt: skip
    packed[empty] = 0
    return packed


def _pack_found(x: Floats, found: Floats, about: Kind) -> Bytes:
    scale, nothing, used = found
    codes = np.clip(np.rint(used * x), -about.top, about.top - 1) + np.float32(about.top)
    return np.concatenate([_bytes(scale.astype(np.float16)), _nibbles(np.where(nothing > 0, 0, codes), about)], axis=1)


def _pack_signed(x: Floats, about: Kind) -> Bytes:
    top, peak = np.float32(about.top), _peak(x)
    d = np.where(peak == 0, np.float32(0), peak) / -top
    inverse = np.where(d == 0, np.float32(0), np.float32(1) / d)
    codes = np.minimum(np.trunc(x * inverse + (top + np.float32(0.5))), top + top - 1)
    codes = np.where(np.abs(inverse) < np.inf, codes, np.float32(0))  # where d is nought in float16
    return np.concatenate([_bytes(d.astype(np.float16)), _nibbles(codes, about)], axis=1)


def _pack_ranged(x: Floats, found: Floats, about: Kind) -> Bytes:
    scale, low, inverse, used_low, _ = (part.astype(np.float32) for part in found)
    codes = _codes(x, inverse, used_low, np.float32(about.top))
    halves = [_bytes(part.astype(np.float16)) for part in (scale, low + np.float32(0))]
    return np.concatenate([*halves, _nibbles(codes, about)], axis=1)


def _pack_range(x: Floats, about: Kind) -> Bytes:
    low = x.min(axis=0)
    d, inverse = _inverse_of((x.max(axis=0) - low) / np.float32(about.top))
    codes = np.minimum(np.trunc((x - low) * inverse + np.float32(0.5)), np.float32(about.top))
    return np.concatenate([_bytes(d), _bytes((low + np.float32(0)).astype(np.float16)), _nibbles(codes, about)], axis=1)


def _eight_bit(x: Floats) -> Bytes:
    """d and 32 codes int8; halves go away from zero."""
    d, inverse = _inverse_of(np.abs(x).max(axis=0) / np.float32(127))
    scaled = x * inverse
    codes = np.trunc(scaled + np.copysign(np.float32(0.49999997), scaled))
    return np.concatenate([_bytes(d), np.nan_to_num(codes).astype(np.int8).T.view(np.uint8)], axis=1)


def read(packed: Bytes, kind: str) -> Floats:
    """(B, bytes) → (B, weights), by the gguf package. Raises MissingExtra without it."""
    gguf = extras.require("gguf.quants", extra="export", purpose=f"reading {kind}")
    return gguf.dequantize(packed, gguf.GGMLQuantizationType[kind])


def _inverse_of(d: Floats) -> tuple[NDArray[np.float16], Floats]:
    """d as stored, and 1 / d; 0 where d is nought or its inverse is too large."""
    inverse = np.float32(1) / d
    return d.astype(np.float16), np.where(np.abs(inverse) < np.inf, inverse, np.float32(0))


def _nibbles(codes: Floats, about: Kind) -> Bytes:
    """(32, B) → (B, 16), with 4 bytes of fifth bits before it where codes have any; weight i goes with i + 16."""
    whole = _whole(codes)
    nibbles = np.asarray((whole[:16] & 15 | (whole[16:] & 15) << 4).T, np.uint8)
    if about.bytes - 16 == 2 * len(about.halves):
        return nibbles
    return np.concatenate([np.packbits(whole >> 4, axis=0, bitorder="little").T, nibbles], axis=1)


def _peak(x: Floats) -> Floats:
    """Of each column the value of largest magnitude, of equal ones the first."""
    return np.take_along_axis(x, np.abs(x).argmax(axis=0)[None], axis=0)[0]


def _codes(x: Floats, inverse: Floats, low: Floats, top: np.float32) -> Floats:
    return np.clip(np.rint(inverse * (x - low)), np.float32(0), top)


def _sum(x: Floats) -> Floats:
    """(n, S) → (S,), row after row; x is used up."""
    total = x[0].copy()
    for row in x[1:]:
        total += row
    return total


def _whole(x: Floats) -> Bytes:
    return np.nan_to_num(x).astype(np.uint8)


def _bytes(x: NDArray[np.float16]) -> Bytes:
    return x[:, None].view(np.uint8)
