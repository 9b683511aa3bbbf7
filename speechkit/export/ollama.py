"""A GGUF file → the `Modelfile` that Ollama makes a model of: template, stops, context, system message, licence.

Everything is read from the file itself. A TEMPLATE is written only where it renders conversations byte for byte as the
file's own does; where none is known, it is left out and the report says so.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechkit import extras
from speechkit.errors import ExportError, OutputError, PlanError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from speechkit.export.ollama_templates import Translation

__all__ = ["ModelfileReport", "write_modelfile"]

CONTEXT = 8192  # tokens at most, where none are asked for: each takes memory for its keys and values
NAME = re.compile(r"[a-z][a-z0-9_]*")
LEFT_OUT = (
    "TEMPLATE is left out: {reason}. Ollama then looks for one of its own that resembles the file's and may take "
    "another: see `ollama show --template`, or pass template="
)


@dataclass(frozen=True, repr=False)
class ModelfileReport:
    """What was written. Prints as some lines."""

    path: Path
    text: str  # of the file
    family: str  # whose template it is; "" where it has none
    compared: int  # conversations that were rendered by both templates, byte for byte the same
    stops: tuple[str, ...]
    context: int  # tokens
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        template = (
            f"template {self.family}, the same on {self.compared} conversations" if self.family else "no template"
        )
        lines = [f"{self.path}: {template}; stops {', '.join(self.stops) or 'none'}; context {self.context} tokens"]
        lines += [f"  note  {note}" for note in self.notes]
        return "\n".join([*lines, f"  next  ollama create NAME -f {shlex.quote(str(self.path))}"])

    __repr__ = __str__

    def as_dict(self) -> dict[str, Any]:
        """JSON's types."""
        return {**asdict(self), "path": self.path.name}


@dataclass(frozen=True)
class _Told:
    """What a GGUF file says of itself."""

    template: str
    bos: str
    eos: str
    begins: bool
    stops: tuple[str, ...]
    control: frozenset[str]
    context: int
    architecture: str


def write_modelfile(
    gguf_path: str | os.PathLike[str],
    path: str | os.PathLike[str] | None = None,
    *,
    system: str | None = None,
    num_ctx: int | None = None,
    license: str | os.PathLike[str] | None = None,
    adapter: str | os.PathLike[str] | None = None,
    template: str | None = None,
    parameters: Mapping[str, str | float | bool] | None = None,
    overwrite: bool = False,
) -> ModelfileReport:
    """Write `Modelfile` beside a GGUF file, or to `path`.

    system: the message that stands where a conversation brings none. num_ctx: tokens, by default the model's, at most
    8192. license: a text, or the path of a file. adapter: a GGUF adapter. template: in Go's syntax, instead of what is
    found. parameters: further PARAMETER lines (temperature, top_p, …).

    Raises ExportError for what is no GGUF file, or is an adapter or a part of a split file, OutputError for a Modelfile
    that exists, PlanError for values that a Modelfile cannot hold, MissingExtra without the package gguf.
    """
    file = Path(gguf_path).expanduser()
    told = _read(file)
    place = Path(path).expanduser() if path is not None else file.with_name("Modelfile")
    place = place / "Modelfile" if place.is_dir() else place
    if any(place.resolve() == Path(one).expanduser().resolve() for one in (file, adapter or file)):
        raise PlanError(f"{place} is the model's own file; name another for the Modelfile, or leave path out")
    if place.exists() and not overwrite:
        raise OutputError(f"{place} exists already; name another file, or pass overwrite=True to replace it")
    context = _context(num_ctx, told)
    found = _template(template, told)
    stops = tuple(dict.fromkeys((*told.stops, *(stop for stop in found.stops if stop in told.control))))
    lines = [f"FROM {_relative(file, place)}"]
    lines += [f"ADAPTER {_relative(_existing(adapter), place)}"] if adapter is not None else []
    lines += [f"TEMPLATE {_quoted('template', found.template)}"] if found.template else []
    lines += [f"PARAMETER num_ctx {context}"] + [f"PARAMETER stop {_stop(stop)}" for stop in stops]
    lines += [_parameter(name, value) for name, value in (parameters or {}).items()]
    lines += [f"SYSTEM {_quoted('system', system)}"] if system else []
    lines += [f"LICENSE {_quoted('license', _licence(license))}"] if license is not None else []
    text = "\n".join(lines) + "\n"
    _write(place, text)
    notes = (*found.notes, *([LEFT_OUT.format(reason=found.reason)] if found.reason else []))
    return ModelfileReport(place, text, found.family, found.compared, stops, context, notes)


