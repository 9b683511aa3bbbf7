"""The record of a batch: `manifest.jsonl` in the output folder, one JSON line per input file.

In: finished `FileResult`s. Out: the rows of earlier runs, and which of them still hold. Knows no audio and no torch.

Every line is flushed and synced to disk before the next file starts, so a killed process loses no finished row. A line
cut short by the kill is dropped when the manifest is next opened; its file is then transcribed again. At rest there is
one line per input file: opening and closing keep the newest line of each.
"""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from speechkit.errors import OutputError
from speechkit.types import FileResult

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["MANIFEST", "Fingerprint", "Manifest", "write_atomic"]

MANIFEST = "manifest.jsonl"
_FIRST_BYTES = b'{"path": '
_FOREIGN = "{} is not a manifest of speechkit; choose another folder, or move that file away"


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What says that a file is still the one that was transcribed: its size in bytes and its modification time."""

    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> Fingerprint | None:
        """The fingerprint of a file, or None where it cannot be looked at."""
        try:
            stat = path.stat()
        except (OSError, ValueError):  # ValueError: a null character in the name
            return None
        return cls(stat.st_size, stat.st_mtime_ns)


class Manifest:
    """Rows by absolute input path, appended line by line. Use as a context manager; one process at a time.

    Raises OutputError when the folder cannot be written, when another run holds it, or when `manifest.jsonl` there is
    somebody else's file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / MANIFEST
        self._lock = _claim(folder)
        try:
            self._rows, damaged = _read(self.path)
            if damaged:
                self._compact()
            # a file name that is not UTF-8 reaches Python with surrogates; the JSON escape \udcff keeps it
            self._file = self.path.open("a", encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            os.close(self._lock)
            if isinstance(error, OutputError):
                raise
            raise OutputError(_unwritable(folder, error)) from error
        self._doubled = False
        self.found: set[str] = set()  # outputs that stood here before with the very text we would have written

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Keep the newest line of each file, then let the next run in. Safe to call twice."""
        if self._file.closed:
            return
        try:
            self._file.close()  # writes what is left, so it fails where the disk is full
            if self._doubled:
                self._compact()
        except OSError as error:
            raise OutputError(_unwritable(self.folder, error)) from error
        finally:
            os.close(self._lock)

    def add(self, result: FileResult, fingerprint: Fingerprint | None, model: str) -> None:
        """Append one row and sync it to disk. Word times stay in the outputs: a row holds the text."""
        row = replace(result, transcript=replace(result.transcript, words=()) if result.transcript else None).to_dict()
        key = os.path.abspath(result.path)
        row["path"] = key
        row["outputs"] = [os.path.relpath(path, self.folder) for path in result.outputs]
        row["found"] = [name for name in row["outputs"] if name in self.found]
        row["older_outputs"] = [name for name in self._outputs(self._rows.get(key, {})) if name not in row["outputs"]]
        row["model"] = model
        row["size"] = fingerprint.size if fingerprint else None
        row["mtime_ns"] = fingerprint.mtime_ns if fingerprint else None
        try:
            self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise OutputError(_unwritable(self.folder, error)) from error
        self._doubled = self._doubled or key in self._rows
        self._rows[key] = row

    def done(
        self, path: Path, fingerprint: Fingerprint | None, model: str, formats: tuple[str, ...]
    ) -> FileResult | None:
        """The earlier result of `path`, if it was ok, by this model, of the same bytes, and its outputs are there."""
        row = self._rows.get(os.path.abspath(path))
        if row is None or row["status"] != "ok" or row.get("model") != model or fingerprint is None:
            return None
        if (row.get("size"), row.get("mtime_ns")) != (fingerprint.size, fingerprint.mtime_ns):
            return None
        outputs = [self.folder / name for name in row.get("outputs", ())]
        wanted = {f".{name}" for name in formats}
        if not wanted <= {output.suffix for output in outputs} or not all(output.is_file() for output in outputs):
            return None
        fields = {key: row.get(key) for key in ("audio_s", "wall_s", "transcript", "reason")}
        if None in fields.values():
            return None  # an ok row always has all four: this one was edited
        earlier = FileResult.from_dict({**fields, "path": path, "status": "skipped", "outputs": outputs})
        return replace(earlier, reason="already done")

    def claims(self) -> dict[str, str]:
        """Output (relative to the folder), of this run or an earlier one → absolute path of the input it is for."""
        return {name: key for key, row in self._rows.items() for name in self._outputs(row)}

    @staticmethod
    def _outputs(row: dict[str, Any]) -> list[str]:
        """All that we ever wrote for an input, the newest last: they stay its own when a later run writes others."""
        written = (name for name in row.get("outputs", ()) if name not in row.get("found", ()))
        return [*row.get("older_outputs", ()), *written]

    def _compact(self) -> None:
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self._rows.values())
        write_atomic(self.path, lines)
        self._doubled = False


def write_atomic(path: Path, text: str) -> None:
    """Write UTF-8 text under a temporary name, then rename: a reader sees the whole file or none of it.

    The temporary name is always the same, so what a kill leaves behind is overwritten by the next run; and short, so
    that any name the folder can hold can be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(".speechkit.part")
    try:
        with temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _claim(folder: Path) -> int:
    """Make the folder, see that files can be made in it, and lock it for this process → its descriptor."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # tried, not asked: os.access answers for the wrong user in containers and on network disks
        write_atomic(folder / ".speechkit-probe", "")
        (folder / ".speechkit-probe").unlink()
        descriptor = os.open(folder if os.name == "posix" else os.devnull, os.O_RDONLY)
    except OSError as error:
        raise OutputError(_unwritable(folder, error)) from error
    if os.name == "posix":
        import fcntl

        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel lets go of it when the process dies
        except BlockingIOError as error:
            os.close(descriptor)
            raise OutputError(
                f"{folder}: another run is writing here; wait for it, or choose another folder"
            ) from error
        except OSError:
            pass  # a file system without locks: two runs at once are then the user's own risk
    return descriptor


def _unwritable(folder: Path, error: OSError) -> str:
    why = error.strerror or str(error)
    return f"cannot write to the output folder {folder}: {why}; choose a folder you may write to (--out DIR)"


def _read(path: Path) -> tuple[dict[str, dict[str, Any]], bool]:
    """Rows by input path (newest wins), and whether the file must be written anew before a line can be appended."""
    if not path.exists():
        return {}, False
    rows: dict[str, dict[str, Any]] = {}
    broken, found = [], 0
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            broken.append(number)
            continue
        if not isinstance(row, dict) or not {"path", "status", "outputs"} <= row.keys():
            raise OutputError(_FOREIGN.format(path))
        rows[row["path"]] = row
        found += 1
    if broken and not found and not lines[0].startswith(_FIRST_BYTES[: len(lines[0])]):
        raise OutputError(_FOREIGN.format(path))
    if any(number < len(lines) for number in broken):  # the last line cut short is what a kill leaves: no news
        warnings.warn(f"{path}: cannot read lines {broken}; their files are transcribed again", stacklevel=2)
    return rows, bool(broken or lines[-1].strip()) or found != len(rows)
