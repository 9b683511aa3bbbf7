"""Cross entropy over a large vocabulary, with label smoothing, logit cap and z-loss; its gradient over the logits.

Of each row x (V,) with label t, in float32, e the smoothing and w the weight of the z-loss:

    z = c tanh(x / c)                          where there is a cap c; else z = x
    L = log Σ exp z
    loss = L - (1 - e) z[t] - e mean(z) + w L²

Backward: dL/dz is p = exp(z - L), so that

    dx = dloss · ((1 + 2 w L) p - (1 - e) [i = t] - e / V) · (1 - (z / c)²)

A row is walked through twice. The first walk keeps the greatest z so far and the sum of exp(z - greatest), which is
made smaller whenever a greater one comes (Milakov & Gimelshein 2018, arXiv:1805.02867). The second goes back from the
end, where the cache still holds what was read last, and writes the gradient. In place it follows in the same launch and
writes over the logits, since nothing but dloss is unknown then: each element is read twice, of which once from the
cache, and written once. Otherwise backward makes it, from the logits and L.

The gradient of a mean is divided by the count before it is rounded; of float16, in which a share of 1/count may be no
more than zero, afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from speechkit_kernels.launch import block_of, check_same, check_shape, on_its_device, rows_of, use_kernel, warps_of
from speechkit_kernels.reference.losses import cross_entropy as definition

__all__ = ["Loss", "checked", "cross_entropy", "launch_backward", "launch_forward", "reduced", "share_of"]

BLOCK_BYTES = 16_384  # of a row that a program reads at a time; four of them are on their way into shared memory
REDUCTIONS = ("mean", "sum", "none")


@dataclass(frozen=True)
class Loss:
    """Which cross entropy."""

    ignore_index: int = -100
    label_smoothing: float = 0.0
    softcap: float = 0.0  # 0: none
    z_loss: float = 0.0
    reduction: str = "mean"


@triton.jit
def _capped(x, softcap, CAP: tl.constexpr):
    if CAP:
        x = softcap * (2.0 * tl.sigmoid(2.0 * x / softcap) - 1.0)
    return x


@triton.jit
def _write_gradient(x_ptr, dx_ptr, total, label, factor, width, smoothing, softcap, z_loss, CAP: tl.constexpr,
                    BLOCK: tl.constexpr, STAGES: tl.constexpr):  # fmt: skip
    """dx of one row, whose first elements the pointers are at; from the end to the beginning."""
    blocks = tl.cdiv(width, BLOCK)
    for step in tl.range(0, blocks, num_stages=STAGES):
        at = (blocks - 1 - step) * BLOCK + tl.arange(0, BLOCK)
        inside = at < width
        z = _capped(tl.load(x_ptr + at, mask=inside, other=-float("inf")).to(tl.float32), softcap, CAP)
        dx = (1.0 + 2.0 * z_loss * total) * tl.exp(z - total) - smoothing / width
        dx = tl.where(at == label, dx - (1.0 - smoothing), dx)
        if CAP:
            dx *= 1.0 - (z / softcap) * (z / softcap)
        tl.store(dx_ptr + at, (dx * factor).to(dx_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _write_zeros(dx_ptr, width, BLOCK: tl.constexpr):
    for first in range(0, width, BLOCK):
        at = first + tl.arange(0, BLOCK)
        tl.store(dx_ptr + at, tl.zeros((BLOCK,), tl.float32).to(dx_ptr.dtype.element_ty), mask=at < width)


@triton.jit
def _forward(x_ptr, label_ptr, loss_ptr, total_ptr, factor_ptr, x_step, factor_step, width, ignore_index, smoothing,
             softcap, z_loss, GRADIENT: tl.constexpr, CAP: tl.constexpr, SMOOTH: tl.constexpr, BLOCK: tl.constexpr,
             STAGES: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(label_ptr + row).to(tl.int64)
    x_ptr += row * x_step
    if label == ignore_index:
        tl.store(loss_ptr + row, 0.0)
        tl.store(total_ptr + row, 0.0)
        if GRADIENT:
            _write_zeros(x_ptr, width, BLOCK)
        return
    known = (label >= 0) & (label < width)
    # here and not where it is needed: a warp that is ahead may by then have written its gradient over it
    chosen = tl.load(x_ptr + label, mask=known, other=float("nan")).to(tl.float32)
    greatest = -1e30  # and not -inf, which minus itself is no number; less than any logit but -inf
    sums, all_z = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for first in tl.range(0, width, BLOCK, num_stages=STAGES):
        at = first + tl.arange(0, BLOCK)
        inside = at < width
        z = _capped(tl.load(x_ptr + at, mask=inside, other=-float("inf")).to(tl.float32), softcap, CAP)
        if CAP:
            z = tl.where(inside, z, -float("inf"))
        greater = tl.maximum(greatest, tl.max(z, axis=0))
        sums = sums * tl.exp(greatest - greater) + tl.exp(z - greater)
        greatest = greater
        if SMOOTH:
            all_z += tl.where(inside, z, 0.0)
    total = greatest + tl.log(tl.sum(sums, axis=0))
    loss = total - (1.0 - smoothing) * _capped(chosen, softcap, CAP) + z_loss * total * total
    if SMOOTH:
        loss -= smoothing * (tl.sum(all_z, axis=0) / width)
    tl.store(loss_ptr + row, loss)
    tl.store(total_ptr + row, total)
    if GRADIENT:
        factor = tl.load(factor_ptr + row * factor_step)
        _write_gradient(x_ptr, x_ptr, total, label, factor, width, smoothing, softcap, z_loss, CAP, BLOCK, STAGES)


@triton.jit
def _backward(x_ptr, dx_ptr, label_ptr, total_ptr, factor_ptr, x_step, factor_step, width, ignore_index, smoothing,
              softcap, z_loss, CAP: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(label_ptr + row).to(tl.int64)
    dx_ptr += row * width
    if label == ignore_index:
        _write_zeros(dx_ptr, width, BLOCK)
        return
    _write_gradient(x_ptr + row * x_step, dx_ptr, tl.load(total_ptr + row), label,
                    tl.load(factor_ptr + row * factor_step), width, smoothing, softcap, z_loss, CAP, BLOCK,
                    STAGES)  # fmt: skip


@triton.jit
def _scale(dx_ptr, factor_ptr, dx_step, factor_step, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    factor = tl.load(factor_ptr + row * factor_step)
    if factor != 1.0:  # as it is where the loss is what is derived, and the row need not be touched
        for first in range(0, width, BLOCK):
            at = first + tl.arange(0, BLOCK)
            dx = tl.load(dx_ptr + row * dx_step + at, mask=at < width, other=0.0).to(tl.float32)
            tl.store(dx_ptr + row * dx_step + at, (dx * factor).to(dx_ptr.dtype.element_ty), mask=at < width)


def _block(x: torch.Tensor) -> int:
    return min(block_of(x.shape[-1]), BLOCK_BYTES // x.element_size())


def _step(factor: torch.Tensor) -> int:
    """One factor for all rows, or one each."""
    return 1 if factor.numel() > 1 else 0


def launch_forward(
    x: torch.Tensor, labels: torch.Tensor, kind: Loss, factor: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(M, V), (M,) → loss and L, (M,) float32. With `factor`, (1,) or (M,) float32, x becomes its gradient times it."""
    (rows, width), block = x.shape, _block(x)
    loss, total = (torch.empty(rows, dtype=torch.float32, device=x.device) for _ in range(2))
    if rows:
        _forward[(rows,)](
            x, labels, loss, total, loss if factor is None else factor, x.stride(0),
            0 if factor is None else _step(factor), width, kind.ignore_index, kind.label_smoothing, kind.softcap,
            kind.z_loss, GRADIENT=factor is not None, CAP=kind.softcap > 0, SMOOTH=kind.label_smoothing > 0,
            BLOCK=block, STAGES=4, num_warps=warps_of(block),
        )  # fmt: skip
    return loss, total


