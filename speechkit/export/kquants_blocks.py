"""GGUF's blocks written, compiled by numba: codes for the scales that were found, and bits into their places.

In: flat float32 weights, what `kquants_numba` found for their sub-blocks, and empty (B, bytes) uint8. Out: those bytes,
laid out as in ggml's `ggml-common.h`; `kquants_read` is the way back. Loops go over 32 weights and more where they can,
since LLVM leaves shorter ones alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from speechkit.export.kquants_numba import (
    INFINITY,
    INVERSE,
    LOW,
    ONE,
    SCALE,
    SMALLEST,
    TOTAL,
    USED_LOW,
    ZERO,
    clip,
    compiled,
    nearest,
)

if TYPE_CHECKING:
    from speechkit.export.kquants_numba import F

__all__ = ["pack_affine", "pack_eight", "pack_range", "pack_ranged", "pack_signed", "pack_signed_found", "pack_six"]

HALF, BELOW_HALF = np.float32(0.5), np.float32(0.49999997)  # adding a half to the latter would give 1
TENTH, SIXTY_THREE = np.float32(0.1), np.float32(63)
FOUR, EIGHT, FIFTY_SIX, SIXTEEN_BITS = np.uint64(4), np.uint64(8), np.uint64(56), np.uint64(0xFFFF)
EACH_BYTE, NIBBLE = np.uint64(0x0101010101010101), np.uint64(0x0F0F0F0F0F0F0F0F)
GATHER = np.uint64(0x0102040810204080)


def ordered(function: F) -> F:
    """Compiled as if no value were NaN: the least of many is then taken in vectors."""
    return compiled(function, {"nnan", "nsz"})


def summed(function: F) -> F:
    """Compiled to sum in any order."""
    return compiled(function, {"reassoc"})


@compiled
def _half(x: Any) -> Any:
    """The bits of float32 `x` in float16, to the nearest, ties to even."""
    bits = np.float32(x).view(np.int32)
    sign, size = (bits >> 16) & 0x8000, bits & 0x7FFFFFFF
    if size >= 0x47800000:  # 65536 and more; NaN is none of ours
        return sign | 0x7C00
    if size < 0x38800000:  # below the normal numbers, in steps of 2⁻²⁴: those of float32 behind 0.5
        return sign | (np.float32(abs(x) + HALF).view(np.int32) - 0x3F000000)
    return sign | ((size - 0x38000000 + 0xFFF + ((size >> 13) & 1)) >> 13)


@compiled
def _whole(bits: Any) -> Any:
    """float16's bits as float32."""
    size = bits & 0x7FFF
    if size < 0x0400:
        value = np.float32(size) * np.float32(2.0**-24)
    elif size >= 0x7C00:
        value = INFINITY
    else:
        value = np.int32((size << 13) + 0x38000000).view(np.float32)
    return -value if bits & 0x8000 else value


@compiled
def _shares(parts: Any, weight: Any, shares: Any) -> Any:
    """Eight parts in whole shares 0 … 63 of one scale, which is returned: nine trials, then one part at a time."""
    most = ZERO
    for part in parts:
        most = max(most, part)
    if most < SMALLEST:
        shares[:] = ZERO
        return ZERO
    best, used = INFINITY, ONE
    for trial in (0, -4, -3, -2, -1, 1, 2, 3, 4):
        inverse = (TENTH * np.float32(trial) + SIXTY_THREE) / most
        scale, error = ONE / inverse, ZERO
        for i in range(8):
            off = parts[i] - scale * min(nearest(inverse * parts[i]), SIXTY_THREE)
            error += weight[i] * off * off
        if trial == 0 or error < best:
            best, used = error, inverse
    s_xl = s_ll = ZERO
    for i in range(8):
        shares[i] = min(nearest(used * parts[i]), SIXTY_THREE)
        s_xl += weight[i] * parts[i] * shares[i]
        s_ll += weight[i] * shares[i] * shares[i]
    for _ in range(5):
        changed = False
        for i in range(8):
            w, part, share = weight[i], parts[i], shares[i]
            xl, ll = s_xl - w * part * share, s_ll - w * share * share
            if xl > ZERO and ll > ZERO:
                new = min(nearest(part * ll / xl), SIXTY_THREE)
                if new != share:
                    xl, ll = xl + w * part * new, ll + w * new * new
                    if xl * xl * s_ll > s_xl * s_xl * ll:
                        shares[i], s_xl, s_ll, changed = new, xl, ll, True
        if not changed:
            break
    return s_xl / s_ll if s_ll > ZERO else ZERO


