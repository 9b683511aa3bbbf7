"""Forced alignment: the best CTC path of each row through its own labels, all rows in one launch (Viterbi).

A target of L labels has 2L + 1 states: blank, label, blank, …, label, blank (Graves et al. 2006, section 4.1). They are
held as L + 1 *pairs*: pair i is the blank before label i, and label i; the last pair's label is never reached. With b
and l the scores of the best paths into them, and p the frame's log-probabilities:

    b'[i] = p[blank] + max(b[i], l[i-1])
    l'[i] = p[label] + max(l[i], b[i], l[i-1] where label i differs from label i-1)

and a back-pointer says which: 0 stayed, 1 came one state on, 2 came two. Two bits a state, so a byte holds two pairs
(2i, 2i+1), lowest bits first: blank 2i, label 2i, blank 2i+1, label 2i+1.

One program is one row. It walks over the frames; in each, over blocks of pairs from one of two score buffers into the
other, with a barrier between frames. After frame t no path is past pair t, and what cannot reach the end in the frames
that are left cannot matter: blocks wholly outside are left as they are. Then the same program follows the pointers
back, and reads off labels and scores. Scores are float64, as in `speechkit.asr.viterbi`: over an hour of frames float32
sums no longer tell paths apart, and rounding would choose. No gradient: a path has none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from speechkit_kernels.launch import block_of, check_same, on_its_device, use_kernel
from speechkit_kernels.lengths import counts_of
from speechkit_kernels.reference.ctc import ctc_align as definition

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Alignment", "ctc_align"]

PAIRS = 2048  # pairs of states that a step of the program holds


@dataclass(frozen=True)
class Alignment:
    """The best path of each row. Past a row's own frames: the blank, score 0, owner -1."""

    labels: torch.Tensor  # (B, F) int64, the label or blank of each frame
    scores: torch.Tensor  # (B, F) float32, its natural-log probability
    owners: torch.Tensor  # (B, F) int32, which position of the target a frame belongs to, -1 for blank
    totals: torch.Tensor  # (B,) float64, the path's log-probability; -inf where no path has any


