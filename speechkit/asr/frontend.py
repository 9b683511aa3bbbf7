"""The convolutional front-end of a growing utterance, each frame computed once: what a sliding window asks for again.

In: an utterance's samples so far, (T,) float32 at 16 kHz. Out: the best path of its last frames. Knows no stream.

A frame of the front-end depends on its own field of samples (400 in stock models) and, where every convolution is
followed by a layer norm over channels (XLSR), on nothing else: frames that were computed once stay true when the window
moves on, and only the encoder runs again. A group norm (base-960h, the embedded models) takes its statistics over the
whole window: every frame changes with every hop, so there everything is computed anew.

Input normalisation (`do_normalize`) would move all frames too, with every sample that arrives. So its mean and variance
are taken from the utterance as heard so far and kept until it has doubled in length; then they are taken again and the
features with them, which over a whole utterance costs less than computing its frames twice. Partials alone are made
this way: a final is one pass over the whole utterance with that utterance's own statistics, as `transcribe` takes them.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from speechkit.asr import decode
from speechkit.device import Choice

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from speechkit.asr.model import Recognizer

__all__ = ["FeatureCache", "reusable"]

FLOOR = np.float32(1e-7)  # what `Wav2Vec2FeatureExtractor` adds to the variance


def reusable(model: Any) -> Choice[bool]:
    """Whether the features of one window of audio hold for the next one, and why."""
    front = getattr(_base(model), "feature_extractor", None)
    layers = list(getattr(front, "conv_layers", ()))
    if not layers:
        return Choice(False, "no convolutional front-end of the usual make")
    norms = {type(getattr(layer, "layer_norm", None)).__name__ for layer in layers}
    if all(isinstance(getattr(layer, "layer_norm", None), nn.LayerNorm) for layer in layers):
        return Choice(True, "layer norm: a frame depends on its own samples only")
    if any("Group" in name for name in norms):
        return Choice(False, "group norm: every frame depends on the whole window, so features are computed anew")
    return Choice(False, f"norms {', '.join(sorted(norms))}: not known to leave frames independent of each other")


class FeatureCache:
    """Features of one utterance. Use it where :func:`reusable` holds; make a new one for the next utterance."""

    def __init__(self, recognizer: Recognizer) -> None:
        self._recognizer = recognizer
        self._features: torch.Tensor | None = None  # (1, C, F) from frame `_first` on
        self._first = 0
        self._measured = 0  # samples that the statistics were taken from
        self._mean, self._scale = np.float32(0), np.float32(1)
        self.computed = 0  # frames that went through the convolutions so far

    def best_path(self, heard: NDArray[np.float32], first: int, pad: int = 0) -> decode.BestPath:
        """(T,), the utterance so far, which only grows → best path of the frames from `first` on, which only grows.

        Features of frames before `first` are dropped. `pad` zeros are put behind; their frames are not kept.
        """
        if len(heard) >= 2 * self._measured:
            self._measure(heard)
        self._drop(first)
        held = 0 if self._features is None else int(self._features.shape[-1])
        fresh = heard[(self._first + held) * self._recognizer.grid.hop :]
        fresh, whole = np.pad(fresh, (0, pad)), self._recognizer.grid.frames(len(fresh))
        self.computed += whole

        def run(_values: Any, _mask: Any) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
            scores, ids = self._log_probs(fresh, whole).max(dim=-1)  # (F,) each
            return ids.to("cpu", torch.int32).numpy(), scores.cpu().numpy()

        # the recognizer's own pass for its lock and its precision; values that it normalised itself are not wanted
        return decode.BestPath(*self._recognizer._run([heard[:1]], run))

    def _measure(self, heard: NDArray[np.float32]) -> None:
        self._measured = len(heard)
        if self._recognizer.extractor.do_normalize:
            self._mean, self._scale = heard.mean(), np.sqrt(heard.var() + FLOOR)
        self._features = None

    def _drop(self, first: int) -> None:
        if self._features is None:
            self._first = first
            return
        # a copy: a slice would keep the whole of the old one alive
        self._features = self._features[:, :, first - self._first :].clone()
        self._first = first

    def _log_probs(self, fresh: NDArray[np.float32], whole: int) -> torch.Tensor:
        """Samples from the first frame without features on → (F, V) float32 natural log of what is held and they give.

        The first `whole` frames of `fresh` are kept.
        """
        model, grid, features = self._recognizer.model, self._recognizer.grid, self._features
        base = _base(model)
        if grid.frames(len(fresh)):
            ready = torch.from_numpy((fresh - self._mean) / self._scale)[None]
            found = base.feature_extractor(ready.to(self._recognizer.device, model.dtype))  # (1, C, F)
            features = found if features is None else torch.cat([features, found], dim=-1)
            self._features = features[:, :, : features.shape[-1] - (found.shape[-1] - whole)]
        assert features is not None
        with _standing_in(base, features):
            logits = model(features[:, 0]).logits  # what is passed is not looked at
        return torch.as_tensor(logits[0].float().log_softmax(dim=-1))


class _Ready(nn.Module):
    """Stands where a front-end stood and says what that has said already."""

    def __init__(self, features: torch.Tensor) -> None:
        super().__init__()
        self.features = features

    def forward(self, _values: torch.Tensor) -> torch.Tensor:
        return self.features


@contextmanager
def _standing_in(base: Any, features: torch.Tensor) -> Iterator[None]:
    """While open, the front-end of this one model is `features` (1, C, F)."""
    front = base.feature_extractor
    base.feature_extractor = _Ready(features)
    try:
        yield
    finally:
        base.feature_extractor = front


def _base(model: Any) -> Any:
    return getattr(model, getattr(model, "base_model_prefix", ""), model)
