"""Where training rows come from: folders, tables, Common Voice, `datasets`. In: a place. Out: the fields of `Example`.

Tables of the real world are expected: byte order marks, Windows line ends and separators, `;` for `,`, quoted commas,
file names in another letter case or without their ending, absolute paths of another machine. A row that cannot be read
is passed on with its `fault`; only a table without the columns that matter is an error. Decodes no audio.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechkit.asr.files import SUFFIXES
from speechkit.asr.rows import undecoded
from speechkit.errors import DataError
from speechkit.training.tables import table_fields

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

__all__ = ["Columns", "DatasetAudio", "dataset_rows", "path_rows", "stream_rows"]

Row = dict[str, Any]

# the usual names, the likeliest first; compared without case, spaces, hyphens and underscores
USUAL = {
    "audio": "audio path file filename audiopath audiofile audiofilepath filepath wav wavpath wavfilename wavfile clip "
    "clippath recording mp3filename".split(),
    "text": "text sentence transcript transcription normalizedtext normalisedtext reference utterance label "
    "labels words".split(),
    "speaker": "speaker speakerid clientid spk spkid speakername userid reader readerid voice".split(),
    "language": "language lang locale languagecode".split(),
    "rate": "samplerate samplingrate sr".split(),
}
TABLES = ("metadata.csv", "metadata.tsv", "metadata.jsonl", "manifest.tsv", "manifest.csv", "manifest.jsonl")
COMMON_VOICE = ("validated.tsv", "train.tsv", "dev.tsv", "test.tsv", "other.tsv")
TEXTS = (".txt", ".lab")
PLACES = ("", "clips", "wavs", "wav", "audio")  # below a table's folder
ASIDE = ("readme", "license", "licence", "sources", "attribution", "changelog")  # text files that are no transcripts
CODE = re.compile(r"[A-Za-z]{2,3}([-_][A-Za-z0-9]{2,8})*")


@dataclass(frozen=True, slots=True)
class Columns:
    """Which column holds what, as the caller named them; None is to be guessed."""

    text: str | None = None
    audio: str | None = None
    speaker: str | None = None
    language: str | None = None  # a column, or a code for all rows

    def found_in(self, columns: Sequence[str], where: str, audio: str | None = None) -> Found:
        """The columns to read, of those that there are. `audio` is known already where a data set has types."""
        code = self.language if self.language not in columns else None
        if code is not None and not CODE.fullmatch(code):
            raise DataError(f"language is {code!r}; it is a column of {where} ({_listed(columns)}) or a code as 'pl'")
        picked = {
            "audio": audio or self._one("audio", self.audio, columns, where),
            "text": self._one("text", self.text, columns, where),
            "speaker": self._one("speaker", self.speaker, columns, where),
            "language": self._one("language", self.language if code is None else None, columns, where),
            "rate": self._one("rate", None, columns, where),
        }
        return Found({kind: column for kind, column in picked.items() if column is not None}, code)

    @staticmethod
    def _one(kind: str, asked: str | None, columns: Sequence[str], where: str) -> str | None:
        if asked is not None:
            if asked not in columns:
                raise DataError(f"{where} has no column {asked!r} for {kind}; its columns are {_listed(columns)}")
            return asked
        plain = {re.sub(r"[\s_-]", "", column).lower(): column for column in reversed(columns)}
        guessed = next((plain[name] for name in USUAL[kind] if name in plain), None)
        if guessed is None and kind in ("audio", "text"):
            raise DataError(
                f"{where}: no column looks like {kind}; its columns are {_listed(columns)}: name it, {kind}='…'"
            )
        return guessed


@dataclass(frozen=True, slots=True)
class Found:
    """The column of each field that there is, and a language for the rows that name none."""

    columns: Mapping[str, str]
    code: str | None

    def fields(self, row: Mapping[str, Any]) -> Row:
        """A row of the source → text, speaker, language and rate, as `Example` has them."""
        said = {kind: row.get(column) for kind, column in self.columns.items() if kind != "audio"}
        plain = {kind: "" if value is None else str(value).strip() for kind, value in said.items()}
        return {
            "text": plain["text"],
            "speaker": plain.get("speaker", ""),
            "language": plain.get("language") or self.code,
            "rate": _number(plain.get("rate", "")),
        }


@dataclass(frozen=True, slots=True, eq=False)
class DatasetAudio:
    """The audio of one row of a `datasets.Dataset`, fetched when it is needed: a million rows are a million numbers."""

    dataset: Any
    row: int
    column: str

    def fetch(self) -> Any:
        """`{"bytes", "path"}`, or whatever else the column holds."""
        return self.dataset[self.row][self.column]


def path_rows(source: str | os.PathLike[str], names: Columns) -> Iterator[Row]:
    """A folder or a table → its rows. Raises DataError for what is neither."""
    path = Path(os.path.expanduser(os.fspath(source)))
    if path.is_dir():
        table = _table_in(path)
        return _table_rows(table, names) if table else _folder_rows(path, names)
    if path.is_file():
        return _table_rows(path, names)
    raise DataError(f"there is no {path}; give a folder of recordings and texts, or a .csv, .tsv or .jsonl table")


def dataset_rows(dataset: Any, names: Columns) -> Iterator[Row]:
    """A `datasets.Dataset` → its rows; the audio stays where it is until it is asked for."""
    found = _columns_of(dataset, list(dataset.column_names), names)
    column = found.columns["audio"]
    rows = undecoded(dataset, column)
    others = [name for kind, name in found.columns.items() if kind != "audio"]
    labels = rows.select_columns(others)  # without it every row would read its audio here already
    for number, row in enumerate(labels):
        yield {**found.fields(row), "audio": DatasetAudio(rows, number, column), "name": f"row {number}"}


def stream_rows(dataset: Any, names: Columns) -> Iterator[Row]:
    """A streamed data set, or any iterable of mappings → its rows, with the audio that came with each."""
    columns = getattr(dataset, "column_names", None)
    found = _columns_of(dataset, list(columns), names) if columns else None
    rows: Iterable[Any] = undecoded(dataset, found.columns["audio"]) if found else dataset
    for number, row in enumerate(rows):
        found = found or _columns_of(dataset, list(row), names)
        audio = row[found.columns["audio"]]
        path = audio.get("path") if isinstance(audio, dict) else None
        yield {**found.fields(row), "audio": audio, "name": os.path.basename(path or "") or f"row {number}"}


def _columns_of(dataset: Any, columns: list[str], names: Columns) -> Found:
    features = getattr(dataset, "features", None) or {}
    typed = [name for name, kind in features.items() if type(kind).__name__ == "Audio"]
    audio = typed[0] if names.audio is None and len(typed) == 1 else None
    return names.found_in(columns, "the data set", audio)


def _table_in(folder: Path) -> Path | None:
    known = COMMON_VOICE if (folder / "clips").is_dir() else ()
    return next((folder / name for name in chain(known, TABLES) if (folder / name).is_file()), None)


def _table_rows(path: Path, names: Columns) -> Iterator[Row]:
    fields = table_fields(path, headless=any((name or "").isdigit() for name in (names.audio, names.text)))
    found = names.found_in(fields.columns, str(path))
    files = _Files(path.parent)
    for number, row, fault in fields.rows(found.columns["text"]):
        given = row.get(found.columns["audio"])
        given = given.get("path") if isinstance(given, dict) else given
        said = "" if given is None else str(given).strip()
        if not said:
            fault = fault or f"line {number} of {path.name} names no audio file"
        elif _number(str(row.get("offset") or "")):
            fault = f"line {number} of {path.name} is a stretch of a longer file (offset); cut it out first"
        yield {
            **found.fields(row),
            "audio": files.find(said) if said and not fault else None,
            "name": said or f"line {number}",
            "fault": fault,
        }


def _folder_rows(folder: Path, names: Columns) -> Iterator[Row]:
    """Audio with the text file of the same name; text files without their audio are rows too: it may be lost."""
    if names.speaker not in (None, "folder"):
        raise DataError(f"speaker is {names.speaker!r}; without a table only 'folder', the folder of a clip, is known")
    found = Columns(language=names.language).found_in(["audio", "text"], str(folder))
    sounds, texts, lines = _walk(folder)
    if not sounds:
        known = " ".join(sorted(SUFFIXES))
        raise DataError(
            f"{folder} holds no audio (looked for {known}) and no table ({', '.join(TABLES)}); give the folder of the "
            "recordings, or the path of the table"
        )
    if not texts and not lines:
        raise DataError(_speechless(folder, len(sounds)))
    homes = {key.parent for key in sounds}
    for key in sorted({*sounds, *(key for key in texts if key.parent in homes)}):
        clips, note = sounds.get(key, ()), texts.get(key)
        lost = () if clips else (note.with_suffix(".wav"),) if note else ()
        text, fault = (lines[key], "") if note is None and key in lines else _text_of(note)
        reader = key.name.partition("-")[0] if key in lines else ""  # LibriSpeech: speaker-chapter-number
        for clip in chain(clips, lost):
            yield {
                **found.fields({"text": text}),
                "audio": str(clip),
                "name": str(clip.relative_to(folder)),
                "speaker": clip.parent.name if names.speaker else reader,
                "fault": fault,
            }


def _speechless(folder: Path, sounds: int) -> str:
    tables = sorted(path for kind in (".tsv", ".csv", ".jsonl") for path in folder.rglob(f"*{kind}"))
    named = ", ".join(str(path.relative_to(folder)) for path in tables[:6])
    rest = f"; it holds the tables {named}: give the path of one, or of its folder" if tables else ""
    return f"{folder} holds {sounds} recordings and no text file beside any of them (a.wav, a.txt or a.lab){rest}"


def _walk(folder: Path) -> tuple[dict[Path, list[Path]], dict[Path, Path], dict[Path, str]]:
    """Audio files and text files below `folder`, each by its path without the ending; hidden ones are left out.

    The third holds the lines of LibriSpeech's `*.trans.txt`, one of which serves all clips of a folder.
    """
    sounds: dict[Path, list[Path]] = {}
    texts: dict[Path, Path] = {}
    lines: dict[Path, str] = {}
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(parent, name)
            suffix = path.suffix.lower()
            if name.startswith("."):
                continue
            if suffix in SUFFIXES:
                sounds.setdefault(path.with_suffix(""), []).append(path)
            elif name.endswith(".trans.txt"):
                rows = (row.partition(" ") for row in _text_of(path, lines=True)[0].splitlines())
                lines.update((Path(parent, name), text) for name, _, text in rows)
            elif suffix in TEXTS and path.stem.lower() not in ASIDE:
                texts.setdefault(path.with_suffix(""), path)
    return sounds, texts, lines


def _text_of(note: Path | None, lines: bool = False) -> tuple[str, str]:
    """The words of a text file, in one line unless `lines`, and what kept them from being read."""
    if note is None:
        return "", ""  # the check counts it as an empty text
    try:
        text = note.read_text(encoding="utf-8-sig")
        return text if lines else " ".join(text.split()), ""
    except (OSError, UnicodeDecodeError) as error:
        return "", f"{note.name} cannot be read as UTF-8 text: {error}"


class _Files:
    """Finds the file that a table means. What is not found keeps its name: the check reports it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._listings: dict[Path, dict[str, str]] = {}

    def find(self, name: str) -> str:
        if re.match(r"[a-z][a-z0-9+.-]+://", name):
            return name
        exact = self.folder / os.path.expanduser(name)  # an absolute name replaces the folder
        if os.path.isfile(exact):  # Path.is_file raises for a name that is too long to be one
            return str(exact)
        parts = [part for part in re.split(r"[\\/]+", name) if part not in ("", ".")]
        if parts and re.fullmatch(r"[A-Za-z]:", parts[0]):
            parts = parts[1:]
        for start in range(len(parts)):  # an absolute path of another machine: its longest end that exists here
            for place in PLACES:
                found = self._near(Path(self.folder, place, *parts[start:]))
                if found:
                    return found
            if not name.startswith(("/", "\\")) and not re.match(r"[A-Za-z]:", name):
                break
        return str(exact if name.startswith("/") else Path(self.folder, *parts))

    def _near(self, path: Path) -> str | None:
        """`path`, or the one file that differs from it in letter case or in having an ending."""
        if os.path.isfile(path):
            return str(path)
        listing = self._listings.get(path.parent)
        if listing is None:
            listing = self._listings[path.parent] = _listing(path.parent)
        found = listing.get(path.name.lower())
        return str(path.with_name(found)) if found else None


def _listing(folder: Path) -> dict[str, str]:
    """Lower-case names of the audio files of a folder, with their ending and without → the names as they are."""
    try:
        names = sorted(name for name in os.listdir(folder) if Path(name).suffix.lower() in SUFFIXES)
    except OSError:
        return {}
    bare: dict[str, str] = {}
    for name in names:
        bare.setdefault(Path(name).stem.lower(), name)
    return {**bare, **{name.lower(): name for name in names}}


def _number(text: str) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None


def _listed(columns: Sequence[str]) -> str:
    return ", ".join(map(repr, columns)) or "none"
