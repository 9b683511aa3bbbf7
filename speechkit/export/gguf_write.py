"""A GGUF file, written tensor by tensor under a temporary name and renamed when it is whole.

In: a writer with its metadata, a plan of tensors with their types, the stored weights. Out: the file or its splits in a
temporary folder beside the final place, and how long each stage took. What is killed leaves that folder, which the next
export to the same place removes; never a half file under the final name.
"""

from __future__ import annotations

import glob
import itertools
import os
import re
import shutil
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from speechkit.errors import ExportError, OutputError
from speechkit.export.gguf_tensors import pieces
from speechkit.export.mixture import type_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import numpy as np
    from gguf import GGUFWriter

    from speechkit.export.gguf_tensors import Planned
    from speechkit.export.gguf_weights import Weights

__all__ = ["Stopwatch", "check_room", "finish", "packed", "partial_folder", "split_files", "write_tensors"]

_OPEN: set[Path] = set()  # partial folders of this process
_COUNT = itertools.count()  # of its exports: two at once to one name keep apart
OURS = ("Q8_0", "Q4_0", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")  # kquants'; Q4_1 is the gguf package's


@dataclass
class Stopwatch:
    """Seconds by stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begun


def packed(rows: np.ndarray, kind: str, importance: np.ndarray | None = None, name: str = "") -> bytes:
    """(n, K) float32 as bytes of a type. Raises ExportError for values that float16 cannot hold."""
    import numpy as np

    if kind == "F32":
        return rows.tobytes()
    if kind == "F16":
        with np.errstate(over="ignore"):
            half = rows.astype(np.float16)
        if not np.isfinite(half).all():
            raise ExportError(
                f"{name} holds values beyond 65,504, which F16 cannot hold; export BF16, F32 or a quantised type"
            )
        return half.tobytes()
    if kind == "BF16":
        import torch

        return torch.from_numpy(rows).to(torch.bfloat16).view(torch.int16).numpy().tobytes()
    if kind in OURS:
        from speechkit.export.kquants import quantize

        return quantize(rows, kind, importance).tobytes()
    import gguf

    return gguf.quants.quantize(rows, gguf.GGMLQuantizationType[kind]).tobytes()


def write_tensors(
    writer: GGUFWriter,
    plan: Mapping[str, Planned],
    types: Mapping[str, str],
    weights: Weights,
    importance: Mapping[str, np.ndarray],
    watch: Stopwatch,
) -> None:
    """All tensors into the writer's files, after its metadata."""
    assert writer.fout is not None
    for file, tensors in zip(writer.fout, writer.tensors, strict=True):
        writer.write_padding(file, file.tell())
        for name in tensors:
            written = 0
            for data in _packed_pieces(plan[name], types[name], weights, importance.get(name), watch):
                with watch.stage("write"):
                    file.write(data)
                written += len(data)
            wanted = type_bytes(types[name], plan[name].shape)
            assert written == wanted, f"{name}: {written} bytes of {wanted}"
            writer.write_padding(file, written)
        with watch.stage("write"):
            file.flush()
            os.fsync(file.fileno())


def _packed_pieces(one: Planned, kind: str, weights: Weights, importance: Any, watch: Stopwatch) -> Iterator[bytes]:
    rows = pieces(one, weights)
    while True:
        with watch.stage("read"):
            piece = next(rows, None)
        if piece is None:
            return
        part, values = piece
        with watch.stage(f"quantize {kind}"):
            data = packed(values, kind, _importance(importance, one, part), one.name)
        yield data


def _importance(importance: Any, one: Planned, part: int) -> Any:
    """That of a row; stacked experts may each have their own."""
    if importance is None:
        return None
    width = one.shape[-1]
    if importance.size == width:
        return importance.reshape(-1)
    if importance.size == width * one.shape[0] and len(one.shape) == 3 and len(one.parts) == one.shape[0]:
        return importance.reshape(-1, width)[part]
    raise ExportError(
        f"the importance matrix has {importance.size:,} values for {one.name}, whose rows have {width:,}: it is of "
        "another model"
    )


def check_room(folder: Path, needed: int) -> None:
    """Raise OutputError where `needed` bytes do not fit."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OutputError(
            f"the export needs {needed:,} bytes and {folder} has {free:,} free: make room, name a folder on another "
            "disk, or choose a type of fewer bits"
        )


@contextmanager
def partial_folder(path: Path) -> Iterator[Path]:
    """A folder beside `path` for files that are not whole yet; removed at the end, whatever happens."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for old in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
            if _left_over(old):
                shutil.rmtree(old, ignore_errors=True)
        made = (path.parent / f".{path.name}.{next(_COUNT)}.{os.getpid()}.partial").absolute()
        _OPEN.add(made)
        made.mkdir()
    except OSError as error:
        raise OutputError(f"{path.parent} cannot be written: {error}; choose another folder") from error
    try:
        yield made
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"{path} cannot be written: {error}; nothing of it was kept") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
        _OPEN.discard(made)


def finish(made: Path, path: Path, overwrite: bool) -> tuple[Path, ...]:
    """Move whole files to their final names, the first of several last: before it is there none of them opens.

    Raises OutputError where a file came to be there meanwhile and `overwrite` is off.
    """
    old = split_files(path)
    if old and not overwrite:
        raise OutputError(
            f"{old[0]} came to be there while this export ran; pass overwrite=True to replace it, or choose another "
            "name"
        )
    files = sorted(made.glob("*.gguf"))
    if len(files) > 1:  # an old first file would open with new ones
        (path.parent / files[0].name).unlink(missing_ok=True)
    for file in reversed(files):
        file.replace(path.parent / file.name)
    final = tuple(path.parent / file.name for file in files)
    for file in old:
        file.with_suffix(".proof.json").unlink(missing_ok=True)  # of what was there before
        if file not in final:
            file.unlink(missing_ok=True)
    return final


def split_files(path: Path) -> list[Path]:
    """The file, or the files it was split into, that are there."""
    splits = [
        one
        for one in path.parent.glob("*.gguf")
        if re.fullmatch(rf"{re.escape(path.stem)}-\d{{5}}-of-\d{{5}}", one.stem)
    ]
    return [*([path] if path.exists() else []), *sorted(splits)]


def _left_over(folder: Path) -> bool:
    """Whether nobody writes in it any more; a number of our own, as in a container, tells by what this one has open."""
    number = folder.name.removesuffix(".partial").rpartition(".")[2]
    return folder.absolute() not in _OPEN if number == str(os.getpid()) else not _alive(number)


def _alive(number: str) -> bool:
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    except (ValueError, PermissionError):
        return True
    return True
