"""Names and configurations of language models → where they are, what family they are of, what is known of the family.

In: a name, a folder, a transformers configuration. Out: frozen rows. Knows no torch and loads nothing: the table prints
in a moment. The rows themselves are in `families`.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from speechkit import demo
from speechkit.errors import ModelError
from speechkit.llm.families import FAMILIES, VISION, Family

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "ENCODERS",
    "FAMILIES",
    "KNOWN",
    "Family",
    "Features",
    "Source",
    "Targets",
    "family_named",
    "family_of",
    "features_of",
    "known_names",
    "lora_choice",
    "lora_targets",
    "nearest",
    "resolve",
]

KNOWN: dict[str, str] = {
    "llama-3.2-1b": "meta-llama/Llama-3.2-1B-Instruct",
    "mistral-7b": "mistralai/Mistral-7B-Instruct-v0.3",
    "qwen2.5-0.5b": "Qwen/Qwen2.5-0.5B-Instruct",
    "qwen3-0.6b": "Qwen/Qwen3-0.6B",
    "gemma-3-270m": "google/gemma-3-270m-it",
    "gemma-3-1b": "google/gemma-3-1b-it",
    "phi-4-mini": "microsoft/Phi-4-mini-instruct",
    "r1-qwen-1.5b": "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
    "smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "smolvlm-256m": "HuggingFaceTB/SmolVLM-256M-Instruct",
}
ENCODERS: dict[str, str] = {
    "minilm-l6": "sentence-transformers/all-MiniLM-L6-v2",
    "multilingual-e5-small": "intfloat/multilingual-e5-small",
}

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model is: `location` is a folder for kinds "demo" and "folder", a repository id for "hub"."""

    name: str  # as it was given
    location: str
    kind: Literal["demo", "hub", "folder"]
    family: Family | None  # of the configuration in a folder, else of the name; None: neither tells
    reason: str  # what the family was read from

    def __str__(self) -> str:
        family = self.family.name if self.family else "unknown family"
        return f"{self.name}: {family} ({self.reason}), {self.kind} {self.location}"


@dataclass(frozen=True, slots=True)
class Features:
    """What a configuration says of a model's attention; prints as one line."""

    heads: int
    kv_heads: int  # fewer than heads: grouped queries
    context: int  # positions that the model was made for; 0: not said
    sliding_window: int | None  # tokens that a layer looks back, where some layer does not see all
    softcap: float | None  # of the scores before the softmax
    qk_norm: bool  # queries and keys are normalised
    latent: int | None  # width of the latent that keys and values are made from
    experts: int  # 0: dense
    scaling: str  # kind of RoPE scaling, "default" for none, "" without rotary positions

    def __str__(self) -> str:
        grouped = f", {self.kv_heads} of keys and values" if self.kv_heads != self.heads else ""
        parts = [f"{self.heads} heads{grouped}", f"context {self.context:,}" if self.context else "context not said"]
        parts += [f"sliding window {self.sliding_window:,}"] if self.sliding_window else []
        parts += [f"scores capped at {self.softcap:g}"] if self.softcap else []
        parts += ["queries and keys normalised"] if self.qk_norm else []
        parts += [f"latent keys and values of {self.latent}"] if self.latent else []
        parts += [f"{self.experts} experts"] if self.experts else []
        parts += [f"RoPE {self.scaling}"] if self.scaling not in ("", "default") else []
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Targets:
    """The modules that LoRA adapts, by the ends of their names, and why these."""

    names: tuple[str, ...]
    reason: str
    left_out: str = ""  # weights that are no modules, and what they would need

    def __str__(self) -> str:
        return f"{', '.join(self.names)} ({self.reason})" + (f"; left out: {self.left_out}" if self.left_out else "")


def known_names() -> list[str]:
    """The short names of language models, embedded ones first; those of encoders of sentences are `ENCODERS`."""
    return [*(f"demo/{name}" for name in demo.chat_models()), *KNOWN]


