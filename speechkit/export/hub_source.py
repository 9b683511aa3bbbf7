"""Whatever can be pushed → a folder: a path, the name of an embedded model, the result of a run, a model in memory.

In: one of those. Out: a folder for as long as the context is open; what was in memory is written to a temporary one.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from speechkit.errors import ExportError, PlanError
from speechkit.export.hub_files import OF_RUN

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["folder_named", "opened"]


@contextmanager
def opened(
    what: Any, tokenizer: Any = None, files: Sequence[str] | None = None
) -> Iterator[tuple[Path, Sequence[str] | None]]:
    """(the folder, the glob patterns of what is wanted in it). Raises ExportError for what holds no model."""
    if isinstance(what, tuple) and len(what) == 2 and tokenizer is None:  # what load_llm returns
        what, tokenizer = what
    if isinstance(what, (str, os.PathLike)):
        yield _chosen(os.fspath(what), files)
    elif isinstance(folder := getattr(what, "folder", None), (str, os.PathLike)):  # the result of a run
        yield Path(folder), files
    elif isinstance(made := getattr(what, "files", None), (list, tuple)) and made:  # the report of an export
        yield _exported([Path(path) for path in made], files)
    else:
        with TemporaryDirectory(prefix="speechkit-push-") as place:
            yield _saved(what, tokenizer, Path(place) / "model"), files


def folder_named(name: str) -> Path:
    """A folder by its path, or that of an embedded model by its name. Raises ExportError for anything else."""
    from speechkit import demo

    path = Path(name).expanduser()
    if name.startswith("demo/") and not path.exists():
        return demo.model_path(name.removeprefix("demo/"))
    if path.is_file():
        raise ExportError(f"{path.name} is a file; give the folder that it lies in, or a .gguf file")
    if not path.is_dir():
        raise ExportError(f"{name} is no folder here: give the folder of a run, a model, an adapter or of GGUF files")
    return path


def _chosen(name: str, files: Sequence[str] | None) -> tuple[Path, Sequence[str] | None]:
    path = Path(name).expanduser()
    return _exported([path], files) if path.is_file() and path.suffix == ".gguf" else (folder_named(name), files)


def _exported(made: Sequence[Path], files: Sequence[str] | None) -> tuple[Path, Sequence[str] | None]:
    """One GGUF file, or the parts of one, with what lies beside it for it."""
    folder = made[0].parent if made[0].suffix else made[0]
    if made[0].suffix != ".gguf":
        return folder, files
    names = [path.name for path in made]
    return folder, files or [*names, f"{made[0].stem}*.proof.json", "Modelfile*", "LICENSE*", "NOTICE*", *OF_RUN]


def _saved(model: Any, tokenizer: Any, place: Path) -> Path:
    from speechkit.llm.adapter_files import save_adapter

    inner = getattr(model, "model", None)
    if tokenizer is None and hasattr(model, "processor") and hasattr(inner, "save_pretrained"):  # a Recognizer
        model, tokenizer = inner, model.processor
    if not hasattr(model, "save_pretrained"):
        raise PlanError(
            f"a {type(model).__name__} cannot be pushed: give a folder, the name of an embedded model, the result of a "
            "run, or a model with its tokenizer"
        )
    if hasattr(model, "get_base_model"):  # a PeftModel
        save_adapter(model, place, name=model.active_adapters[0])
    else:
        model.save_pretrained(place)
    if tokenizer is not None:
        tokenizer.save_pretrained(place)
    return place
