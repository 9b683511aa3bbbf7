"""Folder → CTC model, tokenizer and feature extractor, checked against each other. Knows no Hub and no audio.

Weights are read from safetensors. A folder that has only `pytorch_model.bin` is read by PyTorch's restricted unpickler
(`weights_only=True`, which builds tensors and runs nothing else) and says so in a warning.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from speechkit.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["ARCHITECTURES", "Checkpoint", "check_vocabulary", "identity_of", "quiet", "read"]

# model type → whether padded batches equal single runs when the encoder has the attention mask. The others stack
# positional or depth-wise convolutions whose second layer sees what the first wrote into the padding.
ARCHITECTURES = {
    "wav2vec2": True,
    "hubert": True,
    "wavlm": True,
    "unispeech": True,
    "unispeech-sat": True,
    "data2vec-audio": False,
    "wav2vec2-conformer": False,
}
IDENTIFYING = {".json", ".safetensors", ".bin"}
SAMPLE = 1 << 20  # bytes
# used in training only (SpecAugment), so some checkpoints leave it out
UNUSED = ("masked_spec_embed",)


@dataclass(frozen=True)
class Checkpoint:
    """What a folder holds: `model` is in evaluation mode, on the CPU, in the dtype asked for."""

    model: Any
    tokenizer: Any
    extractor: Any
    identity: str = ""  # changes when the weights or the vocabulary do; see :func:`identity_of`

    @property
    def config(self) -> Any:
        return self.model.config


def read(folder: Path, dtype: str = "float32") -> Checkpoint:
    """Read and check everything in `folder`.

    Raises ModelError: no or unreadable config, an architecture without CTC or a waveform front-end, no weights, weights
    without the head or of other sizes, no vocabulary, a vocabulary that does not match the head, a rate not 16 kHz.
    """
    config = _config(folder)
    _need_weights(folder)
    tokenizer, extractor = _processor(folder)
    check_vocabulary(tokenizer, int(config["vocab_size"]) if "vocab_size" in config else 32, str(folder))
    if extractor.sampling_rate != 16_000:
        raise ModelError(f"{folder} wants audio at {extractor.sampling_rate} Hz; speechkit feeds models of 16000 Hz")
    model = _model(folder, dtype)
    return Checkpoint(model, tokenizer, extractor, identity_of(folder))


def identity_of(folder: Path) -> str:
    """Twelve hex digits that tell two models of one name apart, from samples of the files: quick for gigabytes too."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.suffix in IDENTIFYING):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            for place in sorted({0, size // 2, max(0, size - SAMPLE)}):
                file.seek(place)
                digest.update(file.read(SAMPLE))
    return digest.hexdigest()[:12]


def check_vocabulary(tokenizer: Any, head: int, where: str) -> None:
    """Raise ModelError unless the tokenizer's ids are the outputs of a head of `head` rows.

    Tokens that transformers appends by itself (`<s>`, `</s>`) may lie beyond the head; the vocabulary file's may not.
    """
    own, full = len(tokenizer.encoder), len(tokenizer)
    if not own <= head <= max(own, full):
        raise ModelError(
            f"{where}: the vocabulary has {own} tokens but the CTC head has {head} outputs; take vocab.json and "
            "model.safetensors from the same training run"
        )
    blank = tokenizer.pad_token_id
    if blank is None or not 0 <= blank < head:
        raise ModelError(
            f"{where}: the pad token {tokenizer.pad_token!r} (id {blank}) is not among the {head} outputs of the CTC "
            "head, and CTC needs it as its blank; set pad_token in tokenizer_config.json to a token of vocab.json"
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' loading reports and progress bars while open: what matters in them is checked here."""
    import logging as levels

    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    trees = levels.getLogger("torch.utils._pytree")  # a note to torchao's developers, where torchao is installed
    tree_level = trees.level
    trees.setLevel(levels.ERROR)
    logging.set_verbosity(levels.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        trees.setLevel(tree_level)
        if bars:
            logging.enable_progress_bar()


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{folder} has no config.json (it holds: {_listing(folder)}); give the folder of a CTC model")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}") from error
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind not in ARCHITECTURES:
        made = ", ".join(config.get("architectures") or ()) if isinstance(config, dict) else ""
        raise ModelError(
            f"{folder} holds a {kind or 'nameless'} model{f' ({made})' if made else ''}; speechkit reads CTC models of "
            f"these types: {', '.join(ARCHITECTURES)}"
        )
    if config.get("add_adapter"):
        raise ModelError(f"{folder} has add_adapter=true, which changes the time of every frame; not supported")
    return dict(config)


def _need_weights(folder: Path) -> None:
    """Raise ModelError when `folder` holds no weights."""
    if not any(path for pattern in ("model*.safetensors", "pytorch_model*.bin") for path in folder.glob(pattern)):
        raise ModelError(f"{folder} has no weights: model.safetensors is missing (it holds: {_listing(folder)})")


def _processor(folder: Path) -> tuple[Any, Any]:
    from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor

    if not (folder / "vocab.json").is_file():
        raise ModelError(f"{folder} has no vocab.json, so its outputs have no letters; is it a pretraining checkpoint?")
    if not any((folder / name).is_file() for name in ("preprocessor_config.json", "processor_config.json")):
        raise ModelError(f"{folder} has no preprocessor_config.json, which says how audio is normalised for the model")
    try:
        with quiet():
            tokenizer = Wav2Vec2CTCTokenizer.from_pretrained(folder)
            extractor = Wav2Vec2FeatureExtractor.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"the processor files of {folder} cannot be read: {error}") from error
    return tokenizer, extractor


def _model(folder: Path, dtype: str) -> Any:
    from pickle import UnpicklingError

    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCTC

    safe = any(folder.glob("model*.safetensors"))
    if not safe:
        warnings.warn(
            f"{folder} has no safetensors: reading pytorch_model.bin with PyTorch's restricted unpickler", stacklevel=4
        )
    try:
        with quiet():
            model, report = AutoModelForCTC.from_pretrained(
                folder,
                dtype=getattr(torch, dtype),
                use_safetensors=safe,
                weights_only=True,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # so that the message below can name the sizes
            )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, UnpicklingError) as error:
        raise ModelError(f"the weights of {folder} cannot be loaded: {error}") from error
    _check_report(report, folder)
    return model.eval().requires_grad_(False)


def _check_report(report: dict[str, Any], folder: Path) -> None:
    wrong = sorted(report["mismatched_keys"])
    if wrong:
        name, found, wanted = wrong[0]
        raise ModelError(
            f"the weights of {folder} do not fit its config.json: {name} is {tuple(found)}, the config says "
            f"{tuple(wanted)} ({len(wrong)} such); take both from the same model"
        )
    missing = sorted(key for key in report["missing_keys"] if not key.endswith(UNUSED))
    if missing and all(key.startswith("lm_head.") for key in missing):
        raise ModelError(
            f"{folder} has no CTC head (lm_head is missing): it is a pretrained or embedding checkpoint. "
            "Fine-tune it first, or choose a fine-tuned model"
        )
    if missing:
        raise ModelError(
            f"{folder} lacks {len(missing)} of the model's weights, among them {missing[0]}: config.json and "
            "model.safetensors belong to different models"
        )


def _listing(folder: Path, most: int = 8) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "") or "nothing"
