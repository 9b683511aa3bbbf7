"""Q4_K, Q5_K, Q6_K and Q8_0 of GGUF by their definitions: rows → packed bytes, the search of llama.cpp's reference.

In: (N, K) float32, K a multiple of 256 (32 for Q8_0). Out: (N, bytes of a row) uint8. Blocks lie along the *last* axis
of every tensor here, and sums over the weights of a block are taken one after the other, in the order of the C code: so
the result is that of one block at a time, however many are in flight. Rounding is to the nearest, ties to even.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

__all__ = ["BYTES", "TYPES", "Kind", "k_quant", "pack", "search_affine", "search_symmetric"]


class Kind(NamedTuple):
    """How one of the types with a scale and a minimum, or with a scale alone, is searched."""

    bytes: int  # of 256 weights
    size: int  # weights of a sub-block
    top: int  # largest code; of Q6_K the largest magnitude
    low: float = 0.0  # the first trial scale is that of `top + low` codes over the range …
    step: float = 0.0  # … and each next one adds this
    trials: int = 0


TYPES = {"Q4_K": Kind(144, 32, 15, -1.0, 0.1, 20), "Q5_K": Kind(176, 32, 31, -0.5, 0.1, 15), "Q6_K": Kind(210, 16, 32)}
BYTES = {"Q8_0": (32, 34)} | {name: (256, kind.bytes) for name, kind in TYPES.items()}  # weights, bytes of a block
SMALLEST = 1e-15  # below, a block of Q6_K is nought
CHUNK = 2**18  # weights searched at a time: the rows of a chunk stay in a CPU's cache


def k_quant(x: torch.Tensor, kind: str) -> torch.Tensor:
    """(N, K) float32 → (N, K / weights of a block · bytes of a block) uint8."""
    weights, size = BYTES[kind]
    blocks = x.float().reshape(-1, weights)
    packed = torch.empty((len(blocks), size), dtype=torch.uint8, device=x.device)
    for first in range(0, len(blocks), CHUNK // weights):
        part = blocks[first : first + CHUNK // weights]
        packed[first : first + len(part)] = _eight_bit(part) if kind == "Q8_0" else _blocks(part, kind)
    return packed.view(len(x), x.shape[1] // weights * size)


def _blocks(blocks: torch.Tensor, kind: str) -> torch.Tensor:
    about = TYPES[kind]
    columns = blocks.reshape(-1, about.size).T.contiguous()  # (size, sub-blocks)
    return pack(columns, search_symmetric(columns) if kind == "Q6_K" else search_affine(columns, about), kind)


def search_affine(x: torch.Tensor, about: Kind) -> torch.Tensor:
    """(32, S) → (4, S): scale, minimum, and the inverse scale and minimum that the best codes were rounded with.

    Codes stand for scale · code + minimum, the minimum at most 0. Trial scales around range / top are tried in turn;
    each rounds from the best minimum so far, and is solved for scale and minimum by least squares under the weights
    w = rms + |x|; the least Σ w · (scale · code + minimum - x)² stays.
    """
    rms = (sum_of(x * x) / _like(x, 32.0)).double().sqrt().float()  # a vector library's float32 root is off by a bit
    weight = x.abs() + rms
    total, total_x = sum_of(weight), sum_of(weight * x)
    low, high = x.amin(dim=0).clamp(max=0.0), x.amax(dim=0)
    flat = high == low
    span = torch.where(flat, 1.0, high - low)
    inverse = _like(x, float(about.top)) / span
    scale, least = 1.0 / inverse, low
    codes = _codes(x, inverse, low, about.top)
    used_inverse, used_low = inverse, low
    best = sum_of(weight * (scale * codes + low - x).square())
    for trial in range(about.trials + 1):
        # single precision at every step, as in C
        wanted = torch.tensor(about.low) + torch.tensor(about.step) * trial + about.top
        inverse = wanted.to(x.device) / torch.where(flat, 1.0, high - least)
        codes = _codes(x, inverse, least, about.top)
        weighted = weight * codes
        s_l, s_ll, s_xl = sum_of(weighted), sum_of(weighted * codes), sum_of(weighted * x)
        det = total * s_ll - s_l * s_l
        solvable = det > 0
        safe = torch.where(solvable, det, 1.0)
        this_scale = (total * s_xl - total_x * s_l) / safe
        this_low = (s_ll * total_x - s_l * s_xl) / safe
        above = this_low > 0
        this_scale = torch.where(above, s_xl / torch.where(s_ll > 0, s_ll, 1.0), this_scale)
        this_low = torch.where(above, 0.0, this_low)
        error = sum_of(weight * (this_scale * codes + this_low - x).square())
        better = solvable & (error < best)
        best, scale = torch.where(better, error, best), torch.where(better, this_scale, scale)
        used_inverse, used_low = torch.where(better, inverse, used_inverse), torch.where(better, least, used_low)
        least = torch.where(better, this_low, least)
    scale, used_inverse = scale.masked_fill(flat, 0.0), used_inverse.masked_fill(flat, 0.0)
    return torch.stack([scale, least, used_inverse, used_low])


def search_symmetric(x: torch.Tensor) -> torch.Tensor:
    """(16, S) → (2, S): scale, and the inverse scale that the best codes -32..31 were rounded with.

    The value of largest magnitude is to become -32, or one of 18 trials around it; weights are x², and the scale of
    given codes l is Σ w·x·l / Σ w·l². The most (Σ w·x·l)² / Σ w·l² stays.
    """
    size = x.abs().amax(dim=0)
    first = (x.abs() == size).to(torch.uint8).argmax(dim=0)  # of equal magnitudes the first one's sign counts
    peak = x.gather(0, first[None])[0]
    nothing = size < SMALLEST
    peak = torch.where(nothing, 1.0, peak)
    weight = x * x
    pulled = weight * x
    scale = best = used = torch.zeros_like(peak)
    for trial in [0, *range(-9, 0), *range(1, 10)]:
        inverse = -(torch.tensor(32.0) + torch.tensor(0.1) * trial).to(x.device) / peak
        codes = (inverse * x).round().clamp(-32, 31)
        s_xl, s_ll = sum_of(pulled * codes), sum_of(weight * codes * codes)
        this = s_xl / torch.where(s_ll > 0, s_ll, 1.0)
        better = (s_ll > 0) & (s_xl * s_xl > best * s_ll) if trial else torch.ones_like(nothing)
        this = torch.where(s_ll > 0, this, 0.0)
        scale, used = torch.where(better, this, scale), torch.where(better, inverse, used)
        best = torch.where(better, this * s_xl, best)
    return torch.stack([scale, used]).masked_fill(nothing, 0.0)


def pack(x: torch.Tensor, found: torch.Tensor, kind: str) -> torch.Tensor:
    """Sub-blocks (size, S) and what the search found → blocks (S / sub-blocks, bytes) uint8."""
    return _pack_symmetric(x, found) if kind == "Q6_K" else _pack_affine(x, found, TYPES[kind].top)


def _pack_affine(x: torch.Tensor, found: torch.Tensor, top: int) -> torch.Tensor:
    """d, dmin, 8 scales and 8 minima of 6 bits, then codes. Codes are rounded again, for the scales as stored."""
    scale, low, inverse, used_low = found
    scales, lows = scale.view(-1, 8), -low.view(-1, 8)  # (B, 8)
    most, most_low = (part.amax(dim=1, keepdim=True) for part in (scales, lows))
    most, most_low = (torch.where(part > 0, part, 0.0) for part in (most, most_low))  # no negative nought
    six, six_low = (_share(part, top, 63.0) for part, top in ((scales, most), (lows, most_low)))
    d, d_low = ((top / _like(x, 63.0)).to(torch.float16) for top in (most, most_low))  # (B, 1)
    step, shift = (d.float() * six).view(-1), (d_low.float() * six_low).view(-1)
    kept = _codes(x, inverse, used_low, top)  # of a scale that is nought in six bits
    again = ((x + shift) / torch.where(step == 0, 1.0, step)).round().clamp(0, top)
    codes = torch.where(step == 0, kept, again).to(torch.uint8).T.reshape(-1, 4, 2, 32)  # (B, pairs, low or high, 32)
    six, six_low = six.to(torch.uint8), six_low.to(torch.uint8)
    first = torch.cat([six[:, :4], six_low[:, :4]], dim=1) | torch.cat([six[:, 4:], six_low[:, 4:]], dim=1) >> 4 << 6
    second = (six[:, 4:] & 15) | (six_low[:, 4:] & 15) << 4
    parts = [d.view(torch.uint8), d_low.view(torch.uint8), first, second]
    if top == 31:
        places = torch.arange(8, device=x.device, dtype=torch.uint8).view(1, 4, 2, 1)
        parts.append((codes >> 4 << places).sum(dim=(1, 2), dtype=torch.uint8))  # (B, 32) the fifth bits
    nibbles = codes & 15
    parts.append((nibbles[:, :, 0] | nibbles[:, :, 1] << 4).reshape(-1, 128))
    return torch.cat(parts, dim=1)


def _pack_symmetric(x: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """4 low bits, 2 high bits, 16 scales int8, d. Blocks without any value are nought altogether."""
    scales = found[0].view(-1, 16)  # (B, 16)
    size = scales.abs().amax(dim=1, keepdim=True)
    peak = scales.gather(1, (scales.abs() == size).to(torch.uint8).argmax(dim=1, keepdim=True))
    nothing = size < SMALLEST
    inverse = _like(x, -128.0) / torch.where(nothing, 1.0, peak)
    d = torch.where(nothing, 0.0, 1.0 / inverse).to(torch.float16)  # (B, 1)
    eight = torch.where(nothing, 0.0, (inverse * scales).round().clamp(max=127))
    step = (d.float() * eight).view(-1)
    kept = (found[1] * x).round().clamp(-32, 31)  # of a scale that is nought in eight bits
    kept = torch.where(found[1] == 0, -32.0, kept)  # weights without any value: the search leaves code 0
    again = (x / torch.where(step == 0, 1.0, step)).round().clamp(-32, 31)
    codes = (torch.where(step == 0, kept, again) + 32).to(torch.uint8).T.reshape(-1, 2, 4, 32)
    codes = codes.masked_fill(nothing[:, :, None, None], 0)
    low, high = codes & 15, codes >> 4
    places = torch.arange(0, 8, 2, device=x.device, dtype=torch.uint8).view(1, 1, 4, 1)
    parts = [
        (low[:, :, :2] | low[:, :, 2:] << 4).reshape(-1, 128), (high << places).sum(2, dtype=torch.uint8).view(-1, 64),
        eight.to(torch.int8).view(torch.uint8), d.view(torch.uint8),
    ]  # fmt: skip
    return torch.cat(parts, dim=1)


def _eight_bit(blocks: torch.Tensor) -> torch.Tensor:
    """d and 32 codes int8; halves are rounded away from zero."""
    d = blocks.abs().amax(dim=1, keepdim=True) / _like(blocks, 127.0)
    scaled = blocks * torch.where(d == 0, 0.0, 1.0 / torch.where(d == 0, 1.0, d))
    whole = scaled.trunc()
    codes = whole + torch.where((scaled - whole).abs() >= 0.5, scaled.sign(), 0.0)
    return torch.cat([d.to(torch.float16).view(torch.uint8), codes.to(torch.int8).view(torch.uint8)], dim=1)


def sum_of(x: torch.Tensor) -> torch.Tensor:
    """(n, S) → (S,): row after row, so that rounding is that of the C loop; x is used up."""
    total = x[0].clone()
    for row in x[1:]:
        total += row
    return total


def _codes(x: torch.Tensor, inverse: torch.Tensor, low: torch.Tensor, top: int) -> torch.Tensor:
    return (inverse * (x - low)).round_().clamp_(0, top)


def _share(parts: torch.Tensor, most: torch.Tensor, top: float) -> torch.Tensor:
    """Parts of the largest in whole steps of 1/top; 0 where the largest is."""
    inverse = torch.where(most > 0, _like(parts, top) / torch.where(most > 0, most, 1.0), 0.0)
    return (inverse * parts).round().clamp(0, top)


def _like(x: torch.Tensor, value: float) -> torch.Tensor:
    """A number as a tensor where x is: PyTorch divides by a plain number with its rounded reciprocal on a GPU."""
    return torch.full((), value, dtype=torch.float32, device=x.device)