@triton.jit
def _align(p_ptr, targets_ptr, frames_ptr, tokens_ptr, buffer_ptr, moves_ptr, labels_ptr, scores_ptr, owners_ptr,
           totals_ptr, row_step, frame_step, columns, longest, width, bytes_a_frame, blank,
           HALF: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    frames, tokens = tl.load(frames_ptr + row).to(tl.int32), tl.load(tokens_ptr + row).to(tl.int32)
    p_ptr += row * row_step
    targets_ptr += row * columns
    buffer_ptr += row * width * 4  # blanks and labels of even frames, blanks and labels of odd frames
    moves_ptr += row * longest * bytes_a_frame
    out = row * longest
    lane = tl.arange(0, HALF)
    nowhere = float("-inf")
    for frame in range(0, frames):
        old, new = buffer_ptr + ((frame + 1) % 2) * 2 * width, buffer_ptr + (frame % 2) * 2 * width
        here = p_ptr + tl.cast(frame, tl.int64) * frame_step
        at_blank = tl.load(here + blank).to(tl.float64)
        low = tl.maximum(tokens - (frames - frame), 0) // (2 * HALF) * HALF
        high = tl.minimum(frame + 1, tokens) // 2 + 1
        for first in range(low, high, HALF):
            byte = first + lane
            even, odd = 2 * byte, 2 * byte + 1
            is_even, is_odd = even <= tokens, odd <= tokens
            has_before, has_even, has_odd = is_even & (even > 0), even < tokens, odd < tokens
            id_before = tl.load(targets_ptr + even - 1, mask=has_before, other=-1)
            id_even = tl.load(targets_ptr + even, mask=has_even, other=-1)
            id_odd = tl.load(targets_ptr + odd, mask=has_odd, other=-1)
            l_before = tl.load(old + width + even - 1, mask=has_before, other=nowhere)
            l_even = tl.load(old + width + even, mask=has_even, other=nowhere)
            l_odd = tl.load(old + width + odd, mask=has_odd, other=nowhere)
            b_even = tl.load(old + even, mask=is_even, other=nowhere)
            b_odd = tl.load(old + odd, mask=is_odd, other=nowhere)
            p_even = tl.load(here + id_even, mask=has_even, other=nowhere).to(tl.float64)
            p_odd = tl.load(here + id_odd, mask=has_odd, other=nowhere).to(tl.float64)
            jump_even = tl.where(id_even != id_before, l_before, nowhere)
            jump_odd = tl.where(id_odd != id_even, l_even, nowhere)
            best_even, best_odd = tl.maximum(l_even, b_even), tl.maximum(l_odd, b_odd)
            # a tie goes to the path that stays
            packed = (l_before > b_even).to(tl.int32) | ((l_even > b_odd).to(tl.int32) << 4)
            packed |= tl.where(jump_even > best_even, 2, (b_even > l_even).to(tl.int32)) << 2
            packed |= tl.where(jump_odd > best_odd, 2, (b_odd > l_odd).to(tl.int32)) << 6
            tl.store(moves_ptr + tl.cast(frame, tl.int64) * bytes_a_frame + byte, packed.to(tl.uint8), mask=is_even)
            tl.store(new + even, tl.maximum(b_even, l_before) + at_blank, mask=is_even)
            tl.store(new + odd, tl.maximum(b_odd, l_even) + at_blank, mask=is_odd)
            tl.store(new + width + even, tl.maximum(best_even, jump_even) + p_even, mask=has_even)
            tl.store(new + width + odd, tl.maximum(best_odd, jump_odd) + p_odd, mask=has_odd)
        tl.debug_barrier()  # the next frame reads what other threads of this program wrote
    last = buffer_ptr + ((frames + 1) % 2) * 2 * width
    in_blank = tl.load(last + tokens)
    in_label = tl.load(last + width + tokens - 1, mask=tokens > 0, other=nowhere)
    tl.store(totals_ptr + row, tl.maximum(in_blank, in_label))
    state = 2 * tokens - ((in_label >= in_blank) & (tokens > 0)).to(tl.int32)
    for back in range(0, frames):
        at = tl.cast(frames - 1 - back, tl.int64)
        tl.store(owners_ptr + out + at, tl.where(state % 2 == 1, state // 2, -1))
        # what no path had reached by then has no pointer; a search among -inf or NaN gets there, and stays
        reached = state // 4 <= tl.minimum(frames - back, tokens) // 2
        move = tl.load(moves_ptr + at * bytes_a_frame + state // 4, mask=reached, other=0).to(tl.int32)
        state -= (move >> (2 * (state % 4))) & 3
    tl.debug_barrier()
    for first in range(0, longest, HALF):
        each = first + lane
        inside = each < frames
        owner = tl.load(owners_ptr + out + each, mask=inside, other=-1)
        label = tl.load(targets_ptr + owner, mask=owner >= 0, other=blank)
        score = tl.load(p_ptr + each.to(tl.int64) * frame_step + label, mask=inside, other=0.0).to(tl.float32)
        tl.store(labels_ptr + out + each, label, mask=each < longest)
        tl.store(scores_ptr + out + each, score, mask=each < longest)
        tl.store(owners_ptr + out + each, owner, mask=each < longest)


def _launch(
    log_probs: torch.Tensor, targets: torch.Tensor, frames: torch.Tensor, tokens: torch.Tensor, blank: int
) -> Alignment:
    """(B, F, V), (B, L), (B,), (B,) → the alignment; back-pointers take B·F·⌈(L + 1)/2⌉ bytes meanwhile."""
    rows, longest, _ = log_probs.shape
    log_probs = log_probs if log_probs.stride(2) == 1 else log_probs.contiguous()
    device, columns = log_probs.device, targets.shape[1]
    width = columns + 1
    bytes_a_frame = triton.cdiv(width, 2)
    buffer = torch.full((rows, 4, width), -torch.inf, dtype=torch.float64, device=device)
    buffer[:, 2, 0] = 0.0  # before the first frame: in the first blank, at no cost
    moves = torch.empty((rows, longest, bytes_a_frame), dtype=torch.uint8, device=device)
    labels = torch.empty((rows, longest), dtype=torch.int64, device=device)
    scores = torch.empty((rows, longest), dtype=torch.float32, device=device)
    owners = torch.empty((rows, longest), dtype=torch.int32, device=device)
    totals = torch.empty((rows,), dtype=torch.float64, device=device)
    if rows:
        half = max(32, min(PAIRS // 2, block_of(bytes_a_frame)))
        _align[(rows,)](
            log_probs, targets.contiguous(), frames, tokens, buffer, moves, labels, scores, owners, totals,
            log_probs.stride(0), log_probs.stride(1), columns, longest, width, bytes_a_frame, blank, HALF=half,
            num_warps=max(1, min(8, half // 64)),
        )  # fmt: skip
    return Alignment(labels, scores, owners, totals)


def _defined(
    log_probs: torch.Tensor, targets: torch.Tensor, frames: torch.Tensor, tokens: torch.Tensor, blank: int
) -> Alignment:
    owners, totals = definition(log_probs, targets, frames, tokens, blank)
    padded = torch.nn.functional.pad(targets, (0, 1), value=blank)  # column -1 is the blank
    labels = padded.gather(1, owners.to(torch.int64) % padded.shape[1])
    inside = torch.arange(log_probs.shape[1], device=log_probs.device) < frames[:, None]
    scores = log_probs.gather(2, labels[:, :, None])[:, :, 0].float().where(inside, 0.0)
    return Alignment(labels, scores, owners, totals)


@on_its_device
def ctc_align(
    log_probs: torch.Tensor,
    targets: torch.Tensor,
    frames: Sequence[int] | torch.Tensor | None = None,
    tokens: Sequence[int] | torch.Tensor | None = None,
    blank: int = 0,
) -> Alignment:
    """Natural-log probabilities (B, F, V) and labels (B, L) → the most probable path of each row through its labels.

    frames, tokens: (B,) how much of each row is meant, default all; labels behind a row's own may be anything. Of equal
    paths the one that stays longer in a state wins, as in torchaudio's `forced_align`, which takes one row at a time.
    Labels and lengths on the CPU are checked there; on a GPU the check costs one wait for the device.
    Raises ValueError for shapes, dtypes and lengths that do not fit, labels that are blank or outside the vocabulary,
    and rows whose labels need more frames than they have.
    """
    name = "ctc_align"
    if log_probs.dim() != 3 or not log_probs.shape[2]:
        raise ValueError(f"{name}: log_probs have shape {tuple(log_probs.shape)}; wanted (B, F, V) with V ≥ 1")
    check_same(name, {"log_probs": log_probs})
    rows, longest, width = log_probs.shape
    if targets.dim() != 2 or len(targets) != rows or targets.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"{name}: targets are {targets.dtype} {tuple(targets.shape)}; wanted integers ({rows}, L)")
    if not 0 <= blank < width:
        raise ValueError(f"{name}: blank is {blank}; give an id in 0..{width - 1}")
    device = log_probs.device
    n_tokens = counts_of(name, "tokens", tokens, rows, targets.shape[1], targets.device)
    n_frames = counts_of(name, "frames", frames, rows, longest, targets.device)
    targets = _checked(targets.to(torch.int64), n_frames, n_tokens, blank, width).to(device)
    given = (log_probs, targets, n_frames.to(device), n_tokens.to(device), blank)
    return _launch(*given) if use_kernel(name, log_probs) else _defined(*given)


def _checked(targets: torch.Tensor, frames: torch.Tensor, tokens: torch.Tensor, blank: int, width: int) -> torch.Tensor:
    """The labels, blanks behind each row's own; raises ValueError unless they are labels and fit into the frames."""
    meant = torch.arange(targets.shape[1], device=targets.device) < tokens[:, None]
    wrong = meant & ((targets < 0) | (targets >= width) | (targets == blank))
    equal = (targets[:, 1:] == targets[:, :-1]) & meant[:, 1:]  # neighbours that need a blank between them
    needed = tokens + equal.sum(dim=1)
    short = needed > frames
    if bool((wrong.any(dim=1) | short).any()):
        if bool(wrong.any()):
            row, column = wrong.nonzero()[0].tolist()
            raise ValueError(
                f"ctc_align: label {column} of row {row} is {int(targets[row, column])}; give ids in 0..{width - 1} "
                f"other than the blank, {blank}"
            )
        row = int(short.nonzero()[0])
        raise ValueError(
            f"ctc_align: row {row} has {int(frames[row])} frames; its {int(tokens[row])} labels, with a blank between "
            f"equal neighbours, need {int(needed[row])}"
        )
    return targets.where(meant, blank)
