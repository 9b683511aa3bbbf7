"""Many-dimensional vectors → two dimensions to look at. In: (N, D). Out: `Projection`. scikit-learn does the work.

PCA keeps distances as far as two directions can and says how much that is; t-SNE keeps neighbours and nothing else, so
sizes of clusters and gaps between them mean nothing there (Wattenberg et al. 2016, https://distill.pub/2016/misread-tsne).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from speechkit.errors import DataError, PlanError
from speechkit.extras import require

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["METHODS", "Projection", "project"]

METHODS = ("pca", "tsne")
PERPLEXITY = 30.0  # t-SNE's guess at how many neighbours count; scikit-learn's default
FIRST = 50  # directions kept before t-SNE: it is slow in hundreds of dimensions, and the rest is noise


@dataclass(frozen=True, eq=False)
class Projection:
    """`points` (N, 2), centred, within ±1. `kept`: the share of the variance that they show (PCA), or None."""

    points: NDArray[np.float32] = field(repr=False)
    method: str
    kept: float | None

    def __str__(self) -> str:
        told = f", {self.kept:.0%} of the variance" if self.kept is not None else ", neighbours only: gaps mean nothing"
        return f"{len(self.points)} points by {'t-SNE' if self.method == 'tsne' else 'PCA'}{told}"


def project(vectors: NDArray[np.floating], method: Literal["pca", "tsne"] = "pca", seed: int = 0) -> Projection:
    """(N, D) → two dimensions; the same seed gives the same picture.

    Raises PlanError for another method, DataError for fewer than three vectors, another shape, or NaN.
    """
    if method not in METHODS:
        raise PlanError(f"method is {method!r}; it can be {' or '.join(map(repr, METHODS))}")
    flat = np.asarray(vectors, np.float32)
    if flat.ndim != 2 or len(flat) < 3 or flat.shape[1] < 2:
        raise DataError(f"vectors have shape {flat.shape}; a projection wants (N, D) with N of 3 or more")
    if not np.isfinite(flat).all():
        raise DataError("the vectors hold NaN or infinity; float16 overflows above 65504")
    decomposition = require("sklearn.decomposition", extra="train", purpose="a projection")
    count = 2 if method == "pca" else min(FIRST, len(flat) - 1, flat.shape[1])
    pca = decomposition.PCA(count, random_state=seed)
    with np.errstate(invalid="ignore"):  # equal vectors have no variance to share out
        found = pca.fit_transform(flat)
    kept = None
    if method == "tsne" and found.any():
        manifold = require("sklearn.manifold", extra="train", purpose="a projection")
        perplexity = min(PERPLEXITY, (len(flat) - 1) / 3)
        found = manifold.TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(found)
    elif method == "pca":
        kept = float(np.nansum(pca.explained_variance_ratio_))
    centred = found[:, :2] - found[:, :2].mean(axis=0)
    size = float(np.abs(centred).max())
    return Projection((centred / size if size else centred).astype(np.float32), method, kept)
