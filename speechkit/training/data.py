"""Recordings with their texts, wherever they are kept → `Example`s. In: a folder, a table, a dataset. Out: rows.

Nothing is decoded here and nothing is judged: a row whose file is missing is a row, `training.check` says what is wrong
with it. Audio is read by `speechkit.audio` when :meth:`Example.samples` asks, one clip at a time. Knows no model.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import speechkit.audio as audio_in
from speechkit.errors import DataError
from speechkit.training import sources

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Example", "read_examples", "stream_examples"]


@dataclass(frozen=True, repr=False)
class Example:
    """One recording and what is said in it."""

    audio: Any  # what `audio.load` takes, or a row of a dataset that is fetched when it is needed
    text: str  # as it was written: no normalisation yet
    name: str  # file name or row id, for reports
    speaker: str = ""  # "" where nobody says who it is
    language: str | None = None
    seconds: float | None = None  # as decoded; None until `check_examples` has measured it
    rate: float | None = None  # Hz that the source claims; the file's own counts when reading
    fault: str = ""  # what the source itself could not read of this row

    def source(self) -> Any:
        """What `audio.load` takes; a row of a dataset is fetched now. Raises DataError where there is no audio."""
        if self.audio is None:
            raise DataError(f"{self.name} has no audio: {self.fault or 'it was in memory when its report was saved'}")
        return self.audio.fetch() if isinstance(self.audio, sources.DatasetAudio) else self.audio

    def samples(self) -> NDArray[np.float32]:
        """(T,) float32, mono, 16 kHz. Raises AudioError for what cannot be read, DataError where there is no audio."""
        return audio_in.load(self.source())

    def length_s(self) -> float:
        """`seconds`, or the length that the file's header states."""
        return self.seconds if self.seconds is not None else audio_in.duration(self.source())

    def __repr__(self) -> str:
        parts = [repr(self.name), repr(self.text if len(self.text) <= 60 else f"{self.text[:59]}…")]
        parts += [f"speaker {self.speaker!r}"] if self.speaker else []
        parts += [self.language] if self.language else []
        parts += [f"{self.seconds:.2f} s"] if self.seconds is not None else []
        return f"Example({', '.join(parts)})"


def read_examples(
    source: Any,
    *,
    text: str | None = None,
    audio: str | None = None,
    speaker: str | None = None,
    language: str | None = None,
) -> list[Example]:
    """Every row of `source`, in its order.

    source: a folder of audio files with a text file of the same name beside each (`a.wav`, `a.txt` or `a.lab`), or
    LibriSpeech's `*.trans.txt`, whose clips name their speaker; a .csv, .tsv or .jsonl table, whose paths are seen from
    its own folder; a folder that holds one (`metadata.csv`, `manifest.tsv`, or Common Voice's `validated.tsv` with
    `clips/`); or a `datasets.Dataset`.

    `text`, `audio` and `speaker` name columns where the usual names (`sentence`, `path`, `client_id`, …) do not fit;
    in a table without a head, columns are "1", "2", …. In a folder of text files `speaker="folder"` takes the name of
    the folder that a clip lies in. `language` is a column too, or else a code (`"pl"`) for the rows that name none.

    Raises DataError: nothing of that name, no audio in the folder, no column for audio or text (the message lists
    those there are), a table that is no UTF-8 or UTF-16 text.
    """
    names = sources.Columns(text, audio, speaker, language)
    if isinstance(source, (str, os.PathLike)):
        rows = sources.path_rows(source, names)
    elif isinstance(source, dict):  # a DatasetDict is one
        splits = ", ".join(map(repr, source)) or "nothing"
        raise DataError(f"the data set holds {splits}; give one of them: read_examples(dataset['train'])")
    elif hasattr(source, "cast_column") and hasattr(source, "__len__"):
        rows = sources.dataset_rows(source, names)
    elif hasattr(source, "cast_column"):
        raise DataError("a streamed data set has no length and no order to keep; take its rows by stream_examples(…)")
    else:
        raise DataError(f"{type(source).__name__} is no source of rows; give a folder, a table or a datasets.Dataset")
    return [Example(**row) for row in rows]


def stream_examples(
    dataset: Any,
    *,
    text: str | None = None,
    audio: str | None = None,
    speaker: str | None = None,
    language: str | None = None,
) -> Iterator[Example]:
    """A `datasets.IterableDataset` (`streaming=True`) → its rows as they arrive, each with its encoded bytes.

    Decoded by `speechkit.audio`, never by `datasets`. Columns as in :func:`read_examples`, with the same errors.
    """
    return (Example(**row) for row in sources.stream_rows(dataset, sources.Columns(text, audio, speaker, language)))
