"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864) of queries and keys in one launch.

Each pair (a, b) of a head's columns turns by the angle t of its position, in float32:

    a' = a cos t - b sin t                     half layout: a = x[i], b = x[i + R/2]       (Llama, Qwen, Mistral)
    b' = b cos t + a sin t                     interleaved: a = x[2i], b = x[2i + 1]       (GPT-J, Cohere, GLM)

Columns from R on (partial rotary) stay as they are. A rotation's transpose is the rotation back, so that backward is
the same kernel with the sign of the sine changed, and nothing of q and k is kept for it.

One program turns all heads of one token: they share its cosines, and lie beside each other where (B, H, S, D) is a
transposed view of a projection's (B, S, H * D). In place, only what turns is touched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from speechkit_kernels.launch import block_of, check_same, on_its_device, use_kernel
from speechkit_kernels.reference.rope import rope as definition

__all__ = ["rope"]

TILE = 2048  # pairs that a program holds at a time


@triton.jit
def _turn(x_ptr, y_ptr, x_head, x_column, y_head, y_column, cos, sin, heads, half: tl.constexpr, rest: tl.constexpr,
          INTERLEAVED: tl.constexpr, COPY: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr,
          REST: tl.constexpr):  # fmt: skip
    """The heads of one token: x_ptr and y_ptr stand at its first."""
    pair = tl.arange(0, HALF).to(tl.int64)[None, :]
    both = tl.arange(0, 2 * HALF).to(tl.int64)[None, :]
    for first in range(0, heads, HEADS):
        head = (first + tl.arange(0, HEADS)).to(tl.int64)[:, None]
        x, y = x_ptr + head * x_head, y_ptr + head * y_head
        if INTERLEAVED:  # read and written as it lies, and told apart in registers
            inside = (head < heads) & (both < 2 * half)
            whole = tl.load(x + both * x_column, mask=inside, other=0.0).to(tl.float32)  # (HEADS, 2 HALF)
            a, b = tl.split(tl.reshape(whole, (HEADS, HALF, 2)))
            turned = tl.reshape(tl.join(a * cos - b * sin, b * cos + a * sin), (HEADS, 2 * HALF))
            tl.store(y + both * y_column, turned.to(y_ptr.dtype.element_ty), mask=inside)
        else:
            inside = (head < heads) & (pair < half)
            a = tl.load(x + pair * x_column, mask=inside, other=0.0).to(tl.float32)  # (HEADS, HALF)
            b = tl.load(x + (pair + half) * x_column, mask=inside, other=0.0).to(tl.float32)
            tl.store(y + pair * y_column, (a * cos - b * sin).to(y_ptr.dtype.element_ty), mask=inside)
            tl.store(y + (pair + half) * y_column, (b * cos + a * sin).to(y_ptr.dtype.element_ty), mask=inside)
        if COPY:
            column = tl.arange(0, REST).to(tl.int64)[None, :]
            kept = (head < heads) & (column < rest)
            still = tl.load(x + (2 * half + column) * x_column, mask=kept, other=0.0)
            tl.store(y + (2 * half + column) * y_column, still, mask=kept)


@triton.jit
def _rotate(q_ptr, q_out, k_ptr, k_out, cos_ptr, sin_ptr, at_ptr, q_b, q_h, q_s, q_d, qo_b, qo_h, qo_s, qo_d, k_b, k_h,
            k_s, k_d, ko_b, ko_h, ko_s, ko_d, cos_b, cos_s, cos_pair, at_b, at_s, tokens, table, q_heads, k_heads,
            half: tl.constexpr, rest: tl.constexpr, BACK: tl.constexpr, TABLE: tl.constexpr,
            INTERLEAVED: tl.constexpr, COPY: tl.constexpr, Q_HEADS: tl.constexpr, K_HEADS: tl.constexpr,
            HALF: tl.constexpr, REST: tl.constexpr):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    b, s = program // tokens, program % tokens
    pair = tl.arange(0, HALF).to(tl.int64)
    inside = pair < half
    row = b * cos_b + s * cos_s
    if TABLE:
        position = tl.load(at_ptr + b * at_b + s * at_s).to(tl.int64)
        row = position * cos_s
        inside = inside & (position >= 0) & (position < table)  # beyond the table: NaN, not a stranger's memory
    cos = tl.load(cos_ptr + row + pair * cos_pair, mask=inside, other=float("nan")).to(tl.float32)[None, :]
    sin = tl.load(sin_ptr + row + pair * cos_pair, mask=inside, other=float("nan")).to(tl.float32)[None, :]
    if BACK:
        sin = -sin
    _turn(q_ptr + b * q_b + s * q_s, q_out + b * qo_b + s * qo_s, q_h, q_d, qo_h, qo_d, cos, sin, q_heads, half, rest,
          INTERLEAVED, COPY, Q_HEADS, HALF, REST)  # fmt: skip
    _turn(k_ptr + b * k_b + s * k_s, k_out + b * ko_b + s * ko_s, k_h, k_d, ko_h, ko_d, cos, sin, k_heads, half, rest,
          INTERLEAVED, COPY, K_HEADS, HALF, REST)  # fmt: skip


