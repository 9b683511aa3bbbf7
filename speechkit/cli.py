"""The command line: arguments → the package's own functions → text or JSON. Holds no logic of its own about speech.

Exit status: 0 all well; 1 some files failed (or doctor found a failure); 2 wrong usage, nothing to do, or a model or
output folder that cannot be used; 130 stopped by Ctrl-C. Results go to stdout, everything else to stderr. Heavy
imports wait until the arguments are known to be right, so `--help` and mistakes answer at once.
"""

from __future__ import annotations

import argparse
import errno
import json
import logging
import os
import re
import shutil
import signal
import sys
import time
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechkit import cli_export, cli_llm, cli_models, cli_training, terminal
from speechkit.errors import AudioError, DataError, SpeechkitError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from speechkit.types import FileResult, Transcript

__all__ = ["main"]

ALIGN_FORMATS = ("json", "srt", "vtt", "textgrid")
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
        description="Speech models (wav2vec 2.0 CTC) and language models: transcribe, fine-tune, export.",
        epilog="Start with: speechkit demo",
    )
    parser.add_argument("--version", action="version", version=f"speechkit {_version()}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_transcribe(commands)
    _add_align(commands)
    _add_stream(commands)
    cli_training.add_finetune(commands)
    cli_llm.add_llm_finetune(commands)
    cli_export.add_export(commands)
    demo = commands.add_parser("demo", help="transcribe the embedded clips with the embedded model")
    demo.add_argument("--language", default="en", help="language of the clips and of the embedded model (default: en)")
    _add_model_options(demo, default=None, what="model (default: the embedded one of the language)")
    demo.set_defaults(command=_demo)
    doctor = commands.add_parser("doctor", help="look for what will not work here, and say what to do about it")
    doctor.add_argument("--json", action="store_true", help="print the findings as JSON")
    doctor.set_defaults(command=_doctor)
    cli_models.add_models(commands)
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
    parser.add_argument(
        "--pad",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="silence put before and after each input: recordings cut tightly at a word read better with 0.05 to 0.15",
    )
    _add_beam_options(parser)
    parser.set_defaults(command=_transcribe)


def _add_beam_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("beam search", "Any of these takes a beam search instead of the greedy one.")
    group.add_argument("--beam", type=int, metavar="N", help="texts kept at a time (default: 32)")
    group.add_argument("--lm", type=Path, metavar="FILE", help="n-gram language model, ARPA or ARPA.gz")
    group.add_argument(
        "--hotwords",
        metavar="FILE|A,B",
        help="terms to expect: a file with one a line, or a list with commas",
    )
    for name, text in (
        ("lm-weight", "how much the language model counts (default: 1)"),
        ("word-bonus", "nats for each word (character, for a model of characters; default: 2)"),
        ("hotword-weight", "nats for each character of a hotword (default: 1)"),
    ):
        group.add_argument(f"--{name}", type=float, metavar="X", help=text)


def _add_align(commands: Any) -> None:
    parser = commands.add_parser(
        "align",
        help="find when each word of a given text was spoken",
        description="Place the words of a text in the audio in which they are spoken. The result goes to stdout.",
        epilog="Words that the model cannot spell (digits, signs) are placed by their neighbours, and named on stderr.",
    )
    parser.add_argument("audio", type=Path, metavar="AUDIO", help="audio file of any length")
    parser.add_argument("text", metavar="TEXT", help="a UTF-8 text file, or the text itself in quotes")
    _add_model_options(
        parser, default="demo/en", what="a name from `speechkit models`, a Hub id or a folder (default: demo/en)"
    )
    parser.add_argument(
        "--format", default="json", choices=ALIGN_FORMATS, help="(default: json; textgrid is for Praat)"
    )
    parser.set_defaults(command=_align)


def _add_stream(commands: Any) -> None:
    parser = commands.add_parser(
        "stream",
        help="transcribe live: raw sound from stdin, or a file at the pace at which it was spoken",
        description="Text while somebody speaks. On a terminal the line that is being spoken grows, its unstable words "
        "dim; elsewhere each utterance is printed when it ends. With --json, one line for each event, partials too.",
        epilog="A microphone: arecord -q -f S16_LE -r 16000 -t raw | speechkit stream -",
    )
    parser.add_argument("source", metavar="FILE", help="audio file, or - for raw int16 mono samples on stdin")
    _add_model_options(
        parser, default="demo/en", what="a name from `speechkit models`, a Hub id or a folder (default: demo/en)"
    )
    parser.add_argument("--rate", type=float, help="sample rate of stdin in Hz (default: 16000)")
    for name, text in (
        ("window", "audio that the model hears for a partial text"),
        ("hop", "audio between two partial texts"),
        ("lookahead", "audio heard behind a word after which it is stable at the latest"),
    ):
        parser.add_argument(f"--{name}", type=float, metavar="S", help=f"{text}, in seconds")
    parser.add_argument(
        "--vad", action=argparse.BooleanOptionalAction, default=True, help="let pauses end utterances (default)"
    )
    parser.add_argument("--at-once", action="store_true", help="read a file as fast as it can be transcribed")
    parser.set_defaults(command=_stream)


def _add_model_options(parser: argparse.ArgumentParser, default: str | None, what: str) -> None:
    parser.add_argument("--model", default=default, metavar="NAME", help=what)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 … (default: auto)")
    parser.add_argument("--dtype", default="auto", help="auto, float32, float16, bfloat16 (default: auto)")
    parser.add_argument(
        "--json", action="store_true", help="one JSON object on stdout per file, or per event of a stream"
    )


def _transcribe(arguments: argparse.Namespace) -> int:
    from speechkit.asr.files import Progress

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
            told = {"formats": formats, "progress": progress, "decoder": _decoder(arguments, recognizer)}
            told["pad_s"] = arguments.pad
            for row in recognizer.transcribe_files(arguments.paths, arguments.out, arguments.resume, **told):
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


def _decoder(arguments: argparse.Namespace, recognizer: Any) -> Any:
    """The beam search that the options ask for, or None."""
    names = ("beam", "lm_weight", "word_bonus", "hotword_weight")
    given = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    if not given and arguments.lm is None and arguments.hotwords is None:
        return None
    return recognizer.decoder(arguments.lm, _hotwords(arguments.hotwords) if arguments.hotwords else (), **given)


def _hotwords(argument: str) -> list[str]:
    phrases = _text_of(argument, "--hotwords").replace(",", "\n").splitlines()
    return [phrase.strip() for phrase in phrases if phrase.strip()]


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
    if arguments.lm is not None and _absent(arguments.lm):
        raise DataError(f"{arguments.lm}: no such file; --lm is a language model in ARPA format")
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


def _align(arguments: argparse.Namespace) -> int:
    from speechkit.asr.files import render
    from speechkit.textgrid import textgrid

    if _absent(arguments.audio):
        raise AudioError(f"{arguments.audio}: no such file")
    text = _text_of(arguments.text)
    transcript = _load(arguments.model, arguments).align(arguments.audio, text)
    for note in transcript.warnings:
        _say(f"warning: {note}")
    format = "json" if arguments.json else arguments.format
    print((textgrid(transcript) if format == "textgrid" else render(transcript, format)).rstrip("\n"))
    return OK


def _text_of(argument: str, name: str = "TEXT") -> str:
    """The content of the file that `argument` names, or `argument` itself where it names none.

    Raises DataError for a file that cannot be read, or is not there although `argument` looks like the name of one.
    """
    if not argument.strip():
        return argument  # Path takes it for the working directory; whoever needs a text says that it is empty
    try:
        return Path(argument).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{argument} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error
    except OSError as error:
        # Windows denies what it should call a directory
        denied = isinstance(error, PermissionError) and not os.path.isdir(argument)
        if error.errno == errno.ENAMETOOLONG or not (denied or _like_a_file(argument)):
            return argument
        raise DataError(
            f"{argument}: {error.strerror or error}; {name} is a file or the text itself: a text that looks like the "
            "name of a file needs a space behind it"
        ) from error


def _like_a_file(argument: str) -> bool:
    """Whether this is more likely a mistyped name than speech: one word with an ending (`script.md`) or a folder."""
    suffix = Path(argument).suffix
    if suffix == ".txt":
        return True
    if re.search(r"[\s,]", argument):
        return False
    return bool(re.fullmatch(r"\.[A-Za-z][A-Za-z0-9]*", suffix)) or any(mark in argument for mark in {"/", os.sep})


def _stream(arguments: argparse.Namespace) -> int:
    from speechkit import live

    given = {"window_s": arguments.window, "hop_s": arguments.hop, "lookahead_s": arguments.lookahead}
    options = {name: value for name, value in given.items() if value is not None}
    if arguments.source != "-" and _absent(Path(arguments.source)):
        raise AudioError(f"{arguments.source}: no such file; - reads raw samples from stdin")
    if arguments.source != "-" and arguments.rate is not None:
        raise SpeechkitError("--rate is for raw samples on stdin; a file tells its own rate")
    if arguments.source == "-" and sys.stdin.isatty():
        raise SpeechkitError("stdin is a terminal: pipe raw int16 samples into it, as `speechkit stream --help` shows")
    stream = _load(arguments.model, arguments).stream(vad=arguments.vad, **options)
    if arguments.source == "-":
        chunks = live.raw(sys.stdin.buffer, 16_000 if arguments.rate is None else arguments.rate)
    else:
        chunks = live.paced(arguments.source, real_time=not arguments.at_once)
    whole = live.run(stream, chunks, live.Screen(arguments.json))
    _say(str(stream.report))
    return OK if whole else STOPPED


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
