"""The tensors of a folder of safetensors, sharded or not, read row by row: no more of a file is held than is asked for.

In: a folder. Out: names, shapes and types from the headers, and rows as tensors. Every shard is checked for its length
before anything is read. Knows no architecture. Format: huggingface/safetensors, README.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from speechkit.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

    import torch

__all__ = ["Stored", "Weights"]

BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
HEADER = 8  # bytes of the header's length


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file; `shape` as it was saved."""

    name: str
    file: Path
    dtype: str  # "F32", "F16", "BF16", …
    shape: tuple[int, ...]
    start: int  # offset of its first byte in the file

    @property
    def width(self) -> int:
        """Values in a row."""
        return self.shape[-1] if self.shape else 1

    @property
    def rows(self) -> int:
        """Rows, where all axes but the last are one."""
        return self.size // self.width if self.width else 0

    @property
    def size(self) -> int:
        """Values in all."""
        count = 1
        for axis in self.shape:
            count *= axis
        return count


class Weights:
    """The tensors of a folder by name; `stem` is that of its files.

    Raises ModelError for a shard that is missing, cut short or no safetensors file, for a tensor in two shards, and for
    weights of a type that is no float (8- and 4-bit folders: those are dequantised first).
    """

    def __init__(self, folder: Path, stem: str = "model") -> None:
        self.folder = folder
        self.tensors: dict[str, Stored] = {}
        for file in _files(folder, stem):
            for tensor in _header(file):
                if tensor.name in self.tensors:
                    other = self.tensors[tensor.name].file.name
                    raise ModelError(f"{tensor.name} of {folder} is in two files, {other} and {file.name}; keep one")
                self.tensors[tensor.name] = tensor
        _check_index(folder, stem, self.tensors)

    def largest_bytes(self) -> int:
        """Bytes of the largest tensor as it is stored."""
        return max((one.size * BYTES[one.dtype] for one in self.tensors.values()), default=0)

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows start to stop of a tensor, as stored: (stop - start, K)."""
        import torch

        kinds = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
        found = self.tensors[name]
        row = found.width * BYTES[found.dtype]
        buffer = bytearray((stop - start) * row)
        with found.file.open("rb") as file:
            file.seek(found.start + start * row)
            read = file.readinto(buffer)
        if read != len(buffer):
            raise ModelError(f"{found.file} ends within {name}: it changed while it was read; export again")
        return torch.frombuffer(buffer, dtype=kinds[found.dtype]).reshape(stop - start, found.width)


def _files(folder: Path, stem: str) -> list[Path]:
    one, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if one.is_file():
        return [one]  # as transformers: an index beside it is left from an earlier save
    if index.is_file():
        names = sorted(set(_weight_map(index).values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise ModelError(
                f"{folder} lacks {missing[0]}, one of the {len(names)} shards that {index.name} names"
                f"{f' ({len(missing)} are missing)' if len(missing) > 1 else ''}; fetch it again"
            )
        return [folder / name for name in names]
    files = sorted(folder.glob(f"{stem}-*.safetensors"))
    if not files:
        raise ModelError(f"{folder} holds no {stem}.safetensors and no {stem}.safetensors.index.json")
    return files


def _weight_map(index: Path) -> dict[str, str]:
    try:
        found = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {str(name): str(file) for name, file in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index} is no index of shards: {error}") from error


def _check_index(folder: Path, stem: str, tensors: dict[str, Stored]) -> None:
    index = folder / f"{stem}.safetensors.index.json"
    if not index.is_file() or (folder / f"{stem}.safetensors").is_file():
        return
    lacking = sorted(set(_weight_map(index)) - set(tensors))
    if lacking:
        raise ModelError(f"{folder}: {index.name} names {lacking[0]}, and no shard holds it ({len(lacking)} such)")


def _header(file: Path) -> list[Stored]:
    """The tensors of one file. Raises ModelError for one that is shorter or longer than its header says."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        start = opened.read(HEADER)
        length = struct.unpack("<Q", start)[0] if len(start) == HEADER else size
        text = opened.read(length) if HEADER + length <= size else b""
    try:
        header: dict[str, Any] = json.loads(text)
        entries = [(name, entry) for name, entry in header.items() if name != "__metadata__"]
        found = [_stored(file, name, entry, HEADER + length) for name, entry in entries]
    except ModelError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ModelError(f"{file} is cut short or no safetensors file: its header cannot be read") from error
    first = HEADER + length
    end = max((one.start + one.size * BYTES[one.dtype] for one in found), default=first)
    if end != size:
        what = "is cut short" if size < end else "is longer than its header says"
        raise ModelError(f"{file} {what}: {size:,} bytes of {end:,}; fetch it again")
    return found


def _stored(file: Path, name: str, entry: dict[str, Any], first: int) -> Stored:
    dtype, shape = str(entry["dtype"]), tuple(int(axis) for axis in entry["shape"])
    if dtype not in BYTES:
        raise ModelError(
            f"{name} ({file.name}) is stored as {dtype}: a GGUF is made from 16- or 32-bit floats. Export the model "
            "that this one was quantised from; an adapter on it is merged into that one"
        )
    return Stored(name, file, dtype, shape, first + int(entry["data_offsets"][0]))
