"""The wav2vec 2.0 pretraining loss (Baevski et al. 2020, arXiv:2006.11477, sections 2 and 3.2).

In: a `Wav2Vec2ForPreTraining`, a batch of sound, and what `masking.py` drew for it. Out: the loss and what to watch it
by. Knows no data set and no optimizer.

The loss equals that of the model's own `forward` (a test compares values and gradients), which compares every frame
with every negative: masked or not. Here only masked frames are quantised and compared, by one matrix product per row.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import Wav2Vec2ForPreTraining

    from speechkit.training.masked_units import MaskedUnits

__all__ = ["Objective", "Pretraining", "Quantized", "perplexity", "quantize"]


@dataclass(frozen=True)
class Quantized:
    """Targets: the codebook's entries for each frame."""

    vectors: torch.Tensor  # (M, codevector_dim)
    codes: torch.Tensor  # (M, G) int64, the entry of each group
    shares: torch.Tensor  # (G, V), how probable each entry is on average over the frames; rows sum to 1


@dataclass(frozen=True)
class Objective:
    """One batch's loss in its parts; scalars, float32, natural log."""

    loss: torch.Tensor  # contrastive + weight * diversity + weight * feature penalty
    contrastive: torch.Tensor  # mean over masked frames; chance is log(K + 1)
    diversity: torch.Tensor  # 0: all entries equally used; towards 1: one entry per group
    feature_penalty: torch.Tensor  # mean square of the convolutional features
    correct: torch.Tensor  # masked frames whose true target scored highest
    masked: torch.Tensor  # masked frames
    counts: torch.Tensor  # (G, V) how often each entry was chosen
    unit_accuracy: torch.Tensor  # share of masked frames whose acoustic unit was named; NaN without units

    def __getitem__(self, name: str) -> Any:
        """`Trainer` reads `outputs["loss"]`."""
        return getattr(self, name)

    def __repr__(self) -> str:
        parts = [f"{f.name}={float(getattr(self, f.name).detach()):.4g}" for f in fields(self) if f.name != "counts"]
        return f"Objective({', '.join(parts)})"


def perplexity(shares: torch.Tensor) -> torch.Tensor:
    """(G, V) shares that sum to 1 per group → (G,): how many entries are in use, from 1 (one only) to V (all alike)."""
    return torch.exp(-torch.special.xlogy(shares, shares).sum(dim=-1))


def quantize(quantizer: Any, features: torch.Tensor, temperature: float | None) -> Quantized:
    """Normed convolutional features (M, C) → entries of the product codebook.

    With a `temperature` they are drawn by the straight-through Gumbel softmax (equation 1 of the paper); with None the
    best one is taken, which has no gradient. float32 whatever the features are.
    """
    groups, size = quantizer.num_groups, quantizer.num_vars
    scores = quantizer.weight_proj(features.float()).view(-1, groups, size)  # (M, G, V)
    if temperature is None:
        chosen = nn.functional.one_hot(scores.argmax(dim=-1), size).float()
        shares = chosen.mean(dim=0)
    else:
        # drawn as (M * G, V), the order in which transformers draws
        flat = nn.functional.gumbel_softmax(scores.reshape(-1, size), tau=temperature, hard=True)
        chosen, shares = flat.view(-1, groups, size), scores.softmax(dim=-1).mean(dim=0)
    entries = quantizer.codevectors.view(groups, size, -1).float()
    vectors = torch.einsum("mgv,gvd->mgd", chosen, entries).flatten(1)
    return Quantized(vectors, chosen.argmax(dim=-1), shares)


