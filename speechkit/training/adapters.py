"""Adapters: a bottleneck in each encoder layer plus the head, one per language or domain, saved apart, swapped live.

In: a CTC model or a `Recognizer`. Out: `Adapter` (weights on the CPU, tokens), `adapter.<name>.safetensors` in the
format of transformers (`load_adapter`, `target_lang`). The design is Houlsby et al. 2019 (arXiv:1902.00751) as MMS
uses it (Pratap et al. 2023, arXiv:2305.13516): h + W2 relu(W1 norm(h)) behind each layer. Knows no training.

transformers has these adapters in encoders whose layers normalise first (`do_stable_layer_norm`: XLSR, large models,
demo/en) of wav2vec2, hubert, unispeech and unispeech-sat. Other models are refused; LoRA serves them.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from speechkit.errors import ModelError, OutputError, PlanError
from speechkit.training.anatomy import Anatomy, core_of

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

__all__ = ["Adapter", "add_adapters", "list_adapters", "load_adapter", "save_adapter", "swap_adapter", "take_adapter"]

_NAME = re.compile(r"[\w-]+")
_SKETCH = 8  # numbers per layer that tell one base model from another
_ALIKE = 1e-2  # relative: above the rounding of bfloat16, below what some steps of training change


@dataclass(frozen=True)
class Adapter:
    """The weights of one language or domain: bottlenecks and head, with the tokens that the head's rows stand for."""

    name: str
    weights: Mapping[str, torch.Tensor] = field(repr=False)  # parameter name → CPU tensor
    tokens: tuple[str, ...] = field(default=(), repr=False)  # in id order; empty: those of the model it is put into
    specials: Mapping[str, str] = field(default_factory=dict, repr=False)  # pad_token, unk_token, … of those tokens
    sketch: tuple[float, ...] = field(default=(), repr=False)  # of the frozen weights that it was trained on

    @property
    def parameters(self) -> int:
        return sum(weight.numel() for weight in self.weights.values())

    @property
    def dim(self) -> int:
        """Width of the bottleneck."""
        return next(len(weight) for name, weight in self.weights.items() if name.endswith("linear_1.bias"))

    def __str__(self) -> str:
        rows = len(self.weights["lm_head.bias"])
        size = sum(weight.numel() * weight.element_size() for weight in self.weights.values())
        return (
            f"adapter {self.name}: {self.parameters:,} numbers ({size / 1e6:.2f} MB), width {self.dim}, {rows} outputs"
        )


def add_adapters(model: Any, dim: int = 64) -> bool:
    """Put an adapter into each encoder layer of a model without any; its outputs stay as they are, bit for bit.

    The outer matrix starts at zero, so training starts from the model as it is; transformers' `init_adapter_layers`
    would draw both matrices and the head at random. Returns whether layers were added: a model that has adapters of
    this width keeps them. Raises PlanError for a model that cannot have them, or has them in another width.
    """
    parts = Anatomy.of(model)
    config = parts.model.config
    present = getattr(config, "adapter_attn_dim", None)
    if present is not None and present != dim:
        raise PlanError(f"the model has adapters of width {present}, asked for {dim}: ask for {present}")
    if present is not None:
        return False
    if dim < 1:
        raise PlanError(f"the width of an adapter is {dim}; it is 1 or more (16 to 64 is usual)")
    kind = _adapter_class(parts)
    config.adapter_attn_dim = dim
    for layer in parts.layers:
        like = layer.final_layer_norm.weight
        layer.adapter_layer = kind(config).to(like.device, like.dtype).train(layer.training)
        nn.init.zeros_(layer.adapter_layer.linear_2.weight)
        nn.init.zeros_(layer.adapter_layer.linear_2.bias)
    return True


def take_adapter(source: Any, name: str, tokenizer: Any = None) -> Adapter:
    """Copy the adapter out of a model or a `Recognizer`; of a model, `tokenizer` says what the head's rows mean.

    The inverse of :func:`swap_adapter`. Raises PlanError for a model without adapters or a name unfit for a file.
    """
    model, tokenizer = _model_of(source), getattr(source, "tokenizer", tokenizer)
    _check_name(name)
    weights = {key: weight.detach().to("cpu", copy=True).contiguous() for key, weight in _slots(model).items()}
    tokens, specials = _tokens(tokenizer)
    return Adapter(name, weights, tokens, specials, _sketch(model))


