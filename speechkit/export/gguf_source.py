"""What can be exported → one folder of safetensors with its tokenizer: a name, a folder, a model, an adapter merged in.

In: a folder, a name that load_llm knows, a PEFT folder, a model, or (model, tokenizer); an adapter for it. Out: a
folder, which for a merged or loaded model is a temporary one beside the export.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechkit.errors import OutputError, PlanError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Source", "source_of"]


@dataclass(frozen=True)
class Source:
    """What is read, and what the export is compared with."""

    folder: Path  # config.json and weights
    tokenizer: Path
    name: str
    compared: Any  # a source for `prove_gguf`
    adapter: str | None = None  # on top of `compared`; merged into `folder`
    notes: tuple[str, ...] = ()


@contextmanager
def source_of(given: Any, adapter: str | os.PathLike[str] | None, beside: Path) -> Iterator[Source]:
    """The folder to read, for as long as the context lasts; temporary ones are made in `beside`.

    Raises ModelError for what cannot be loaded and an adapter of another base, ExportError for one that changes
    nothing, PlanError for a model without a tokenizer.
    """
    if isinstance(given, (str, os.PathLike)):
        from speechkit.llm import registry
        from speechkit.llm.files import find

        place = find(registry.resolve(given))
        if adapter is None and place.adapter is None:
            yield Source(place.base, place.tokenizer, _name(os.fspath(given)), str(place.base))
            return
        if place.adapter is not None and adapter is not None:
            raise PlanError(f"{given} is an adapter already; merge it first, or leave adapter= out")
        with tempfile.TemporaryDirectory(prefix=".merged-", dir=beside) as made:
            notes = _merge_folder(place.base, place.tokenizer, str(adapter or place.adapter), Path(made))
            name = _name(os.fspath(adapter or given))
            yield Source(Path(made), Path(made), name, str(place.base), str(adapter or place.adapter), notes)
        return
    model, tokenizer = _pair(given)
    with tempfile.TemporaryDirectory(prefix=".merged-", dir=beside) as made:
        notes = _save_model(model, tokenizer, adapter, Path(made))
        yield Source(Path(made), Path(made), _name(_called(model)), made, None, notes)


def _merge_folder(base: Path, tokenizer: Path, adapter: str, made: Path) -> tuple[str, ...]:
    from speechkit.llm.files import read_config, read_model, read_tokenizer

    config = read_config(base)
    dtype = str(getattr(config, "dtype", None) or "bfloat16").removeprefix("torch.")
    return _save_model(read_model(base, config, dtype, "cpu"), read_tokenizer(tokenizer), adapter, made)


def _save_model(model: Any, tokenizer: Any, adapter: Any, made: Path) -> tuple[str, ...]:
    from speechkit.export.gguf_write import check_room
    from speechkit.llm.adapter_files import load_adapter
    from speechkit.llm.merge import merge, unmerge
    from speechkit.llm.quiet import quiet

    notes: tuple[str, ...] = ()
    check_room(made, sum(weight.numel() * weight.element_size() for weight in model.parameters()))
    if adapter is not None:
        model = load_adapter(model, adapter, kernels=False)
    with quiet():
        if not hasattr(model, "peft_config"):
            _saved(model, made)
        else:
            merged, report = merge(model, base=_sixteen_bits(model))
            try:
                _saved(merged, made)
            finally:
                unmerge(merged)
            notes = (f"adapter merged: {report}".splitlines()[0],)
        tokenizer.save_pretrained(str(made))
    return notes


def _saved(model: Any, made: Path) -> None:
    from safetensors import SafetensorError

    try:
        model.save_pretrained(str(made))
    except SafetensorError as error:  # a full disk comes so
        raise OutputError(f"the model cannot be written to {made.parent} first: {error}; nothing was kept") from error


def _sixteen_bits(model: Any) -> str | None:
    """Where the 16-bit base of a quantised one is, None where the base is not quantised or came another way."""
    from speechkit.llm.load import loaded
    from speechkit.llm.merge_weights import quantised

    inner = model.get_base_model()
    found = loaded(inner)
    return found.source.location if found is not None and quantised(inner) else None


def _pair(given: Any) -> tuple[Any, Any]:
    if isinstance(given, tuple) and len(given) == 2:
        return given
    from speechkit.llm.load import loaded

    base = given.get_base_model() if hasattr(given, "get_base_model") else given
    found = loaded(base)
    if found is None:
        raise PlanError(
            f"{type(given).__name__} brings no tokenizer; give (model, tokenizer), or the folder that both are in"
        )
    from speechkit.llm.files import find, read_tokenizer

    return given, read_tokenizer(find(found.source).tokenizer)


def _called(model: Any) -> str:
    return str(getattr(model, "name_or_path", "") or model.config.model_type)


def _name(text: str) -> str:
    folder, _, name = text.rstrip("/\\").replace("\\", "/").rpartition("/")
    if name == "best" and (Path(folder) / "run.json").is_file():  # every run has one: its own name tells more
        return _name(str(Path(folder).resolve()))
    return name if name not in ("", ".", "..") else Path(text).resolve().name or "model"
