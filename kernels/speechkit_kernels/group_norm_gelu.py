"""Masked group norm and GELU on the first convolution's output (B, C, F): a row in a padded batch is the row alone.

wav2vec 2.0 base normalises each channel over all frames of its recording, which in a padded batch takes the silence in
too and changes the transcript. Here the sums stop at the row's own frames. For row b and group g, over the K = C/G
channels of g and the n = lengths[b] frames that exist, in float32:

    x̂ = (x - mean) · r,   r = 1 / sqrt(variance + eps), variance biased
    y = z · Φ(z),  z = x̂ · weight + bias      Φ, φ: the normal distribution and its density; y = 0 from frame n on

Backward, with g = dy · (Φ(z) + z · φ(z)) and h = g · weight:

    dx = r · (h - mean(h) - x̂ · mean(h · x̂))  means over the K · n values; 0 from frame n on
    dweight = Σ g · x̂,   dbias = Σ g           over frames and rows, of each channel

One program is one group of one row, and walks over it twice: for the moments, block by block joined as Chan, Golub and
LeVeque (1983) have it, because a sum of squares loses what a mean far from zero leaves over; then for the values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from speechkit_kernels.launch import block_of, check_same, check_shape, on_its_device, use_kernel
from speechkit_kernels.lengths import counts_of
from speechkit_kernels.reference.conv_norm import group_norm_gelu as definition

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["group_norm_gelu"]

FRAMES = 4096  # that a step of a program holds


@triton.jit
def _normal(z):
    """Φ(z) and φ(z)."""
    return 0.5 * (1.0 + tl.erf(z * 0.7071067811865476)), 0.3989422804014327 * tl.exp(-0.5 * z * z)


@triton.jit
def _forward(x_ptr, lengths_ptr, weight_ptr, bias_ptr, y_ptr, mean_ptr, r_ptr, x_row, x_channel, frames, groups, each,
             eps, BLOCK: tl.constexpr):  # fmt: skip
    index = tl.program_id(0).to(tl.int64)
    row, group = index // groups, index % groups
    length = tl.load(lengths_ptr + row).to(tl.int32)
    x_ptr += row * x_row + group * each * x_channel
    y_ptr += index * each * frames
    lane = tl.arange(0, BLOCK)
    mean, spread, count = 0.0, 0.0, 0.0
    for channel in range(0, each):
        for start in range(0, length, BLOCK):
            inside = start + lane < length
            x = tl.load(x_ptr + tl.cast(channel, tl.int64) * x_channel + start + lane, mask=inside, other=0.0)
            x = x.to(tl.float32)
            n = tl.minimum(length - start, BLOCK).to(tl.float32)
            here = tl.sum(x, axis=0) / n
            off = tl.where(inside, x - here, 0.0)
            step = here - mean
            total = count + n
            spread += tl.sum(off * off, axis=0) + step * step * (count * n / total)
            mean += step * (n / total)
            count = total
    r = tl.rsqrt(spread / tl.maximum(count, 1.0) + eps)
    tl.store(mean_ptr + index, mean)
    tl.store(r_ptr + index, r)
    for channel in range(0, each):
        weight = tl.load(weight_ptr + group * each + channel).to(tl.float32) * r
        bias = tl.load(bias_ptr + group * each + channel).to(tl.float32)
        for start in range(0, frames, BLOCK):
            at = start + lane
            x = tl.load(x_ptr + tl.cast(channel, tl.int64) * x_channel + at, mask=at < length, other=0.0)
            z = (x.to(tl.float32) - mean) * weight + bias
            below, _ = _normal(z)
            y = tl.where(at < length, z * below, 0.0).to(y_ptr.dtype.element_ty)
            tl.store(y_ptr + tl.cast(channel, tl.int64) * frames + at, y, mask=at < frames)


@triton.jit
def _backward(dy_ptr, x_ptr, lengths_ptr, weight_ptr, bias_ptr, mean_ptr, r_ptr, dx_ptr, partial_ptr, dy_row,
              dy_channel, x_row, x_channel, frames, groups, each, BLOCK: tl.constexpr):  # fmt: skip
    index = tl.program_id(0).to(tl.int64)
    row, group = index // groups, index % groups
    length = tl.load(lengths_ptr + row).to(tl.int32)
    x_ptr += row * x_row + group * each * x_channel
    dy_ptr += row * dy_row + group * each * dy_channel
    dx_ptr += index * each * frames
    mean, r = tl.load(mean_ptr + index), tl.load(r_ptr + index)
    lane = tl.arange(0, BLOCK)
    sum_h, sum_hx = 0.0, 0.0
    for channel in range(0, each):
        weight = tl.load(weight_ptr + group * each + channel).to(tl.float32)
        bias = tl.load(bias_ptr + group * each + channel).to(tl.float32)
        dweight, dbias = 0.0, 0.0
        for start in range(0, length, BLOCK):
            at = start + lane
            x = tl.load(x_ptr + tl.cast(channel, tl.int64) * x_channel + at, mask=at < length, other=0.0)
            dy = tl.load(dy_ptr + tl.cast(channel, tl.int64) * dy_channel + at, mask=at < length, other=0.0)
            scaled = (x.to(tl.float32) - mean) * r
            z = scaled * weight + bias
            below, density = _normal(z)
            g = dy.to(tl.float32) * (below + z * density)
            dweight += tl.sum(g * scaled, axis=0)
            dbias += tl.sum(g, axis=0)
        sum_h += dbias * weight
        sum_hx += dweight * weight
        tl.store(partial_ptr + (index * each + channel) * 2, dweight)
        tl.store(partial_ptr + (index * each + channel) * 2 + 1, dbias)
    count = tl.maximum(tl.cast(length, tl.float32) * each, 1.0)
    for channel in range(0, each):
        weight = tl.load(weight_ptr + group * each + channel).to(tl.float32)
        bias = tl.load(bias_ptr + group * each + channel).to(tl.float32)
        for start in range(0, frames, BLOCK):
            at = start + lane
            x = tl.load(x_ptr + tl.cast(channel, tl.int64) * x_channel + at, mask=at < length, other=0.0)
            dy = tl.load(dy_ptr + tl.cast(channel, tl.int64) * dy_channel + at, mask=at < length, other=0.0)
            scaled = (x.to(tl.float32) - mean) * r
            z = scaled * weight + bias
            below, density = _normal(z)
            h = dy.to(tl.float32) * (below + z * density) * weight
            dx = tl.where(at < length, r * (h - sum_h / count - scaled * (sum_hx / count)), 0.0)
            tl.store(dx_ptr + tl.cast(channel, tl.int64) * frames + at, dx.to(dx_ptr.dtype.element_ty),
                     mask=at < frames)  # fmt: skip


def _dense(x: torch.Tensor) -> torch.Tensor:
    """Frames beside one another."""
    return x if x.stride(2) == 1 or x.shape[2] == 1 else x.contiguous()


def _warps(block: int) -> int:
    return max(1, min(8, block // 512))


class _GroupNormGelu(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, lengths: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, groups: int,
        eps: float,
    ) -> torch.Tensor:  # fmt: skip
        x = _dense(x)
        rows, channels, frames = x.shape
        y = torch.empty((rows, channels, frames), dtype=x.dtype, device=x.device)
        mean, r = (torch.empty((rows, groups), dtype=torch.float32, device=x.device) for _ in range(2))
        if x.numel():
            block = min(FRAMES, block_of(frames))
            _forward[(rows * groups,)](
                x, lengths, weight, bias, y, mean, r, x.stride(0), x.stride(1), frames, groups, channels // groups, eps,
                BLOCK=block, num_warps=_warps(block),
            )  # fmt: skip
        ctx.save_for_backward(x, lengths, weight, bias, mean, r)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, lengths, weight, bias, mean, r = ctx.saved_tensors
        dy, (rows, channels, frames), groups = _dense(gradients[0]), x.shape, mean.shape[1]
        dx = torch.empty((rows, channels, frames), dtype=x.dtype, device=x.device)
        partial = torch.zeros((rows, channels, 2), dtype=torch.float32, device=x.device)
        if x.numel():
            block = min(FRAMES, block_of(frames))
            _backward[(rows * groups,)](
                dy, x, lengths, weight, bias, mean, r, dx, partial, dy.stride(0), dy.stride(1), x.stride(0),
                x.stride(1), frames, groups, channels // groups, BLOCK=block, num_warps=_warps(block),
            )  # fmt: skip
        dweight, dbias = partial.sum(dim=0).unbind(dim=1)
        return dx, None, dweight.to(weight.dtype), dbias.to(bias.dtype), None, None


@on_its_device
def group_norm_gelu(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    num_groups: int,
    lengths: Sequence[int] | torch.Tensor | None = None,
    eps: float = 1e-5,
) -> torch.Tensor:
    """GELU(group norm over each row's own frames): x (B, C, F) → the same shape and dtype, 0 behind a row's end.

    lengths: (B,) frames that exist, 1..F, default all; what lies behind them is not read. weight, bias: (C,).
    Differentiable in x, weight and bias. float32 inside.
    Raises ValueError for shapes, devices, dtypes or lengths that do not fit, and groups that do not divide C.
    """
    name = "group_norm_gelu"
    if x.dim() != 3:
        raise ValueError(f"{name}: x has shape {tuple(x.shape)}; wanted (B, C, F)")
    check_same(name, {"x": x, "weight": weight, "bias": bias})
    rows, channels, frames = x.shape
    check_shape(name, "weight", weight, (channels,))
    check_shape(name, "bias", bias, (channels,))
    if num_groups < 1 or channels % num_groups:
        raise ValueError(f"{name}: {channels} channels cannot be split into {num_groups} groups; choose a divisor")
    counts = counts_of(name, "lengths", lengths, rows, frames, x.device, least=min(1, frames))
    if not use_kernel(name, x):
        return definition(x, counts, weight, bias, num_groups, eps)
    return _GroupNormGelu.apply(x, counts, weight.contiguous(), bias.contiguous(), num_groups, eps)
