"""Units of a pretraining checkpoint's own quantiser (wav2vec 2.0's product codebook, published: 2 groups of 320 codes).

In: the name of a `Wav2Vec2ForPreTraining` checkpoint, and audio. Out: `Units` with one code per group and frame. The
quantiser reads the convolutional features, before any masking and any transformer block; at inference the Gumbel
softmax is an argmax (Baevski et al. 2020, arXiv:2006.11477, section 2). A model fine-tuned with CTC has none:
`kmeans.py` makes units for it.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import numpy as np

from speechkit import audio as audio_in
from speechkit.asr import batch, checkpoint, hub, longform, registry
from speechkit.asr.frames import FrameGrid
from speechkit.asr.units import Units
from speechkit.device import choose_device
from speechkit.errors import AudioError, ModelError

if TYPE_CHECKING:
    import os

    from numpy.typing import NDArray

__all__ = ["Codebook"]

WINDOW_S, OVERLAP_S = 30.0, 1.0  # the convolutions see 25 ms; the overlap is for group norm's statistics


class Codebook:
    """A pretraining checkpoint's quantiser. Get one with :meth:`load`."""

    def __init__(self, model: Any, extractor: Any, name: str, device: str) -> None:
        self.model, self.extractor, self.name, self.device = model.to(device).eval(), extractor, name, device
        self.grid = FrameGrid.from_config(model.config)
        self.sizes = (int(model.config.num_codevectors_per_group),) * int(model.config.num_codevector_groups)

    def __repr__(self) -> str:
        return f"Codebook({self.name!r}, {len(self.sizes)} groups of {self.sizes[0]} codes)"

    @classmethod
    def load(cls, name: str | os.PathLike[str], device: str = "auto") -> Codebook:
        """A Hub id or folder of a pretraining checkpoint ("facebook/wav2vec2-base", "facebook/wav2vec2-large-xlsr-53").

        Raises ModelError for a checkpoint without a quantiser, which every CTC model is, and says what to do instead;
        and for weights that cannot be loaded.
        """
        source = registry.resolve(name)
        folder = hub.fetch(source.location) if source.kind == "hub" else Path(source.location)
        config = _config(folder)
        if config.get("model_type") != "wav2vec2" or "Wav2Vec2ForPreTraining" not in (
            config.get("architectures") or ()
        ):
            raise ModelError(_no_codebook(source.name, config))
        model, extractor, missing = _read(folder)
        if any(key.startswith("quantizer") for key in missing):
            raise ModelError(_no_codebook(source.name, config))
        if any(key.startswith("wav2vec2.feature") for key in missing):
            raise ModelError(f"{source.name} lacks weights of its front-end, among them {missing[0]}: fetch it again")
        return cls(model, extractor, source.name, choose_device(device).value)

    def units(self, audio: Any) -> Any:
        """Whatever `audio.load` takes → Units (F, G); a list → a list. Long audio goes window by window.

        Raises AudioError for audio that cannot be read or is shorter than one frame.
        """
        if not isinstance(audio, list):
            return self._units(audio)
        found = []
        for number, item in enumerate(audio, 1):
            try:
                found.append(self._units(item))
            except AudioError as error:
                raise AudioError(f"item {number} of {len(audio)}: {error}") from error
        return found

    def _units(self, item: Any) -> Units:
        windows = longform.Windows.of(WINDOW_S, OVERLAP_S, self.grid)
        parts, samples = [], 0
        for piece in longform.cut(audio_in.blocks(item, WINDOW_S), windows, self.grid):
            if not self.grid.frames(len(piece.samples)):
                raise AudioError(f"the audio has {len(piece.samples)} samples; one frame needs {self.grid.field}")
            parts.append(self._codes(piece.samples)[piece.first : piece.stop])
            samples = piece.start * self.grid.hop + len(piece.samples)
        return Units(np.concatenate(parts), self.sizes, self.grid, samples / self.grid.rate, self.name)

    def _codes(self, samples: NDArray[np.float32]) -> NDArray[np.int32]:
        """(T,) → (F, G)."""
        import torch

        ready = batch.normalise(samples) if self.extractor.do_normalize else samples
        with torch.inference_mode():
            values = torch.from_numpy(ready)[None].to(self.device)
            encoder = self.model.wav2vec2
            features = encoder.feature_extractor(values).transpose(1, 2)  # (1, F, C)
            _, normed = encoder.feature_projection(features)
            scores = self.model.quantizer.weight_proj(normed)  # (1, F, G * V)
            codes = scores.view(scores.shape[1], len(self.sizes), -1).argmax(dim=-1)
        return np.asarray(codes.to("cpu", torch.int32).numpy())


def _config(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"{folder} has no readable config.json: {error}") from error


def _read(folder: Path) -> tuple[Any, Any, list[str]]:
    """Model, feature extractor, and the names of the weights that the folder lacks."""
    import torch
    from safetensors import SafetensorError
    from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2ForPreTraining

    safe = any(folder.glob("model*.safetensors"))
    if not safe:
        warnings.warn(
            f"{folder} has no safetensors: reading pytorch_model.bin with PyTorch's restricted unpickler", stacklevel=4
        )
    has_own = (folder / "preprocessor_config.json").is_file()
    try:
        with checkpoint.quiet():
            loaded: Any = Wav2Vec2ForPreTraining.from_pretrained(
                folder,
                dtype=torch.float32,
                use_safetensors=safe,
                weights_only=True,
                local_files_only=True,
                output_loading_info=True,
            )
            extractor = Wav2Vec2FeatureExtractor.from_pretrained(folder) if has_own else Wav2Vec2FeatureExtractor()
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, UnpicklingError) as error:
        raise ModelError(f"the pretraining checkpoint in {folder} cannot be loaded: {error}") from error
    model, report = loaded
    return model, extractor, list(report["missing_keys"])


def _no_codebook(name: str, config: dict[str, Any]) -> str:
    made = ", ".join(config.get("architectures") or ()) or config.get("model_type") or "unknown"
    return (
        f"{name} ({made}) has no codebook: fine-tuning with CTC drops the quantiser. Use the checkpoint that it was "
        'pretrained as (such as "facebook/wav2vec2-large-xlsr-53"), or make units from its hidden layers: '
        "KMeansUnits.fit(recognizer, clips)"
    )