@dataclass(frozen=True)
class _Angles:
    """Cosines and sines as the kernel reads them."""

    cos: torch.Tensor  # (B, S, …) expanded, or a table (1, P, …)
    sin: torch.Tensor  # with the strides of cos
    positions: torch.Tensor | None  # (B, S) expanded
    half: int  # pairs that turn
    step: int  # elements from the cosine of a pair to the next one's
    interleaved: bool


def _launch(
    q: torch.Tensor, k: torch.Tensor, angles: _Angles, *, back: bool = False, inplace: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, Hq, S, D), (B, Hk, S, D) → the same, turned (back); in place they are their own results."""
    q_out, k_out = (q, k) if inplace else (torch.empty_like(q), torch.empty_like(k))
    batch, q_heads, tokens, width = q.shape
    k_heads, rest, half = k.shape[1], width - 2 * angles.half, block_of(angles.half)
    at = angles.positions
    if batch * tokens:
        _rotate[(batch * tokens,)](
            q, q_out, k, k_out, angles.cos, angles.sin, angles.cos if at is None else at, *q.stride(), *q_out.stride(),
            *k.stride(), *k_out.stride(), *angles.cos.stride()[:2], angles.step,
            *((0, 0) if at is None else at.stride()), tokens, angles.cos.shape[1], q_heads, k_heads, angles.half, rest,
            BACK=back, TABLE=at is not None, INTERLEAVED=angles.interleaved, COPY=bool(rest) and not inplace,
            Q_HEADS=_heads_of(q_heads, half), K_HEADS=_heads_of(k_heads, half), HALF=half, REST=block_of(rest),
            num_warps=4,
        )  # fmt: skip
    return q_out, k_out


def _heads_of(heads: int, half: int) -> int:
    return min(block_of(heads), max(1, TILE // half))


class _Rope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, angles: _Angles, inplace: bool) -> Any:
        ctx.angles = angles
        turned = _launch(q, k, angles, inplace=inplace)
        if inplace:
            # told by the version counter, an operation before that kept q or k for its backward raises instead of
            # using what is no longer there; mark_dirty allows no views, and q and k of a projection are views
            torch.autograd.graph.increment_version([q, k])
            return q.detach(), k.detach()
        return turned

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> Any:
        # not in place: others may hold the same gradient
        dq, dk = _launch(gradients[0], gradients[1], ctx.angles, back=True)
        return dq, dk, None, None


@on_its_device
def rope(
    q: torch.Tensor,
    k: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    *,
    positions: torch.Tensor | None = None,
    rotary_dim: int | None = None,
    interleaved: bool = False,
    inplace: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn queries (B, Hq, S, D) and keys (B, Hk, S, D) by their positions; any strides.

    cos, sin: as transformers gives them, (B or 1, S, R) or (S, R), of which one column a pair is read; or one column a
    pair (…, R/2) with `rotary_dim` R. With integer `positions` (B or 1, S) or (S,) they are tables (P, …): position p
    reads row p, so that packed sequences start anew; one outside the table gives NaN. R columns turn, the rest stays.
    inplace: q and k may be overwritten; use what is returned. Differentiable in q and k; float32 inside.
    Raises ValueError for shapes, devices or dtypes that do not fit.
    """
    check_same("rope", {"q": q, "k": k, "cos": cos, "sin": sin})
    rotary = _checked(q, k, cos, sin, positions, rotary_dim)
    if inplace:
        _check_writable(q, k)
    if not use_kernel("rope", q):
        return definition(q, k, cos, sin, positions=positions, rotary_dim=rotary, interleaved=interleaved)
    return _Rope.apply(q, k, _angles(q, cos, sin, positions, rotary, interleaved), inplace)


