"""A few named arrays and a record of how they were made, on disk: save and load, inverse. Knows no model.

`STEM.safetensors` holds both, the record as JSON in its header, so that one rename puts the whole in place: a kill
leaves the earlier save or the new one, never a mixture. `STEM.json` is a copy of the record for people to read.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from speechkit.errors import DataError, OutputError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[Any]]

__all__ = ["load", "replace_file", "save", "writing"]

RECORD = "record"  # its name in the header of the safetensors file


def save(folder: str | os.PathLike[str], stem: str, arrays: Arrays, record: Mapping[str, Any]) -> Path:
    """Write named arrays and a record that JSON can hold; the inverse of :func:`load`. Raises OutputError."""
    from safetensors.numpy import save as packed

    target = Path(folder)
    text = json.dumps(record, ensure_ascii=False, indent=2) + "\n"
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    with writing(target):
        target.mkdir(parents=True, exist_ok=True)
        replace_file(target / f"{stem}.safetensors", packed(whole, metadata={RECORD: text}))
        replace_file(target / f"{stem}.json", text.encode())
    return target


def load(folder: str | os.PathLike[str], stem: str) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """What :func:`save` wrote: the arrays and the record. Raises DataError where it is missing or damaged."""
    from safetensors import SafetensorError, safe_open

    path = Path(folder) / f"{stem}.safetensors"
    try:
        with safe_open(path, framework="np") as file:
            record = json.loads((file.metadata() or {}).get(RECORD, "null"))
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, ValueError, SafetensorError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not isinstance(record, dict):
        raise DataError(f"{path} has no record of how it was made")
    return arrays, record


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """What fails to be written in here is an OutputError that names `folder`."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror or error}") from error


def replace_file(path: Path, data: bytes) -> None:
    """Write bytes under a name that is always the same beside `path`, then rename: nobody sees a part of them."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    partial.replace(path)