@compiled
def _shares_of_largest(parts: Any, shares: Any) -> Any:
    """Eight parts in whole shares of the largest; a share's size is returned."""
    most = ZERO
    for part in parts:
        most = max(most, part)
    inverse = SIXTY_THREE / most if most > ZERO else ZERO
    inverse = inverse if inverse < INFINITY else ZERO
    for i in range(8):
        shares[i] = clip(nearest(inverse * parts[i]), ZERO, SIXTY_THREE)
    return most / SIXTY_THREE


@compiled
def _put_half(target: Any, at: int, value: Any) -> Any:
    """float16 into two bytes, the lower first; returned is what was stored."""
    bits = _half(value)
    target[at], target[at + 1] = bits & 255, bits >> 8
    return _whole(bits)


@compiled
def pack_affine(x: Any, found: Any, weighted: bool, top: Any, packed: Any) -> None:
    """(B · 256,) and what was found → Q4_K (B, 144) or Q5_K (B, 176): d, dmin, 8 + 8 shares of 6 bits, codes."""
    codes, scales, lows = np.empty(256, np.int32), np.empty(8, np.float32), np.empty(8, np.float32)
    weight, shares, low_shares = np.empty(8, np.float32), np.empty(8, np.float32), np.empty(8, np.float32)
    for block in range(len(packed)):
        row = packed[block]
        for j in range(8):
            about = found[block * 8 + j]
            scales[j], lows[j], weight[j] = about[SCALE], -about[LOW], about[TOTAL]
        if weighted:
            d, d_low = _shares(scales, weight, shares), _shares(lows, weight, low_shares)
        else:
            d, d_low = _shares_of_largest(scales, shares), _shares_of_largest(lows, low_shares)
        d, d_low = _put_half(row, 0, d), _put_half(row, 2, d_low)
        for j in range(8):
            step, shift = d * shares[j], d_low * low_shares[j]
            inverse, low = found[block * 8 + j, INVERSE], found[block * 8 + j, USED_LOW]
            at = block * 256 + j * 32
            if step != ZERO:
                for i in range(32):
                    codes[j * 32 + i] = np.int32(clip(nearest((x[at + i] + shift) / step), ZERO, top))
            else:  # codes as they were
                for i in range(32):
                    codes[j * 32 + i] = np.int32(clip(nearest(inverse * (x[at + i] - low)), ZERO, top))
        for j in range(4):
            first, second = np.int32(shares[j]), np.int32(low_shares[j])
            third, fourth = np.int32(shares[j + 4]), np.int32(low_shares[j + 4])
            row[4 + j], row[8 + j] = first | third >> 4 << 6, second | fourth >> 4 << 6
            row[12 + j] = third & 15 | (fourth & 15) << 4
        begin = 16
        if top > np.float32(15):
            begin = 48
            for i in range(32):
                fifth = 0
                for j in range(8):
                    fifth |= codes[j * 32 + i] >> 4 << j
                row[16 + i] = fifth
        for j in range(4):
            for i in range(32):
                row[begin + j * 32 + i] = codes[j * 64 + i] & 15 | (codes[j * 64 + 32 + i] & 15) << 4