def _angles(
    q: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor | None,
    rotary: int,
    interleaved: bool,
) -> _Angles:
    batch, _, tokens, _ = q.shape
    cos, sin = cos.detach(), sin.detach()
    if cos.stride() != sin.stride():
        cos, sin = cos.contiguous(), sin.contiguous()
    rows = (batch, tokens, -1) if positions is None else (1, *cos.shape)
    cos, sin = cos.expand(rows), sin.expand(rows)
    step = cos.stride(-1) * (2 if interleaved and cos.shape[-1] == rotary else 1)
    at = None if positions is None else positions.expand(batch, tokens)
    return _Angles(cos, sin, at, rotary // 2, step, interleaved)


def _checked(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, positions: torch.Tensor | None,
    rotary_dim: int | None,
) -> int:  # fmt: skip
    """How many columns turn."""
    if q.dim() != 4 or k.dim() != 4 or (q.shape[0], *q.shape[2:]) != (k.shape[0], *k.shape[2:]):
        raise ValueError(f"rope: q is {tuple(q.shape)}, k {tuple(k.shape)}; give (B, Hq, S, D) and (B, Hk, S, D)")
    batch, _, tokens, width = q.shape
    rotary = rotary_dim or (cos.shape[-1] if cos.dim() else 0)
    if rotary % 2 or not 0 < rotary <= width:
        raise ValueError(f"rope: {rotary} columns of {width} cannot turn; give an even number up to {width}")
    wide = (rotary, rotary // 2)
    given = f"rope: cos is {tuple(cos.shape)}"
    if cos.shape != sin.shape or not cos.dim() or cos.shape[-1] not in wide:
        raise ValueError(f"{given}, sin {tuple(sin.shape)}; give both with {wide[0]} or {wide[1]} columns")
    if positions is None:
        if tuple(cos.shape[:-1]) not in {(tokens,), (1, tokens), (batch, tokens)}:
            raise ValueError(f"{given}; q of {batch} rows and {tokens} tokens wants ({batch} or 1, {tokens}, R)")
        return rotary
    if cos.dim() != 2:
        raise ValueError(f"rope: with positions cos is a table (P, R), not {tuple(cos.shape)}")
    if positions.device != q.device or positions.is_floating_point() or positions.is_complex():
        raise ValueError(f"rope: positions are {positions.dtype} on {positions.device}; give integers on {q.device}")
    if tuple(positions.shape) not in {(tokens,), (1, tokens), (batch, tokens)}:
        raise ValueError(f"rope: positions have shape {tuple(positions.shape)}; wanted ({batch} or 1, {tokens})")
    return rotary


def _check_writable(q: torch.Tensor, k: torch.Tensor) -> None:
    cannot = "and cannot be overwritten; leave inplace out"
    for label, x in (("q", q), ("k", k)):
        if torch.is_grad_enabled() and x.requires_grad and x.is_leaf:
            raise ValueError(f"rope: {label} is a leaf that wants its gradient {cannot}")
        if any(step == 0 and size > 1 for size, step in zip(x.shape, x.stride(), strict=True)):
            raise ValueError(f"rope: {label} is expanded, one element stands for many, {cannot}")
    if _share_heads(q, k):
        raise ValueError(f"rope: q and k are the same memory, which would turn twice, {cannot}")


def _share_heads(q: torch.Tensor, k: torch.Tensor) -> bool:
    """Whether k has a head of q among its own, both being views of one tensor."""
    if torch.compiler.is_compiling() or not q.numel() or not k.numel():  # a compiler's tensors have no memory
        return False
    if q.untyped_storage()._cdata != k.untyped_storage()._cdata:
        return False
    apart, head = k.storage_offset() - q.storage_offset(), max(q.stride(1), 1)
    return bool(
        not apart or (k.stride() == q.stride() and not apart % head and -k.shape[1] < apart // head < q.shape[1])
    )
