"""Whether a saved adapter belongs to a model, found out from names, shapes and a few numbers, before it is loaded.

In: a folder, a model. Out: what the folder holds, or a ModelError. Shapes are read from the header of the safetensors
file. That a base is the same one is told by a sketch of its weights: some values of the embedding and of the last norm,
which quantisation leaves alone; compared within what rounding to 16 bits does to them.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from speechkit.errors import ModelError, PlanError
from speechkit.llm.lora_options import LoraOptions

if TYPE_CHECKING:
    from pathlib import Path

    import torch

__all__ = ["Found", "base_facts", "check_fits", "read_found"]

PART = re.compile(r"^(?P<module>.*?)\.lora_(?P<part>A|B|embedding_A|embedding_B|magnitude_vector)(\.weight|\.bias)?$")
SAMPLES = 64  # values of a weight that are kept
ROUNDING = 2.0**-7  # twice bfloat16's, of what the value is
STRANGERS = 0.25  # share of values beyond it that makes another base


@dataclass(frozen=True)
class Found:
    """What is in an adapter's folder."""

    folder: Path
    base: str  # name of the base that it was made for, as saved; "" where it is not told
    shapes: dict[str, tuple[int, ...]]  # name of a tensor, without peft's "base_model.model.", → its shape
    options: LoraOptions | None  # of an adapter that was saved here
    facts: dict[str, Any]  # of its base, likewise


def read_found(folder: Path, side: str) -> Found:
    """Raises ModelError for what is no adapter that can be loaded."""
    if not folder.is_dir():
        raise ModelError(f"{folder} is no folder; an adapter is one, with adapter_config.json in it")
    config = _json(folder / "adapter_config.json")
    if config is None:
        raise ModelError(f"{folder} holds no adapter_config.json, so that it is no adapter of peft's")
    if config.get("peft_type") != "LORA":
        raise ModelError(f"{folder} holds an adapter of type {config.get('peft_type')!r}; only 'LORA' is known here")
    more = _json(folder / side) or {}
    try:
        options = LoraOptions(**more["options"]) if "options" in more else None
    except (PlanError, TypeError) as error:
        raise ModelError(f"{folder / side} has options that are none: {error}") from error
    facts = more.get("base") or {}
    name = str(facts.get("name") or config.get("base_model_name_or_path") or "")
    return Found(folder, name, _shapes(folder), options, facts)


