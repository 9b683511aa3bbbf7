"""`speechkit models`: the names that load_asr and load_llm know, and the table of language-model families. No torch."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse

    from speechkit.llm.families import Family

__all__ = ["add_models"]


def add_models(commands: Any) -> None:
    """Add the subcommand to the parsers of `speechkit`."""
    parser = commands.add_parser(
        "models",
        help="list the names that can be loaded",
        description="Speech models (transcribe, finetune), language models (llm-finetune), and what is known of each "
        "family of language models.",
    )
    parser.add_argument("--json", action="store_true", help="print the lists as JSON")
    parser.set_defaults(command=_models)


@dataclass(frozen=True)
class _Column:
    title: str
    cells: tuple[str, ...]


def _models(arguments: argparse.Namespace) -> int:
    from speechkit.llm.registry import ENCODERS, FAMILIES

    speech, language = _speech(), _language()
    if arguments.json:
        found = {"speech": speech, "language": language, "encoders": ENCODERS}
        rows = [_as_dict(family) for family in FAMILIES]
        print(json.dumps({**found, "families": rows}, ensure_ascii=False, indent=2))
        return 0
    print("Speech models")
    _print_names(speech, "or any Hub id of a wav2vec 2.0 CTC model, or a folder that holds one")
    print("\nLanguage models")
    _print_names(language, "or any Hub id of a causal language model, or a folder that holds one or an adapter")
    print("\nEncoders of sentences")
    _print_names(ENCODERS, "or any Hub id of such an encoder, or a folder that holds one")
    print("\nFamilies of language models")
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print("\n".join(_families(FAMILIES, room)))
    other = (
        "Another architecture that transformers has works as well, as transformers made it: without kernels, and with "
        "adapters on all linear layers but the head."
    )
    print(other if room is None else f"\n{textwrap.fill(other, room)}")
    return 0


def _speech() -> dict[str, str]:
    from speechkit.asr import registry

    found = {name: registry.resolve(name) for name in registry.known_names()}
    return {name: _embedded(Path(s.location)) if s.kind == "demo" else s.location for name, s in found.items()}


def _embedded(folder: Path) -> str:
    """Of a speech model: an encoder alone is no transcriber."""
    made = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or [""]
    ctc = str(made[0]).endswith("ForCTC")
    return "embedded, no download" + ("" if ctc else "; a start for finetune, transcribes nothing by itself")


def _language() -> dict[str, str]:
    from speechkit.llm import registry

    found = {name: registry.resolve(name) for name in registry.known_names()}
    return {name: "embedded, no download" if s.kind == "demo" else s.location for name, s in found.items()}


def _as_dict(family: Family) -> dict[str, Any]:
    return {
        "name": family.name, "kind": family.kind, "model_types": family.model_types, "kernels": _kernels(family),
        "lora_targets": family.lora_targets, "turn": family.template, "stop_tokens": family.stop_tokens,
        "float16": not family.float16,
        "gguf_architecture": family.gguf_architecture,
    }  # fmt: skip


def _print_names(places: dict[str, str], other: str) -> None:
    size = max([1, *map(len, places)])
    for name, place in places.items():
        print(f"{name.ljust(size)}  {place}")
    print(f"{'…'.ljust(size)}  {other}")


def _families(families: tuple[Family, ...], room: int | None) -> list[str]:
    """One table, or on a terminal that is too narrow for it two lists behind it, wrapped."""
    columns = _columns(families)
    whole = _table(columns)
    if room is None or max(map(len, whole)) <= room:
        return whole
    lines = _table(columns[:-2])
    for column in columns[-2:]:
        lines += ["", f"{column.title[0].upper()}{column.title[1:]}"]
        for cell in dict.fromkeys(column.cells):
            names = [name for name, own in zip(columns[0].cells, column.cells, strict=True) if own == cell]
            told = {"initial_indent": "  ", "subsequent_indent": "      ", "width": max(room, 40)}
            lines += textwrap.wrap(f"{cell}: {', '.join(names)}", break_long_words=False, **told)  # type: ignore[arg-type]
    return lines


def _columns(families: tuple[Family, ...]) -> tuple[_Column, ...]:
    return (
        _Column("family", tuple(family.name for family in families)),
        _Column("config types", tuple(_types(family) for family in families)),
        _Column("kernels", tuple(_kernels(family) for family in families)),
        _Column("float16", tuple("no" if family.float16 else "yes" for family in families)),
        _Column("GGUF", tuple(family.gguf_architecture or "–" for family in families)),
        _Column("adapters go to", tuple(_targets(family) for family in families)),
        _Column("ends a turn", tuple(" ".join(family.stop_tokens) or "–" for family in families)),
    )


def _table(columns: tuple[_Column, ...]) -> list[str]:
    sizes = [max(map(len, (column.title, *column.cells))) for column in columns]
    rows = [[column.title for column in columns], *zip(*(column.cells for column in columns), strict=True)]
    return ["  ".join(cell.ljust(size) for cell, size in zip(row, sizes, strict=True)).rstrip() for row in rows]


def _types(family: Family) -> str:
    """Without those of towers, where the whole is there."""
    towers = {f"{kind}{end}" for kind in family.model_types for end in ("_text", "_text_model")}
    return ", ".join(kind for kind in family.model_types if kind not in towers) or "by name"


def _targets(family: Family) -> str:
    """`q_proj k_proj` as `q k (…_proj)`."""
    short = " ".join(name.removesuffix("_proj") for name in family.lora_targets)
    return f"{short} (…_proj)" if short != " ".join(family.lora_targets) else short


def _kernels(family: Family) -> str:
    if family.wraps:
        return "as its base"
    if family.profile is None:
        return "none"
    return "in part" if family.profile.experts else "yes"
