"""Cross entropy of hidden states straight through the head, without the logits of the whole batch.

    logits = x Wᵀ + b,  loss = cross_entropy(logits, labels)            x (M, H), W (V, H), logits (M, V)

Backward, with G = dloss/dlogits from the head of `cross_entropy.py`:

    dx = G W,  dW = Gᵀ x,  db = Σ rows G

Rows do not know of each other, so that a chunk of C rows is finished before the next begins: the library's product
gives its logits (C, V), the kernel of `cross_entropy` turns them in place into G, and two more products take from G
what is wanted. One buffer of C rows serves all chunks. The gradient is made in the forward pass, while the logits are
at hand, so that they are computed once; dW (V, H), a third of the work, only where the head is trained, and over
several chunks in float32. What is left for backward is to multiply by dloss.

Only where each row's loss is wanted ("none") and the head is trained, dW = Σ rows dloss · Gᵀ x must wait for dloss, and
the chunks are gone through again in backward. FLOPs: 4 M H V with a frozen head, 6 with a trained one, 8 there. Where
no kernel runs the definition does, chunk by chunk too.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from speechkit_kernels.cross_entropy import Loss, checked, launch_forward, reduced, share_of
from speechkit_kernels.launch import check_same, check_shape, on_its_device, rows_of, use_kernel
from speechkit_kernels.reference.losses import linear_cross_entropy as definition
from speechkit_kernels.weights import in_autocast

__all__ = ["chunk_of", "linear_cross_entropy"]

CHUNK_BYTES = 2**29  # of logits: at V 128 256 in bfloat16 2 048 rows, which keep every multiprocessor busy
LEAST_CHUNK = 256  # rows, below which the products slow down


@dataclass(frozen=True)
class _Head:
    """What is the same for all chunks."""

    weight: torch.Tensor  # (V, H)
    bias: torch.Tensor | None  # (V,)
    kind: Loss
    chunk: int  # rows


@dataclass
class _Gradients:
    """What comes of G; None where it is not wanted. Of the head in float32 where it is summed over chunks."""

    x: torch.Tensor | None  # (M, H)
    weight: torch.Tensor | None  # (V, H)
    bias: torch.Tensor | None  # (V,) float32

    def add(self, g: torch.Tensor, x: torch.Tensor, head: _Head, rows: slice) -> None:
        """G (C, V) and x (C, H) of one chunk."""
        if self.x is not None:
            torch.mm(g, head.weight, out=self.x[rows])
        if self.weight is not None:
            if rows.start:
                self.weight += torch.mm(g.T, x)
            else:
                self.weight.copy_(torch.mm(g.T, x))
        if self.bias is not None:
            self.bias += g.sum(dim=0, dtype=torch.float32)


def chunk_of(rows: int, vocabulary: int, size: int) -> int:
    """Rows of a chunk whose logits, `size` bytes each, take up to CHUNK_BYTES; a power of two unless all rows fit."""
    most = max(LEAST_CHUNK, CHUNK_BYTES // max(1, vocabulary * size))
    return max(1, min(rows, 1 << (most.bit_length() - 1)))


def _through(
    x: torch.Tensor, labels: torch.Tensor, head: _Head, factor: torch.Tensor | None, wanted: tuple[bool, bool, bool]
) -> tuple[torch.Tensor, _Gradients]:
    """(M, H), (M,) → each row's loss, and the gradients `wanted` of x, weight and bias times `factor`, (1,) or (M,)."""
    rows, (vocabulary, width) = x.shape[0], head.weight.shape
    loss = torch.empty(rows, dtype=torch.float32, device=x.device)
    logits = torch.empty((min(head.chunk, rows), vocabulary), dtype=x.dtype, device=x.device)
    summed = torch.float32 if rows > head.chunk else x.dtype
    found = _Gradients(
        torch.empty((rows, width), dtype=x.dtype, device=x.device) if wanted[0] else None,
        torch.zeros((vocabulary, width), dtype=summed, device=x.device) if wanted[1] else None,
        torch.zeros(vocabulary, dtype=torch.float32, device=x.device) if wanted[2] else None,
    )
    for start in range(0, rows, head.chunk):
        part = slice(start, min(start + head.chunk, rows))
        mine = logits[: part.stop - start]
        if head.bias is None:
            torch.mm(x[part], head.weight.T, out=mine)
        else:
            torch.addmm(head.bias, x[part], head.weight.T, out=mine)
        times = factor[part] if factor is not None and factor.numel() > 1 else factor
        loss[part], _ = launch_forward(mine, labels[part], head.kind, times)
        if factor is not None:
            found.add(mine, x[part], head, part)
    return loss, found


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, labels: torch.Tensor, kind: Loss,
        chunk: int,
    ) -> torch.Tensor:  # fmt: skip
        flat, share = rows_of(x), share_of(labels, kind)
        head, wanted = _Head(weight, bias, kind, chunk), ctx.needs_input_grad[:3]
        ctx.shape, ctx.head, ctx.again = x.shape, head, kind.reduction == "none" and any(wanted[1:])
        late = x.dtype == torch.float16 or kind.reduction == "none"  # a share of 1/count may be zero in float16
        factor = None if ctx.again or not any(wanted) else torch.ones_like(share) if late else share
        loss, found = _through(flat, labels, head, factor, wanted)
        made = (found.x, found.weight, found.bias, share if late else None)
        ctx.save_for_backward(*((flat, weight, bias, labels) if ctx.again else made))
        return reduced(loss, share, kind)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> Any:
        times, head = gradients[0].reshape(-1).float().contiguous(), ctx.head
        if ctx.again:
            flat, _, _, labels = ctx.saved_tensors
            _, found = _through(flat, labels, head, times, ctx.needs_input_grad[:3])
            dx, dweight, dbias, share = found.x, found.weight, found.bias, None
            times = torch.ones_like(times[:1])
        else:
            dx, dweight, dbias, share = ctx.saved_tensors
        times = times if share is None else times * share
        dx = _times(dx, times[:, None], head.weight.dtype)
        dbias = _times(dbias, times, torch.float32 if head.bias is None else head.bias.dtype)
        return (
            None if dx is None else dx.view(ctx.shape), _times(dweight, times, head.weight.dtype), dbias,
            None, None, None,
        )  # fmt: skip


