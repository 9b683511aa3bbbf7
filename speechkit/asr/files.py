"""Many files → one `FileResult` each. In: paths, folders, patterns and a recogniser. Out: text files and a manifest.

A file that cannot be transcribed is a row with the reason, never an exception. Torch comes with the recogniser only.

**Names of the outputs.** `talk.wav` becomes `OUT/talk.txt`; a file found inside a given folder keeps its place below it
(`corpus/a/x.wav`, given `corpus`, becomes `OUT/a/x.txt`). Where two inputs would meet in one name, the first in order
keeps it, the next takes its audio suffix along (`x.flac.txt`), and any further ones a number (`x.flac.2.txt`). Names
recorded in the manifest stay with their input, so a later run into the same folder overwrites no other input's output;
and a file that was there before, such as a reference `talk.txt` beside `talk.wav`, is never overwritten.

**What a kill can cost.** Outputs are written under a temporary name and renamed, then the manifest line is synced. On a
CPU files go one by one, so only the file in hand is lost. On a GPU short files share a batch of at most `GROUP_FILES`
files and `GROUP_S` seconds of sound, and what is lost is that batch; finished rows are never lost.
"""

from __future__ import annotations

import glob
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import speechkit.audio as audio_in
from speechkit.asr.manifest import Fingerprint, Manifest, write_atomic
from speechkit.errors import DataError, SpeechkitError
from speechkit.types import FileResult, Transcript

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["FORMATS", "SUFFIXES", "Job", "Progress", "find", "render", "transcribe_files"]

SUFFIXES = frozenset({
    ".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".w64",
    ".m4a", ".mp4", ".aac", ".webm", ".mka", ".mkv", ".mov", ".wma", ".amr", ".3gp",
})  # fmt: skip
GROUP_S = 60.0  # seconds of sound in one GPU batch of short files: well under a second of work
GROUP_FILES = 16

FORMATS: dict[str, Callable[[Transcript], str]] = {
    "txt": lambda transcript: f"{transcript.text}\n",
    "json": lambda transcript: f"{transcript.to_json()}\n",
    "jsonl": lambda transcript: f"{transcript.to_json(indent=None)}\n",  # one line, so `cat *.jsonl` is a corpus
    "srt": Transcript.to_srt,
    "vtt": Transcript.to_vtt,
}

Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


class Transcriber(Protocol):
    """What a recogniser must offer here: `speechkit.Recognizer` does."""

    @property
    def name(self) -> str: ...

    def transcribe(self, audio: Any) -> Any: ...


