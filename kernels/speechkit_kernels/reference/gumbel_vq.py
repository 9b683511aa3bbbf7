"""The quantiser of wav2vec 2.0 by its definition: a Gumbel choice from each codebook, gradients straight through."""

from __future__ import annotations

import torch

__all__ = ["gumbel_noise", "gumbel_vq"]


def gumbel_noise(uniform: torch.Tensor) -> torch.Tensor:
    """Uniform numbers in 0..1 → Gumbel noise -log(-log u), float32; the ends are drawn in by 2⁻²⁴ to stay finite."""
    edge = 2.0**-24
    return -torch.log(-torch.log(uniform.float().clamp(edge, 1 - edge)))


def gumbel_vq(
    logits: torch.Tensor,
    codebook: torch.Tensor,
    uniform: torch.Tensor,
    temperature: float = 2.0,
    mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Choose one entry of every codebook for every frame (Jang, Gu & Poole 2017; Baevski et al. 2020, section 2).

        soft = softmax((logits + noise) / temperature),   hard = one-hot of its largest
        codes = hard · codebook, with the gradient of soft · codebook
        usage = mean over the frames in `mask` of softmax(logits), without noise or temperature

    logits, uniform: (N, G, V); codebook: (G, V, D); mask: (N,) bool. Returns codes (N, G·D) in the codebook's dtype,
    indices (N, G) int64, usage (G, V) float32.
    """
    wide = logits.float()
    soft = torch.softmax((wide + gumbel_noise(uniform)) / temperature, dim=-1)
    indices = soft.argmax(dim=-1)
    hard = torch.nn.functional.one_hot(indices, soft.shape[-1]).float()
    chosen = hard - soft.detach() + soft
    codes = torch.einsum("ngv,gvd->ngd", chosen, codebook.float()).flatten(1).to(codebook.dtype)
    weights = torch.ones(len(logits), device=logits.device) if mask is None else mask.float()
    usage = torch.einsum("n,ngv->gv", weights / weights.sum().clamp(min=1), torch.softmax(wide, dim=-1))
    return codes, indices, usage
