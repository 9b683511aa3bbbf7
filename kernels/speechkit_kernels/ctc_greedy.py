"""Greedy CTC: the best token of each frame, runs of equal tokens, their spans and confidences.

    id, score  = argmax, max over the vocabulary, of each frame
    a run      = neighbours with one id; runs of blanks are left out (Graves et al. 2006, the map B)
    confidence = exp(mean of the run's scores), at most 1 (arXiv:2212.08703, geometric mean of maximum probabilities)

Two launches. The first finds winners, a few frames a program, at the rate of memory. The second is one program for each
row, that reads the path once. What is known of a run is known at its last frame, so all of it is written there: a scan
over a block of frames carries (sum of scores since the run began, frame where it began), joined by

    (s₁, f₁) · (s₂, f₂) = (s₂, f₂) if a run begins in the second part, else (s₁ + s₂, f₁)

which is associative; a sum never reaches over a run's beginning, so hours lose nothing in float32. No gradient: argmax
has none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from speechkit_kernels.launch import block_of, check_same, check_shape, on_its_device, use_kernel
from speechkit_kernels.lengths import counts_of
from speechkit_kernels.reference.ctc import ctc_collapse as definition

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Runs", "ctc_collapse", "ctc_greedy"]

FRAMES = 1024  # frames a step of the collapsing program scans


@dataclass(frozen=True)
class Runs:
    """The runs of B rows, padded: row b's are the first `counts[b]` columns; behind them -1, and confidence 0."""

    tokens: torch.Tensor  # (B, F) int64
    firsts: torch.Tensor  # (B, F) int64, first frame
    lasts: torch.Tensor  # (B, F) int64, last frame, included
    confidences: torch.Tensor  # (B, F) float32 in 0..1
    counts: torch.Tensor  # (B,) int64

    def row(self, index: int) -> list[tuple[int, int, int, float]]:
        """(token, first frame, last frame, confidence) of each run of one row. Waits for the device."""
        stop = int(self.counts[index])
        parts = (self.tokens, self.firsts, self.lasts, self.confidences)
        return list(zip(*(part[index, :stop].tolist() for part in parts), strict=True))


