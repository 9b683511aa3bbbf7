"""Masked prediction of acoustic units beside the contrastive loss: HuBERT's first iteration (Hsu et al. 2021,
arXiv:2106.07447, section II) joined with wav2vec 2.0's objective as w2v-BERT joins the two (Chung et al. 2021,
arXiv:2108.06209).

In: normalised sound and the context network's output. Out: cross-entropy against k-means clusters of MFCCs. The targets
stand still from the first step, where those of the contrastive loss must be learnt first: with few hours and small
batches that decides whether a small encoder learns anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from speechkit.errors import DataError
from speechkit.extras import require

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from speechkit.asr.frames import FrameGrid

__all__ = ["MaskedUnits", "UnitLoss", "cepstra", "fit_units"]

RATE, WINDOW, SIZE = 16_000, 400, 512  # 25 ms, in a transform of 512 points
MELS, CEPSTRA = 40, 13
FIT_FRAMES = 200_000  # frames that the clusters are fitted on: 67 minutes


@dataclass(frozen=True)
class UnitLoss:
    """Scalars of one batch; natural log."""

    loss: torch.Tensor  # masked frames, and `seen` times that of the others
    accuracy: torch.Tensor  # share of masked frames whose unit scored highest


class MaskedUnits(nn.Module):
    """A linear reader of the context network's output and the clusters that it has to name.

    `seen` is the weight of the frames that were not masked: guessing their unit trains the convolutions.
    """

    centroids: torch.Tensor

    def __init__(self, centroids: torch.Tensor, width: int, grid: FrameGrid, seen: float = 0.5) -> None:
        super().__init__()
        self.register_buffer("centroids", centroids.float())  # (K, 3 * CEPSTRA)
        self.reader = nn.Linear(width, len(centroids))
        self.grid, self.seen = grid, seen

    def targets(self, samples: torch.Tensor, frames: int) -> torch.Tensor:
        """(B, T) sound → the unit of each frame (B, F) int64."""
        features = cepstra(samples, frames, self.grid)
        return torch.cdist(features.flatten(0, 1), self.centroids).argmin(dim=-1).view(len(samples), frames)

    def forward(self, context: torch.Tensor, samples: torch.Tensor, mask: torch.Tensor) -> UnitLoss:
        """(B, F, D) context, (B, T) sound, (B, F) masked frames → the loss. Rows must not be padded."""
        with torch.no_grad():
            units = self.targets(samples, context.shape[1])
        logits = self.reader(context.float())
        each = nn.functional.cross_entropy(logits.flatten(0, 1), units.flatten(), reduction="none").view(mask.shape)
        hidden = each[mask].mean()
        right = (logits.argmax(dim=-1) == units)[mask].float().mean()
        return UnitLoss(hidden + self.seen * each[~mask].mean() if self.seen else hidden, right)


def cepstra(samples: torch.Tensor, frames: int, grid: FrameGrid) -> torch.Tensor:
    """(B, T) at 16 kHz → (B, F, 39) float32: 13 MFCCs with first and second differences, one for each model frame.

    The window of 25 ms lies in the middle of the frame's receptive field. Each row's mean and variance are taken out,
    so that a microphone or a voice that is louder or duller gives the same units.
    """
    signal = samples.float()
    first = grid.field // 2 - WINDOW // 2
    need = first + (frames - 1) * grid.hop + WINDOW
    signal = nn.functional.pad(signal, (max(0, -first), max(0, need - signal.shape[-1])))
    pieces = signal[:, max(0, first) :].unfold(1, WINDOW, grid.hop)[:, :frames]  # (B, F, WINDOW)
    spectrum = torch.fft.rfft(pieces * torch.hann_window(WINDOW, device=signal.device), SIZE).abs().square()
    mel, cosine = (torch.from_numpy(table).to(signal.device) for table in _tables())
    found = torch.log(spectrum @ mel + 1e-5) @ cosine  # (B, F, CEPSTRA)
    slope = _difference(found)
    joined = torch.cat([found, slope, _difference(slope)], dim=-1)
    return (joined - joined.mean(dim=1, keepdim=True)) / (joined.std(dim=1, keepdim=True, correction=0) + 1e-3)


def fit_units(rows: Iterable[NDArray[np.float32]], grid: FrameGrid, units: int, seed: int = 0) -> torch.Tensor:
    """Normalised sounds (T,) → centroids (K, 39), by k-means over at most 200,000 of their frames.

    Raises DataError for fewer frames than units, MissingExtra without scikit-learn.
    """
    cluster = require("sklearn.cluster", extra="train", purpose="fitting units")
    features: list[NDArray[np.float32]] = []
    have = 0
    for samples in rows:
        frames = grid.frames(len(samples))
        features.append(cepstra(torch.from_numpy(samples)[None], frames, grid)[0].numpy())
        have += frames
        if have >= FIT_FRAMES:
            break
    if have < units:
        raise DataError(f"{have} frames of sound cannot be parted into {units} units; give more, or fewer units")
    fitted = cluster.MiniBatchKMeans(units, batch_size=10_000, n_init=3, max_iter=40, random_state=seed)
    return torch.from_numpy(fitted.fit(np.concatenate(features)).cluster_centers_.astype(np.float32))


def _difference(x: torch.Tensor) -> torch.Tensor:
    """Half the change from the frame before to the one after; (B, F, D) → the same shape."""
    padded = torch.cat([x[:, :1], x, x[:, -1:]], dim=1)
    return (padded[:, 2:] - padded[:, :-2]) / 2


def _tables() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Triangular mel filters (SIZE / 2 + 1, MELS) between 60 and 7600 Hz, and the cosine transform (MELS, CEPSTRA)."""

    def mel(hertz: Any) -> Any:
        return 2595 * np.log10(1 + np.asarray(hertz) / 700)

    edges = np.linspace(mel(60.0), mel(7600.0), MELS + 2)
    bins = mel(np.fft.rfftfreq(SIZE, 1 / RATE))[:, None]
    rise, fall = (bins - edges[:-2]) / np.diff(edges)[:-1], (edges[2:] - bins) / np.diff(edges)[1:]
    filters = np.maximum(0, np.minimum(rise, fall))
    angles = np.pi / MELS * (np.arange(MELS) + 0.5)[:, None] * np.arange(CEPSTRA)
    return filters.astype(np.float32), (np.cos(angles) * np.sqrt(2 / MELS)).astype(np.float32)
