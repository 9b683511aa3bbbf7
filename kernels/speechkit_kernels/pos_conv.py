"""The grouped positional convolution of wav2vec 2.0 (128 taps, 16 groups) as matrix products, with bias and GELU.

Of group g with I channels in and O out, f a frame, K taps, `left` frames of padding:

    z[f, o] = bias[o] + Σ_k Σ_i weight[o, i, k] · x[f + k - left, i]          y = z · Φ(z)

Library convolutions run far below the rate of matrix products here, and unfolding x (every frame K times) would cost
more memory traffic than the arithmetic. So split taps and frames by R: k = c·R + t, f = m·R + j. Then

    z[m·R + j, o] = Σ_c Z_j[m + c, (c, o)],      Z_j = A_j · W,
    A_j[m, (t, i)] = x[m·R + j + t - left, i],   W[(t, i), (c, o)] = weight[o, i, c·R + t]

A_j is R frames side by side in every row, and a row begins where the last one ended: a *view* of x, shifted by j.
Nothing is copied or computed twice. Each product is (frames / R) × (R·I) × (K/R·O), R of them a group: 2048 deep and
256 wide for wav2vec 2.0 large. What is left is a sum of K/R shifted numbers; one kernel adds them to the bias, applies
GELU and writes the frames in order, while the cache still has them.

Backward, with dz = dy · GELU'(z): dx is the same convolution of dz, taps reversed and channels exchanged; and
dW = Σ_j A_jᵀ · D_j with D_j[m, (c, o)] = dz[(m - c)·R + j, o], the same views again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from speechkit_kernels.launch import block_of, check_same, check_shape, on_its_device, use_kernel
from speechkit_kernels.reference.pos_conv import fold_weight_norm
from speechkit_kernels.reference.pos_conv import pos_conv as definition
from speechkit_kernels.wide_bmm import wide_bmm

__all__ = ["fold_weight_norm", "pos_conv"]

STRIDE = 32  # R: frames of a row of A


@triton.jit
def _sum_shifted(z_ptr, bias_ptr, y_ptr, kept_ptr, rows, steps, parts, stride, frames, width, y_row, y_frame,
                 BIASED: tl.constexpr, ACTIVE: tl.constexpr, KEEP: tl.constexpr, BLOCK_F: tl.constexpr,
                 BLOCK_O: tl.constexpr):  # fmt: skip
    index = tl.program_id(0).to(tl.int64)
    tiles = tl.cdiv(frames, BLOCK_F)
    row = index // tiles
    frame = (index % tiles) * BLOCK_F + tl.arange(0, BLOCK_F)
    channel = tl.arange(0, BLOCK_O)
    inside = (frame < frames)[:, None] & (channel < width)[None, :]
    first = ((frame % stride) * rows + row) * steps + frame // stride  # row of Z where the frame's sum begins
    z = tl.zeros((BLOCK_F, BLOCK_O), tl.float32)
    for part in range(0, parts):
        at = ((first + part) * parts + part) * width
        z += tl.load(z_ptr + at[:, None] + channel[None, :], mask=inside, other=0.0)
    if BIASED:
        z += tl.load(bias_ptr + channel, mask=channel < width, other=0.0).to(tl.float32)[None, :]
    out = row * y_row + frame[:, None] * y_frame + channel[None, :]
    if KEEP:
        tl.store(kept_ptr + out, z.to(kept_ptr.dtype.element_ty), mask=inside)
    if ACTIVE:
        z = z * 0.5 * (1.0 + tl.erf(z * 0.7071067811865476))
    tl.store(y_ptr + out, z.to(y_ptr.dtype.element_ty), mask=inside)


class _Plan(NamedTuple):
    """Sizes of one convolution: B rows, F frames, G groups, I and O channels of each, K taps, R the stride."""

    rows: int
    frames: int
    groups: int
    inner: int
    outer: int
    taps: int
    stride: int

    @property
    def parts(self) -> int:  # C = K/R
        return -(-self.taps // self.stride)

    @property
    def outputs(self) -> int:  # rows of A that frames come from
        return -(-self.frames // self.stride)

    @property
    def steps(self) -> int:  # rows of A that one row of x takes
        return self.outputs + self.parts


def _plan(x: torch.Tensor, weight: torch.Tensor, groups: int) -> _Plan:
    taps = weight.shape[2]
    rows, frames, _ = x.shape
    return _Plan(rows, frames, groups, weight.shape[1], len(weight) // groups, taps, min(STRIDE, block_of(taps)))


def _padded(x: torch.Tensor, plan: _Plan, left: int) -> torch.Tensor:
    """(B, F, G·I) → (G, rows·I) with zeros around every row, and room behind the last for the latest shift."""
    length = plan.steps * plan.stride
    wide = x.new_zeros((plan.groups, plan.rows * length + plan.stride, plan.inner))
    here = wide[:, : plan.rows * length].view(plan.groups, plan.rows, length, plan.inner)
    here[:, :, left : left + plan.frames] = x.view(plan.rows, plan.frames, plan.groups, plan.inner).permute(2, 0, 1, 3)
    return wide


def _views(wide: torch.Tensor, group: int, plan: _Plan) -> torch.Tensor:
    """A of one group for every shift: (R, B·steps, R·I), overlapping, not copied."""
    size = (plan.stride, plan.rows * plan.steps, plan.stride * plan.inner)
    return wide[group].as_strided(size, (plan.inner, plan.stride * plan.inner, 1))


def _rearranged(weight: torch.Tensor, plan: _Plan) -> torch.Tensor:
    """(G·O, I, K) → W (G, R·I, C·O)."""
    full = torch.nn.functional.pad(weight, (0, plan.parts * plan.stride - plan.taps))
    split = full.view(plan.groups, plan.outer, plan.inner, plan.parts, plan.stride).permute(0, 4, 2, 3, 1)
    return split.reshape(plan.groups, plan.stride * plan.inner, plan.parts * plan.outer)


def _correlate(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, groups: int, left: int, active: bool, keep: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(B, F, G·I), (G·O, I, K) → (B, F, G·O): z, or GELU(z) if active; and z once more if kept."""
    plan = _plan(x, weight, groups)
    y = torch.empty((plan.rows, plan.frames, groups * plan.outer), dtype=x.dtype, device=x.device)
    kept = torch.empty_like(y) if keep else None
    wide, products = _padded(x, plan, left), _rearranged(weight.to(x.dtype), plan)
    block_o = block_of(plan.outer)
    block_f = max(1, min(block_of(plan.frames), 4096 // block_o))
    for group in range(groups if x.numel() else 0):
        z = wide_bmm(_views(wide, group, plan), products[group].expand(plan.stride, -1, -1))
        own = slice(group * plan.outer, (group + 1) * plan.outer)
        part = y[:, :, own]
        _sum_shifted[(plan.rows * triton.cdiv(plan.frames, block_f),)](
            z, part if bias is None else bias[own], part, part if kept is None else kept[:, :, own], plan.rows,
            plan.steps, plan.parts, plan.stride, plan.frames, plan.outer, y.stride(0), y.stride(1),
            BIASED=bias is not None, ACTIVE=active, KEEP=keep, BLOCK_F=block_f, BLOCK_O=block_o,
        )  # fmt: skip
    return y, kept


def _weight_gradient(x: torch.Tensor, dz: torch.Tensor, weight: torch.Tensor, groups: int, left: int) -> torch.Tensor:
    """Σ over frames of x and dz, for every tap: (G·O, I, K) float32."""
    if not x.numel():
        return torch.zeros(weight.shape, dtype=torch.float32, device=x.device)
    plan = _plan(x, weight, groups)
    wide = _padded(x, plan, left)
    padding = plan.outputs * plan.stride - plan.frames
    split = torch.nn.functional.pad(dz, (0, 0, 0, padding))
    split = split.view(plan.rows, plan.outputs, plan.stride, groups, plan.outer).permute(3, 2, 0, 1, 4)  # G R B m O
    size = (groups, plan.stride * plan.inner, plan.parts * plan.outer)
    gradient = torch.empty(size, dtype=torch.float32, device=x.device)
    for group in range(groups):
        shifted = dz.new_zeros((plan.stride, plan.rows, plan.steps, plan.parts, plan.outer))
        for part in range(plan.parts):
            shifted[:, :, part : part + plan.outputs, part] = split[group]
        flat = shifted.view(plan.stride, plan.rows * plan.steps, -1)
        torch.sum(wide_bmm(_views(wide, group, plan).mT, flat), dim=0, out=gradient[group])
    apart = gradient.view(groups, plan.stride, plan.inner, plan.parts, plan.outer).permute(0, 4, 2, 3, 1)
    return apart.reshape(weight.shape[0], plan.inner, -1)[:, :, : plan.taps]


class _PosConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, groups: int
    ) -> torch.Tensor:
        x = x.contiguous()
        y, z = _correlate(x, weight, bias, groups, weight.shape[2] // 2, active=True, keep=True)
        ctx.save_for_backward(x, weight, bias, z)
        ctx.groups = groups
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, weight, bias, z = ctx.saved_tensors
        groups, (outputs, inner, taps) = ctx.groups, weight.shape
        dz = torch.ops.aten.gelu_backward(gradients[0].contiguous(), z)
        dx = dweight = dbias = None
        if ctx.needs_input_grad[0]:
            turned = weight.view(groups, outputs // groups, inner, taps).transpose(1, 2).flip(3)
            turned = turned.reshape(groups * inner, outputs // groups, taps)
            dx, _ = _correlate(dz, turned, None, groups, taps - 1 - taps // 2, active=False, keep=False)
        if ctx.needs_input_grad[1]:
            dweight = _weight_gradient(x, dz, weight, groups, taps // 2).to(weight.dtype)
        if bias is not None and ctx.needs_input_grad[2]:
            dbias = dz.sum(dim=(0, 1), dtype=torch.float32).to(bias.dtype)
        return dx, dweight, dbias, None


@on_its_device
def pos_conv(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *, groups: int) -> torch.Tensor:
    """GELU of the grouped convolution over frames: x (B, F, H) → the same shape and dtype.

    weight: (H, H/groups, K), its weight norm folded in by `fold_weight_norm`; bias: (H,). K/2 frames of zeros on both
    sides; an even K gives one frame too many, which is cut off. Differentiable in x, weight and bias; sums in float32.
    On a CPU the library's convolution is twice as fast as these products, so the definition serves there.
    Raises ValueError for shapes, devices or dtypes that do not fit.
    """
    name = "pos_conv"
    if x.dim() != 3:
        raise ValueError(f"{name}: x has shape {tuple(x.shape)}; wanted (B, F, H)")
    hidden = x.shape[2]
    if groups < 1 or hidden % groups:
        raise ValueError(f"{name}: {hidden} channels cannot be split into {groups} groups; choose a divisor")
    if weight.dim() != 3 or tuple(weight.shape[:2]) != (hidden, hidden // groups) or not weight.shape[2]:
        raise ValueError(
            f"{name}: weight has shape {tuple(weight.shape)}; wanted ({hidden}, {hidden // groups}, K) with K ≥ 1"
        )
    given = {"x": x, "weight": weight} | ({} if bias is None else {"bias": bias})
    check_same(name, given)
    if bias is not None:
        check_shape(name, "bias", bias, (hidden,))
    if not use_kernel(name, x):
        return definition(x, weight, bias, groups)
    bias = None if bias is None else bias.contiguous()
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given.values()):
        return _PosConv.apply(x, weight, bias, groups)
    return _correlate(x.contiguous(), weight, bias, groups, weight.shape[2] // 2, active=True, keep=False)[0]