@dataclass(frozen=True, slots=True)
class Job:
    """One input: the file, its place below the folder it was found in, or why it can only be an error row."""

    path: Path
    place: Path
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is. Work is counted in bytes of input: known without opening a file, and near enough for an ETA."""

    files_done: int = 0
    files: int = 0
    errors: int = 0
    skipped: int = 0
    bytes_done: int = 0
    bytes: int = 0
    audio_s: float = 0.0
    wall_s: float = 0.0

    @property
    def real_time_factor(self) -> float:
        """Seconds of work per second of sound; 0.1 is ten times faster than the speech. 0 before the first file."""
        return self.wall_s / self.audio_s if self.audio_s else 0.0

    @property
    def eta_s(self) -> float | None:
        """Seconds still to go at the pace so far, or None before the first file."""
        return self.wall_s * (self.bytes - self.bytes_done) / self.bytes_done if self.bytes_done else None


def transcribe_files(
    recognizer: Transcriber,
    paths: Paths,
    out: str | os.PathLike[str] | None = None,
    resume: bool = True,
    formats: Sequence[str] = ("txt",),
    progress: Callable[[Progress], None] | None = None,
) -> Iterator[FileResult]:
    """Transcribe files, folders (all audio below them) and glob patterns; yields one FileResult per file, in order.

    With `out`, writes each transcript in every one of `formats` (txt, json, jsonl, srt, vtt) and a line in
    `out/manifest.jsonl`. With `resume`, a file is skipped when its line there is ok, by the same model, its size and
    modification time are the same, and its outputs exist; a skipped result carries the text, without word times unless
    json was among the formats. `progress` is called after each file.

    Raises DataError for an unknown format or no paths, OutputError when `out` cannot be written: both at once, before
    any work. Stopping early (break, Ctrl-C, an exception in the caller) leaves the manifest whole.
    """
    wanted = check_formats(formats)
    jobs = find(paths)
    if out is not None:
        check_output(out)  # now, not at the first `next()`

    def results() -> Iterator[FileResult]:
        with Manifest(_folder(out)) if out is not None else nullcontext() as manifest:
            run = _Run(recognizer, wanted, manifest)
            for result in run.results(jobs, resume):
                if progress is not None:
                    progress(run.state)
                yield result

    return results()


def check_formats(formats: Sequence[str]) -> tuple[str, ...]:
    """The formats without doubles, in order. Raises DataError naming the known ones."""
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or isinstance(formats, str) or not formats:
        raise DataError(f"unknown output format {', '.join(unknown) or formats!r}; choose from {', '.join(FORMATS)}")
    return tuple(dict.fromkeys(formats))


def check_output(out: str | os.PathLike[str]) -> None:
    """Raise OutputError unless transcripts can be written to this folder (made if absent) and no other run does so."""
    Manifest(_folder(out)).close()


def _folder(out: str | os.PathLike[str]) -> Path:
    return Path(os.path.expanduser(out))  # as for inputs: bash leaves the ~ of --out=~/texts to us


def render(transcript: Transcript, format: str) -> str:
    """A transcript as the text of one output file; `format` is a key of FORMATS."""
    return FORMATS[format](transcript)


def find(paths: Paths) -> list[Job]:
    """Expand files, folders and patterns, each file once, in the order given (inside folders: sorted by name).

    A file named outright or met by a pattern is taken whatever its suffix; folders give files with a known audio
    suffix. What leads nowhere becomes a Job with a reason.
    """
    given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if not given:
        raise DataError("no input: give at least one audio file, folder or pattern such as 'calls/*.wav'")
    jobs: dict[str, Job] = {}
    for item in given:
        for job in _expand(os.fsdecode(item)):
            jobs.setdefault(os.path.abspath(job.path), job)
    return list(jobs.values())


def _expand(text: str) -> list[Job]:
    if not text:  # to pathlib the working directory, to whoever wrote "$FILE" a mistake
        return [Job(Path(), Path("empty"), "the path is empty; is a variable unset? The working directory is '.'")]
    # os.path answers where Path.is_dir raises: below a folder that may not be entered, for a name that is too long
    path = Path(text if os.path.lexists(text) else os.path.expanduser(text))
    if os.path.isdir(path):
        return _walk(path)
    if os.path.exists(path) or not glob.has_magic(str(path)):
        return [Job(path, Path(path.name))]
    matches = sorted(glob.glob(str(path), recursive=True))
    jobs = [
        job
        for match in map(Path, matches)
        for job in (_walk(match) if os.path.isdir(match) else [Job(match, Path(match.name))])
    ]
    return jobs or [Job(path, Path(path.name), f"{path}: no file matches this pattern")]


def _walk(folder: Path) -> list[Job]:
    """All audio below a folder; hidden files and folders are left out."""
    jobs: list[Job] = []

    def unreadable(error: OSError) -> None:
        where = Path(error.filename or folder)
        jobs.append(Job(where, Path(where.name), f"{where}: cannot list this folder: {error.strerror}"))

    for parent, folders, names in os.walk(folder, onerror=unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if Path(name).suffix.lower() in SUFFIXES and not name.startswith("."):
                found = Path(parent, name)
                jobs.append(Job(found, found.relative_to(folder)))
    known = " ".join(sorted(SUFFIXES))
    return sorted(jobs, key=lambda job: job.place.parts) or [
        Job(folder, Path(folder.name), f"{folder}: no audio file in this folder (looked for {known})")
    ]


class _Names:
    """Hands out output stems, no two alike, and none that would overwrite a file which is not ours."""

    def __init__(self, manifest: Manifest) -> None:
        self.folder = manifest.folder
        self.written = manifest.claims()
        self.owners = {os.path.splitext(name)[0]: owner for name, owner in self.written.items()}
        self.kept = {owner: stem for stem, owner in self.owners.items()}

    def take(self, job: Job, texts: dict[str, str]) -> str:
        """The stem for a job whose outputs are `texts` (format → text): the one it had, or the first free candidate."""
        owner = os.path.abspath(job.path)
        had = [self.kept[owner]] if owner in self.kept else []
        stem = next(
            name
            for name in chain(had, _candidates(job.place))
            if self.owners.get(name, owner) == owner and self._free(name, texts, owner)
        )
        self.owners[stem], self.kept[owner] = owner, stem
        return stem

    def _free(self, stem: str, texts: dict[str, str], owner: str) -> bool:
        """Ours, or nothing there, or the very same text: what a kill between output and manifest line leaves."""
        for name, text in texts.items():
            target = self.folder / f"{stem}.{name}"
            if target.is_dir():
                return False
            if not self.ours(stem, name, owner) and target.exists() and target.read_bytes() != text.encode():
                return False
        return True

    def ours(self, stem: str, name: str, owner: str) -> bool:
        """Whether an earlier row says that we wrote this output for this input."""
        return self.written.get(f"{stem}.{name}") == owner


def _candidates(place: Path) -> Iterator[str]:
    yield str(place.with_suffix(""))
    yield str(place)
    number = 2
    while True:
        yield f"{place}.{number}"
        number += 1


class _Run:
    """One pass over the jobs: skips what is done, transcribes in groups, writes, records, reports."""

    def __init__(self, recognizer: Transcriber, formats: tuple[str, ...], manifest: Manifest | None) -> None:
        self.recognizer = recognizer
        self.formats = formats
        self.manifest = manifest
        self.names = _Names(manifest) if manifest is not None else None
        self.state = Progress()

    def results(self, jobs: Sequence[Job], resume: bool) -> Iterator[FileResult]:
        prints = [Fingerprint.of(job.path) for job in jobs]
        earlier = [self._earlier(*pair) if resume else None for pair in zip(jobs, prints, strict=True)]
        todo = sum(seen.size for seen, old in zip(prints, earlier, strict=True) if seen and not old)
        self.state = Progress(files=len(jobs), bytes=todo)
        works = [_Work(*row) for row in zip(jobs, prints, earlier, strict=True)]
        for group in _groups(works, self._batches()):
            for work, result in self._group(group):
                yield self._finish(work, result)

    def _model(self) -> str:
        """Name and, where the recogniser has one, fingerprint: a retrained model of the same name is another model."""
        return str(getattr(self.recognizer, "identity", self.recognizer.name))

    def _batches(self) -> bool:
        """Whether short files share a batch: only where that is quicker, which on a CPU it is not."""
        return str(getattr(self.recognizer, "device", "cpu")).startswith("cuda")

    def _earlier(self, job: Job, seen: Fingerprint | None) -> FileResult | None:
        if self.manifest is None or job.reason:
            return None
        result = self.manifest.done(job.path, seen, self._model(), self.formats)
        whole = next((path for path in result.outputs if path.suffix in {".json", ".jsonl"}), None) if result else None
        if result is None or whole is None:
            return result
        try:
            return replace(result, transcript=Transcript.from_json(whole.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, AttributeError, KeyError):
            return None  # the output was damaged since: make it again

    def _group(self, group: list[_Work]) -> Iterator[tuple[_Work, FileResult]]:
        if len(group) == 1:
            yield group[0], self._one(group[0])
            return
        started = time.perf_counter()
        try:
            with _keeping_ctrl_c():
                transcripts = self.recognizer.transcribe([audio_in.load(work.job.path) for work in group])
        except Exception:
            # somebody in this batch is broken: one by one, each keeps its own reason and the others their transcript
            for work in group:
                yield work, self._one(work)
            return
        spent, sound = time.perf_counter() - started, sum(t.duration_s for t in transcripts)
        for work, transcript in zip(group, transcripts, strict=True):
            share = spent * transcript.duration_s / sound if sound else spent / len(group)
            yield work, self._write(work, transcript, share)

    def _one(self, work: _Work) -> FileResult:
        path = work.job.path
        if work.earlier is not None:
            return work.earlier
        if work.job.reason:
            return FileResult(path, "error", reason=work.job.reason)
        started = time.perf_counter()
        try:
            with _keeping_ctrl_c():
                transcript = self.recognizer.transcribe(path)
        except Exception as error:  # the contract: a bad file costs only itself
            return FileResult(path, "error", reason=_reason(error), wall_s=time.perf_counter() - started)
        return self._write(work, transcript, time.perf_counter() - started)

    def _write(self, work: _Work, transcript: Transcript, wall_s: float) -> FileResult:
        result = FileResult(work.job.path, "ok", transcript, "", transcript.duration_s, wall_s)
        if self.manifest is None or self.names is None:
            return result
        target = self.manifest.folder
        try:
            texts = {name: render(transcript, name) for name in self.formats}
            stem = self.names.take(work.job, texts)
            for name, text in texts.items():
                target = self.manifest.folder / f"{stem}.{name}"
                if target.exists() and not self.names.ours(stem, name, os.path.abspath(work.job.path)):
                    self.manifest.found.add(
                        f"{stem}.{name}"
                    )  # the same text; it may be the user's: never ours to change
                else:
                    write_atomic(target, text)
                result = replace(result, outputs=(*result.outputs, target))
        except OSError as error:
            return replace(result, status="error", reason=f"cannot write {target}: {error.strerror or error}")
        return result

    def _finish(self, work: _Work, result: FileResult) -> FileResult:
        state, fresh = self.state, result.status != "skipped"
        if self.manifest is not None and fresh:
            self.manifest.add(result, work.seen, self._model())
        self.state = replace(
            state,
            files_done=state.files_done + 1,
            errors=state.errors + (result.status == "error"),
            skipped=state.skipped + (not fresh),
            bytes_done=state.bytes_done + (work.seen.size if fresh and work.seen else 0),
            audio_s=state.audio_s + (result.audio_s if fresh else 0.0),
            wall_s=state.wall_s + (result.wall_s if fresh else 0.0),
        )
        return result


@dataclass(frozen=True, slots=True)
class _Work:
    job: Job
    seen: Fingerprint | None
    earlier: FileResult | None


def _groups(works: Sequence[_Work], batches: bool) -> Iterator[list[_Work]]:
    """Neighbouring short files together, everything else alone, order kept."""
    group: list[_Work] = []
    seconds = 0.0
    for work in works:
        length = _length(work) if batches else None
        if length is None or seconds + length > GROUP_S or len(group) == GROUP_FILES:
            if group:
                yield group
            group, seconds = [], 0.0
        if length is None or length > GROUP_S:
            yield [work]
        else:
            group.append(work)
            seconds += length
    if group:
        yield group


def _length(work: _Work) -> float | None:
    """Seconds of sound by the header, or None for what must go alone: done already, not there, not readable."""
    if work.earlier is not None or work.job.reason or work.seen is None:
        return None
    if not work.job.path.is_file():  # a pipe: it can be read once
        return None
    try:
        return float(audio_in.duration(work.job.path))
    except (SpeechkitError, OSError):
        return None


@contextmanager
def _keeping_ctrl_c() -> Iterator[None]:
    """Let no Ctrl-C get lost: raised while libsndfile calls back to read, it is dropped, and the file looks cut off.

    Such a Ctrl-C is remembered and raised at the end of the block, in place of the error that it caused.
    """
    usual = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(usual):
        yield
        return
    heard, report = False, sys.unraisablehook

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal heard
        heard = True
        usual(number, frame)

    def quiet(dropped: sys.UnraisableHookArgs) -> None:
        if not isinstance(dropped.exc_value, KeyboardInterrupt):
            report(dropped)

    signal.signal(signal.SIGINT, note)
    sys.unraisablehook = quiet
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
        sys.unraisablehook = report
        if heard:
            raise KeyboardInterrupt


def _reason(error: Exception) -> str:
    """The message of our own errors; for others also the class, since their text alone often says nothing."""
    text = " ".join(str(error).split())
    return text if isinstance(error, SpeechkitError) else f"{type(error).__name__}: {text}"
