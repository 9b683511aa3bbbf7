"""Embeddings of many clips on disk. In: a stream of rows with audio, or files. Out: a folder that `Store.open` reads.

The folder holds `config.json` (model, layer, pool, dtype) and parts of at most `part_rows` clips and 64 MiB:
`part-00000.safetensors` with the vectors and `part-00000.parquet` with a line per clip. A part is renamed into place
when it is whole, vectors first, so a killed run loses at most the part in hand; the same call goes on behind the last
one. Memory holds one part and one batch of clips, however long the stream.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from speechkit.asr import embed
from speechkit.asr.arrays import replace_file, writing
from speechkit.asr.rows import file_rows, undecoded
from speechkit.errors import DataError, PlanError, SpeechkitError
from speechkit.extras import require

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from speechkit.asr.model import Recognizer

    Floats = NDArray[np.floating]

__all__ = ["Neighbour", "Store", "StoreOptions", "embed_files", "embed_rows"]

OWN = ("first", "count", "duration_s", "error")  # the store's own columns of the manifest
PART_BYTES = 64 * 2**20  # frames of an hour of speech fill it at width 192, of a quarter at width 768
Line = dict[str, Any]


@dataclass(frozen=True)
class StoreOptions:
    """What is stored of each clip."""

    # as for Recognizer.embed; None keeps every frame
    layer: Any = -1
    pool: str | None = "mean"
    dtype: str = "float16"
    # the column that holds the audio; every other column with plain values goes into the manifest
    audio: str = "audio"
    # clips per part: what a kill can cost
    part_rows: int = 512
    # clips read and handed to the model at a time
    batch_rows: int = 16

    def check(self, depth: int) -> embed.Layers:
        """The layers meant, of a model of `depth` blocks. Raises PlanError for what cannot be stored."""
        embed.check(self.pool, self.dtype)
        for name in ("part_rows", "batch_rows"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise PlanError(f"{name} is {getattr(self, name)!r}; it is a whole number, 1 or more")
        return embed.Layers.of(self.layer, depth)


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A clip of a store: its row in the manifest, and the cosine between its vector and the one asked about."""

    row: int
    similarity: float


def embed_rows(
    recognizer: Recognizer,
    rows: Iterable[Mapping[str, Any]],
    folder: str | os.PathLike[str],
    options: StoreOptions | None = None,
) -> Store:
    """Embed a stream of rows (a list, a generator, a `datasets` stream, `rows.manifest_rows`) into `folder`.

    A clip that cannot be read becomes a line with its `error` and no vector. Started again with the same rows, it goes
    on behind the last whole part. Raises PlanError for a layer, pool or dtype that does not exist, DataError where the
    folder holds vectors of another model or layer or a row has a column that the store writes itself (`first`, `count`,
    `duration_s`, `error`), and OutputError where it cannot be written.
    """
    chosen = options or StoreOptions()
    store = _claim(Path(folder), recognizer, chosen)
    left = _skip(undecoded(rows, chosen.audio), len(store))
    return _extended(store, recognizer, left, chosen)


def embed_files(
    recognizer: Recognizer,
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    options: StoreOptions | None = None,
) -> Store:
    """Embed audio files, folders (all audio below them) and patterns into `folder`; their paths are column "audio".

    Called again it embeds the files that have come since; one whose content has changed keeps its old vector. In a name
    that is no UTF-8 the odd bytes are written as `\\udce9`. Raises as :func:`embed_rows` does, and DataError for no
    paths.
    """
    chosen = options or StoreOptions()
    found = file_rows(paths, chosen.audio)
    store = _claim(Path(folder), recognizer, chosen)
    known = set(store.column(chosen.audio)) if len(store) else set()
    return _extended(store, recognizer, (row for row in found if _escaped(row[chosen.audio]) not in known), chosen)