def _times(x: torch.Tensor | None, factor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor | None:
    """x · factor in float32, as `dtype`, in one pass."""
    return None if x is None else torch.mul(x, factor, out=torch.empty(x.shape, dtype=dtype, device=x.device))


@on_its_device
def linear_cross_entropy(
    x: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
    reduction: str = "mean",
    chunk: int | None = None,
) -> torch.Tensor:
    """`cross_entropy` of x · weightᵀ + bias, with the memory of `chunk` rows of logits instead of all.

    x: (…, H); weight: (V, H); bias: (V,); all of one dtype, or autocast's; labels: (…) integers. The other words as in
    `cross_entropy`. Without `chunk`, rows are chosen for half a gibibyte of logits. Returns float32, () or (…).
    Differentiable in x, weight and bias; what needs no gradient costs none. Raises ValueError for what does not fit.
    """
    name = "linear_cross_entropy"
    x, weight = in_autocast(x), in_autocast(weight)
    bias = None if bias is None else in_autocast(bias)
    kind = checked(name, labels, Loss(ignore_index, label_smoothing, float(softcap or 0), z_loss, reduction))
    _check(x, weight, labels, bias)
    rows = labels.numel()
    if chunk is not None and chunk < 1:
        raise ValueError(f"{name}: chunk is {chunk}; give 1 row or more")
    size = chunk or chunk_of(rows, weight.shape[0], x.element_size())
    if not use_kernel(name, x):
        return _by_definition(x, labels, _Head(weight, bias, kind, size))
    if not torch.is_grad_enabled():  # a Function is told what requires a gradient, not whether one is wanted
        x, weight, bias = x.detach(), weight.detach(), None if bias is None else bias.detach()
    loss = _LinearCrossEntropy.apply(x, weight, bias, labels.reshape(-1).contiguous(), kind, size)
    return loss.view(labels.shape) if reduction == "none" else loss


def _by_definition(x: torch.Tensor, labels: torch.Tensor, head: _Head) -> torch.Tensor:
    """The same in plain PyTorch, chunk by chunk too: a chunk's logits are computed again when its gradient is due."""
    kind = head.kind
    flat, told = x.reshape(-1, x.shape[-1]), labels.reshape(-1)

    def part(rows: torch.Tensor, own: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return definition(
            rows, weight, own, bias=bias, ignore_index=kind.ignore_index, label_smoothing=kind.label_smoothing,
            softcap=kind.softcap or None, z_loss=kind.z_loss, reduction="none",
        )  # fmt: skip

    chunks = zip(flat.split(head.chunk), told.split(head.chunk), strict=True)
    if told.numel() <= head.chunk:
        losses = part(flat, told, head.weight, head.bias)
    else:
        again = partial(checkpoint, part, use_reentrant=False, preserve_rng_state=False)
        losses = torch.cat([again(rows, own, head.weight, head.bias) for rows, own in chunks])
    if kind.reduction == "none":
        return losses.view(labels.shape)
    total = losses.sum()
    return total / (told != kind.ignore_index).sum().clamp(min=1) if kind.reduction == "mean" else total


def _check(x: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, bias: torch.Tensor | None) -> None:
    name = "linear_cross_entropy"
    given = {"x": x, "weight": weight} | ({"bias": bias} if bias is not None else {})
    check_same(name, given)
    check_same(name, {"x": x, "labels": labels}, floating=False)
    for label, tensor in given.items():
        if tensor.dtype != x.dtype:
            raise ValueError(f"{name}: {label} is {tensor.dtype}, x {x.dtype}; give both in one dtype")
    if not x.dim() or weight.dim() != 2 or weight.shape[1] != x.shape[-1] or not weight.shape[0]:
        raise ValueError(f"{name}: x is {tuple(x.shape)}, weight {tuple(weight.shape)}; give (…, H) and (V, H)")
    check_shape(name, "labels", labels, x.shape[:-1])
    if bias is not None:
        check_shape(name, "bias", bias, weight.shape[:1])