@compiled
def pack_six(x: Any, found: Any, packed: Any) -> None:
    """(B · 256,) and what was found → Q6_K (B, 210): 4 low bits, 2 high bits, 16 scales int8, d."""
    codes, steps = np.empty(256, np.int32), np.empty(256, np.float32)
    top = np.float32(32)
    for block in range(len(packed)):
        row, peak = packed[block], ZERO
        for j in range(16):
            scale = found[block * 16 + j, SCALE]
            peak = scale if abs(scale) > abs(peak) else peak
        if abs(peak) < SMALLEST:
            row[:] = 0
            continue
        inverse = np.float32(-128) / peak
        d = _put_half(row, 208, ONE / inverse)
        for j in range(16):
            eight = min(nearest(inverse * found[block * 16 + j, SCALE]), np.float32(127))
            row[192 + j] = np.int32(eight) & 255
            steps[j * 16 : j * 16 + 16] = d * eight
        values = x[block * 256 : block * 256 + 256]
        for i in range(256):
            codes[i] = np.int32(clip(nearest(values[i] / steps[i]), -top, top - ONE) + top)
        for j in range(16):
            if steps[j * 16] == ZERO:  # codes as they were
                tried, nothing = found[block * 16 + j, INVERSE], found[block * 16 + j, LOW] > ZERO
                for i in range(j * 16, j * 16 + 16):
                    code = np.int32(clip(nearest(tried * values[i]), -top, top - ONE) + top)
                    codes[i] = 0 if nothing else code
        for j in range(2):
            part, low, high = (
                codes[j * 128 : j * 128 + 128],
                row[j * 64 : j * 64 + 64],
                row[128 + j * 32 : 160 + j * 32],
            )
            for i in range(64):
                low[i] = part[i] & 15 | (part[i + 64] & 15) << 4
            for i in range(32):
                high[i] = part[i] >> 4 | part[i + 32] >> 4 << 2 | part[i + 64] >> 4 << 4 | part[i + 96] >> 4 << 6


@ordered
def _range(values: Any) -> Any:
    """Lowest and highest of 32 values, in vectors; of no use where one is NaN."""
    low, high = values[0], values[0]
    for i in range(32):
        value = values[i]
        low, high = value if value < low else low, value if value > high else high
    return low, high


@summed
def _odd(values: Any) -> bool:
    """Whether one of 32 values is not finite: times nought that is NaN, which no sum loses."""
    total = ZERO
    for i in range(32):
        total += values[i] * ZERO
    return total != ZERO


@compiled
def _largest_bits(whole: Any) -> Any:
    """Of 32 float32 seen as int32 the largest magnitude: whole numbers have their maximum in any order."""
    largest, mask = np.int32(0), np.int32(0x7FFFFFFF)
    for i in range(8):
        first = max(np.int32(whole[i] & mask), np.int32(whole[i + 8] & mask))
        second = max(np.int32(whole[i + 16] & mask), np.int32(whole[i + 24] & mask))
        largest = max(largest, max(first, second))
    return largest


@compiled
def pack_eight(x: Any, whole: Any, packed: Any) -> int:
    """(B, 32), also seen as int32 → Q8_0 (B, 34): d, codes int8; halves go away from zero. Returns odd blocks."""
    odd = 0
    for block in range(len(packed)):
        values, row, bits = x[block], packed[block], _largest_bits(whole[block])
        odd += bits >= 0x7F800000
        d = np.int32(bits).view(np.float32) / np.float32(127)
        _put_half(row, 0, d)
        inverse = ONE / d
        inverse = inverse if inverse < INFINITY else ZERO
        for i in range(32):
            code = values[i] * inverse
            row[i + 2] = np.int32(code + (BELOW_HALF if code >= ZERO else -BELOW_HALF)) & 255
    return odd