def _read(file: Path) -> _Told:
    if not file.is_file():
        raise ExportError(f"{file} is not there; give the .gguf file that export_gguf wrote")
    if re.search(r"-\d{5}-of-\d{5}$", file.stem):
        raise ExportError(f"{file.name} is a part of a split file, which Ollama does not read; export it whole")
    gguf: Any = extras.require("gguf", extra="export", purpose="reading a GGUF file")
    try:
        fields = gguf.GGUFReader(str(file)).fields
        values = {name: field.contents() for name, field in fields.items() if not name.endswith((".merges", ".scores"))}
    except (ValueError, OSError, KeyError, IndexError, TypeError) as error:
        raise ExportError(f"{file} cannot be read as a GGUF file: {error}; export it again") from error
    if values.get("general.type") == "adapter":
        raise ExportError(f"{file.name} is an adapter; give its base's GGUF file, and this one as adapter=")
    return _told(values)


def _told(values: Mapping[str, Any]) -> _Told:
    tokens = values.get("tokenizer.ggml.tokens") or []
    kinds = values.get("tokenizer.ggml.token_type") or []

    def named(which: str) -> str:
        number = values.get(f"tokenizer.ggml.{which}_token_id")
        return tokens[number] if isinstance(number, int) and 0 <= number < len(tokens) else ""

    architecture = str(values.get("general.architecture", ""))
    bos = named("bos")
    # llama.cpp's rule where the file does not say: SentencePiece begins with a token, byte-level BPE does not
    begins = values.get("tokenizer.ggml.add_bos_token", values.get("tokenizer.ggml.model") == "llama")
    stops = tuple(dict.fromkeys(text for which in ("eos", "eot", "eom") if (text := named(which))))
    control = frozenset(text for text, kind in zip(tokens, kinds, strict=False) if kind in (3, 4))
    return _Told(
        str(values.get("tokenizer.chat_template") or ""), bos, named("eos"), bool(begins) and bool(bos), stops, control,
        int(values.get(f"{architecture}.context_length") or 0), architecture,
    )  # fmt: skip


def _template(given: str | None, told: _Told) -> Translation:
    from speechkit.export.ollama_templates import Translation, translate

    if given is not None:
        return Translation(given, "as given", notes=("the template was given and not compared",))
    if not told.template:
        return Translation(reason="the file has no chat template")
    found = translate(told.template, bos=told.bos, eos=told.eos, begins=told.begins)
    if found.template and '"""' in found.template:
        return Translation(reason='its template holds """, which a Modelfile cannot quote')
    return found


def _context(asked: int | None, told: _Told) -> int:
    if asked is None:
        return min(told.context or CONTEXT, CONTEXT)
    if asked < 1 or (told.context and asked > told.context):
        raise PlanError(f"num_ctx is {asked}; the model takes 1 to {told.context} tokens")
    return asked


def _existing(path: str | os.PathLike[str]) -> Path:
    file = Path(path).expanduser()
    if not file.is_file() or file.suffix != ".gguf":
        raise ExportError(f"{file} is no GGUF adapter; export_gguf_adapter writes one")
    return file


def _relative(file: Path, place: Path) -> str:
    """Relative to the Modelfile, so that a folder can be moved."""
    found = Path(os.path.relpath(file.resolve(), place.resolve().parent)).as_posix()
    return found if found.startswith("..") else f"./{found}"


def _quoted(what: str, text: str) -> str:
    if '"""' in text or text.endswith('"'):
        raise PlanError(f'{what} holds """ or ends with ", which a Modelfile cannot quote; change the text')
    return f'"""{text}"""'


def _stop(text: str) -> str:
    if '"' in text or "\n" in text:
        raise ExportError(f"the stop {text!r} cannot be written in a Modelfile; add it as an option of each request")
    return f'"{text}"'


def _parameter(name: str, value: Any) -> str:
    if not NAME.fullmatch(name):
        raise PlanError(f"parameters has {name!r}; names of PARAMETER lines are lower case: temperature, top_p, …")
    if isinstance(value, bool):
        return f"PARAMETER {name} {str(value).lower()}"
    if isinstance(value, (int, float)):
        return f"PARAMETER {name} {json.dumps(value)}"
    if isinstance(value, str):
        return f"PARAMETER {name} {_stop(value)}"
    raise PlanError(f"parameters[{name!r}] is {type(value).__name__}; it can be a number, a text or a bool")


def _licence(given: str | os.PathLike[str]) -> str:
    if isinstance(given, os.PathLike):
        path = Path(given).expanduser()
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise PlanError(f"license is {path}, which cannot be read: {error}; give its text") from error
    return given


def _write(place: Path, text: str) -> None:
    fresh = place.with_name(f"{place.name}.partial")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_text(text, encoding="utf-8", newline="\n")
        fresh.replace(place)
    except OSError as error:
        raise OutputError(f"{place} cannot be written: {error}; free some space, or name another place") from error
    finally:
        fresh.unlink(missing_ok=True)
