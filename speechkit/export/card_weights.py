"""What the headers of weights tell: how many numbers, in how many bits, whether the file is whole. Reads no weights.

In: a folder. Out: counts and plain metadata, or an ExportError that names the file which was cut.
"""

from __future__ import annotations

import json
import struct
from fnmatch import fnmatch
from math import prod
from typing import TYPE_CHECKING, Any

from speechkit.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["files_of", "ggufs_of", "parameters_of", "tensor_header"]

WEIGHTS = ("model.safetensors", "model-*.safetensors", "adapter_model*.safetensors")


def files_of(model: Path, ending: str, files: Sequence[str] | None) -> list[Path]:
    """Those in a folder whose name ends so, and fits one of the glob patterns."""
    found = sorted(model.glob(f"*{ending}"))
    return [path for path in found if files is None or any(fnmatch(path.name, pattern) for pattern in files)]


def tensor_header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file. Raises ExportError where the file is cut or is none."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > size - 8:
                raise ValueError("its header is cut")
            header: dict[str, Any] = json.loads(file.read(length))
        ends = [row["data_offsets"][1] for name, row in header.items() if name != "__metadata__"]
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(f"{path.name} is no whole safetensors file ({error}): save the model again") from error
    if size != 8 + length + max(ends, default=0):
        raise ExportError(
            f"{path.name} holds {size:,} bytes, its header names {8 + length + max(ends, default=0):,}: it was cut "
            "while it was written or copied; save the model again"
        )
    return header


def parameters_of(model: Path) -> int:
    """Numbers in the safetensors files of a folder. Raises ExportError for a file that was cut."""
    headers = [tensor_header(path) for shape in WEIGHTS for path in sorted(model.glob(shape))]
    return sum(prod(row["shape"]) for header in headers for name, row in header.items() if name != "__metadata__")


def ggufs_of(model: Path, files: Sequence[str] | None) -> dict[str, dict[str, Any]]:
    """Of each file the plain values of its metadata, with "parameters" and "bits" per weight of the whole file, as
    `GgufReport` has them; none without gguf."""
    chosen = files_of(model, ".gguf", files)
    try:
        from gguf import GGUFReader
    except ImportError:
        return {path.name: {} for path in chosen}
    made = {}
    for path in chosen:
        try:
            reader = GGUFReader(path)
            count = sum(int(tensor.n_elements) for tensor in reader.tensors)
            wanted = [
                one for one in reader.fields.values() if one.name.startswith("general.") or "context_" in one.name
            ]
            row: dict[str, Any] = {one.name: one.contents() for one in wanted}
        except (ValueError, IndexError, KeyError, OSError) as error:
            raise ExportError(f"{path.name} is no whole GGUF file ({error}): export it again") from error
        made[path.name] = row | {"parameters": count, "bits": 8 * path.stat().st_size / count if count else 0.0}
    return made