@triton.jit
def _winners(x_ptr, ids_ptr, scores_ptr, row_step, frame_step, frames, width, total, BLOCK_F: tl.constexpr,
             BLOCK_V: tl.constexpr):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK_F + tl.arange(0, BLOCK_F)  # (M,) of all frames of all rows
    inside = at < total
    base = x_ptr + (at // frames) * row_step + (at % frames) * frame_step
    best = tl.full((BLOCK_F,), float("-inf"), tl.float32)
    token = tl.zeros((BLOCK_F,), tl.int32)
    for first in range(0, width, BLOCK_V):
        column = first + tl.arange(0, BLOCK_V)
        mask = inside[:, None] & (column < width)[None, :]
        x = tl.load(base[:, None] + column[None, :], mask=mask, other=float("-inf")).to(tl.float32)
        value, index = tl.max(x, axis=1, return_indices=True, return_indices_tie_break_left=True)
        better = value > best  # of equal ones the first stays
        token = tl.where(better, first + index, token)
        best = tl.where(better, value, best)
    tl.store(ids_ptr + at, token, mask=inside)
    tl.store(scores_ptr + at, best, mask=inside)


@triton.jit
def _join(sum_a, first_a, sum_b, first_b):
    begins = first_b >= 0
    return tl.where(begins, sum_b, sum_a + sum_b), tl.where(begins, first_b, first_a)


@triton.jit
def _collapse(ids_ptr, scores_ptr, lengths_ptr, tokens_ptr, firsts_ptr, lasts_ptr, confidences_ptr, counts_ptr,
              ids_step, scores_step, frames, blank, BLOCK: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    length = tl.load(lengths_ptr + row).to(tl.int32)
    ids_ptr += row * ids_step
    scores_ptr += row * scores_step
    out = row * frames
    lane = tl.arange(0, BLOCK)
    count = tl.zeros((), tl.int32)
    open_sum = tl.zeros((), tl.float32)  # of the run that the block before left open
    open_first = tl.zeros((), tl.int32)
    for start in range(0, length, BLOCK):
        at = start + lane
        inside = at < length
        token = tl.load(ids_ptr + at, mask=inside, other=0).to(tl.int32)
        before = tl.load(ids_ptr + at - 1, mask=inside & (at > 0), other=0).to(tl.int32)
        after = tl.load(ids_ptr + at + 1, mask=at + 1 < length, other=0).to(tl.int32)
        score = tl.load(scores_ptr + at, mask=inside, other=0.0).to(tl.float32)
        begins = (at == 0) | (token != before)
        total, first = tl.associative_scan((score, tl.where(begins, at, -1)), 0, _join)
        continued = first < 0
        total = tl.where(continued, total + open_sum, total)
        first = tl.where(continued, open_first, first)
        open_sum = tl.sum(tl.where(lane == BLOCK - 1, total, 0.0), axis=0)
        open_first = tl.sum(tl.where(lane == BLOCK - 1, first, 0), axis=0)
        ends = inside & (token != blank) & ((at == length - 1) | (token != after))
        place = out + count + tl.cumsum(ends.to(tl.int32), axis=0) - 1
        size = (at - first + 1).to(tl.float32)
        tl.store(tokens_ptr + place, token.to(tl.int64), mask=ends)
        tl.store(firsts_ptr + place, first.to(tl.int64), mask=ends)
        tl.store(lasts_ptr + place, at.to(tl.int64), mask=ends)
        tl.store(confidences_ptr + place, tl.exp(tl.minimum(total / size, 0.0)), mask=ends)
        count += tl.sum(ends.to(tl.int32), axis=0)
    tl.store(counts_ptr + row, count.to(tl.int64))
    for start in range(0, frames, BLOCK):  # columns without a run
        at = start + lane
        free = (at >= count) & (at < frames)
        nothing = tl.full((BLOCK,), -1, tl.int64)
        tl.store(tokens_ptr + out + at, nothing, mask=free)
        tl.store(firsts_ptr + out + at, nothing, mask=free)
        tl.store(lasts_ptr + out + at, nothing, mask=free)
        tl.store(confidences_ptr + out + at, tl.zeros((BLOCK,), tl.float32), mask=free)


def _launch_winners(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, F, V) → the best id (B, F) int32 and its score (B, F) float32 of each frame."""
    rows, frames, width = x.shape
    x = x if x.stride(2) == 1 else x.contiguous()
    ids = torch.empty((rows, frames), dtype=torch.int32, device=x.device)
    scores = torch.empty((rows, frames), dtype=torch.float32, device=x.device)
    if ids.numel():
        columns = min(1024, block_of(width))
        each = max(1, 4096 // columns)
        _winners[(triton.cdiv(ids.numel(), each),)](
            x, ids, scores, x.stride(0), x.stride(1), frames, width, ids.numel(), BLOCK_F=each, BLOCK_V=columns,
        )  # fmt: skip
    return ids, scores


def _launch_collapse(ids: torch.Tensor, scores: torch.Tensor, lengths: torch.Tensor, blank: int) -> Runs:
    rows, frames = ids.shape
    ids = ids if ids.stride(1) == 1 else ids.contiguous()
    scores = scores if scores.stride(1) == 1 else scores.contiguous()
    tokens, firsts, lasts = (torch.empty((rows, frames), dtype=torch.int64, device=ids.device) for _ in range(3))
    confidences = torch.empty((rows, frames), dtype=torch.float32, device=ids.device)
    counts = torch.empty((rows,), dtype=torch.int64, device=ids.device)
    if rows:
        block = min(FRAMES, block_of(frames))
        _collapse[(rows,)](
            ids, scores, lengths, tokens, firsts, lasts, confidences, counts, ids.stride(0), scores.stride(0), frames,
            blank, BLOCK=block,
        )  # fmt: skip
    return Runs(tokens, firsts, lasts, confidences, counts)


@on_its_device
def ctc_greedy(log_probs: torch.Tensor, lengths: Sequence[int] | torch.Tensor | None = None, blank: int = 0) -> Runs:
    """Natural-log probabilities (B, F, V) → the runs of each row's best path, as `speechkit.asr.decode.runs` has them.

    lengths: (B,) frames that are meant, 0..F, default all; what lies behind them is not used. Of equal probabilities
    the first token wins. Raises ValueError for shapes, dtypes or lengths that do not fit.
    """
    name = "ctc_greedy"
    if log_probs.dim() != 3 or not log_probs.shape[2]:
        raise ValueError(f"{name}: log_probs have shape {tuple(log_probs.shape)}; wanted (B, F, V) with V ≥ 1")
    check_same(name, {"log_probs": log_probs})
    rows, frames, width = log_probs.shape
    _check_blank(name, blank, width)
    counts = counts_of(name, "lengths", lengths, rows, frames, log_probs.device)
    if use_kernel(name, log_probs):
        return _launch_collapse(*_launch_winners(log_probs), counts, blank)
    scores, ids = log_probs.max(dim=2) if frames else (log_probs[:, :, 0], log_probs[:, :, 0].long())
    return Runs(*definition(ids, scores, counts, blank))


@on_its_device
def ctc_collapse(
    ids: torch.Tensor,
    scores: torch.Tensor,
    lengths: Sequence[int] | torch.Tensor | None = None,
    blank: int = 0,
) -> Runs:
    """`ctc_greedy` where winners (B, F) int32 or int64 and their natural-log scores (B, F) are known already."""
    name = "ctc_collapse"
    if ids.dim() != 2 or ids.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"{name}: ids are {ids.dtype} {tuple(ids.shape)}; wanted int32 or int64 (B, F)")
    check_shape(name, "scores", scores, ids.shape)
    check_same(name, {"scores": scores})
    check_same(name, {"scores": scores, "ids": ids}, floating=False)
    _check_blank(name, blank)
    rows, frames = ids.shape
    counts = counts_of(name, "lengths", lengths, rows, frames, ids.device)
    if use_kernel(name, scores):
        return _launch_collapse(ids, scores, counts, blank)
    return Runs(*definition(ids, scores, counts, blank))


def _check_blank(name: str, blank: int, width: int | None = None) -> None:
    if blank < 0 or (width is not None and blank >= width):
        raise ValueError(f"{name}: blank is {blank}; give an id in 0..{'' if width is None else width - 1}")
