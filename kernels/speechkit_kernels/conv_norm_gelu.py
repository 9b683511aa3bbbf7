"""LayerNorm over channels and GELU on a convolution's output where it lies: (B, C, F), or (B, F, C). No transposes.

The feature encoders of wav2vec 2.0 large and XLSR normalise every frame x (C,) over its channels, after each of seven
convolutions; in plain PyTorch that is transpose, norm, transpose, GELU: five round trips through memory instead of one.
In float32, with c the convolution's own bias (which PyTorch would add in a pass of its own):

    x̂ = (x + c - mean(x + c)) · r        r = 1 / sqrt(variance + eps), biased
    z = x̂ · weight + bias
    y = z · Φ(z)                          Φ the normal distribution's cumulative, φ its density

Backward, with g = dy · (Φ(z) + z · φ(z)) and h = g · weight:

    dx = r · (h - mean(h) - x̂ · mean(h · x̂))          means over channels
    dweight = Σ g · x̂,   dbias = Σ g,   dc = Σ dx       sums over frames and rows

A program holds all channels of a few neighbouring frames, so that reads run along whatever axis is dense. Backward
keeps x, and two numbers a frame; its programs walk over tiles and sum in registers what belongs to the channels.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from speechkit_kernels.launch import block_of, check_same, check_shape, on_its_device, programs, use_kernel
from speechkit_kernels.reference.conv_norm import conv_norm_gelu as definition

__all__ = ["conv_norm_gelu"]

TILE = 16_384  # elements that a program holds at once, 32 a thread; a quarter in backward, or registers run out
DENSE = 4096  # where channels are dense: a few frames are wide enough, and four programs share a multiprocessor
WIDEST = 8192  # channels


@triton.jit
def _normal(z):
    """Φ(z) and φ(z)."""
    return 0.5 * (1.0 + tl.erf(z * 0.7071067811865476)), 0.3989422804014327 * tl.exp(-0.5 * z * z)


@triton.jit
def _forward(x_ptr, shift_ptr, weight_ptr, bias_ptr, y_ptr, mean_ptr, r_ptr, x_row, x_channel, x_frame, y_row,
             y_channel, y_frame, frames, width, tiles, eps, SHIFTED: tl.constexpr, BLOCK_C: tl.constexpr,
             BLOCK_F: tl.constexpr):  # fmt: skip
    index = tl.program_id(0).to(tl.int64)
    row = index // tiles
    frame = (index % tiles) * BLOCK_F + tl.arange(0, BLOCK_F)
    channel = tl.arange(0, BLOCK_C)
    known = channel < width
    inside = known[:, None] & (frame < frames)[None, :]
    at = row * x_row + channel.to(tl.int64)[:, None] * x_channel + frame[None, :] * x_frame
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)  # (C, f)
    if SHIFTED:
        x += tl.load(shift_ptr + channel, mask=known, other=0.0).to(tl.float32)[:, None]
    mean = tl.sum(x, axis=0) / width
    x = tl.where(known[:, None], x - mean[None, :], 0.0)
    r = tl.rsqrt(tl.sum(x * x, axis=0) / width + eps)
    tl.store(mean_ptr + row * frames + frame, mean, mask=frame < frames)
    tl.store(r_ptr + row * frames + frame, r, mask=frame < frames)
    weight = tl.load(weight_ptr + channel, mask=known, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + channel, mask=known, other=0.0).to(tl.float32)
    z = x * r[None, :] * weight[:, None] + bias[:, None]
    below, _ = _normal(z)
    out = row * y_row + channel.to(tl.int64)[:, None] * y_channel + frame[None, :] * y_frame
    tl.store(y_ptr + out, (z * below).to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _backward(dy_ptr, x_ptr, shift_ptr, weight_ptr, bias_ptr, mean_ptr, r_ptr, dx_ptr, partial_ptr, dy_row, dy_channel,
              dy_frame, x_row, x_channel, x_frame, dx_row, dx_channel, dx_frame, frames, width, tiles, total,
              SHIFTED: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_F: tl.constexpr):  # fmt: skip
    program, others = tl.program_id(0), tl.num_programs(0)
    channel = tl.arange(0, BLOCK_C)
    known = channel < width
    wide = channel.to(tl.int64)[:, None]
    dweight, dbias = tl.zeros((BLOCK_C,), tl.float32), tl.zeros((BLOCK_C,), tl.float32)
    dshift = tl.zeros((BLOCK_C,), tl.float32)
    for index in range(program, total, others):
        row = tl.cast(index, tl.int64) // tiles
        frame = (tl.cast(index, tl.int64) % tiles) * BLOCK_F + tl.arange(0, BLOCK_F)
        there = frame < frames
        inside = known[:, None] & there[None, :]
        x = tl.load(x_ptr + row * x_row + wide * x_channel + frame[None, :] * x_frame, mask=inside, other=0.0)
        dy = tl.load(dy_ptr + row * dy_row + wide * dy_channel + frame[None, :] * dy_frame, mask=inside, other=0.0)
        mean = tl.load(mean_ptr + row * frames + frame, mask=there, other=0.0)[None, :]
        r = tl.load(r_ptr + row * frames + frame, mask=there, other=0.0)[None, :]
        x = x.to(tl.float32)
        if SHIFTED:
            x += tl.load(shift_ptr + channel, mask=known, other=0.0).to(tl.float32)[:, None]
        scaled = tl.where(known[:, None], (x - mean) * r, 0.0)
        # read again for every tile: it costs a cache's time, and held over the loop it would cost registers
        weight = tl.load(weight_ptr + channel, mask=known, other=0.0).to(tl.float32)[:, None]
        bias = tl.load(bias_ptr + channel, mask=known, other=0.0).to(tl.float32)[:, None]
        z = scaled * weight + bias
        below, density = _normal(z)
        g = dy.to(tl.float32) * (below + z * density)
        h = g * weight
        dx = r * (h - (tl.sum(h, axis=0) / width)[None, :] - scaled * (tl.sum(h * scaled, axis=0) / width)[None, :])
        tl.store(dx_ptr + row * dx_row + wide * dx_channel + frame[None, :] * dx_frame,
                 dx.to(dx_ptr.dtype.element_ty), mask=inside)  # fmt: skip
        dweight += tl.sum(g * scaled, axis=1)
        dbias += tl.sum(g, axis=1)
        if SHIFTED:
            dshift += tl.sum(tl.where(inside, dx, 0.0), axis=1)
    base = partial_ptr + program.to(tl.int64) * 3 * width + channel
    tl.store(base, dweight, mask=known)
    tl.store(base + width, dbias, mask=known)
    tl.store(base + 2 * width, dshift, mask=known)


def _steps(x: torch.Tensor, channels: int) -> tuple[int, int, int]:
    """Strides of rows, channels and frames."""
    return x.stride(0), x.stride(channels), x.stride(3 - channels)


def _tiles(width: int, frames: int, elements: int) -> tuple[int, int, int]:
    """Channels and frames of a tile, and tiles in a row."""
    block_c = block_of(width)
    block_f = max(1, min(block_of(frames), elements // block_c, 128))
    return block_c, block_f, triton.cdiv(frames, block_f)


def _launch_forward(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, shift: torch.Tensor | None, eps: float, channels: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """→ y like x; mean and r (B, F) float32."""
    rows, width, frames = len(x), x.shape[channels], x.shape[3 - channels]
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    mean = torch.empty((rows, frames), dtype=torch.float32, device=x.device)
    r = torch.empty_like(mean)
    if x.numel():
        dense = x.stride(channels) == 1
        block_c, block_f, tiles = _tiles(width, frames, DENSE if dense else TILE)
        _forward[(rows * tiles,)](
            x, weight if shift is None else shift, weight, bias, y, mean, r, *_steps(x, channels), *_steps(y, channels),
            frames, width, tiles, eps, SHIFTED=shift is not None, BLOCK_C=block_c, BLOCK_F=block_f,
            num_warps=8 if dense else 16,
        )  # fmt: skip
    return y, mean, r


def _launch_backward(
    dy: torch.Tensor,
    saved: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
    shift: torch.Tensor | None,
    channels: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """→ dx like x; gradients of weight, bias and shift, (3, C) float32."""
    x, weight, bias, mean, r = saved
    rows, width, frames = len(x), x.shape[channels], x.shape[3 - channels]
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    if not x.numel():
        return dx, torch.zeros((3, width), dtype=torch.float32, device=x.device)
    block_c, block_f, tiles = _tiles(width, frames, TILE // 4)
    shared = programs(x.device, rows * tiles, each=1)
    partial = torch.empty((shared, 3, width), dtype=torch.float32, device=x.device)
    _backward[(shared,)](
        dy, x, weight if shift is None else shift, weight, bias, mean, r, dx, partial, *_steps(dy, channels),
        *_steps(x, channels), *_steps(dx, channels), frames, width, tiles, rows * tiles, SHIFTED=shift is not None,
        BLOCK_C=block_c, BLOCK_F=block_f, num_warps=16,
    )  # fmt: skip
    return dx, partial.sum(dim=0)


class _ConvNormGelu(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, shift: torch.Tensor | None, eps: float,
        channels: int,
    ) -> torch.Tensor:  # fmt: skip
        y, mean, r = _launch_forward(x, weight, bias, shift, eps, channels)
        ctx.save_for_backward(x, weight, bias, mean, r, shift)
        ctx.channels = channels
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> Any:
        *saved, shift = ctx.saved_tensors
        dx, (dweight, dbias, dshift) = _launch_backward(gradients[0], tuple(saved), shift, ctx.channels)
        weight, bias = saved[1:3]
        return (
            dx, dweight.to(weight.dtype), dbias.to(bias.dtype), None if shift is None else dshift.to(shift.dtype), None,
            None,
        )  # fmt: skip


@on_its_device
def conv_norm_gelu(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float = 1e-5,
    *,
    channels: int = 1,
    conv_bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """GELU(LayerNorm over channels): x (B, C, F) with channels=1, (B, F, C) with channels=2 → the same shape and dtype.

    weight, bias: (C,), the norm's. conv_bias: (C,), added to x before the norm, if the convolution has not done it.
    Differentiable in all of them. float32 inside. Raises ValueError for shapes, devices or dtypes that do not fit.
    """
    name = "conv_norm_gelu"
    if x.dim() != 3 or channels not in (1, 2):
        raise ValueError(
            f"{name}: x has shape {tuple(x.shape)}, channels is {channels}; wanted (B, C, F) with channels=1 or "
            "(B, F, C) with channels=2"
        )
    given = {"x": x, "weight": weight, "bias": bias} | ({} if conv_bias is None else {"conv_bias": conv_bias})
    check_same(name, given)
    for label, tensor in list(given.items())[1:]:
        check_shape(name, label, tensor, (x.shape[channels],))
    if x.shape[channels] > WIDEST or not use_kernel(name, x):
        return definition(x, weight, bias, eps, channels=channels, conv_bias=conv_bias)
    shift = None if conv_bias is None else conv_bias.contiguous()
    return _ConvNormGelu.apply(x, weight.contiguous(), bias.contiguous(), shift, eps, channels)