def check_fits(model: Any, found: Found, *, other_base: bool) -> None:
    """Raises ModelError, naming both bases and the first shapes, unless every tensor has its place in the model."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") and hasattr(model, "peft_config") else model
    modules = {name: module for name, module in inner.named_modules() if _own(name)}
    wrong = list(dict.fromkeys(filter(None, (_misfit(modules, key, shape) for key, shape in found.shapes.items()))))
    if wrong and not (all(text.endswith(ABSENT) for text in wrong) and _renamed(inner)):
        rest = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ModelError(
            _of_another(inner, found) + f": {'; '.join(wrong[:3])}{rest}. Load it on the base it was made for"
        )
    if other_base or not found.facts:
        return
    here = base_facts(model)
    if found.facts.get("vocabulary") not in (None, here["vocabulary"]):
        raise ModelError(
            f"{_of_another(inner, found)}: its vocabulary had {found.facts['vocabulary']} tokens, this one has "
            f"{here['vocabulary']}. Load it on the base it was made for, or say other_base=True"
        )
    strange = _strangeness(found.facts.get("sketch") or {}, here["sketch"])
    if strange > STRANGERS:
        raise ModelError(
            _of_another(inner, found)
            + f": all shapes fit, but {strange:.0%} of the sampled base weights differ. Load it "
            "on the base it was made for, or say other_base=True where that is meant"
        )


def base_facts(model: Any) -> dict[str, Any]:
    """What the base of a model is, for JSON: name, revision, type, vocabulary, a sketch of weights."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") and hasattr(model, "peft_config") else model
    config: Any = getattr(inner, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return {
        "name": str(getattr(inner, "name_or_path", "") or ""),
        "revision": getattr(config, "_commit_hash", None),
        "model_type": getattr(config, "model_type", ""),
        "vocabulary": getattr(text, "vocab_size", None),
        "sketch": _sketch(inner),
    }


ABSENT = "is not there"


def _misfit(modules: dict[str, Any], key: str, shape: tuple[int, ...]) -> str:
    """What keeps this tensor from its place; empty for nothing."""
    match = PART.match(key)
    if match is None:
        return _whole_misfit(modules, key, shape)
    name, part = match["module"].removesuffix(".base_layer"), match["part"]
    if name not in modules:
        return f"{name} {ABSENT}"
    inner, outer = _features(modules[name])
    if inner is None or key.endswith(".bias"):
        return ""
    axis, wanted = {"A": (1, inner), "B": (0, outer), "embedding_A": (1, inner), "embedding_B": (0, outer)}.get(
        part, (-1, outer)
    )
    given = shape[axis] if len(shape) > max(axis, 0) else None
    if given == wanted or (part == "magnitude_vector" and outer in shape):
        return ""
    told = " x ".join(map(str, shape))
    return f"{name}: {part} is {told}, the layer is {outer} x {inner} ({'outputs' if axis != 1 else 'inputs'} {wanted})"


def _whole_misfit(modules: dict[str, Any], key: str, shape: tuple[int, ...]) -> str:
    """Of a module that was trained whole."""
    name, _, last = key.rpartition(".")
    if name not in modules or last not in ("weight", "bias"):
        return ""  # tokens trained alone and the like: peft says what is wrong with them
    weight = getattr(modules[name], last, None)
    if weight is None or tuple(weight.shape) == shape or weight.dtype.itemsize < 2:
        return ""
    return f"{key} is {' x '.join(map(str, shape))}, the model's is {' x '.join(map(str, weight.shape))}"


def _features(module: Any) -> tuple[int | None, int | None]:
    """(inputs, outputs) of a layer that peft adapts; None for a kind that is not looked into."""
    pairs = (("in_features", "out_features"), ("num_embeddings", "embedding_dim"), ("nx", "nf"))
    for inner, outer in pairs:
        if isinstance(getattr(module, outer, None), int) and isinstance(getattr(module, inner, None), int):
            return getattr(module, inner), getattr(module, outer)
    return None, None


def _renamed(model: Any) -> bool:
    """Whether transformers knows older names of this model's weights, which peft translates in loading."""
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    kind = getattr(getattr(model, "config", None), "model_type", "")
    return bool(get_checkpoint_conversion_mapping(kind))


def _of_another(model: Any, found: Found) -> str:
    here = str(getattr(model, "name_or_path", "") or "") or type(model).__name__
    was = f"{found.base!r}" if found.base else "a base that it does not name"
    return f"the adapter in {found.folder} was made for {was}, not for {here!r}"


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    from safetensors import SafetensorError, safe_open

    path = folder / "adapter_model.safetensors"
    if not path.is_file():
        if (folder / "adapter_model.bin").is_file():
            raise ModelError(
                f"{folder} holds adapter_model.bin, a pickle, which can run any code when it is opened: it is not. Ask "
                "for adapter_model.safetensors, or save it again with a peft that you trust it to"
            )
        raise ModelError(f"{folder} holds no adapter_model.safetensors")
    try:
        with safe_open(path, "pt") as file:
            return {
                key.removeprefix("base_model.model."): tuple(file.get_slice(key).get_shape())
                for key in file.keys()  # noqa: SIM118 - no dict
            }
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} cannot be read ({error}); it was cut, or is something else: save it again") from error


def _json(path: Path) -> dict[str, Any] | None:
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read ({error}); save the adapter again") from error
    if not isinstance(row, dict):
        raise ModelError(f"{path} holds no JSON object; save the adapter again")
    return row


def _own(name: str) -> bool:
    """Whether a module is the model's own, or peft's wrapper in its place; not what peft put within."""
    return not any(mark in f"{name}." for mark in (".lora_", ".modules_to_save.", ".base_layer.", ".original_module."))


def _sketch(model: Any) -> dict[str, list[float]]:
    """A few values of weights that stay in 16 or 32 bits; empty for a weight that is not here (ZeRO-3, offloaded)."""
    embedding = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    norms = [module for name, module in model.named_modules() if name.endswith(("norm", "ln_f")) and _own(name)]
    found = {"embedding": _weight(embedding), "norm": _weight(norms[-1] if norms else None)}
    return {name: _sample(weight) for name, weight in found.items() if weight is not None and weight.numel()}


def _weight(module: Any) -> torch.Tensor | None:
    for wrapper in ("original_module", "base_layer"):
        module = getattr(module, wrapper, module)
    weight = getattr(module, "weight", None)
    if weight is None or weight.is_meta or not weight.is_floating_point() or weight.itemsize < 2:
        return None
    kept: torch.Tensor = weight.detach()
    return kept


def _sample(weight: torch.Tensor) -> list[float]:
    """Spread over the rows, from different columns."""
    rows = weight.reshape(-1, weight.shape[-1])
    step = max(1, rows.numel() // SAMPLES)
    flat = rows.reshape(-1)[::step][:SAMPLES]
    return [float(f"{value:.6g}") for value in flat.float().tolist()]


def _strangeness(there: dict[str, list[float]], here: dict[str, list[float]]) -> float:
    """Share of values that are not the same one rounded; 0 where nothing can be compared."""
    pairs = [
        (a, b)
        for name, values in there.items()
        if len(values) == len(here.get(name, ()))
        for a, b in zip(values, here[name], strict=True)
    ]
    different = sum(abs(a - b) > ROUNDING * max(abs(a), abs(b)) + 1e-7 for a, b in pairs)
    return different / len(pairs) if pairs else 0.0
