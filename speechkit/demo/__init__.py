"""The embedded clips and models: what works before any download. In: a language. Out: paths and reference texts.

The assets are made by `speechkit.demo.recipes`; each model folder holds a card.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path

from speechkit.errors import DataError, ModelError

__all__ = ["DemoClip", "DemoResult", "chat_models", "clips", "languages", "model_path", "models", "results"]

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class DemoClip:
    """One embedded clip: synthetic speech by a voice that the model did not hear in training."""

    path: Path
    language: str
    text: str
    voice: str
    seconds: float


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What an embedded model reached on one held-out set when it was made: corpus-level rates, 0.1 is 10 %."""

    wer: float
    cer: float
    clips: int


def clips(language: str | None = None) -> list[DemoClip]:
    """The embedded clips, of one language (ISO 639-1) or of all.

    Raises DataError for a language without clips; the message lists those that exist.
    """
    with (HERE / "clips" / "manifest.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    found = [
        DemoClip(HERE / "clips" / row["path"], row["language"], row["text"], row["voice"], float(row["seconds"]))
        for row in rows
        if language in (None, row["language"])
    ]
    if not found:
        known = ", ".join(sorted({row["language"] for row in rows}))
        raise DataError(f"no embedded clips for language {language!r}; there are clips for: {known}")
    return found


def languages() -> list[str]:
    """Languages with an embedded CTC model, sorted."""
    return sorted(path.parent.name for path in (HERE / "models").glob("*/vocab.json"))


def models() -> list[str]:
    """Names of the embedded speech models, sorted: the languages, and encoders without a CTC head to train from."""
    chat = chat_models()
    return sorted(name for path in (HERE / "models").glob("*/config.json") if (name := path.parent.name) not in chat)


def chat_models() -> list[str]:
    """Names of the embedded language models, sorted: those with a tokenizer of texts or a chat template."""
    kept = [
        path.parent
        for name in ("tokenizer.json", "chat_template.jinja")
        for path in (HERE / "models").glob(f"*/{name}")
    ]
    return sorted({folder.name for folder in kept if (folder / "config.json").is_file()})


def model_path(name: str) -> Path:
    """Folder of the embedded model `name` ("en", "encoder"). Raises ModelError that lists those that exist."""
    folder = HERE / "models" / name
    if not (folder / "config.json").is_file():
        known = ", ".join([*models(), *chat_models()]) or "none"
        raise ModelError(f"no embedded model {name!r}; embedded models: {known}")
    return folder


def results(name: str) -> dict[str, DemoResult]:
    """The figures on the card of the embedded model `name`, by held-out set: "clips", "synthetic", "digits", …"""
    recipe = json.loads((model_path(name) / "recipe.json").read_text(encoding="utf-8"))
    return {kind: DemoResult(**row) for kind, row in recipe["results"].items()}
