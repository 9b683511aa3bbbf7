"""Adapters on disk, in peft's own files: any peft user loads what is saved here, and what peft saved loads here.

    adapter_config.json   adapter_model.safetensors   README.md       peft's
    speechkit_adapter.json                                            ours: the base, options, versions

In: a peft model, a folder. Out: the folder, whole or as it was before; a peft model whose adapter fits its base, or a
ModelError that names both bases and the first shapes. Safetensors only: a pickle is refused unread. No network.
"""

from __future__ import annotations

import json
import shutil
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechkit import extras
from speechkit.errors import ModelError, OutputError, PlanError
from speechkit.llm.adapter_check import Found, base_facts, check_fits, read_found
from speechkit.llm.lora import OPTIONS, options_of
from speechkit.llm.lora_kernels import fuse, keep_unpacked
from speechkit.llm.quiet import quiet

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    import torch
    from torch import nn

__all__ = ["load_adapter", "save_adapter"]

SIDE = "speechkit_adapter.json"
WORDS = 300  # characters of what peft says that are passed on


def save_adapter(
    model: Any, folder: str | os.PathLike[str], *, name: str = "default", tensors: dict[str, torch.Tensor] | None = None
) -> Path:
    """Write the adapter `name` of a peft model; the folder afterwards, which holds it whole or what it held before.

    tensors: a state dict gathered from ranks (ZeRO-3, FSDP), where this process has but a part. Other files in the
    folder stay. Raises PlanError for a model without such an adapter, OutputError when the disk is full or read-only.
    """
    if name not in getattr(model, "peft_config", {}):
        known = ", ".join(map(repr, getattr(model, "peft_config", {}))) or "none: add one with add_lora"
        raise PlanError(f"the model has no adapter {name!r}; it has {known}")
    place = Path(folder).expanduser()
    fresh, old = place.with_name(f"{place.name}.new"), place.with_name(f"{place.name}.old")
    with _writing(place):
        _recover(place, fresh, old)
        fresh.mkdir(parents=True)
        if (place / "README.md").is_file():
            shutil.copy2(place / "README.md", fresh)  # peft renews its own part of a card
        more = {} if tensors is None else {"state_dict": tensors}
        model.save_pretrained(str(fresh), selected_adapters=[name], save_embedding_layers=False, **more)
        made = _flat(fresh, name)
        side = {"options": options_of(model, name).as_dict(), "base": base_facts(model), "versions": _versions()}
        (made / SIDE).write_text(json.dumps(side, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        _swap(made, place, old)
    return place


def load_adapter(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    name: str = "default",
    trainable: bool = False,
    other_base: bool = False,
    kernels: bool = True,
) -> Any:
    """Put a saved adapter on its base, in place → peft's PeftModel around it; on a peft model, one more adapter.

    Checked before anything is loaded: that its modules are there, that every matrix fits, and for adapters saved here
    the vocabulary and a sample of the base's own weights. `other_base` allows a base of the same shapes and other
    weights (an adapter of the base on its chat version, say). Raises ModelError for what is no adapter, or one of
    another base, PlanError for a name that is taken; `model` is then as it was.
    """
    with quiet():
        extras.require("peft", extra="llm", purpose="an adapter")
        from peft import LoraConfig, PeftModel, get_peft_model

    found = read_found(_place(folder), SIDE)
    if isinstance(model, PeftModel) and name in model.peft_config:
        raise PlanError(f"the model has an adapter {name!r} already; give this one another name")
    check_fits(model, found, other_base=other_base)
    first = not isinstance(model, PeftModel)
    wrapped: Any = None if first else model
    parts = [(module, dict(module._modules)) for module in model.modules()] if first else []
    try:
        config = LoraConfig.from_pretrained(str(found.folder))
        config.inference_mode = not trainable
        with quiet():
            wrapped = get_peft_model(model, config, adapter_name=name) if first else model  # type: ignore[arg-type]
        result = wrapped.load_adapter(str(found.folder), name, is_trainable=trainable, torch_device="cpu")
        _check_all_there(found, name, result)
    except (ModelError, RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        if wrapped is None:  # stopped halfway by peft
            for module, children in parts:
                module._modules = children
        else:
            _take_back(wrapped, name, first)
        if isinstance(error, ModelError):
            raise
        why = " ".join(str(error).split())
        raise ModelError(f"{found.folder} does not fit the model: {why[:WORDS]}; save the adapter again") from error
    wrapped.set_adapter(name, inference_mode=not trainable)
    wrapped.__dict__.setdefault(OPTIONS, {})[name] = found.options or options_of(wrapped, name)
    keep_unpacked(wrapped)
    if kernels:
        fuse(wrapped)
    _say_where_bases_differ(wrapped, found)
    return wrapped


def _check_all_there(found: Found, name: str, result: Any) -> None:
    if missing := [key.replace(f".{name}", "") for key in result.missing_keys]:
        raise ModelError(
            f"{found.folder} holds no weights for {missing[0]}{_more(missing)}, which its adapter_config.json names: "
            "the file is of another adapter, or was cut; save the adapter again"
        )
    if result.unexpected_keys:
        first = result.unexpected_keys[0].replace(f".{name}", "")
        raise ModelError(
            f"{found.folder} holds {first}{_more(result.unexpected_keys)}, which the model has no place for"
        )


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _take_back(wrapped: Any, name: str, first: bool) -> None:
    """The model as it was before the adapter."""
    if first:
        wrapped.unload()
    elif name in wrapped.peft_config:
        wrapped.delete_adapter(name)


def _say_where_bases_differ(model: Any, found: Found) -> None:
    """For an adapter that only names its base: the name may be of a folder that moved, so that it is no error."""
    here = str(getattr(model.get_base_model(), "name_or_path", "") or "").rstrip("/").rpartition("/")[2]
    there = found.base.rstrip("/").rpartition("/")[2]
    if here and there and here != there and not found.facts:
        warnings.warn(
            f"{found.folder} was made for {found.base!r}, the model is {here!r}; shapes fit, and whether it is the "
            "same base cannot be told",
            stacklevel=3,
        )


def _place(folder: str | os.PathLike[str]) -> Path:
    """The folder, or what a save that was killed between its two renames left beside it."""
    place = Path(folder).expanduser()
    old = place.with_name(f"{place.name}.old")
    return old if not place.exists() and (old / "adapter_config.json").is_file() else place


def _recover(place: Path, fresh: Path, old: Path) -> None:
    if not place.exists() and old.is_dir():
        old.rename(place)
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    if place.exists() and not place.is_dir():
        raise OutputError(f"{place} is a file; an adapter is a folder, name another place")


def _flat(fresh: Path, name: str) -> Path:
    """peft puts any adapter but "default" one folder deeper; here its name is not part of its place."""
    inner = fresh / name
    if name == "default" or not inner.is_dir():
        return fresh
    for path in list(inner.iterdir()):
        path.rename(fresh / path.name)
    inner.rmdir()
    return fresh


def _swap(fresh: Path, place: Path, old: Path) -> None:
    """At every moment one of the two is whole; files that are not an adapter's move over."""
    if place.exists():
        place.rename(old)
    fresh.rename(place)
    if old.exists():
        for path in old.iterdir():
            if not (place / path.name).exists():
                path.rename(place / path.name)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _writing(place: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        fresh = place.with_name(f"{place.name}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        if isinstance(error, OutputError):
            raise
        kept = (
            f"the adapter that was in {place} is whole" if (place / "adapter_config.json").is_file() else "nothing yet"
        )
        raise OutputError(
            f"{place} cannot be written: {str(error).splitlines()[0]}. What survives: {kept}. Free some space, or name "
            "a folder on another disk"
        ) from error


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {package: version(package) for package in ("speechkit", "peft", "transformers", "torch")}
