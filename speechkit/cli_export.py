"""`speechkit export gguf|merged|ollama|hub`: a model or a run → files that were reopened and compared. No torch.

Exit status: 0 written (what was not proved, or kept with --force, says so); 2 refused by its proof, or wrong arguments,
data or model; 130 stopped by Ctrl-C, which leaves nothing half-written under the name.
"""

from __future__ import annotations

import json
import re
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechkit.errors import PlanError, SpeechkitError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

__all__ = ["add_export"]

OK = 0
MODEL = "a name from `speechkit models`, a Hub id, a folder of a model, of an adapter or of a run"
FLAGS = (  # what a message calls an argument in Python, and here
    ("overwrite=True", "--overwrite"), ("force=True", "--force"), ("dry_run=True", "--dry-run"),
    ("private is True: say private=False", "--public was not said: say it"), ("version='auto'", "--version auto"),
    ("About(licence='apache-2.0')", "--licence apache-2.0"), ("About(licence=…)", "--licence"),
    ("About(hardware='one T4, 16 GB')", "--hardware 'one T4, 16 GB'"),
    ("About(base='owner/name')", "--base owner/name"),
)  # fmt: skip
UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3}


def add_export(commands: Any) -> None:
    """Add the subcommand and its own to the parsers of `speechkit`."""
    parser = commands.add_parser(
        "export",
        help="write a model in another form, reopened and compared",
        description="Write a language model for llama.cpp, Ollama or transformers, or publish any model on the Hub. "
        "What is written is opened again and compared with its source; what does not hold is refused.",
        epilog="Exit status: 0 written, 2 refused by its proof or nothing can be done, 130 stopped.",
    )
    forms = parser.add_subparsers(title="forms", required=True, metavar="FORM")
    _add_gguf(forms)
    _add_merged(forms)
    _add_ollama(forms)
    _add_hub(forms)


def _add_gguf(forms: Any) -> None:
    parser = forms.add_parser(
        "gguf",
        help="one file for llama.cpp, and all that is built on it",
        description="Write a GGUF file, and compare it with the source in llama.cpp: tokens, chat template, "
        "log-probabilities, continuations. The verdict stands beside the file, FILE.proof.json.",
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help=MODEL)
    add("file", type=Path, metavar="FILE", help="what to write; ends in .gguf")
    types = "F32, F16, BF16, Q8_0, Q6_K, Q5_K_M, Q5_K_S, Q4_K_M, Q4_K_S, Q4_0"
    add("--quant", default="Q4_K_M", metavar="T", help=f"{types} (default: Q4_K_M)")
    add("--adapter", type=Path, metavar="DIR", help="an adapter in PEFT's format, merged into the model first")
    add("--imatrix", type=Path, metavar="FILE", help="importance matrix, as llama.cpp writes it (.gguf or .dat)")
    add("--split", metavar="SIZE", help="write several files of at most so many bytes each: 2G, 500M")
    add("--no-proof", action="store_true", help="write only; the file is marked unproved")
    _add_common(parser)
    parser.set_defaults(command=_gguf)


def _add_merged(forms: Any) -> None:
    parser = forms.add_parser(
        "merged",
        help="a folder that transformers opens: 16-bit, or quantised",
        description="Write a folder of safetensors that transformers opens, with tokenizer and chat template: in 16 "
        "bits, in four (bitsandbytes NF4), or in torchao's int8, int4 or fp8.",
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help=MODEL)
    add("folder", type=Path, metavar="DIR", help="folder to write")
    add("--adapter", type=Path, metavar="DIR", help="an adapter in PEFT's format, merged into the model first")
    add("--format", default="16-bit", metavar="F", help="16-bit, nf4, int8, int4 or fp8 (default: 16-bit)")
    _add_common(parser)
    parser.set_defaults(command=_merged)


