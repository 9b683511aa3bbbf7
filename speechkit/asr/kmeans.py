"""Units for any model: k-means over the frames of a hidden layer, as HuBERT makes its targets (arXiv:2106.07447).

In: a `Recognizer` and clips. Out: `KMeansUnits`, centroids that turn audio into `Units`; saved as safetensors. Works
for a checkpoint fine-tuned with CTC, which has no codebook of its own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from speechkit.asr import arrays
from speechkit.asr.embed import Layers, same_weights
from speechkit.asr.units import Units
from speechkit.errors import DataError, PlanError
from speechkit.extras import require

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from numpy.typing import NDArray

    from speechkit.asr.model import Recognizer

__all__ = ["KMeansUnits"]

BATCH_FRAMES = 10_000  # per step of the mini-batch k-means: 200 s of speech
SAMPLE_BYTES = 256 * 2**20  # frames kept to fit on: half an hour of speech at width 768
SQUARES = 1 << 24  # distances computed at a time: frames x centroids


@dataclass(frozen=True)
class KMeansUnits:
    """`centroids` (K, D) float32 of `layer`; a frame's unit is the nearest one (Euclidean)."""

    centroids: NDArray[np.float32] = field(repr=False)
    layer: int
    model: str  # identity of the model whose layer it is
    frames: int  # how many it was fitted on
    seed: int = 0

    @classmethod
    def fit(
        cls, recognizer: Recognizer, clips: Iterable[Any], clusters: int = 100, layer: int | None = None, seed: int = 0
    ) -> KMeansUnits:
        """Fit `clusters` centroids on clips (whatever `audio.load` takes): on all frames, or on a random choice of them
        that fits in 256 MiB, so any stream of clips will do.

        layer: None takes the one two thirds up, where phones stand out most (Pasad et al. 2021, arXiv:2107.04734).
        Raises PlanError for a number of clusters below 2, a layer that does not exist or a single clip, DataError for
        fewer frames than clusters.
        """
        if not isinstance(clusters, int) or isinstance(clusters, bool) or clusters < 2:
            raise PlanError(f"clusters is {clusters!r}; it must be a whole number, 2 or more")
        if _single(clips):
            kind = type(clips).__name__
            article = "an" if kind[0] in "aeiouAEIOU" else "a"
            raise PlanError(f"clips is {article} {kind}; give a list of clips, or any other iterable of them")
        depth = int(recognizer.config.num_hidden_layers)
        wanted = Layers.of(round(depth * 2 / 3) if layer is None else layer, depth)
        if not wanted.single or wanted.weights is not None:
            raise PlanError(f"layer is {layer!r}; units are made of one layer, 0 to {depth}")
        cluster = require("sklearn.cluster", extra="train", purpose="k-means units")
        chosen, sample = wanted.ids[0], _Sample(seed)
        for clip in clips:
            sample.add(recognizer.embed(clip, layer=chosen).vectors)
        if sample.seen < clusters:
            raise DataError(f"{sample.seen} frames for {clusters} clusters: give more audio, or ask for fewer")
        model = cluster.MiniBatchKMeans(clusters, random_state=seed, batch_size=BATCH_FRAMES, n_init=3)
        model.fit(sample.vectors())
        return cls(model.cluster_centers_.astype(np.float32), chosen, recognizer.identity, sample.seen, seed)

    def units(self, recognizer: Recognizer, audio: Any) -> Any:
        """Whatever `audio.load` takes → Units (F, 1); a list → a list.

        Raises PlanError for weights other than those it was fitted on, AudioError as `Recognizer.embed` does.
        """
        if not same_weights(recognizer.identity, self.model):
            raise PlanError(f"these units were fitted on {self.model}; {recognizer.identity} has other layers")
        items = audio if isinstance(audio, list) else [audio]
        found = [
            Units(
                self._nearest(clip.vectors)[:, None],
                (len(self.centroids),),
                recognizer.grid,
                clip.duration_s,
                recognizer.name,
            )
            for clip in recognizer.embed(items, layer=self.layer)
        ]
        return found if isinstance(audio, list) else found[0]

    def _nearest(self, vectors: NDArray[np.float32]) -> NDArray[np.int32]:
        """(F, D) → (F,) number of the nearest centroid."""
        lengths = (self.centroids**2).sum(axis=1)
        step = max(1, SQUARES // len(self.centroids))
        parts = [
            (lengths - 2 * vectors[first : first + step] @ self.centroids.T).argmin(axis=1)
            for first in range(0, len(vectors), step)
        ]
        return np.concatenate(parts).astype(np.int32) if parts else np.zeros(0, np.int32)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write `units.safetensors`, with `units.json` to read; the inverse of :meth:`load`. Raises OutputError."""
        record = {
            "kind": "kmeans", "layer": self.layer, "model": self.model, "frames": self.frames, "seed": self.seed,
            "versions": {name: version(name) for name in ("speechkit", "scikit-learn", "torch", "transformers")},
        }  # fmt: skip
        return arrays.save(folder, "units", {"centroids": self.centroids}, record)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> KMeansUnits:
        """Raises DataError for a folder that holds no k-means units."""
        try:
            held, record = arrays.load(folder, "units")
            numbers = (int(record[name]) for name in ("frames", "seed"))
            return cls(held["centroids"], int(record["layer"]), str(record["model"]), *numbers)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder} holds no k-means units ({error}); KMeansUnits.save writes them") from error


def _single(clips: Any) -> bool:
    """Whether this is one clip: numbers and open files can be iterated too, and mean a sample or a line each."""
    if isinstance(clips, str | bytes | bytearray | os.PathLike | Mapping) or hasattr(clips, "read"):
        return True
    kind = getattr(getattr(clips, "dtype", None), "kind", "f")  # torch's dtypes have none
    return hasattr(clips, "__array__") and kind not in "OUS"


class _Sample:
    """A uniform random choice of the frames seen so far, as many as `SAMPLE_BYTES` holds.

    Vitter's algorithm R (1985): frame n is put in a random one of n places, where that place exists.
    """

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.seen = 0
        self.held = np.empty((0, 0), np.float32)

    def add(self, vectors: NDArray[np.float32]) -> None:
        """Frames (F, D)."""
        if not self.held.size:  # untouched pages cost nothing: a short fit takes no more than its frames
            width = vectors.shape[1]
            self.held = np.empty((max(1, SAMPLE_BYTES // (4 * width)), width), np.float32)
        numbers = np.arange(self.seen, self.seen + len(vectors))
        places = (self.rng.random(len(vectors)) * (numbers + 1)).astype(np.int64)
        places = np.where(numbers < len(self.held), numbers, places)
        inside = places < len(self.held)
        self.held[places[inside]] = vectors[inside]
        self.seen += len(vectors)

    def vectors(self) -> NDArray[np.float32]:
        """The frames kept, (N, D)."""
        return self.held[: self.seen]
