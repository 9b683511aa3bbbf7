"""Where the parts of a CTC model are, under one set of names for all architectures. In: a model. Out: `Anatomy`.

Looks through the wrappers that training puts around a model (peft, distillation). Changes nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from speechkit.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Anatomy", "core_of", "depth_of", "part_of", "part_sizes"]

_LAYER = re.compile(r"\bencoder\.layers\.(\d+)\.")
# pieces of a parameter's name → the part it belongs to, the first that fits; what trains beside a layer comes before it
_PARTS = (
    ("lora_", "LoRA"),
    ("adapter_layer.", "adapters"),
    ("lm_head.", "head"),
    ("feature_extractor.", "front-end"),
    ("feature_projection.", "projection"),
    ("pos_conv_embed.", "positional convolution"),
    ("encoder.layer_norm.", "encoder norm"),
    ("masked_spec_embed", "mask vector"),
)


@dataclass(frozen=True)
class Anatomy:
    """The modules of one CTC model; `model` is the transformers model itself, whatever is wrapped around it."""

    model: Any = field(repr=False)
    base: Any = field(repr=False)  # without the head
    features: Any = field(repr=False)  # the convolutional front-end
    encoder: Any = field(repr=False)
    layers: tuple[Any, ...] = field(repr=False)
    head: Any = field(repr=False)

    @classmethod
    def of(cls, model: Any) -> Anatomy:
        """Raises ModelError for a model without CTC head, or without a convolutional front-end and encoder layers."""
        model = core_of(model)
        kind = type(model).__name__
        base = getattr(model, getattr(model, "base_model_prefix", "") or "", None)
        head = getattr(model, "lm_head", None)
        if head is None or base is None:
            raise ModelError(
                f"{kind} has no CTC head (lm_head); give a model such as Wav2Vec2ForCTC: a pretrained encoder becomes "
                "one with AutoModelForCTC.from_pretrained(folder, vocab_size=…, pad_token_id=…)"
            )
        encoder = getattr(base, "encoder", None)
        features, layers = getattr(base, "feature_extractor", None), getattr(encoder, "layers", None)
        if features is None or layers is None:
            raise ModelError(
                f"{kind} has no waveform front-end with encoder layers; speechkit trains wav2vec2, hubert, wavlm, "
                "unispeech, unispeech-sat, data2vec-audio and wav2vec2-conformer"
            )
        return cls(model, base, features, encoder, tuple(layers), head)


def core_of(model: Any) -> Any:
    """The transformers model inside peft's wrapper or a distilled pair (there, the student); others as they are."""
    if hasattr(model, "student"):
        return core_of(model.student)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def part_of(name: str) -> str:
    """A parameter's name → its part: "head", "layer 3", "front-end", "LoRA", …; "other" where none is known."""
    for piece, part in _PARTS[:3]:
        if piece in name:
            return part
    layer = _LAYER.search(name)
    if layer:
        return f"layer {layer[1]}"
    return next((part for piece, part in _PARTS[3:] if piece in name), "other")


def depth_of(name: str, layers: int) -> int:
    """How far a parameter is from the sound: 0 before the encoder's layers, i + 1 in layer i, `layers` + 1 above."""
    layer = _LAYER.search(name)
    if layer:
        return int(layer[1]) + 1
    return layers + 1 if "lm_head." in name else 0


def part_sizes(named: Iterable[tuple[str, Any]]) -> tuple[tuple[str, int], ...]:
    """(name, parameter) pairs → (part, numbers in it), in the order met, neighbouring layers joined ("layers 2-5")."""
    sizes: dict[str, int] = {}
    for name, weight in named:
        part = part_of(name)
        sizes[part] = sizes.get(part, 0) + weight.numel()
    rows: list[tuple[str, int]] = []
    first = last = -2
    for part, size in sizes.items():
        number = int(part.removeprefix("layer ")) if part.startswith("layer ") else -2
        if number >= 0 and number == last + 1:
            rows[-1] = (f"layers {first}-{number}", rows[-1][1] + size)
        else:
            rows.append((part, size))
            first = number
        last = number
    return tuple(rows)
