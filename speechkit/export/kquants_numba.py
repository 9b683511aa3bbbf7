"""The searches behind GGUF's block types, compiled by numba: many sub-blocks side by side, as fast as a core allows.

In: rows of weights, flat float32, and empty arrays. Out: those arrays filled; returned is how many sub-blocks hold a
value that is not finite. What each type is made of stands in `kquants_kinds`, the same for NumPy in `kquants_numpy`.

The search is nearly all the work. A sub-block is one *lane*; a tile of `LANES` of them lies transposed in L1, weight i
of every lane side by side, so that a vector unit works on as many sub-blocks as it is wide. Sums run over i in the
order of llama.cpp's loop, nothing is reassociated or contracted (no fastmath): the bytes are those of its C code. Tiles
are flat arrays with offsets known when compiling, from which LLVM sees that rows do not overlap; four weights at a time
keep the sums in registers. All functions release the GIL; `kquants` calls them from threads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import numba
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    F = TypeVar("F", bound=Callable[..., Any])

__all__ = ["clip", "compiled", "nearest", "search_affine", "search_symmetric", "spread_of"]

LANES = 32  # sub-blocks of a tile
STEP = 4  # weights of a lane taken together
MOST = 32 * LANES

ZERO, ONE, INFINITY = np.float32(0), np.float32(1), np.float32(np.inf)
MAGIC = np.float32(12582912)  # 1.5 · 2²³ leaves no bits behind the point
SMALLEST = np.float32(1e-15)  # below, a sub-block without minimum is nought
# rows of what the searches find, and of what they carry along for each lane
SCALE, LOW, INVERSE, USED_LOW, TOTAL, FOUND = 0, 1, 2, 3, 4, 5
SUM_X, BEST, HIGH, TRIED, S_L, S_LL, S_XL, THIS_SCALE, THIS_LOW, ERROR, LEAST, CARRIED = range(5, 17)


def compiled(function: F, fastmath: Any = False) -> F:
    """By numba, kept on disk where a folder can be written; divisions as IEEE has them, by default without fastmath."""
    options, made = {"nogil": True, "error_model": "numpy", "fastmath": fastmath}, function
    try:
        made = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # neither beside this file nor in the user's cache folder
        made = numba.njit(**options)(function)
    return made


@compiled
def nearest(x: Any) -> Any:
    """To the nearest whole number, ties to even, for |x| < 2²²."""
    return (x + MAGIC) - MAGIC


@compiled
def clip(x: Any, low: Any, high: Any) -> Any:
    x = x if x > low else low  # NaN becomes the lower end
    return x if x < high else high


@compiled
def spread_of(x: Any, size: int, factor: Any, spread: Any) -> None:
    """x: (G · size,) → factor · Σ x² / size of each group of `size` weights, (G,)."""
    for group in range(len(spread)):
        total = ZERO
        for at in range(group * size, (group + 1) * size):
            total += x[at] * x[at]
        spread[group] = factor * total / np.float32(size)


@compiled
def _load(x: Any, size: int, first: int, last: int, tile: Any) -> None:
    """Sub-blocks from `first` on into the lanes of a tile; behind the last one it stands again."""
    for lane in range(LANES):
        at = min(first + lane, last - 1) * size
        for begin in range(0, size, 16):
            for i in range(16):
                tile[(begin + i) * LANES + lane] = x[at + begin + i]


@compiled
def _load_importance(importance: Any, size: int, first: int, last: int, weight: Any) -> None:
    per_row = len(importance) // size
    for lane in range(LANES):
        at = min(first + lane, last - 1) % per_row * size
        for i in range(size):
            weight[i * LANES + lane] = importance[at + i]


@compiled
def _times_magnitude(tile: Any, size: int, spread: Any, first: int, last: int, weight: Any) -> None:
    """weight *= sqrt(spread of the group + x²); of `last` sub-blocks the groups have equal numbers."""
    of_lane, each = np.empty(LANES, np.float32), last // len(spread)
    for lane in range(LANES):
        of_lane[lane] = spread[min(first + lane, last - 1) // each]
    for i in range(size):
        for lane in range(LANES):
            x = tile[i * LANES + lane]
            weight[i * LANES + lane] = weight[i * LANES + lane] * np.sqrt(of_lane[lane] + x * x)


@compiled
def _rms_and_magnitude(tile: Any, weight: Any) -> None:
    """weight = rms of the sub-block + |x|."""
    rms = np.zeros(LANES, np.float32)
    for i in range(32):
        for lane in range(LANES):
            rms[lane] += tile[i * LANES + lane] * tile[i * LANES + lane]
    for lane in range(LANES):
        rms[lane] = np.sqrt(rms[lane] / np.float32(32))
    for i in range(32):
        for lane in range(LANES):
            weight[i * LANES + lane] = rms[lane] + abs(tile[i * LANES + lane])


@compiled
def _begin_affine(x: Any, weight: Any, top: Any, carry: Any) -> None:
    """Sums, the range, and the plain scale of the range with its error."""
    for lane in range(LANES):
        carry[LOW * LANES + lane] = carry[TOTAL * LANES + lane] = carry[SUM_X * LANES + lane] = ZERO
        carry[BEST * LANES + lane] = ZERO
        carry[HIGH * LANES + lane] = x[lane]
    for i in range(32):
        for lane in range(LANES):
            value, w = x[i * LANES + lane], weight[i * LANES + lane]
            low, high = carry[LOW * LANES + lane], carry[HIGH * LANES + lane]
            carry[LOW * LANES + lane] = value if value < low else low
            carry[HIGH * LANES + lane] = value if value > high else high
            carry[TOTAL * LANES + lane] += w
            carry[SUM_X * LANES + lane] += w * value
    for lane in range(LANES):
        low = carry[LOW * LANES + lane]
        inverse = top / (carry[HIGH * LANES + lane] - low)
        carry[SCALE * LANES + lane] = ONE / inverse
        inverse = inverse if inverse < INFINITY else ZERO
        carry[INVERSE * LANES + lane], carry[USED_LOW * LANES + lane], carry[LEAST * LANES + lane] = inverse, low, low
    for i in range(32):
        for lane in range(LANES):
            value, low = x[i * LANES + lane], carry[LOW * LANES + lane]
            code = clip(nearest(carry[INVERSE * LANES + lane] * (value - low)), ZERO, top)
            off = carry[SCALE * LANES + lane] * code + low - value
            carry[BEST * LANES + lane] += weight[i * LANES + lane] * (off * off)


@compiled
def _try_affine(x: Any, weight: Any, codes: Any, wanted: Any, top: Any, carry: Any) -> None:
    """Codes for the scale (highest - lowest) / wanted, and the sums over them."""
    for lane in range(LANES):
        inverse = wanted / (carry[HIGH * LANES + lane] - carry[LOW * LANES + lane])
        # where the range is so narrow that this overflows, llama.cpp's rounding leaves nothing
        carry[TRIED * LANES + lane] = inverse if abs(inverse) < INFINITY else ZERO
        carry[S_L * LANES + lane] = carry[S_LL * LANES + lane] = carry[S_XL * LANES + lane] = ZERO
    for four in range(0, MOST, STEP * LANES):
        for lane in range(LANES):
            inverse, low = carry[TRIED * LANES + lane], carry[LOW * LANES + lane]
            s_l, s_ll, s_xl = carry[S_L * LANES + lane], carry[S_LL * LANES + lane], carry[S_XL * LANES + lane]
            for i in range(STEP):
                at = four + i * LANES + lane
                code = clip(nearest(inverse * (x[at] - low)), ZERO, top)
                codes[at] = code
                weighted = weight[at] * code
                s_l += weighted
                s_ll += weighted * code
                s_xl += weighted * x[at]
            carry[S_L * LANES + lane], carry[S_LL * LANES + lane], carry[S_XL * LANES + lane] = s_l, s_ll, s_xl


@compiled
def _solve_affine(x: Any, weight: Any, codes: Any, carry: Any) -> None:
    """Scale and minimum of the codes by least squares; kept where the error is less than the best so far."""
    for lane in range(LANES):
        total, sum_x = carry[TOTAL * LANES + lane], carry[SUM_X * LANES + lane]
        s_l, s_ll, s_xl = carry[S_L * LANES + lane], carry[S_LL * LANES + lane], carry[S_XL * LANES + lane]
        det = total * s_ll - s_l * s_l
        scale, low = (total * s_xl - sum_x * s_l) / det, (s_ll * sum_x - s_l * s_xl) / det
        alone = s_xl / s_ll
        carry[THIS_SCALE * LANES + lane] = alone if low > ZERO else scale
        carry[THIS_LOW * LANES + lane] = ZERO if low > ZERO else low
        carry[ERROR * LANES + lane] = ZERO if det > ZERO else INFINITY
    for four in range(0, MOST, STEP * LANES):
        for lane in range(LANES):
            scale, low = carry[THIS_SCALE * LANES + lane], carry[THIS_LOW * LANES + lane]
            error = carry[ERROR * LANES + lane]
            for i in range(STEP):
                at = four + i * LANES + lane
                off = scale * codes[at] + low - x[at]
                error += weight[at] * (off * off)
            carry[ERROR * LANES + lane] = error
    for lane in range(LANES):
        better = carry[ERROR * LANES + lane] < carry[BEST * LANES + lane]
        low = carry[LOW * LANES + lane]
        for kept, new in ((BEST, ERROR), (SCALE, THIS_SCALE), (INVERSE, TRIED), (USED_LOW, LOW), (LOW, THIS_LOW)):
            carry[kept * LANES + lane] = carry[new * LANES + lane] if better else carry[kept * LANES + lane]


@compiled
def search_affine(x: Any, importance: Any, spread: Any, wanted: Any, top: Any, found: Any) -> int:
    """Sub-blocks of 32, (S · 32,) → found (S, 5): scale, minimum, and the inverse scale and minimum of the best codes,
    and the sum of the weights.

    importance: (K,), or empty: weights are then rms + |x|, else importance · sqrt(spread + x²), spread (G,) of groups
    of equal length. wanted: (trials,), over how many codes each trial lays the range.
    """
    count, odd = len(found), 0
    tile, weight, codes = np.empty(MOST, np.float32), np.empty(MOST, np.float32), np.empty(MOST, np.float32)
    carry = np.empty(CARRIED * LANES, np.float32)
    for first in range(0, count, LANES):
        _load(x, 32, first, count, tile)
        if len(importance):
            _load_importance(importance, 32, first, count, weight)
            _times_magnitude(tile, 32, spread, first, count, weight)
        else:
            _rms_and_magnitude(tile, weight)
        _begin_affine(tile, weight, top, carry)
        for trial in range(len(wanted)):
            _try_affine(tile, weight, codes, wanted[trial], top, carry)
            _solve_affine(tile, weight, codes, carry)
        for lane in range(min(LANES, count - first)):
            flat = carry[HIGH * LANES + lane] <= carry[LEAST * LANES + lane]
            for row in range(FOUND):
                found[first + lane, row] = carry[row * LANES + lane]
            if flat:
                found[first + lane, SCALE] = found[first + lane, INVERSE] = ZERO
            odd += not abs(carry[SUM_X * LANES + lane]) < INFINITY
    return odd


@compiled
def _see_symmetric(x: Any, carry: Any) -> None:
    """Of sixteen weights of each lane the largest magnitude, of equal ones the first, into HIGH; Σ x² into TOTAL."""
    for i in range(16):
        for lane in range(LANES):
            value, peak = x[i * LANES + lane], carry[HIGH * LANES + lane]
            carry[HIGH * LANES + lane] = value if abs(value) > abs(peak) else peak
            carry[TOTAL * LANES + lane] += value * value


@compiled
def _begin_symmetric(x: Any, weight: Any, size: int, plain: bool, carry: Any) -> None:
    """The peak and whether there is any; weights x² where plain."""
    carry[:] = ZERO
    for begin in range(0, size * LANES, 16 * LANES):
        _see_symmetric(x[begin : begin + 16 * LANES], carry)
    for lane in range(LANES):
        peak = carry[HIGH * LANES + lane]
        carry[LOW * LANES + lane] = ONE if abs(peak) < SMALLEST else ZERO  # nought altogether
        carry[HIGH * LANES + lane] = ONE if abs(peak) < SMALLEST else peak
    if plain:
        for at in range(size * LANES):
            weight[at] = x[at] * x[at]


@compiled
def _add_symmetric(x: Any, weight: Any, top: Any, carry: Any) -> None:
    """Sixteen weights of each lane into the sums: a count that LLVM knows, or it would not vectorise."""
    for four in range(0, 16 * LANES, STEP * LANES):
        for lane in range(LANES):
            inverse = carry[TRIED * LANES + lane]
            s_xl, s_ll = carry[S_XL * LANES + lane], carry[S_LL * LANES + lane]
            for i in range(STEP):
                at = four + i * LANES + lane
                code = clip(nearest(inverse * x[at]), -top, top - ONE)
                s_xl += weight[at] * x[at] * code
                s_ll += weight[at] * code * code
            carry[S_XL * LANES + lane], carry[S_LL * LANES + lane] = s_xl, s_ll


@compiled
def _try_symmetric(x: Any, weight: Any, size: int, wanted: Any, top: Any, first: bool, carry: Any) -> None:
    """Codes -top … top - 1 with the peak at -wanted; the scale of these codes, kept where it explains more."""
    for lane in range(LANES):
        carry[TRIED * LANES + lane] = -wanted / carry[HIGH * LANES + lane]
        carry[S_XL * LANES + lane] = carry[S_LL * LANES + lane] = ZERO
    for begin in range(0, size * LANES, 16 * LANES):
        _add_symmetric(x[begin : begin + 16 * LANES], weight[begin : begin + 16 * LANES], top, carry)
    for lane in range(LANES):
        s_xl, s_ll = carry[S_XL * LANES + lane], carry[S_LL * LANES + lane]
        scale = s_xl / s_ll if s_ll > ZERO else ZERO
        better = first or (s_ll > ZERO and s_xl * s_xl > carry[BEST * LANES + lane] * s_ll)
        carry[SCALE * LANES + lane] = scale if better else carry[SCALE * LANES + lane]
        carry[INVERSE * LANES + lane] = carry[TRIED * LANES + lane] if better else carry[INVERSE * LANES + lane]
        carry[BEST * LANES + lane] = scale * s_xl if better else carry[BEST * LANES + lane]


@compiled
def search_symmetric(x: Any, size: int, importance: Any, spread: Any, wanted: Any, top: Any, found: Any) -> int:
    """Sub-blocks of 16 or 32, (S · size,) → found (S, 5): scale, 1 where all is nought, inverse scale of the codes.

    importance: (K,), or empty: weights are then x². spread: (G,) makes them importance · sqrt(spread + x²), or empty.
    """
    count, odd = len(found), 0
    tile, weight = np.empty(MOST, np.float32), np.empty(MOST, np.float32)
    carry = np.empty(CARRIED * LANES, np.float32)
    for first in range(0, count, LANES):
        _load(x, size, first, count, tile)
        if len(importance):
            _load_importance(importance, size, first, count, weight)
            if len(spread):
                _times_magnitude(tile, size, spread, first, count, weight)
        _begin_symmetric(tile, weight, size, len(importance) == 0, carry)
        for trial in range(len(wanted)):
            _try_symmetric(tile, weight, size, wanted[trial], top, trial == 0, carry)
        for lane in range(min(LANES, count - first)):
            nothing = carry[LOW * LANES + lane] > ZERO
            found[first + lane, SCALE] = ZERO if nothing else carry[SCALE * LANES + lane]
            found[first + lane, LOW] = carry[LOW * LANES + lane]
            found[first + lane, INVERSE] = carry[INVERSE * LANES + lane]
            odd += not carry[TOTAL * LANES + lane] < INFINITY
    return odd
