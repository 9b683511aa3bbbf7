"""Reads a pretraining curve as a doctor would: what is wrong, how one can tell, what to do. Knows no torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from speechkit.training.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from speechkit.training.pretrain_config import PretrainCurve

__all__ = ["diagnose"]

COLLAPSED = 1.5  # codes in use per book; one alone is 1.0
NARROW = 0.1  # share of the codebook
KNOWS_ALL = 0.99  # accuracy that speech does not give: masked frames are not that predictable
EARLY = 0.2  # of the planned steps: before that, a low figure may be only the beginning
OUTWEIGHED = 3.0  # times the contrastive loss
ABOVE_CHANCE = 2.0  # times the accuracy of guessing


def diagnose(curve: PretrainCurve, codes: int, negatives: int) -> Iterator[Finding]:
    """Findings about the last point of `curve`, given the entries per codebook and the negatives per masked frame."""
    last = curve.last
    if last is None or last.contrastive is None or last.perplexity is None or last.accuracy is None:
        return
    if not math.isfinite(last.contrastive) or (last.loss is not None and not math.isfinite(last.loss)):
        yield Finding(
            "the loss is no number", "stops", f"step {last.step}: contrastive loss {last.contrastive}",
            "The weights are lost from here on.",
            "Go back to an earlier checkpoint with half the learning_rate, a longer warmup, or precision='float32'.",
        )  # fmt: skip
        return
    if last.loss is not None and last.loss > OUTWEIGHED * (last.contrastive + 1):
        yield Finding(
            "the penalty outweighs the task", "stops",
            f"step {last.step}: loss {last.loss:.3g}, contrastive {last.contrastive:.3g}",
            "The convolutional features are large, and making them smaller is nearly all that is learnt.",
            "Set feature_penalty to 0: it is meant for a start from random weights.",
        )  # fmt: skip
    if last.perplexity < COLLAPSED:
        yield _collapsed(last.step, last.perplexity, last.accuracy, codes)
    elif last.accuracy > KNOWS_ALL:
        yield Finding(
            "the task is too easy", "costs", f"step {last.step}: {last.accuracy:.1%} of the masked frames are guessed",
            "Nobody can predict speech that well: the targets can be read from something else, such as silence, a hum "
            "or copies of one clip.",
            "Look at the audio; mask more (mask_start, mask_frames) and take more negatives.",
        )  # fmt: skip
    elif curve.steps and last.step >= EARLY * curve.steps:
        yield from _slow(curve, codes, negatives)


def _collapsed(step: int, used: float, accuracy: float, codes: int) -> Finding:
    sign = f"step {step}: {used:.2f} of {codes} codes in use per book"
    if accuracy > KNOWS_ALL:
        sign += f", and accuracy {accuracy:.0%}, which is no success: a negative equal to the target is not counted"
    return Finding(
        "codebook collapse", "stops", sign,
        "Every frame has the same target, so nothing is left to learn and the loss says nothing.",
        "Start over with a lower learning_rate or longer warmup, a higher diversity_weight (0.1 → 0.5), a slower fall "
        "of the temperature, cnn_gradient at most 0.1; see that the audio is not silence.",
    )  # fmt: skip


def _slow(curve: PretrainCurve, codes: int, negatives: int) -> Iterator[Finding]:
    last = curve.last
    assert last is not None and last.perplexity is not None
    assert last.accuracy is not None and last.contrastive is not None
    chance = 1 / (negatives + 1)
    guessing = math.log(negatives + 1)  # the loss of a model that knows nothing
    if last.accuracy < ABOVE_CHANCE * chance and last.contrastive > 0.95 * guessing:
        yield Finding(
            "still guessing", "stops", f"step {last.step}: accuracy {last.accuracy:.1%}, chance is {chance:.1%}",
            f"The contrastive loss of {last.contrastive:.2f} is that of guessing ({guessing:.2f}).",
            "Give it more steps, a higher learning_rate, or larger batches (batch_s, accumulation).",
        )  # fmt: skip
    if last.perplexity < NARROW * codes:
        yield Finding(
            "few codes in use", "costs", f"step {last.step}: {last.perplexity:.1f} of {codes} per book",
            "The targets tell few sounds apart; the encoder will know little more.",
            "Raise diversity_weight, or take fewer codes for little audio.",
        )  # fmt: skip
