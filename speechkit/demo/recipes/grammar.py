"""Sentences from a grammar file (`grammar_en.toml`). In: a language and a random generator. Out: lower-case text.

A template holds `{slot}`s; a slot names a list of phrases, which may hold slots again.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random

__all__ = ["Grammar"]

_SLOT = re.compile(r"\{(\w+)\}")


class Grammar:
    """One language's templates and slots; `file` names another grammar of that language beside this module."""

    def __init__(self, language: str, file: str = "") -> None:
        self.language = language
        path = Path(__file__).with_name(file or f"grammar_{language}.toml")
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        self.templates = data["templates"].strip().splitlines()
        self.slots = {name: _phrases(text) for name, text in data["slots"].items()}

    def sentence(self, rng: random.Random) -> str:
        """Draw one sentence."""
        text = rng.choice(self.templates)
        while _SLOT.search(text):
            text = _SLOT.sub(lambda match: rng.choice(self.slots[match[1]]), text, count=1)
        return text

    def vocabulary(self) -> set[str]:
        """Every word the grammar can produce."""
        phrases = [*self.templates, *(phrase for phrases in self.slots.values() for phrase in phrases)]
        return {word for phrase in phrases for word in _SLOT.sub(" ", phrase).split()}


def _phrases(text: str) -> list[str]:
    return [" ".join(phrase.split()) for phrase in text.split(",")]
