"""Files of a language model, read and checked: where they are, configuration, tokenizer, weights, adapter on top.

In: a `Source`. Out: transformers' objects. What is wrong with a repository is said before its weights are fetched. No
code of a repository runs, no pickled weights are read.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechkit import extras
from speechkit.asr.checkpoint import ARCHITECTURES as SPEECH
from speechkit.errors import ModelError, PlanError
from speechkit.llm import hub, registry
from speechkit.llm.families import ENCODER
from speechkit.llm.quiet import quiet

__all__ = ["Place", "find", "need_weights", "read_config", "read_json", "read_model", "read_tokenizer"]

# what transformers raises for settings that cannot be
BROKEN = (ArithmeticError, AssertionError, AttributeError, KeyError, OSError, TypeError, ValueError)
WEIGHTS = ("model.safetensors", "model-*.safetensors")


@dataclass(frozen=True)
class Place:
    """The folders of one model."""

    base: Path  # with config.json and weights
    tokenizer: Path  # the adapter's own where it brings one, else the base's
    adapter: Path | None = None  # with adapter_config.json


def find(source: registry.Source, revision: str | None = None, seen: tuple[str, ...] = ()) -> Place:
    """The folders of `source`, fetched from the Hub where it is one; of an adapter, those of its base with it.

    Raises ModelError: no config.json, no safetensors, an architecture that is no language model, code of its own, an
    adapter without its base. PlanError: a revision of a folder.
    """
    if revision is not None and source.kind != "hub" and not seen:
        raise PlanError(
            f"revision is {revision!r}, and {source.name} is a folder: only repositories on the Hub have any"
        )
    folder = hub.fetch(source.location, revision, _check_kind) if source.kind == "hub" else Path(source.location)
    _check_kind(folder)  # also what came out of the cache
    if (folder / "config.json").is_file():
        need_weights(folder)
        return Place(folder, folder)
    name = _base_of(folder)
    if name in seen or len(seen) > 3:
        raise ModelError(f"{folder} is an adapter whose base {name!r} is an adapter again; merge those first")
    try:
        place = find(registry.resolve(name), read_json(folder / "adapter_config.json").get("revision"), (*seen, name))
    except ModelError as error:
        raise ModelError(f"{folder} is an adapter for {name!r}, which cannot be had: {error}") from error
    if place.adapter is not None:
        raise ModelError(f"{folder} is an adapter whose base {name!r} is an adapter again; merge those first")
    own = any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model"))
    return Place(place.base, folder if own else place.tokenizer, folder)


def read_config(folder: Path) -> Any:
    """transformers' configuration. Raises ModelError for one that it cannot read."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        with quiet():
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        if isinstance(config.get_text_config(), dict):
            raise ValueError(f"it has a part for text (text_config), which a {config.model_type} model has not")
        return config
    except (*BROKEN, StrictDataclassError) as error:
        raise ModelError(f"the configuration of {folder} cannot be read: {error}") from error


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer. Raises ModelError where there is none or it cannot be read."""
    from transformers import AutoTokenizer

    try:
        with quiet():
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise ModelError(
            f"{folder} has no tokenizer that can be read (it holds: {_listing(folder)}): {error}"
        ) from error


def read_model(folder: Path, config: Any, dtype: str, device: str, settings: Any = None) -> Any:
    """The weights, on their device.

    Raises ModelError where they and the configuration do not fit each other, PlanError where the device is too small.
    """
    import torch
    from safetensors import SafetensorError

    given: dict[str, Any] = {}
    if settings is not None or device != "cpu":
        extras.require("accelerate", extra="llm", purpose=f"loading onto {device}")
        given = {"device_map": {"": device}, **({"quantization_config": settings} if settings is not None else {})}
    try:
        with quiet():
            model, report = _class_of(config).from_pretrained(
                folder, config=config, dtype=getattr(torch, dtype), use_safetensors=True, trust_remote_code=False,
                local_files_only=True, output_loading_info=True, ignore_mismatched_sizes=settings is None, **given,
            )  # fmt: skip
    except torch.OutOfMemoryError as error:
        raise PlanError(
            f"the weights of {folder} do not fit {device} in {dtype}: load them in fewer bits (quant='nf4' takes a "
            f"quarter of 16 bits), free memory there, or choose device='cpu' ({error})"
        ) from error
    except (*BROKEN, RuntimeError, ImportError, SafetensorError) as error:
        raise ModelError(f"the weights of {folder} cannot be loaded: {error}") from error
    _check_report(report, folder)
    return model


def _class_of(config: Any) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    towers = hasattr(config, "vision_config") and type(config) in AutoModelForImageTextToText._model_mapping
    return AutoModelForImageTextToText if towers else AutoModelForCausalLM


def _check_kind(folder: Path) -> None:
    """Raise ModelError unless a causal language model or an adapter for one can be in `folder`."""
    path = folder / "config.json"
    if not path.is_file():
        if (folder / "adapter_config.json").is_file():
            return
        raise ModelError(
            f"{folder} has no config.json (it holds: {_listing(folder)}); give the folder of a language model, or of a "
            "PEFT adapter"
        )
    config = read_json(path)
    kind = str(config.get("model_type") or "")
    if kind in SPEECH:
        raise ModelError(f"{folder} holds a speech model ({kind}): load_asr loads it")
    family = registry.family_of(config)
    if family is not None and family.kind == ENCODER:
        raise ModelError(
            f"{folder} holds an encoder of sentences ({family.name}), which generates no text: "
            "speechkit.llm.embedding.load_encoder loads it"
        )
    _check_native(folder, config, kind)


def _check_native(folder: Path, config: dict[str, Any], kind: str) -> None:
    import transformers
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )

    if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return  # in transformers: code that the repository may bring as well is not looked at
    if config.get("auto_map"):
        raise ModelError(
            f"{folder} ({kind or 'no model_type'}) wants to run code of its own (auto_map in config.json), and "
            "speechkit runs none from repositories: choose a model whose architecture transformers has; or read that "
            "code, load it yourself with transformers and trust_remote_code=True, and hand the model on"
        )
    if kind in CONFIG_MAPPING:
        raise ModelError(f"{folder} holds a {kind} model, which is no causal language model: it cannot continue a text")
    known = f"its model_type is {kind!r}" if kind else "its config.json names no model_type"
    raise ModelError(
        f"transformers {transformers.__version__} does not know the architecture of {folder} ({known}); a newer "
        "transformers may: pip install --upgrade transformers"
    )


def _base_of(folder: Path) -> str:
    name = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
    if not name:
        raise ModelError(f"{folder}/adapter_config.json names no base model: set base_model_name_or_path in it")
    if not any(folder.glob("adapter_model*.safetensors")):
        raise ModelError(f"{folder} has no adapter_model.safetensors (it holds: {_listing(folder)})")
    return str(name)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file. Raises ModelError for anything else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} holds a {type(found).__name__}, not an object of settings")
    return found


def need_weights(folder: Path) -> None:
    """Raise ModelError unless `folder` holds weights as safetensors."""
    if any(path for pattern in WEIGHTS for path in folder.glob(pattern)):
        return
    pickled = any(folder.glob("pytorch_model*.bin"))
    why = "pickled weights only, which can run code when they are read; speechkit reads" if pickled else "no weights:"
    raise ModelError(f"{folder} holds {why} model.safetensors (there are: {_listing(folder)})")


def _check_report(report: dict[str, Any], folder: Path) -> None:
    wrong = sorted(report["mismatched_keys"])
    if wrong:
        name, found, wanted = wrong[0]
        raise ModelError(
            f"the weights of {folder} do not fit its config.json: {name} is {tuple(found)}, the config says "
            f"{tuple(wanted)} ({len(wrong)} such); take both from the same model"
        )
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"{folder} lacks {len(missing)} of the model's weights, among them {missing[0]}: config.json and "
            "model.safetensors belong to different models"
        )


def _listing(folder: Path, most: int = 8) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "") or "nothing"