def resolve(name: str | os.PathLike[str]) -> Source:
    """Short name, Hub id or folder → Source. An existing folder wins over a Hub id that is spelt the same.

    A folder's family comes from its config.json (or adapter_config.json: then from the name of the base), a Hub id's
    from its name, until it is loaded. Raises ModelError, naming the nearest known names, when `name` is none of these.
    """
    if not isinstance(name, (str, os.PathLike)):
        raise ModelError(f"a model is named by a string or a path, not by {type(name).__name__}; {_advice('')}")
    text = os.fspath(name)
    if repo := KNOWN.get(text) or ENCODERS.get(text):
        return _hub(text, repo)
    if text == "demo" or text.startswith("demo/"):
        return _demo(text)
    folder = os.path.expanduser(text)
    if os.path.isdir(folder):
        return Source(text, folder, "folder", *_read_family(Path(folder), text))
    if os.path.isfile(folder):
        raise ModelError(f"{text} is a file; give the folder that holds config.json and model.safetensors")
    if not isinstance(name, str) or text.startswith((".", "/", "~")) or "\\" in text:
        raise ModelError(f"model folder {text} does not exist, or this user may not enter it; {_advice(text)}")
    if _HUB_ID.fullmatch(text):
        return _hub(text, text)
    raise ModelError(f"unknown model {text!r}; {_advice(text)}")


def family_of(config: Any) -> Family | None:
    """The row of a configuration (an object or the dict of config.json), of its text tower where it has others too.

    Rows that share a `model_type` are told apart by the size of their vocabulary.
    """
    text = _text_config(config)
    kinds = [str(_get(one, "model_type") or "") for one in (text, config)]
    for kind in kinds:
        rows = [family for family in FAMILIES if kind in family.model_types]
        told = _get(text, "vocab_size")
        size = told if isinstance(told, int) else 0
        found = [family for family in rows if size >= family.vocabulary_from]
        if found:
            return max(found, key=lambda family: family.vocabulary_from)
    return None


def family_named(name: str) -> Family | None:
    """The first row with a pattern that the end of `name` (after the owner, or of a folder) shows.

    Wrappers with a vision tower come first: their names hold that of their text tower too.
    """
    last = re.split(r"[/\\]", name.rstrip("/\\"))[-1].lower()
    rows = sorted(FAMILIES, key=lambda family: family.kind != VISION)
    return next((family for family in rows if any(re.search(pattern, last) for pattern in family.patterns)), None)


def features_of(config: Any) -> Features:
    """Attention features, read off the configuration of the text tower."""
    text, family = _text_config(config), family_of(config)
    heads = int(_get(text, "num_attention_heads") or 0)
    window = _get(text, "sliding_window")
    kinds = _get(text, "layer_types")
    if _get(text, "use_sliding_window") is False or (kinds and "sliding_attention" not in kinds):
        window = None
    experts = next((n for key in ("num_local_experts", "num_experts", "n_routed_experts") if (n := _get(text, key))), 0)
    return Features(
        heads, int(_get(text, "num_key_value_heads") or heads), int(_get(text, "max_position_embeddings") or 0),
        window or None, _get(text, "attn_logit_softcapping") or None, bool(family and family.qk_norm),
        _get(text, "kv_lora_rank") or None, int(experts or 0), _scaling(text),
    )  # fmt: skip


def lora_targets(model: Any) -> tuple[str, ...]:
    """The ends of the names of the modules that LoRA adapts in this model; see :func:`lora_choice`."""
    return lora_choice(model).names


