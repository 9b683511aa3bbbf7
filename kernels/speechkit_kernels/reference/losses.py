"""Cross entropy by its definition, of logits and of hidden states before the head."""

from __future__ import annotations

import torch

__all__ = ["cross_entropy", "linear_cross_entropy"]


def cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
    reduction: str = "mean",
) -> torch.Tensor:
    """Of each row, with z = c · tanh(logits / c) where there is a cap c, L = logsumexp(z), e the smoothing:

        loss = L - (1 - e) z[label] - e mean(z) + z_loss L²

    Zero for rows of label `ignore_index`; "mean" divides by the number of the others, and no others give zero.
    logits: (…, V); labels: (…), of which one outside 0..V-1 gives NaN. Returns float32, () or (…) for "none".
    Methods: smoothing Szegedy et al. 2015, arXiv:1512.00567; cap Gemma 2, arXiv:2408.00118; z-loss PaLM,
    arXiv:2204.02311, section 5.
    """
    z = logits.float()
    if softcap:
        z = softcap * torch.tanh(z / softcap)
    kept, known = labels != ignore_index, (labels >= 0) & (labels < logits.shape[-1])
    chosen = z.gather(-1, labels.where(known, 0).long()[..., None])[..., 0].where(known, torch.nan)
    total = torch.logsumexp(z, dim=-1)
    loss = total - (1 - label_smoothing) * chosen
    if label_smoothing:
        loss = loss - label_smoothing * z.mean(dim=-1)
    if z_loss:
        loss = loss + z_loss * total.square()
    loss = loss.where(kept, 0.0)
    if reduction == "none":
        return loss
    return loss.sum() / kept.sum().clamp(min=1) if reduction == "mean" else loss.sum()


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
) -> torch.Tensor:
    """`cross_entropy` of logits x · weightᵀ + bias, which have the dtype of x as a model's head gives them.

    x: (…, H); weight: (V, H); bias: (V,); labels: (…).
    """
    logits = torch.nn.functional.linear(x, weight, bias)
    return cross_entropy(
        logits, labels, ignore_index=ignore_index, label_smoothing=label_smoothing, softcap=softcap, z_loss=z_loss,
        reduction=reduction,
    )  # fmt: skip
