"""Q4_K, Q5_K, Q6_K and Q8_0 of GGUF: float rows → packed bytes, by the search of llama.cpp's reference, on a GPU.

A block has 256 weights. Q4_K and Q5_K cut it in 8 sub-blocks of 32, each a scale and a minimum: 21 (16) trial scales
are each rounded, solved for (scale, minimum) by least squares under the weights w = rms + |x|,

    scale = (Σw · Σwlx - Σwx · Σwl) / D,   minimum = (Σwl² · Σwx - Σwl · Σwlx) / D,   D = Σw · Σwl² - (Σwl)²,

and judged by Σ w (scale · l + minimum - x)². Q6_K cuts it in 16 of 16, each a scale, 19 trials, the most
(Σ x³ l)² / Σ x² l². Scales and minima then become 6 (8) bits of the block's largest, and codes are rounded once more.

The search is nearly all the work: some 500 operations a weight. Here one *lane* is one sub-block, and weights come
transposed (32, S), so that lanes read side by side. Every sum runs in the order of the C loop, multiplications and
additions are kept apart and divisions rounded as IEEE has it: the bytes are those of the definition, which is bit for
bit the reference in C compiled strictly. Packing is a handful of elementwise passes, shared with the definition.
No gradient: rounding has none.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from speechkit_kernels.launch import check_same, on_its_device, use_kernel
from speechkit_kernels.reference.k_quant import BYTES, SMALLEST, TYPES, Kind, pack
from speechkit_kernels.reference.k_quant import k_quant as definition

__all__ = ["k_quant"]

BLOCK = 128  # sub-blocks of a program
CHUNK = 2**26  # weights in flight: packing needs some 20 bytes for each


@triton.jit
def _nearest(x):
    """To the nearest whole number, ties to even, for |x| < 2²²: 1.5 · 2²³ leaves no bits behind the point."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def _affine(x_ptr, wanted_ptr, found_ptr, total, TRIALS: tl.constexpr, TOP: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < total
    nought = tl.zeros((BLOCK,), tl.float32)
    squares, low, high = nought, nought, nought - float("inf")
    for i in range(32):
        x = tl.load(x_ptr + i * total + at, mask=inside, other=0.0)
        squares += x * x
        low, high = tl.minimum(low, x), tl.maximum(high, x)
    rms = tl.sqrt_rn(squares * 0.03125)
    flat = high == low
    span = tl.where(flat, 1.0, high - low)
    inverse = tl.div_rn(nought + TOP, span)
    scale, least, used_inverse, used_low = tl.div_rn(nought + 1.0, inverse), low, inverse, low
    sum_w, sum_x, best = nought, nought, nought
    for i in range(32):
        x = tl.load(x_ptr + i * total + at, mask=inside, other=0.0)
        weight = rms + tl.abs(x)
        code = tl.minimum(tl.maximum(_nearest(inverse * (x - low)), 0.0), TOP)
        off = scale * code + low - x
        sum_w += weight
        sum_x += weight * x
        best += weight * (off * off)
    for trial in range(TRIALS + 1):
        inverse = tl.div_rn(nought + tl.load(wanted_ptr + trial), tl.where(flat, 1.0, high - least))
        s_l, s_ll, s_xl = nought, nought, nought
        for i in range(32):
            x = tl.load(x_ptr + i * total + at, mask=inside, other=0.0)
            code = tl.minimum(tl.maximum(_nearest(inverse * (x - least)), 0.0), TOP)
            weighted = (rms + tl.abs(x)) * code
            s_l += weighted
            s_ll += weighted * code
            s_xl += weighted * x
        det = sum_w * s_ll - s_l * s_l
        solvable = det > 0
        safe = tl.where(solvable, det, 1.0)
        this_scale = tl.div_rn(sum_w * s_xl - sum_x * s_l, safe)
        this_low = tl.div_rn(s_ll * sum_x - s_l * s_xl, safe)
        above = this_low > 0
        this_scale = tl.where(above, tl.div_rn(s_xl, tl.where(s_ll > 0, s_ll, 1.0)), this_scale)
        this_low = tl.where(above, 0.0, this_low)
        error = nought
        for i in range(32):
            x = tl.load(x_ptr + i * total + at, mask=inside, other=0.0)
            code = tl.minimum(tl.maximum(_nearest(inverse * (x - least)), 0.0), TOP)
            off = this_scale * code + this_low - x
            error += (rms + tl.abs(x)) * (off * off)
        better = solvable & (error < best)
        best, scale = tl.where(better, error, best), tl.where(better, this_scale, scale)
        used_inverse, used_low = tl.where(better, inverse, used_inverse), tl.where(better, least, used_low)
        least = tl.where(better, this_low, least)
    tl.store(found_ptr + at, tl.where(flat, 0.0, scale), mask=inside)
    tl.store(found_ptr + total + at, least, mask=inside)
    tl.store(found_ptr + 2 * total + at, tl.where(flat, 0.0, used_inverse), mask=inside)
    tl.store(found_ptr + 3 * total + at, used_low, mask=inside)