@dataclass(frozen=True)
class Store:
    """Embeddings that :func:`embed_rows` wrote. `len(store)` counts clips, those with an error included."""

    folder: Path
    config: Mapping[str, Any] = field(repr=False)
    parts: tuple[str, ...] = field(repr=False)

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Store:
        """Raises DataError for a folder that holds no embeddings."""
        path = Path(folder)
        try:
            config = json.loads((path / "config.json").read_text(encoding="utf-8"))
            names = sorted(file.stem for file in path.glob("part-*.parquet"))
        except (OSError, ValueError) as error:
            raise DataError(f"{path} holds no embeddings ({error}); embed_rows writes them") from error
        if not isinstance(config, dict) or not {"model", "layer", "pool", "dtype"} <= set(config):
            raise DataError(f"{path} holds no embeddings: its config.json is of something else")
        return cls(path, config, tuple(names))

    def __len__(self) -> int:
        return sum(self._sizes)

    @cached_property
    def _sizes(self) -> tuple[int, ...]:
        parquet = require("pyarrow.parquet", extra="train", purpose="a store of embeddings")
        return tuple(parquet.read_metadata(self.folder / f"{name}.parquet").num_rows for name in self.parts)

    @cached_property
    def manifest(self) -> Any:
        """A pyarrow Table, one line per clip: the columns of the rows, and `first`, `count`, `duration_s`, `error`."""
        arrow = require("pyarrow", extra="train", purpose="a store of embeddings")
        parquet = require("pyarrow.parquet", extra="train", purpose="a store of embeddings")
        tables = [parquet.read_table(self.folder / f"{name}.parquet") for name in self.parts]
        try:
            return arrow.concat_tables(tables, promote_options="permissive") if tables else arrow.table({})
        except (arrow.ArrowTypeError, arrow.ArrowInvalid):  # a column of numbers here, of texts there
            return arrow.concat_tables([_as_texts(table) for table in tables], promote_options="permissive")

    def column(self, name: str) -> list[Any]:
        """One column of the manifest. Raises DataError that names the columns there are."""
        if name not in self.manifest.column_names:
            raise DataError(f"{self.folder} has no column {name!r}; it has {', '.join(self.manifest.column_names)}")
        return list(self.manifest.column(name).to_pylist())

    def clip(self, row: int) -> Floats:
        """The stored vector (D,) of one clip, or its frames (F, D); with several layers (L, D) or (F, L, D).

        Raises DataError for a row that does not exist or has no vector.
        """
        if not 0 <= row < len(self):
            raise DataError(f"row {row} does not exist: the store has {len(self)} clips")
        ends = np.cumsum(self._sizes)
        part = int(np.searchsorted(ends, row, side="right"))
        line = self.manifest.slice(row, 1).to_pylist()[0]
        first, count = line["first"], line["count"]
        if not count:
            raise DataError(f"row {row} has no vector: {line['error']}")
        with self._vectors(part) as file:
            found = np.asarray(file.get_slice("vectors")[first : first + count])
        return found[0] if self.config["pool"] else found

    def blocks(self) -> Iterator[tuple[NDArray[np.int64], Floats]]:
        """Part by part: rows of the manifest that have a vector (N,), and their vectors (N, …).

        Raises DataError for a store of frames.
        """
        if not self.config["pool"]:
            raise DataError(
                "this store holds frames, not one vector per clip; embed with pool='mean', or use clip(row)"
            )
        counts = self.manifest.column("count").to_numpy() if self.parts else np.zeros(0)
        before = 0
        for part, size in enumerate(self._sizes):
            rows = before + np.flatnonzero(counts[before : before + size])
            before += size
            if len(rows):
                with self._vectors(part) as file:
                    yield rows, file.get_tensor("vectors")

    def vectors(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """All of :meth:`blocks` in memory: rows (N,) and vectors (N, …) float32."""
        blocks = list(self.blocks())
        if not blocks:
            what = "holds errors only: see column('error')" if len(self) else "is empty: no part of it was finished"
            raise DataError(f"{self.folder} {what}")
        return np.concatenate([rows for rows, _ in blocks]), np.concatenate([v for _, v in blocks]).astype(np.float32)

    def nearest(self, vector: Floats, k: int = 5) -> list[Neighbour]:
        """The `k` clips whose vectors point most nearly the same way as `vector` (D,), best first (cosine).

        Reads the store part by part. Raises PlanError for k below 1, DataError for a vector of another width or none.
        """
        if k < 1:
            raise PlanError(f"k is {k}; ask for 1 neighbour or more")
        wanted = np.asarray(vector, np.float32).ravel()
        size = float(np.linalg.norm(wanted))
        if not np.isfinite(size) or size == 0:
            raise DataError("the vector asked about is zero or not finite: it has no direction")
        best: list[Neighbour] = []
        for rows, vectors in self.blocks():
            flat = vectors.reshape(len(vectors), -1).astype(np.float32)
            if flat.shape[1] != len(wanted):
                raise DataError(f"the vector asked about has {len(wanted)} numbers, those of the store {flat.shape[1]}")
            cosine = flat @ wanted / (np.linalg.norm(flat, axis=1) * size + 1e-12)
            top = np.argsort(-cosine)[:k]
            best += [Neighbour(int(rows[i]), float(cosine[i])) for i in top]
            best = sorted(best, key=lambda found: (-found.similarity, found.row))[:k]
        return best

    def similar(self, recognizer: Recognizer, audio: Any, k: int = 5) -> list[Neighbour]:
        """The `k` clips nearest to a new one (whatever `audio.load` takes), embedded as those of the store were.

        Raises DataError for a recognizer of other weights, AudioError for audio that cannot be read.
        """
        if not embed.same_weights(recognizer.identity, self.config["model"]):
            raise DataError(f"{self.folder} holds vectors of {self.config['model']}, this is {recognizer.identity}")
        layer = self.config["layer"]
        layer = {int(number): weight for number, weight in layer.items()} if isinstance(layer, dict) else layer
        return self.nearest(recognizer.embed(audio, layer=layer, pool=self.config["pool"] or "mean").vectors, k)

    @contextmanager
    def _vectors(self, part: int) -> Iterator[Any]:
        from safetensors import SafetensorError, safe_open

        path = self.folder / f"{self.parts[part]}.safetensors"
        try:
            with safe_open(path, framework="np") as file:
                yield file
        except (OSError, SafetensorError) as error:
            raise DataError(f"{path} cannot be read: {error}; delete this part and embed again") from error


def _claim(folder: Path, recognizer: Recognizer, options: StoreOptions) -> Store:
    """Write config.json, or raise DataError where it says something else; what the folder holds so far."""
    layers = options.check(int(recognizer.config.num_hidden_layers))
    named: Any = layers.ids[0] if layers.single else list(layers.ids)
    if layers.weights is not None:
        named = {str(number): weight for number, weight in zip(layers.ids, layers.weights, strict=True)}
    made = {"model": recognizer.identity, "layer": named, "pool": options.pool, "dtype": options.dtype}
    if not (folder / "config.json").is_file():
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            replace_file(folder / "config.json", json.dumps(made, indent=2).encode() + b"\n")
    store = Store.open(folder)
    differing = [
        f"{name} {store.config.get(name)!r} (asked for: {made[name]!r})"
        for name in made
        if store.config.get(name) != made[name]
    ]
    if differing:
        raise DataError(f"{folder} holds embeddings with {', '.join(differing)}; choose another folder")
    return store


def _skip(rows: Any, count: int) -> Iterator[Mapping[str, Any]]:
    # a datasets stream skips without decoding, often without reading
    return iter(rows.skip(count)) if count and hasattr(rows, "skip") else islice(iter(rows), count, None)


def _extended(store: Store, recognizer: Recognizer, rows: Iterator[Mapping[str, Any]], options: StoreOptions) -> Store:
    """Embed rows behind what the store holds, part by part."""
    number = len(store.parts)
    vectors: list[Floats] = []
    lines: list[Line] = []
    while some := list(islice(rows, min(options.batch_rows, options.part_rows - len(lines)))):
        _check_rows(some, options.audio, first=not number and not lines)
        for row, found in zip(some, _attempt(recognizer, some, options), strict=True):
            line = {_escaped(str(name)): _plain(value) for name, value in row.items()}
            line = {name: value for name, value in line.items() if value is not None}
            stored = None if isinstance(found, SpeechkitError) else _rows_first(found)
            lines.append(line | {
                "first": sum(map(len, vectors)),
                "count": 0 if stored is None else len(stored),
                "duration_s": 0.0 if isinstance(found, SpeechkitError) else found.duration_s,
                "error": _escaped(str(found)) if isinstance(found, SpeechkitError) else "",
            })  # fmt: skip
            vectors += [] if stored is None else [stored]
        if len(lines) >= options.part_rows or sum(kept.nbytes for kept in vectors) >= PART_BYTES:
            _write(store.folder / f"part-{number:05d}", vectors, lines)
            number, vectors, lines = number + 1, [], []
    if lines:
        _write(store.folder / f"part-{number:05d}", vectors, lines)
    return Store.open(store.folder)


def _check_rows(rows: Sequence[Any], column: str, first: bool) -> None:
    """Raise DataError for what is no row, for a column of ours, or where the first of all has no audio: none has."""
    for row in rows:
        if not isinstance(row, Mapping):
            raise DataError(f"a row is {row!r}; give a dict with the audio as {column!r}, or paths to embed_files")
        if clash := [name for name in OWN if name in row]:
            raise DataError(
                f"a row has the column {', '.join(map(repr, clash))}, which the store writes itself "
                f"({', '.join(OWN)}): rename it in the rows, or leave it out"
            )
    if first and column not in rows[0]:
        raise DataError(
            f"the first row has no column {column!r}, it has {', '.join(rows[0])}: name the one with the audio in "
            "StoreOptions(audio=…)"
        )


def _attempt(
    recognizer: Recognizer, rows: Sequence[Mapping[str, Any]], options: StoreOptions
) -> list[embed.Embedding | SpeechkitError]:
    """Together; and where one of them is broken, one by one."""
    how = {"layer": options.layer, "pool": options.pool, "dtype": options.dtype}
    try:
        return list(recognizer.embed([_audio(row, options.audio) for row in rows], **how))
    except PlanError:
        raise
    except SpeechkitError as error:
        if len(rows) == 1:
            return [error]
    return [found for row in rows for found in _attempt(recognizer, [row], options)]


def _audio(row: Mapping[str, Any], name: str) -> Any:
    if name not in row:
        raise DataError(f"the row has no column {name!r}; it has {', '.join(row)}")
    return row[name]


def _rows_first(found: embed.Embedding) -> Floats:
    """(D,), (L, D) → one row; (F, D) as it is; (L, F, D) → (F, L, D)."""
    if found.pool:
        return found.vectors[None]
    return found.vectors.swapaxes(0, 1) if found.vectors.ndim == 3 else found.vectors


def _plain(value: Any) -> Any:
    """What a manifest can hold of a value: numbers and texts, of encoded audio its path; of the rest nothing."""
    if isinstance(value, Mapping):
        value = value.get("path")
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str):
        return _escaped(value)
    return value if isinstance(value, int | float | bool) else None


