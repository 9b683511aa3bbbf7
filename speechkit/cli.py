"""The command line: arguments → the package's own functions → text or JSON. Holds no logic of its own about speech.

Exit status: 0 all well; 1 some files failed (or doctor found a failure); 2 wrong usage, nothing to do, or a model or
output folder that cannot be used; 130 stopped by Ctrl-C. Results go to stdout, everything else to stderr. Heavy
imports wait until the arguments are known to be right, so `--help` and mistakes answer at once.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import signal
import sys
import time
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechkit import terminal
from speechkit.errors import SpeechkitError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from speechkit.types import FileResult, Transcript

__all__ = ["main"]

OK, SOME_FAILED, USAGE, STOPPED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; `argv` without the program's name. Returns the exit status, never a traceback for our errors."""
    arguments = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = arguments.command
    try:
        return command(arguments)
    except SpeechkitError as error:
        _say(f"error: {error}")
        return USAGE
    except KeyboardInterrupt:
        _say("stopped")
        return STOPPED
    except BrokenPipeError:
        # the reader (head, less) has gone: not our failure; stdout must not be flushed again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE if hasattr(signal, "SIGPIPE") else SOME_FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="speechkit",
        description="Transcribe speech with wav2vec 2.0 CTC models.",
        epilog="Start with: speechkit demo",
    )
    parser.add_argument("--version", action="version", version=f"speechkit {_version()}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_transcribe(commands)
    demo = commands.add_parser("demo", help="transcribe the embedded clips with the embedded model")
    demo.add_argument("--language", default="en", help="language of the clips and of the embedded model (default: en)")
    _add_model_options(demo, default=None, what="model (default: the embedded one of the language)")
    demo.set_defaults(command=_demo)
    doctor = commands.add_parser("doctor", help="look for what will not work here, and say what to do about it")
    doctor.add_argument("--json", action="store_true", help="print the findings as JSON")
    doctor.set_defaults(command=_doctor)
    models = commands.add_parser("models", help="list the names that --model knows")
    models.add_argument("--json", action="store_true", help="print the list as JSON")
    models.set_defaults(command=_models)
    return parser


def _add_transcribe(commands: Any) -> None:
    parser = commands.add_parser(
        "transcribe",
        help="transcribe files, folders and patterns",
        description="Transcribe audio files. Without --out, transcripts go to stdout; with it, one file per input and "
        "format, and DIR/manifest.jsonl with one line per input.",
        epilog="Exit status: 0 all transcribed, 1 some failed, 2 nothing to do or nothing can be done, 130 stopped.",
    )
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help="audio file, folder (all audio below it) or 'pattern*.wav'"
    )
    _add_model_options(
        parser, default="demo/en", what="a name from `speechkit models`, a Hub id or a folder (default: demo/en)"
    )
    parser.add_argument(
        "--format",
        default="txt",
        metavar="F[,F]",
        help="txt, json, jsonl (one line), srt, vtt; several with commas (default: txt)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder for transcripts and manifest.jsonl, made if absent"
    )
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="skip files that DIR/manifest.jsonl says are done and unchanged (default); --no-resume does them again",
    )
    parser.set_defaults(command=_transcribe)


def _add_model_options(parser: argparse.ArgumentParser, default: str | None, what: str) -> None:
    parser.add_argument("--model", default=default, metavar="NAME", help=what)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 … (default: auto)")
    parser.add_argument("--dtype", default="auto", help="auto, float32, float16, bfloat16 (default: auto)")
    parser.add_argument("--json", action="store_true", help="machine-readable: one JSON object per file on stdout")


def _transcribe(arguments: argparse.Namespace) -> int:
    from speechkit.asr.files import Progress, transcribe_files

    formats, count = _checked(arguments)
    recognizer = _load(arguments.model, arguments)
    bar, printer = terminal.Bar(), _Printer(formats[0], arguments, single=count == 1)
    started, last = time.perf_counter(), Progress(files=count)

    def progress(state: Progress) -> None:
        nonlocal last
        last = state
        bar(state)

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("always", "out of memory", ResourceWarning)  # Python hides this class by default
            warnings.showwarning = lambda message, *_, **__: bar.write(f"speechkit: warning: {message}", sys.stderr)
            options = (arguments.out, arguments.resume, formats, progress)
            for row in transcribe_files(recognizer, arguments.paths, *options):
                printer(row, bar)
    except KeyboardInterrupt:
        bar.close()
        again = "; the same command carries on from here" if arguments.out else ""
        _say(f"stopped after {last.files_done} of {last.files} files{again}")
        return STOPPED
    finally:
        bar.close()
    if arguments.out is not None or count > 1:
        _say(_summary(last, time.perf_counter() - started, arguments.out))
    return SOME_FAILED if last.errors else OK


def _checked(arguments: argparse.Namespace) -> tuple[tuple[str, ...], int]:
    """The formats and the number of inputs; whatever can be seen to be wrong is said here, before torch is loaded."""
    from speechkit.asr import files

    formats = files.check_formats([name.strip() for name in arguments.format.split(",") if name.strip()])
    if arguments.out is None and len(formats) > 1:
        raise SpeechkitError(f"several formats ({', '.join(formats)}) need --out DIR; stdout takes one")
    jobs = files.find(arguments.paths)
    if all(job.reason or _absent(job.path) for job in jobs):
        for job in jobs:
            _say(f"error: {job.reason or f'{job.path}: no such file'}")
        raise SpeechkitError("nothing to do: none of the paths leads to a file")
    if arguments.out is not None:
        files.check_output(arguments.out)
    return formats, len(jobs)