def swap_adapter(target: Any, adapter: Adapter) -> Adapter:
    """Put `adapter` into a live model or `Recognizer`; returns the one it replaces, so that swapping back undoes it.

    A model without adapters gets them first, and what is returned then does nothing. Head, vocabulary, and on a
    `Recognizer` the tokenizer too, become those of the adapter. A `Recognizer` finishes the batch it is at.

    Raises ModelError for an adapter of another shape, or one that was trained on other frozen weights.
    """
    model = _model_of(target)
    _check_base(adapter, model)
    if target is model:
        add_adapters(model, adapter.dim)
        before = take_adapter(model, "before")
        _write(model, adapter)
        return before
    tokenizer = _tokenizer(adapter, target.tokenizer)
    with target._lock:  # its own: nobody may be in a forward pass while the weights change
        add_adapters(model, adapter.dim)
        before = take_adapter(target, getattr(target, "adapter", "base"))
        _write(model, adapter)
        _rename(target, adapter.name, tokenizer)
    model.requires_grad_(False)
    return before


def save_adapter(adapter: Adapter, folder: str | os.PathLike[str]) -> Path:
    """Write `adapter.<name>.safetensors` into `folder`; the inverse of :func:`load_adapter`.

    In a model's folder, `from_pretrained(folder, target_lang=name)` of transformers finds it there too. Raises
    OutputError where it cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path = Path(folder) / f"adapter.{adapter.name}.safetensors"
    partial = path.with_suffix(".partial")  # a full disk must not cost the file that is there
    about = {"tokens": adapter.tokens, "specials": dict(adapter.specials), "sketch": adapter.sketch}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # "pt": without it transformers does not open the file
        save_file(dict(adapter.weights), partial, metadata={"format": "pt", "speechkit": json.dumps(about)})
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        if partial.is_file():
            partial.unlink()
        raise OutputError(f"{path} cannot be written: {error}; free some space or give another folder") from error
    return path


def load_adapter(folder: str | os.PathLike[str], name: str) -> Adapter:
    """Read `adapter.<name>.safetensors`, ours or that of transformers (then without tokens).

    Raises ModelError when it is not there (naming those that are) or holds no adapter.
    """
    from safetensors import SafetensorError, safe_open

    _check_name(name)
    path = Path(folder) / f"adapter.{name}.safetensors"
    if not path.is_file():
        there = ", ".join(list_adapters(folder)) or "none"
        raise ModelError(f"no adapter {name!r} in {folder}; there: {there}")
    try:
        with safe_open(path, "pt") as file:
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 — it is no dict
            about = json.loads((file.metadata() or {}).get("speechkit", "{}"))
        tokens, specials = tuple(about.get("tokens", ())), dict(about.get("specials", {}))
        adapter = Adapter(name, weights, tokens, specials, tuple(about.get("sketch", ())))
    except (OSError, SafetensorError, ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} cannot be read as an adapter: {error}") from error
    if "lm_head.bias" not in weights or not any(key.endswith("adapter_layer.linear_1.bias") for key in weights):
        some = ", ".join(sorted(weights)[:3]) or "nothing"
        raise ModelError(f"{path} is no adapter: it holds {some}; wanted adapter_layer and lm_head weights")
    return adapter


def list_adapters(folder: str | os.PathLike[str]) -> tuple[str, ...]:
    """Names of the adapters in `folder`, sorted."""
    return tuple(sorted(path.name.split(".")[1] for path in Path(folder).glob("adapter.*.safetensors")))


def _model_of(source: Any) -> Any:
    """The model of a `Recognizer`, or the model itself, without wrappers."""
    inner = getattr(source, "model", None)
    held = isinstance(inner, nn.Module) and hasattr(source, "tokenizer")
    return core_of(inner) if held else core_of(source)


def _adapter_class(parts: Anatomy) -> Any:
    """The adapter module that transformers defines beside this model's layers."""
    layer = type(parts.layers[0])
    classes = vars(sys.modules[layer.__module__])
    found = [kind for name, kind in classes.items() if name.endswith("AttnAdapterLayer")]
    if not found or not hasattr(parts.layers[0], "adapter_layer"):
        kind = parts.model.config.model_type
        raise PlanError(
            f"{type(parts.model).__name__} cannot have adapters: transformers defines them for wav2vec2, hubert, "
            f"unispeech and unispeech-sat with do_stable_layer_norm=true, this is {kind} with "
            f"{str(bool(getattr(parts.model.config, 'do_stable_layer_norm', False))).lower()}. Take strategy "
            '"lora" or "top-K"'
        )
    return found[0]


def _slots(model: Any) -> dict[str, nn.Parameter]:
    """Name → parameter of everything that an adapter holds."""
    parts = Anatomy.of(model)
    if getattr(parts.model.config, "adapter_attn_dim", None) is None:
        raise PlanError(f"{type(parts.model).__name__} has no adapters yet: call add_adapters(model) first")
    named = parts.model.named_parameters()
    return {name: weight for name, weight in named if ".adapter_layer." in name or name.startswith("lm_head.")}