@compiled
def _put_codes(words: Any, row: Any, begin: int, fifth: bool) -> None:
    """32 codes, a byte each, seen as 4 words of 8: their fifth bits where there are any, weight 0 in the lowest; then
    nibbles, weight i with i + 16. row: the block as 16-bit numbers."""
    if fifth:
        for half in range(2):
            low, high = words[2 * half] >> FOUR & EACH_BYTE, words[2 * half + 1] >> FOUR & EACH_BYTE
            # the product gathers the lowest bits of all bytes in the highest one
            row[begin + half] = low * GATHER >> FIFTY_SIX | high * GATHER >> FIFTY_SIX << EIGHT
        begin += 2
    for half in range(2):
        nibbles = words[half] & NIBBLE | (words[half + 2] & NIBBLE) << FOUR
        for i in range(4):
            row[begin + 4 * half + i] = nibbles >> np.uint64(16 * i) & SIXTEEN_BITS


@compiled
def _peak(values: Any, low: Any, high: Any) -> Any:
    """The one of largest magnitude, of equal ones the first; never -0."""
    if high != -low:
        return high if high > -low else low
    for value in values:
        if abs(value) == high and high > ZERO:
            return value
    return ZERO


@compiled
def pack_signed(x: Any, top: Any, packed: Any) -> int:
    """(B, 32) → Q4_0 (B, 18; top 8) or Q5_0 (B, 22; top 16): the value of largest magnitude becomes -top.

    Here and below `packed` is (B, bytes / 2) uint16.
    """
    codes, odd, offset, most = np.empty(32, np.uint8), 0, top + HALF, top + top - ONE
    words = codes.view(np.uint64)
    for block in range(len(packed)):
        values, row = x[block], packed[block]
        low, high = _range(values)
        odd += _odd(values)
        d = _peak(values, low, high) / -top
        inverse = ONE / d if d != ZERO else ZERO
        row[0] = _half(d)
        for i in range(32):
            codes[i] = np.int32(clip(values[i] * inverse + offset, ZERO, most))
        if not abs(inverse) < INFINITY:  # d is nought in float16; llama.cpp's codes are then
            codes[:] = 0
        _put_codes(words, row, 1, top > np.float32(8))
    return odd


@compiled
def pack_signed_found(x: Any, found: Any, top: Any, packed: Any) -> None:
    """The same with the scales of `search_symmetric`."""
    codes = np.empty(32, np.uint8)
    words = codes.view(np.uint64)
    for block in range(len(packed)):
        values, row, about = x[block], packed[block], found[block]
        row[0], inverse = _half(about[SCALE]), about[INVERSE]
        for i in range(32):
            codes[i] = np.int32(clip(nearest(inverse * values[i]), -top, top - ONE) + top)
        if about[LOW] > ZERO:  # nothing
            codes[:] = 0
        _put_codes(words, row, 1, top > np.float32(8))


@compiled
def pack_ranged(x: Any, found: Any, packed: Any) -> None:
    """(B, 32) and what was found → Q5_1 (B, 24): d, minimum, fifth bits, nibbles."""
    codes = np.empty(32, np.uint8)
    words = codes.view(np.uint64)
    for block in range(len(packed)):
        values, row, about = x[block], packed[block], found[block]
        row[0], row[1] = _half(about[SCALE]), _half(about[LOW] + ZERO)  # never -0
        inverse, low = about[INVERSE], about[USED_LOW]
        for i in range(32):
            codes[i] = np.int32(clip(nearest(inverse * (values[i] - low)), ZERO, np.float32(31)))
        _put_codes(words, row, 2, True)


@compiled
def pack_range(x: Any, packed: Any) -> int:
    """(B, 32) → Q5_1 (B, 24) from lowest and highest alone."""
    codes, odd = np.empty(32, np.uint8), 0
    words = codes.view(np.uint64)
    for block in range(len(packed)):
        values, row = x[block], packed[block]
        low, high = _range(values)
        odd += _odd(values)
        d = (high - low) / np.float32(31)
        inverse = ONE / d
        inverse = inverse if inverse < INFINITY else ZERO
        row[0], row[1] = _half(d), _half(low + ZERO)  # never -0
        for i in range(32):
            codes[i] = np.int32(clip((values[i] - low) * inverse + HALF, ZERO, np.float32(31)))
        _put_codes(words, row, 2, True)
    return odd
