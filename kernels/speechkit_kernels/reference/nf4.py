"""4-bit NormalFloat weights by their definition: quantise, dequantise, multiply.

A weight (N, K) is read as one row of N·K numbers in blocks of 64 that may cross the rows. Of each block,

    absmax = max |w|                                   float32
    code   = the nearest of 16 levels to w / absmax    4 bits, two to a byte, the earlier one in the upper half
    w'     = level[code] · absmax

Nested, the absmax themselves are kept in 8 bits, in groups of 256: offset = mean(absmax), peak = max |absmax - offset|
of the group, and the nearest of 256 levels to (absmax - offset) / peak. That is 4.127 bits a weight instead of 4.5.

Levels and nesting: Dettmers et al. 2023, arXiv:2305.14314, appendix E and section 3; the 256 levels: Dettmers 2015,
arXiv:1511.04561. Bits and their order are those of bitsandbytes, so that its checkpoints are read as they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch.nn.functional import pad

__all__ = [
    "BLOCK",
    "GROUP",
    "NF4Weight",
    "Nested",
    "dynamic_levels",
    "nf4_absmax",
    "nf4_dequantise",
    "nf4_levels",
    "nf4_linear",
    "nf4_quantise",
]

BLOCK = 64  # weights that share an absmax
GROUP = 256  # absmax that share a peak
SMALLEST = 1e-38  # a block of zeros is divided by this
GRID = 32767.5  # half the steps of the table in which bitsandbytes looks an absmax up on a CPU
LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Nested:
    """What turns 8-bit absmax codes back into absmax: levels[code] · peak of the group + offset."""

    peak: torch.Tensor  # (⌈blocks / 256⌉,) float32
    levels: torch.Tensor  # (256,) float32, rising
    offset: torch.Tensor  # () float32


@dataclass(frozen=True, eq=False)
class NF4Weight:
    """A frozen weight (N, K) in 4 bits. Satisfies `Weight`; the kernels are imported when a method needs them."""

    packed: torch.Tensor  # (⌈N·K / 2⌉,) uint8
    absmax: torch.Tensor  # (⌈N·K / 64⌉,) float32, or uint8 codes where nested
    shape: tuple[int, int]
    dtype: torch.dtype  # of what it was made
    levels: torch.Tensor  # (16,) float32, rising
    nested: Nested | None = None

    def __repr__(self) -> str:
        kind = "float32" if self.nested is None else "8-bit"
        return f"NF4Weight({self.shape[0]} x {self.shape[1]}, {kind} absmax, {self.nbytes:,} bytes, {self.device})"

    @property
    def device(self) -> torch.device:
        return self.packed.device

    @property
    def nbytes(self) -> int:
        """Bytes that grow with the weight; the tables are not counted."""
        own = self.packed.nbytes + self.absmax.nbytes
        return own if self.nested is None else own + self.nested.peak.nbytes

    @classmethod
    def from_bitsandbytes(cls, data: torch.Tensor, state: Any = None) -> NF4Weight:
        """Of bitsandbytes' `Params4bit`, or of packed data and their `QuantState`; the memory is shared, not copied.

        Raises ValueError for what is not NF4 in blocks of 64 of a two-dimensional weight.
        """
        name, state = "NF4Weight.from_bitsandbytes", getattr(data, "quant_state", None) if state is None else state
        if state is None:
            raise ValueError(f"{name}: the weight has no quant_state yet; move it to its device first, or pass one")
        if getattr(state, "packing_format_for_cpu", False):
            raise ValueError(f"{name}: the weight was repacked for bitsandbytes' CPU product; take it before eval()")
        if state.quant_type != "nf4" or state.blocksize != BLOCK or len(state.shape) != 2:
            raise ValueError(
                f"{name}: got {state.quant_type} in blocks of {state.blocksize}, shape {tuple(state.shape)}; "
                f"wanted nf4 in blocks of {BLOCK}, shape (N, K)"
            )
        nested = None
        if state.nested:
            if state.state2.blocksize != GROUP:
                raise ValueError(f"{name}: absmax nested in groups of {state.state2.blocksize}; wanted {GROUP}")
            nested = Nested(state.state2.absmax.float(), state.state2.code.float(), state.offset.float())
        packed = data.detach().as_subclass(torch.Tensor).reshape(-1).view(torch.uint8)
        absmax = state.absmax if nested is not None else state.absmax.float()
        outer, inner = state.shape
        return cls(packed, absmax, (int(outer), int(inner)), state.dtype, state.code.float(), nested)

    def to(self, device: torch.device | str) -> NF4Weight:
        """The same weight on another device."""
        nested = self.nested
        if nested is not None:
            nested = Nested(nested.peak.to(device), nested.levels.to(device), nested.offset.to(device))
        moved = {at: getattr(self, at).to(device) for at in ("packed", "absmax", "levels")}
        return replace(self, nested=nested, **moved)

    def dequantise(self, dtype: torch.dtype | None = None, out: torch.Tensor | None = None) -> torch.Tensor:
        """(N, K) in `dtype`, by default that of what it was made of."""
        from speechkit_kernels.nf4 import nf4_dequantise

        return nf4_dequantise(self, dtype, out=out)

    def product(
        self, x: torch.Tensor, bias: torch.Tensor | None = None, onto: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(M, K) → (M, N), without a gradient; added onto `onto` if given."""
        from speechkit_kernels.nf4_linear import product

        return product(x, self, bias, onto)

    def input_gradient(self, dy: torch.Tensor, onto: torch.Tensor | None = None) -> torch.Tensor:
        """(M, N) → (M, K), without a gradient; added onto `onto` if given."""
        from speechkit_kernels.nf4_linear import input_gradient

        return input_gradient(dy, self, onto)

    def linear(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """(…, K) → (…, N), differentiable in x and bias."""
        from speechkit_kernels.nf4_linear import nf4_linear

        return nf4_linear(x, self, bias)


@lru_cache
def nf4_levels(device: torch.device | str = "cpu") -> torch.Tensor:
    """The 16 levels, (16,) float32, rising. Shared: not to be written to."""
    with torch.inference_mode(False):
        return torch.tensor(LEVELS, dtype=torch.float32, device=device)


@lru_cache
def dynamic_levels(device: torch.device | str = "cpu") -> torch.Tensor:
    """The 256 levels of an 8-bit number with a sliding exponent, (256,) float32, rising. Shared: not to be written to.

    For each power 10^-6 … 1 the interval 0.1 … 1 is cut into 1, 2, 4 … 64 parts whose middles are levels, with both
    signs; 0 and 1 complete them.
    """
    found = [torch.tensor([0.0, 1.0])]
    for digits in range(7):
        edges = torch.linspace(0.1, 1.0, 2**digits + 1)
        middles = 10.0 ** (digits - 6) * ((edges[:-1] + edges[1:]) / 2)
        found += [middles, -middles]
    with torch.inference_mode(False):
        return torch.cat(found).sort().values.to(device)


def middles_of(levels: torch.Tensor) -> torch.Tensor:
    """Where the nearest level changes: between two neighbours; what lies on it goes to the lower one."""
    return (levels[:-1] + levels[1:]) / 2


def nf4_quantise(weight: torch.Tensor, *, nested: bool = True, grid: bool | None = None) -> NF4Weight:
    """(N, K) float → NF4Weight.

    grid: whether an absmax is rounded to 1/65535 of its group's range before its level is sought, as bitsandbytes does
    on a CPU and nowhere else; None for what it does on the weight's device.
    """
    flat = weight.detach().reshape(-1).float()
    blocks = pad(flat, (0, -flat.numel() % BLOCK)).view(-1, BLOCK)
    absmax = blocks.abs().amax(dim=1)
    scaled = blocks * (1.0 / absmax.clamp(min=SMALLEST))[:, None]
    if flat.numel() % BLOCK:  # bitsandbytes divides in the last block, if it is not full, and multiplies elsewhere
        absmax[-1] = absmax[-1].clamp(min=SMALLEST)
        scaled[-1] = blocks[-1] / absmax[-1]
    levels = nf4_levels(weight.device)
    even = flat.numel() + flat.numel() % 2
    code = torch.bucketize(scaled.clamp(-1, 1).view(-1)[:even], middles_of(levels)).to(torch.uint8)
    packed = code[::2] << 4 | code[1::2]
    outer, inner = weight.shape
    if not nested:
        return NF4Weight(packed, absmax, (outer, inner), weight.dtype, levels)
    codes, more = nest(absmax, weight.device.type == "cpu" if grid is None else grid)
    return NF4Weight(packed, codes, (outer, inner), weight.dtype, levels, more)


def nest(absmax: torch.Tensor, grid: bool) -> tuple[torch.Tensor, Nested]:
    """(blocks,) float32 → (blocks,) uint8 and what turns them back."""
    offset = absmax.mean()
    groups = pad(absmax - offset, (0, -absmax.numel() % GROUP)).view(-1, GROUP)
    peak = groups.abs().amax(dim=1)
    scaled = (groups * (1.0 / peak)[:, None]).clamp(-1, 1)
    if grid:
        scaled = ((scaled + 1) * GRID + 0.5).floor() / GRID - 1
    levels = dynamic_levels(absmax.device)
    code = torch.bucketize(scaled, middles_of(levels)).where((peak > 0)[:, None], 0)
    return code.to(torch.uint8).view(-1)[: absmax.numel()], Nested(peak, levels, offset)


def nf4_absmax(weight: NF4Weight) -> torch.Tensor:
    """(⌈N·K / 64⌉,) float32."""
    if weight.nested is None:
        return weight.absmax
    peak = weight.nested.peak.repeat_interleave(GROUP)[: weight.absmax.numel()]
    return weight.nested.levels[weight.absmax.long()] * peak + weight.nested.offset


def nf4_dequantise(weight: NF4Weight, dtype: torch.dtype | None = None) -> torch.Tensor:
    """NF4Weight → (N, K) in `dtype`, by default that of what it was made of."""
    code = torch.stack((weight.packed >> 4, weight.packed & 15), dim=1).view(-1)
    code = code[: math.prod(weight.shape)]
    absmax = nf4_absmax(weight).repeat_interleave(BLOCK)[: code.numel()]
    return (weight.levels[code.long()] * absmax).to(dtype or weight.dtype).view(weight.shape)


def nf4_linear(x: torch.Tensor, weight: NF4Weight, bias: torch.Tensor | None = None) -> torch.Tensor:
    """y = x Wᵀ + bias with W dequantised in the dtype of x, summed in float32. x: (…, K); bias: (N,)."""
    wide = torch.promote_types(x.dtype, torch.float32)
    y = x.to(wide) @ nf4_dequantise(weight, x.dtype).to(wide).T
    return (y if bias is None else y + bias.to(wide)).to(x.dtype)