def _escaped(text: str) -> str:
    """Text as UTF-8 can hold it: the bytes of a file name that are none, and lone surrogates, as `\\udce9`."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _write(stem: Path, vectors: Sequence[Floats], lines: Sequence[Line]) -> None:
    """A part: the vectors of its clips end to end, and a line for each."""
    from safetensors.numpy import save

    arrow = require("pyarrow", extra="train", purpose="a store of embeddings")
    parquet = require("pyarrow.parquet", extra="train", purpose="a store of embeddings")
    kept = np.concatenate(vectors) if vectors else np.zeros((0, 1), np.float16)
    names = list(dict.fromkeys(name for line in lines for name in line))
    sink = arrow.BufferOutputStream()
    parquet.write_table(arrow.table({name: _column([line.get(name) for line in lines]) for name in names}), sink)
    with writing(stem.parent):
        replace_file(stem.with_suffix(".safetensors"), save({"vectors": np.ascontiguousarray(kept)}))
        replace_file(stem.with_suffix(".parquet"), sink.getvalue().to_pybytes())


def _column(values: list[Any]) -> Any:
    """Values of one kind as they are; of several kinds as texts, because hours of work must not end at a label."""
    arrow = require("pyarrow", extra="train", purpose="a store of embeddings")
    try:
        return arrow.array(values)
    except (arrow.ArrowTypeError, arrow.ArrowInvalid, OverflowError):
        return arrow.array([None if value is None else str(value) for value in values])


def _as_texts(table: Any) -> Any:
    """A part's table with the columns that its rows brought cast to texts."""
    arrow = require("pyarrow", extra="train", purpose="a store of embeddings")
    kinds = [kind if kind.name in OWN else arrow.field(kind.name, arrow.string()) for kind in table.schema]
    return table.cast(arrow.schema(kinds))
