"""CTC by its definitions: runs of the best path with their confidence, and the best path through given labels.

In: (B, F, V) natural-log probabilities, or the path taken from them; rows are padded, their lengths given.
"""

from __future__ import annotations

import torch

__all__ = ["ctc_align", "ctc_collapse"]


def ctc_collapse(
    ids: torch.Tensor, scores: torch.Tensor, lengths: torch.Tensor, blank: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Merge equal neighbours, then drop blanks (Graves et al. 2006, the map B).

    ids (B, F) whole numbers; scores (B, F) natural log; lengths (B,). Returns tokens, firsts, lasts (B, F) int64, the
    runs of a row from its start on and -1 after them; confidences (B, F) float32, exp(mean of a run's scores), at most
    1, and 0 after them; counts (B,).
    """
    rows, frames = ids.shape
    at = torch.arange(frames, device=ids.device).expand(rows, frames)
    inside = at < lengths[:, None]
    ids = ids.to(torch.int64)
    starts = torch.ones_like(inside)
    starts[:, 1:] = ids[:, 1:] != ids[:, :-1]
    kept = inside & (ids != blank)
    number = (starts & kept).cumsum(dim=1) - 1
    column = torch.where(kept, number, frames)  # frames of no run go to a column that is cut off below

    def empty(value: float, dtype: torch.dtype) -> torch.Tensor:
        return torch.full((rows, frames + 1), value, dtype=dtype, device=ids.device)

    tokens = empty(-1, torch.int64).scatter_(1, column, ids)[:, :frames]
    lasts = empty(-1, torch.int64).scatter_reduce_(1, column, at, "amax")[:, :frames]
    sizes = empty(0, torch.int64).scatter_add_(1, column, kept.to(torch.int64))[:, :frames]
    sums = empty(0, torch.float64).scatter_add_(1, column, scores.double().where(kept, 0.0))[:, :frames]
    confidences = torch.exp(sums / sizes.clamp(min=1)).clamp(max=1.0).where(sizes > 0, 0.0)
    firsts = torch.where(sizes > 0, lasts - sizes + 1, -1)
    return tokens, firsts, lasts, confidences.float(), (starts & kept).sum(dim=1)


def ctc_align(
    log_probs: torch.Tensor, targets: torch.Tensor, frames: torch.Tensor, tokens: torch.Tensor, blank: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Viterbi over the 2L + 1 states blank, label, blank, …, label, blank (Graves et al. 2006, section 4.1).

        score[t, s] = log_probs[t, symbol of s] + max(score[t-1, s], score[t-1, s-1], score[t-1, s-2])

    where the last is allowed into a label that differs from the one before it. Of equal paths the one that stays longer
    in a state wins. float64: over an hour of frames float32 sums no longer tell paths apart.

    log_probs (B, F, V); targets (B, L); frames, tokens (B,) how much of each is meant. Returns the position in the
    target that a frame belongs to, (B, F) int32, -1 for blank and past the row's frames; and the path's score (B,).
    """
    rows, most, _ = log_probs.shape
    states = 2 * targets.shape[1] + 1
    symbols = torch.full((rows, states), blank, dtype=torch.int64, device=log_probs.device)
    symbols[:, 1::2] = torch.where(
        torch.arange(targets.shape[1], device=targets.device) < tokens[:, None], targets, blank
    )
    skips = torch.zeros((rows, states), dtype=torch.bool, device=log_probs.device)
    skips[:, 3::2] = symbols[:, 3::2] != symbols[:, 1:-2:2]
    score = torch.full((rows, states + 2), -torch.inf, dtype=torch.float64, device=log_probs.device)
    score[:, 2] = 0.0  # before the first frame: in the first blank, at no cost; two states in front that none is in
    moves = torch.zeros((most, rows, states), dtype=torch.uint8, device=log_probs.device)
    for frame in range(most):
        stay, step, skip = score[:, 2:], score[:, 1:-1], score[:, :-2].masked_fill(~skips, -torch.inf)
        best = torch.maximum(stay, step)
        moves[frame] = torch.where(skip > best, 2, (step > stay).to(torch.uint8))
        after = torch.maximum(best, skip) + log_probs[:, frame].double().gather(1, symbols)
        score[:, 2:] = torch.where((frame < frames)[:, None], after, score[:, 2:])
    each = torch.arange(rows, device=log_probs.device)
    in_blank, in_label = score[each, 2 * tokens + 2], score[each, 2 * tokens + 1]
    state = 2 * tokens - (in_label >= in_blank).to(torch.int64) * (tokens > 0)
    owners = torch.full((rows, most), -1, dtype=torch.int32, device=log_probs.device)
    for frame in reversed(range(most)):
        inside = frame < frames
        owners[:, frame] = torch.where(inside & (state % 2 == 1), state // 2, -1).to(torch.int32)
        state = state - moves[frame, each, state] * inside
    return owners, torch.maximum(in_blank, torch.where(tokens > 0, in_label, -torch.inf))