class Pretraining(nn.Module):
    """A `Wav2Vec2ForPreTraining` together with its loss; what `Trainer` trains and checkpoints.

    `temperature` is the Gumbel softmax's and falls during a run; in evaluation mode the best entry is taken instead.
    """

    def __init__(self, net: Wav2Vec2ForPreTraining, cnn_gradient: float = 0.1, feature_penalty: float = 10.0) -> None:
        super().__init__()
        self.net = net
        self.temperature = 2.0
        self.cnn_gradient = cnn_gradient  # the convolutions' gradient is this many times what it would be
        self.feature_penalty = feature_penalty
        self.units: MaskedUnits | None = None  # named besides, with this weight
        self.unit_weight = 1.0

    def forward(
        self,
        input_values: torch.Tensor,
        mask: torch.Tensor,
        negatives: torch.Tensor,
        frames: torch.Tensor | None = None,
    ) -> Objective:
        """(B, T) normalised sound, (B, F) masked frames, (B, S, K) places of negatives → the loss.

        `frames` (B,) counts each row's frames where rows were padded; leave it out where all rows are equally long.
        """
        net, config = self.net, self.net.config
        features = net.wav2vec2.feature_extractor(input_values).transpose(1, 2)  # (B, F, C)
        features = _scale_gradient(features, self.cnn_gradient)
        slots, present = _masked_places(mask)  # (B, S) each
        hidden, normed = net.wav2vec2.feature_projection(features)
        context = self._context(hidden, mask, frames)  # (B, F, D)
        with torch.autocast(input_values.device.type, enabled=False):  # small products, and a loss: float32
            predicted = net.project_hid(_take(context, slots).float())  # (B, S, P)
            targets = net.dropout_features(_take(normed, slots)[present])  # (M, C)
            found = quantize(net.quantizer, targets, self.temperature if self.training else None)
            projected = predicted.new_zeros(predicted.shape)
            projected[present] = net.project_q(found.vectors)
            codes = slots.new_full((*slots.shape, found.codes.shape[-1]), -1)  # (B, S, G)
            codes[present] = found.codes
            logits = _contrast(predicted, projected, codes, negatives) / config.contrastive_logits_temperature
            logits = logits[present]  # (M, 1 + K)
            contrastive = nn.functional.cross_entropy(logits, slots.new_zeros(len(logits)))
            entries = config.num_codevector_groups * config.num_codevectors_per_group
            diversity = (entries - perplexity(found.shares).sum()) / entries
            penalty = features.float().pow(2).mean()
            loss = contrastive + config.diversity_loss_weight * diversity + self.feature_penalty * penalty
            named = None if self.units is None else self.units(context, input_values, mask)
        return Objective(
            loss=loss if named is None else loss + self.unit_weight * named.loss,
            contrastive=contrastive.detach(),
            diversity=diversity.detach(),
            feature_penalty=penalty.detach(),
            correct=_correct(logits.detach()),
            masked=present.sum(),
            counts=nn.functional.one_hot(found.codes, config.num_codevectors_per_group).sum(dim=0),
            unit_accuracy=loss.new_tensor(float("nan")) if named is None else named.accuracy,
        )

    def _context(self, hidden: torch.Tensor, mask: torch.Tensor, frames: torch.Tensor | None) -> torch.Tensor:
        """Projected features (B, F, D), masked frames replaced by the one learnt vector → the transformer's output."""
        wav2vec2 = self.net.wav2vec2
        hidden = torch.where(mask[..., None], wav2vec2.masked_spec_embed.to(hidden.dtype), hidden)
        attention = None
        if frames is not None:
            attention = torch.arange(hidden.shape[1], device=hidden.device) < frames[:, None]
        return wav2vec2.encoder(hidden, attention_mask=attention).last_hidden_state


def _scale_gradient(x: torch.Tensor, factor: float) -> torch.Tensor:
    """`x` itself, with a gradient `factor` times as large."""
    if factor == 1.0 or not x.requires_grad:
        return x
    x = x.view_as(x)
    x.register_hook(lambda gradient: gradient * factor)
    return x


def _masked_places(mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, F) → the masked frames of each row in order (B, S), and which of these places are real (B, S)."""
    count = mask.sum(dim=1)
    width = int(count.max())
    slots = mask.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :width]
    return slots, torch.arange(width, device=mask.device) < count[:, None]


def _take(x: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """(B, F, D), (B, S) → (B, S, D)."""
    return x.gather(1, slots[..., None].expand(-1, -1, x.shape[-1]))


def _contrast(
    predicted: torch.Tensor, targets: torch.Tensor, codes: torch.Tensor, negatives: torch.Tensor
) -> torch.Tensor:
    """Cosines (B, S, 1 + K) of each prediction with its target (first) and its negatives (equation 3 of the paper).

    A negative that is the same codebook entry as the target is no wrong answer: minus infinity.
    """
    of_all = nn.functional.normalize(predicted, dim=-1) @ nn.functional.normalize(targets, dim=-1).transpose(1, 2)
    same = (codes[:, :, None] == codes[:, None]).all(dim=-1)  # (B, S, S)
    wrong = of_all.gather(2, negatives).masked_fill(same.gather(2, negatives), float("-inf"))
    return torch.cat([of_all.diagonal(dim1=1, dim2=2)[..., None], wrong], dim=-1)


def _correct(logits: torch.Tensor) -> torch.Tensor:
    """(M, 1 + K) → how many rows have their first entry above all others; a tie is no success."""
    return (logits[:, 0] > logits[:, 1:].amax(dim=-1)).sum()