def launch_backward(
    x: torch.Tensor, labels: torch.Tensor, total: torch.Tensor, kind: Loss, factor: torch.Tensor
) -> torch.Tensor:
    """(M, V) → its gradient times `factor`, in memory of its own."""
    (rows, width), block = x.shape, _block(x)
    dx = torch.empty((rows, width), dtype=x.dtype, device=x.device)
    if rows:
        _backward[(rows,)](
            x, dx, labels, total, factor, x.stride(0), _step(factor), width, kind.ignore_index, kind.label_smoothing,
            kind.softcap, kind.z_loss, CAP=kind.softcap > 0, BLOCK=block, STAGES=4, num_warps=warps_of(block),
        )  # fmt: skip
    return dx


def _launch_scale(dx: torch.Tensor, factor: torch.Tensor) -> None:
    (rows, width), block = dx.shape, _block(dx)
    if rows:
        _scale[(rows,)](dx, factor, dx.stride(0), _step(factor), width, BLOCK=block, num_warps=warps_of(block))


def share_of(labels: torch.Tensor, kind: Loss) -> torch.Tensor:
    """What a row's loss counts for in the result, (1,) float32; never asks the device for a number."""
    if kind.reduction != "mean":
        return torch.ones(1, dtype=torch.float32, device=labels.device)
    return (labels != kind.ignore_index).sum().clamp(min=1).float().reciprocal().view(1)