def _absent(path: Path) -> bool:
    """Whether nothing is there; what is there and may not be read gets its own reason when it is opened."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


class _Printer:
    """What each finished file prints: JSON, its transcript, its outputs or its reason."""

    def __init__(self, format: str, arguments: argparse.Namespace, single: bool) -> None:
        self.format, self.json, self.out, self.single = format, arguments.json, arguments.out, single

    def __call__(self, row: FileResult, bar: terminal.Bar) -> None:
        if self.json:
            bar.write(json.dumps(row.to_dict(), ensure_ascii=False), sys.stdout)
        if row.status == "error":
            bar.write(f"speechkit: error: {_named(row)}", sys.stderr)
        for note in row.transcript.warnings if row.transcript and row.status == "ok" else ():
            bar.write(f"speechkit: warning: {row.path}: {note}", sys.stderr)
        if self.json or row.status == "error" or row.transcript is None:
            return
        if self.out is None:
            bar.write(self._text(row, row.transcript), sys.stdout)
        elif row.status == "ok":
            bar.write(" ".join(str(path) for path in row.outputs), sys.stdout)

    def _text(self, row: FileResult, transcript: Transcript) -> str:
        from speechkit.asr.files import render

        text = render(transcript, self.format).rstrip("\n")
        if self.single or self.format == "jsonl":
            return text
        return f"{row.path}: {text}" if self.format == "txt" else f"{text}\n"


def _named(row: FileResult) -> str:
    """The reason, with the file's name in front unless the reason tells it already."""
    return row.reason if str(row.path) in row.reason else f"{row.path}: {row.reason}"


def _summary(state: Any, wall_s: float, out: Path | None) -> str:
    done = state.files_done - state.errors - state.skipped
    parts = [f"{done} of {state.files} files transcribed"]
    parts += [f"{state.skipped} skipped (already done)"] if state.skipped else []
    parts += [f"{state.errors} failed"] if state.errors else []
    if state.audio_s:
        parts.append(
            f"{terminal.clock(state.audio_s)} of audio in {wall_s:.1f} s, real-time factor {state.real_time_factor:.3f}"
        )
    return ", ".join(parts) + (f"; manifest: {out / 'manifest.jsonl'}" if out else "")


def _demo(arguments: argparse.Namespace) -> int:
    from speechkit import demo_report

    name = arguments.model or f"demo/{arguments.language}"
    return demo_report.run(arguments.language, lambda: _load(name, arguments), as_json=arguments.json, me=_me())


def _doctor(arguments: argparse.Namespace) -> int:
    from speechkit import doctor

    findings = doctor.run()
    if arguments.json:
        print(doctor.to_json(findings))
    else:
        print(doctor.report(findings, terminal.Paint.of(sys.stdout)))
    return doctor.exit_status(findings)


def _models(arguments: argparse.Namespace) -> int:
    from speechkit.asr import registry

    found = {name: registry.resolve(name) for name in registry.known_names()}
    places = {name: "embedded, no download" if s.kind == "demo" else s.location for name, s in found.items()}
    if arguments.json:
        print(json.dumps(places, ensure_ascii=False, indent=2))
        return OK
    size = max(map(len, places))
    for name, place in places.items():
        print(f"{name.ljust(size)}  {place}")
    print(f"{'…'.ljust(size)}  or any Hub id of a wav2vec 2.0 CTC model, or a folder that holds one")
    return OK


def _load(name: str, arguments: argparse.Namespace) -> Any:
    from speechkit.asr import registry
    from speechkit.device import choose_dtype

    registry.resolve(name)  # an unknown name, and
    choose_dtype("cpu", arguments.dtype)  # an unknown dtype: told before torch is loaded
    # a first import of torch takes seconds: a terminal says what it waits for
    if sys.stderr.isatty():
        print(f"loading {name} …", end="", file=sys.stderr, flush=True)
    try:
        with warnings.catch_warnings():
            # other packages' notes to their developers; torch logs its own when transformers imports torchao
            warnings.simplefilter("ignore", FutureWarning)
            logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
            from speechkit.asr.model import load_asr

            return load_asr(name, device=arguments.device, dtype=arguments.dtype)
    finally:
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _me() -> str:
    """How to call this program from this shell: by name where it is on the path, else by its place."""
    if shutil.which("speechkit"):
        return "speechkit"
    beside = Path(sys.executable).with_name("speechkit")
    chosen = beside if beside.exists() else Path(sys.executable)
    short = os.path.relpath(chosen)
    shown = str(chosen) if short.startswith("..") else short
    return shown if beside.exists() else f"{shown} -m speechkit"


def _version() -> str:
    try:
        return version("speechkit")
    except PackageNotFoundError:
        return "(not installed)"


def _say(line: str) -> None:
    print(f"speechkit: {line}", file=sys.stderr, flush=True)