def _write(model: Any, adapter: Adapter) -> None:
    slots, rows = _slots(model), len(adapter.weights["lm_head.bias"])
    wrong = sorted(set(slots) ^ set(adapter.weights))
    wrong += [key for key in slots if key in adapter.weights and _shape(slots, key) != _shape(adapter.weights, key)]
    if wrong:
        raise ModelError(
            f"adapter {adapter.name!r} does not fit this model: {wrong[0]} is {_shape(adapter.weights, wrong[0])} in "
            f"the adapter and {_shape(slots, wrong[0])} in the model ({len(wrong)} such); take the model it was "
            "trained on"
        )
    if rows != model.lm_head.out_features:
        old = model.lm_head
        new = nn.Linear(old.in_features, rows, device=old.weight.device, dtype=old.weight.dtype)
        model.lm_head = new.train(old.training).requires_grad_(old.weight.requires_grad)
        model.config.vocab_size = rows
    if adapter.specials.get("pad_token") in adapter.tokens:
        model.config.pad_token_id = adapter.tokens.index(adapter.specials["pad_token"])
    with torch.no_grad():
        for name, slot in _slots(model).items():
            slot.copy_(adapter.weights[name])


def _shape(weights: Mapping[str, torch.Tensor], name: str) -> tuple[int, ...] | str:
    """Without the rows of the head, which may differ."""
    if name not in weights:
        return "absent"
    return tuple(weights[name].shape)[1 if name.startswith("lm_head.") else 0 :]


def _sketch(model: Any) -> tuple[float, ...]:
    """A few frozen numbers of each layer."""
    numbers: list[float] = []
    for layer in Anatomy.of(model).layers:
        numbers += layer.feed_forward.intermediate_dense.weight[0, :_SKETCH].detach().float().cpu().tolist()
    return tuple(numbers)


def _check_base(adapter: Adapter, model: Any) -> None:
    if not adapter.sketch:
        return
    own, other = torch.tensor(_sketch(model)), torch.tensor(adapter.sketch)
    if own.shape != other.shape:
        layers = len(own) // _SKETCH, len(other) // _SKETCH
        raise ModelError(f"adapter {adapter.name!r} was trained on {layers[1]} layers, this model has {layers[0]}")
    if not torch.allclose(own, other, rtol=_ALIKE, atol=_ALIKE * float(other.abs().mean())):
        raise ModelError(
            f"adapter {adapter.name!r} was trained on other weights than this model's (they differ by up to "
            f"{float((own - other).abs().max()):.1e}): load the model that it was trained on, then swap"
        )


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise PlanError(f"adapter name {name!r}: letters, digits, - and _ only, it becomes part of a file name")


def _tokens(tokenizer: Any) -> tuple[tuple[str, ...], dict[str, str]]:
    if tokenizer is None:
        return (), {}
    encoder = tokenizer.encoder
    names = ("pad_token", "unk_token", "bos_token", "eos_token", "word_delimiter_token")
    # str: a token may be an object with flags of its own
    specials = {name: str(getattr(tokenizer, name)) for name in names if getattr(tokenizer, name, None) is not None}
    return tuple(sorted(encoder, key=encoder.__getitem__)), specials


def _tokenizer(adapter: Adapter, current: Any) -> Any:
    """The tokenizer that the adapter's head speaks through: `current` where it has the same tokens."""
    from tempfile import TemporaryDirectory

    from transformers import Wav2Vec2CTCTokenizer

    if not adapter.tokens or (adapter.tokens, dict(adapter.specials)) == _tokens(current):
        rows, own = len(adapter.weights["lm_head.bias"]), len(current.encoder)
        if not own <= rows <= max(own, len(current)):
            raise ModelError(
                f"adapter {adapter.name!r} has {rows} outputs and names no tokens for them, the recogniser's tokenizer "
                f"has {own}: save it with take_adapter(model, name, tokenizer)"
            )
        return current
    with TemporaryDirectory() as folder:
        path = Path(folder) / "vocab.json"
        path.write_text(json.dumps({token: row for row, token in enumerate(adapter.tokens)}), encoding="utf-8")
        absent = {name: None for name in ("bos_token", "eos_token") if name not in adapter.specials}
        return Wav2Vec2CTCTokenizer(str(path), **adapter.specials, **absent)


def _rename(recognizer: Any, name: str, tokenizer: Any) -> None:
    """Tell a recogniser what it is now: its words, its name in transcripts, its identity in resumed batches."""
    from speechkit.asr.decode import Alphabet

    base, identity = recognizer.name.split(" + ")[0], recognizer.identity.split(" + ")[0]
    plain = name == "base"
    recognizer.adapter = name
    recognizer.name, recognizer.identity = (base, identity) if plain else (f"{base} + {name}", f"{identity} + {name}")
    recognizer.tokenizer = tokenizer
    recognizer.alphabet = Alphabet.from_tokenizer(tokenizer, int(recognizer.config.vocab_size))