@triton.jit
def _symmetric(x_ptr, wanted_ptr, found_ptr, total, SMALLEST: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < total
    nought = tl.zeros((BLOCK,), tl.float32)
    size, peak = nought, nought
    for i in range(16):
        x = tl.load(x_ptr + i * total + at, mask=inside, other=0.0)
        larger = tl.abs(x) > size  # of equal magnitudes the first one's sign counts
        size, peak = tl.where(larger, tl.abs(x), size), tl.where(larger, x, peak)
    nothing = size < SMALLEST
    peak = tl.where(nothing, 1.0, peak)
    scale, best, used = nought, nought, nought
    for trial in range(19):
        inverse = tl.div_rn(nought - tl.load(wanted_ptr + trial), peak)
        s_xl, s_ll = nought, nought
        for i in range(16):
            x = tl.load(x_ptr + i * total + at, mask=inside, other=0.0)
            code = tl.minimum(tl.maximum(_nearest(inverse * x), -32.0), 31.0)
            s_xl += x * x * x * code
            s_ll += x * x * code * code
        known = s_ll > 0
        better = (known & (s_xl * s_xl > best * s_ll)) | (trial == 0)
        this = tl.where(known, tl.div_rn(s_xl, tl.where(known, s_ll, 1.0)), 0.0)
        scale, used = tl.where(better, this, scale), tl.where(better, inverse, used)
        best = tl.where(better, this * s_xl, best)
    tl.store(found_ptr + at, tl.where(nothing, 0.0, scale), mask=inside)
    tl.store(found_ptr + total + at, tl.where(nothing, 0.0, used), mask=inside)


def _wanted(about: Kind) -> torch.Tensor:
    """How many codes each trial spreads over the range, in single precision at every step, as in C."""
    if about.trials:
        return torch.tensor(about.low) + torch.tensor(about.step) * torch.arange(about.trials + 1.0) + about.top
    return torch.tensor(32.0) + torch.tensor(0.1) * torch.tensor([0.0, *range(-9, 0), *range(1, 10)])


def _search(x: torch.Tensor, about: Kind) -> torch.Tensor:
    """Sub-blocks (size, S) → scale, minimum, and what the best codes were rounded with, (4, S); (2, S) for Q6_K."""
    total = x.shape[1]
    found = torch.empty((4 if about.trials else 2, total), dtype=torch.float32, device=x.device)
    wanted = _wanted(about).to(x.device)
    grid = (triton.cdiv(total, BLOCK),)
    if about.trials:
        _affine[grid](
            x, wanted, found, total, TRIALS=about.trials, TOP=float(about.top), BLOCK=BLOCK, num_warps=4,
            enable_fp_fusion=False,
        )  # fmt: skip
    else:
        _symmetric[grid](x, wanted, found, total, SMALLEST=SMALLEST, BLOCK=BLOCK, num_warps=4, enable_fp_fusion=False)
    return found


@on_its_device
def k_quant(x: torch.Tensor, kind: str) -> torch.Tensor:
    """Weights (N, K) of any float dtype → GGUF's bytes (N, K / 256 · bytes of a block) uint8, on the same device.

    kind: "Q4_K" (144 bytes for 256 weights), "Q5_K" (176), "Q6_K" (210), "Q8_0" (34 for 32). Infinities and NaN have
    no code: look for them before. Method: performance.md 3.7; layouts as in ggml, read by gguf's `dequantize`.
    Raises ValueError for another kind, shape or dtype, and for rows that are not whole blocks.
    """
    name = "k_quant"
    if kind not in BYTES:
        raise ValueError(f"{name}: kind is {kind!r}; give one of {', '.join(sorted(BYTES))}")
    if x.dim() != 2:
        raise ValueError(f"{name}: x has shape {tuple(x.shape)}; wanted (N, K)")
    check_same(name, {"x": x})
    weights, size = BYTES[kind]
    if x.shape[1] % weights:
        raise ValueError(f"{name}: rows of {x.shape[1]} weights are no whole blocks of {kind}, which hold {weights}")
    if kind == "Q8_0" or not use_kernel(name, x):
        return definition(x, kind)
    about, blocks = TYPES[kind], x.reshape(-1, weights)
    packed = torch.empty((len(blocks), size), dtype=torch.uint8, device=x.device)
    for part, target in zip(blocks.split(CHUNK // weights), packed.split(CHUNK // weights), strict=True):
        if len(part):
            columns = part.float().reshape(-1, about.size).T.contiguous()  # (size, sub-blocks)
            target.copy_(pack(columns, _search(columns, about), kind))
    return packed.view(len(x), x.shape[1] // weights * size)