def lora_choice(model: Any) -> Targets:
    """What LoRA adapts: the family's modules that the model has, or every linear layer but the head, and why.

    Raises ModelError for a model without any linear layer.
    """
    config = getattr(model, "config", None)
    family = family_of(config) if config is not None else None
    ends = {name.removesuffix(".base_layer").rpartition(".")[2] for name, _ in model.named_modules()}
    found = tuple(name for name in (family.lora_targets if family else ()) if name in ends)
    if family and found:
        left = family.experts if features_of(config).experts else ""
        return Targets(found, f"the projections of {family.name}", left)
    names = _linear_names(model)
    if not names:
        raise ModelError(f"{type(model).__name__} has no linear layer that an adapter could go to")
    kind = _get(config, "model_type") or type(model).__name__
    return Targets(names, f"{kind} is not in the table: all linear layers but the head")


def nearest(name: str, known: Iterable[str] | None = None) -> list[str]:
    """Up to three known names and Hub ids that are spelt much like `name`."""
    names = list(known if known is not None else (*known_names(), *ENCODERS, *KNOWN.values(), *ENCODERS.values()))
    lower = {one.lower(): one for one in names}
    for one in names:
        lower.setdefault(one.lower().rpartition("/")[2], one)
    close = get_close_matches(name.lower(), lower, 6, 0.6) + get_close_matches(
        name.lower().rpartition("/")[2], lower, 6, 0.6
    )
    return list(dict.fromkeys(lower[one] for one in close))[:3]


def _linear_names(model: Any) -> tuple[str, ...]:
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    names: dict[str, None] = {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, Conv1D)) and module is not head:
            names[name.removesuffix(".base_layer").rpartition(".")[2]] = None
    return tuple(name for name in names if name not in ("lm_head", ""))


def _hub(name: str, repo: str) -> Source:
    family = family_named(repo)
    reason = "by its name" if family else "its name tells no family; its config.json will"
    return Source(name, repo, "hub", family, reason)


def _demo(text: str) -> Source:
    name = text.partition("/")[2]
    embedded = demo.chat_models()
    if name in embedded:
        folder = demo.model_path(name)
        return Source(text, str(folder), "demo", *_read_family(folder, text))
    names = ", ".join(f"demo/{one}" for one in embedded) or "none in this installation"
    if name in demo.models():
        raise ModelError(
            f"{text} is an embedded speech model: load_asr({text!r}) loads it. Embedded language models: {names}"
        )
    raise ModelError(f"unknown embedded language model {text!r}; embedded: {names}. {_advice(text)}")


def _read_family(folder: Path, name: str) -> tuple[Family | None, str]:
    """By config.json, by the base's name of an adapter, by the folder's name: the first that there is."""
    for file in ("config.json", "adapter_config.json"):
        try:
            config = json.loads((folder / file).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # absent; a broken one gets its reason when it is loaded
        if not isinstance(config, dict):
            continue
        if file == "adapter_config.json":
            base = str(config.get("base_model_name_or_path") or "")
            return family_named(base), f"an adapter for {base or 'a base that it does not name'}"
        kind = config.get("model_type") or "none"
        return family_of(config), f"by its config.json: model_type {kind}"
    return family_named(name), "by the folder's name: it has no readable config.json"


def _text_config(config: Any) -> Any:
    if isinstance(config, dict):
        for key in ("text_config", "llm_config", "language_config"):
            if isinstance(config.get(key), dict):
                return config[key]
        return config
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _scaling(text: Any) -> str:
    rope = _get(text, "rope_parameters") or _get(text, "rope_scaling")
    if not isinstance(rope, dict):
        return "default" if _get(text, "rope_theta") else ""
    if isinstance(rope.get("full_attention"), dict):  # a set for each kind of layer
        rope = rope["full_attention"]
    return str(rope.get("rope_type") or rope.get("type") or "default")


def _get(config: Any, name: str) -> Any:
    return config.get(name) if isinstance(config, dict) else getattr(config, name, None)


def _advice(text: str) -> str:
    close = nearest(text) if text else []
    near = f"nearest known names: {', '.join(close)}; " if close else ""
    return (
        f"{near}known names: {', '.join(known_names())}; or a Hub id such as owner/model; or a folder with config.json"
    )