def _add_ollama(forms: Any) -> None:
    parser = forms.add_parser(
        "ollama",
        help="a Modelfile for a GGUF file",
        description="Write an Ollama Modelfile beside a GGUF file: template, stop tokens, context.",
        epilog="Then: ollama create NAME -f Modelfile",
    )
    add = parser.add_argument
    add("file", type=Path, metavar="FILE", help="the .gguf file")
    add("--system", metavar="TEXT", help="what the model is told first in each conversation")
    add("--overwrite", action="store_true", help="replace the Modelfile that is there")
    add("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(command=_ollama)


def _add_hub(forms: Any) -> None:
    parser = forms.add_parser(
        "hub",
        help="publish a folder on the Hugging Face Hub, with card and version",
        description="Publish a model's folder (speech or language, adapter, merged, GGUF) with a model card made of "
        "what was measured, a version tag and a changelog. The token is the one of `hf auth login`.",
    )
    add = parser.add_argument
    add("folder", metavar="FOLDER", help="folder of a model, an adapter, a run or GGUF files")
    add("repo", metavar="OWNER/NAME", help="repository; made if absent")
    add("--public", action="store_true", help="make a new repository public (default: private)")
    add("--version", default="auto", metavar="V", help="v1.2.0, or auto: the next after the last (default: auto)")
    add("--message", metavar="TEXT", help="a sentence for the changelog")
    add("--source", type=Path, metavar="DIR", help="folder of the run that the files were exported from, for the card")
    add("--base", default="", metavar="OWNER/NAME", help="model on the Hub that this one was made from, for the card")
    add("--licence", default="", metavar="L", help="as the Hub spells it: apache-2.0, cc-by-sa-4.0, other")
    add("--language", action="append", default=[], metavar="CODE", help="of the model: en; once for each")
    add("--hardware", default="", metavar="TEXT", help="what it was trained on")
    add("--dry-run", action="store_true", help="show files and card; send nothing")
    add("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(command=_hub)


def _add_common(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--force", action="store_true", help="keep what does not hold its proof; the proof says so")
    add("--overwrite", action="store_true", help="replace what is there")
    add("--json", action="store_true", help="print the result as JSON")


def _gguf(arguments: argparse.Namespace) -> int:
    split = None if arguments.split is None else _size(arguments.split)
    given = {"adapter": arguments.adapter, "imatrix": arguments.imatrix, "force": arguments.force}
    more = {"overwrite": arguments.overwrite, "prove": not arguments.no_proof, "split_bytes": split}

    def run() -> Any:
        from speechkit.export.gguf import export_gguf

        return export_gguf(_best(arguments.model), arguments.file, arguments.quant, **given, **more)

    return _told(run, arguments.json)


def _merged(arguments: argparse.Namespace) -> int:
    given = {"adapter": arguments.adapter, "format": arguments.format}

    def run() -> Any:
        from speechkit.export.merged import export_merged

        more = {"force": arguments.force, "overwrite": arguments.overwrite}
        return export_merged(_best(arguments.model), arguments.folder, **given, **more)

    return _told(run, arguments.json)


def _ollama(arguments: argparse.Namespace) -> int:
    def run() -> Any:
        from speechkit.export.ollama import write_modelfile

        return write_modelfile(arguments.file, system=arguments.system, overwrite=arguments.overwrite)

    return _told(run, arguments.json)


def _hub(arguments: argparse.Namespace) -> int:
    def run() -> Any:
        from speechkit.export.hub import About, push

        told = {name: getattr(arguments, name) for name in ("source", "base", "licence", "hardware")}
        about = About(languages=tuple(arguments.language), **told)
        more = {"private": not arguments.public, "version": arguments.version, "message": arguments.message}
        return push(arguments.folder, arguments.repo, dry_run=arguments.dry_run, about=about, **more)

    return _told(run, arguments.json)


def _best(model: str) -> str:
    """Of the folder of a run what was kept of it; anything else as it is."""
    best = Path(model) / "best"
    if (Path(model) / "run.json").is_file() and best.is_dir():
        print(f"{model} is the folder of a run: exporting {best}", file=sys.stderr)
        return str(best)
    return model


def _told(run: Callable[[], Any], as_json: bool) -> int:
    """Print what came of it: for readers, or for programs, to which libraries' remarks on stdout are no JSON."""
    from speechkit.llm.quiet import quiet

    try:
        with quiet(), redirect_stdout(sys.stderr):
            found = run()
    except SpeechkitError as error:
        raise type(error)(_in_flags(str(error))) from error
    rows = str(found).split("\n")
    text = "\n".join(_in_flags(row) if row.startswith("note: ") else row for row in rows)
    print(json.dumps(found.as_dict(), ensure_ascii=False, indent=2) if as_json else text)
    return OK


def _in_flags(text: str) -> str:
    """A message of the package in the words of the command line."""
    for called, flag in FLAGS:
        text = text.replace(called, flag)
    return text


def _size(text: str) -> int:
    """`2G`, `500M`, `64k` or bytes → bytes. Raises PlanError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]?)b?", text.strip(), re.IGNORECASE)
    size = int(float(found[1]) * UNITS[found[2].lower()]) if found else 0
    if size <= 0:
        raise PlanError(f"--split {text!r} is no size: give bytes, or 500M, or 2G")
    return size