def reduced(loss: torch.Tensor, share: torch.Tensor, kind: Loss) -> torch.Tensor:
    """(M,) → the result: (M,), or the sum times each one's share."""
    return loss if kind.reduction == "none" else (loss.sum() * share).view(())


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, labels: torch.Tensor, kind: Loss, inplace: bool) -> torch.Tensor:
        flat, share = rows_of(logits), share_of(labels, kind)
        apart = flat.shape[0] < 2 or flat.stride(0) >= flat.shape[1]  # rows that share memory cannot each hold theirs
        ctx.kind, ctx.shape, ctx.inplace = kind, logits.shape, inplace and apart
        if ctx.inplace:
            ctx.late = logits.dtype == torch.float16
            loss, _ = launch_forward(flat, labels, kind, torch.ones_like(share) if ctx.late else share)
            # an operation before that kept the logits for its backward is told by the version counter
            torch.autograd.graph.increment_version(logits)
            ctx.gradient, ctx.share = flat.detach(), share
        else:
            loss, total = launch_forward(flat, labels, kind)
            ctx.save_for_backward(flat, labels, total, share)
        return reduced(loss, share, kind)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> Any:
        factor = gradients[0].reshape(-1).float().contiguous()
        if not ctx.inplace:
            flat, labels, total, share = ctx.saved_tensors
            dx = launch_backward(flat, labels, total, ctx.kind, factor * share)
            return dx.view(ctx.shape), None, None, None
        if ctx.gradient is None:
            raise RuntimeError("cross_entropy: backward gave its gradient away; leave inplace out to repeat it")
        dx, ctx.gradient = ctx.gradient, None
        _launch_scale(dx, factor * ctx.share if ctx.late else factor)
        return dx.view(ctx.shape), None, None, None


@on_its_device
def cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
    reduction: str = "mean",
    inplace: bool = False,
) -> torch.Tensor:
    """Cross entropy of logits (…, V) and integer labels (…), as float32: () for "mean" and "sum", (…) for "none".

    ignore_index: rows of this label count for nothing; where all are, the loss is 0 and so is the gradient. A label
    outside 0..V-1 gives NaN. softcap: c of c · tanh(logits / c); None or 0 for none. z_loss: weight of logsumexp².
    inplace: where a gradient is wanted it is written over the logits, at once, unless rows of them share memory;
    backward then runs once.
    Differentiable in logits. Raises ValueError for what does not fit.
    """
    kind = checked("cross_entropy", labels, Loss(ignore_index, label_smoothing, float(softcap or 0), z_loss, reduction))
    check_same("cross_entropy", {"logits": logits})
    check_same("cross_entropy", {"logits": logits, "labels": labels}, floating=False)
    if not logits.dim() or not logits.shape[-1]:
        raise ValueError(f"cross_entropy: logits of shape {tuple(logits.shape)} have no vocabulary; give (…, V)")
    check_shape("cross_entropy", "labels", labels, logits.shape[:-1])
    if inplace and torch.is_grad_enabled() and logits.requires_grad and logits.is_leaf:
        said = "logits are a leaf that wants its gradient and cannot be overwritten; leave inplace out"
        raise ValueError(f"cross_entropy: {said}")
    if not use_kernel("cross_entropy", logits):
        return definition(
            logits, labels, ignore_index=ignore_index, label_smoothing=label_smoothing, softcap=softcap, z_loss=z_loss,
            reduction=reduction,
        )  # fmt: skip
    wanted = torch.is_grad_enabled() and logits.requires_grad  # inside a Function it cannot be asked any more
    loss = _CrossEntropy.apply(logits, labels.reshape(-1).contiguous(), kind, inplace and wanted)
    return loss.view(labels.shape) if reduction == "none" else loss


def checked(name: str, labels: torch.Tensor, kind: Loss) -> Loss:
    """`kind`, if there is such a loss of such labels."""
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"{name}: labels are {labels.dtype}; give integers")
    if kind.reduction not in REDUCTIONS:
        raise ValueError(f"{name}: reduction is {kind.reduction!r}; give one of {', '.join(map(repr, REDUCTIONS))}")
    if not 0 <= kind.label_smoothing <= 1:
        raise ValueError(f"{name}: label_smoothing is {kind.label_smoothing}; give a share in 0..1")
    if kind.softcap < 0 or kind.z_loss < 0:
        raise ValueError(f"{name}: softcap is {kind.softcap}, z_loss {kind.z_loss}; give numbers from 0 on")
    return kind
