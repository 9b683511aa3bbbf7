"""A folder of a model, written under a temporary name and renamed when it is whole and was compared.

What is killed halfway leaves a folder whose name ends in `.partial`, which the next export to the same place removes;
under the final name there is always a whole model or nothing. What `overwrite` replaces is for that moment called
`.NAME.replaced`.
"""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechkit.errors import OutputError, PlanError
from speechkit.llm.quiet import quiet

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

__all__ = ["bytes_in", "check_apart", "check_place", "check_space", "save_model", "writing"]

ROOM = 1.05  # of the weights' bytes, for what lies beside them
FIXED_BYTES = 32 * 2**20  # tokenizer and small files


def check_place(folder: str | os.PathLike[str], overwrite: bool) -> Path:
    """The folder to write; of a link, where it leads. Raises OutputError for one that exists, PlanError for no name."""
    place = Path(folder).expanduser()
    place = place.resolve() if place.is_symlink() else place
    if place.name in ("", ".."):
        raise PlanError(f"folder is {str(folder)!r}; name a folder to write, which need not be there")
    if place.is_file():
        raise OutputError(f"{place} is a file; a merged model is a folder, name another place")
    if place.exists() and any(place.iterdir()):
        if not overwrite:
            raise OutputError(f"{place} exists already; name another folder, or pass overwrite=True to replace it")
        if not (place / "config.json").is_file():
            raise OutputError(
                f"{place} holds something that is no model, which is not overwritten; name another folder"
            )
    return place


def check_apart(place: Path, sources: Sequence[Path]) -> None:
    """Raises PlanError for a folder that a source is or lies in: replacing it would delete what is read."""
    for source in sources:
        if place.resolve() in (source.resolve(), *source.resolve().parents):
            raise PlanError(f"{place} is or holds {source}, that is to be exported; name another folder")


def check_space(place: Path, needed: float) -> None:
    """Raises OutputError unless `needed` bytes fit beside `place`."""
    parent = next(one for one in (place, *place.absolute().parents) if one.exists())
    needed, free = int(ROOM * needed) + FIXED_BYTES, shutil.disk_usage(parent).free
    if free < needed:
        raise OutputError(
            f"{place} needs {needed:,} bytes ({needed / 2**30:.2f} GiB) of disk, and {free:,} are free; free some, or "
            "name a folder on another disk"
        )


@contextmanager
def writing(place: Path) -> Iterator[Path]:
    """A temporary folder beside `place`, renamed to it where all went well, removed where not."""
    from safetensors import SafetensorError

    fresh, old = place.with_name(f"{place.name}.partial"), place.with_name(f".{place.name}.replaced")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.exists() and old.is_dir():
            old.rename(place)  # killed between the two renames below
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        yield fresh
        if place.exists():
            shutil.rmtree(old, ignore_errors=True)
            place.rename(old)
        fresh.rename(place)
        shutil.rmtree(old, ignore_errors=True)
    except (SafetensorError, OSError) as error:
        if isinstance(error, OutputError):
            raise
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise OutputError(f"{place} cannot be written: {why}; free some space, or name another folder") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def save_model(model: Any, tokenizer: Any, folder: Path, shard_bytes: int) -> None:
    """Safetensors in shards, configuration, generation settings, tokenizer and chat template."""
    with quiet():
        model.save_pretrained(str(folder), max_shard_size=shard_bytes)
        tokenizer.save_pretrained(str(folder))


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
