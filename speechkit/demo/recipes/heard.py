"""Which speakers of the real recordings a model has heard, as its recipe says. In: a model and speakers. Out: names.

A model must not be scored on people whom it was trained on, and its own card is the only witness. Weights remember
what they started from, so a recipe that names no-one is believed only as far as the model that it started from.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechkit import demo
from speechkit.asr import registry
from speechkit.demo.recipes.encoder_speech import kept_out
from speechkit.errors import ModelError, PlanError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from os import PathLike

__all__ = ["Hearing", "hearing", "refuse_heard"]

# names of speakers begin with their corpus: Free Spoken Digits, Speech Commands and LibriSpeech, Arabic commands
DIGITS, ENGLISH, ARABIC = "fsdd-", ("sc-", "ls-"), "asc-"
EARLIER = "an earlier model"  # how a recipe names weights made by itself


@dataclass(frozen=True)
class Hearing:
    """What is known of whom a model has heard, with texts or without."""

    model: str
    known: bool  # False: there is no recipe that says
    digits: bool = False  # digit speakers, but for those in `spared`
    english: bool = False  # Speech Commands and LibriSpeech, but for the speakers that every recipe keeps out
    arabic: bool = False  # all but the six that are always kept out
    spared: frozenset[str] = field(default=frozenset())

    def heard(self, speaker: str) -> bool | None:
        """Whether the model has heard `speaker`; None where no recipe says."""
        met = None
        if speaker.startswith(DIGITS):
            met = self.digits and speaker not in self.spared
        elif speaker.startswith(ENGLISH):
            met = self.english and not kept_out(speaker)
        elif speaker.startswith(ARABIC):
            met = self.arabic and not kept_out(speaker)
        return met if self.known or met else None

    def __or__(self, other: Hearing) -> Hearing:
        """What weights have heard that went through both trainings."""
        return Hearing(
            self.model,
            self.known and other.known,
            self.digits or other.digits,
            self.english or other.english,
            self.arabic or other.arabic,
            _both(self, other),
        )


def hearing(model: str | PathLike[str]) -> Hearing:
    """A name of `speechkit models` or a folder → whom its `recipe.json` says it has heard.

    Raises ModelError for an unknown name, and for a recipe that cannot be read.
    """
    source = registry.resolve(model)
    record = Path(source.location) / "recipe.json"
    if source.kind == "hub" or not record.is_file():
        return Hearing(str(model), known=False)
    try:
        row = json.loads(record.read_text(encoding="utf-8"))
        recipe = row["recipe"]
        found = _encoder(str(model), recipe) if "digits" in recipe else _ctc(str(model), recipe, row)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{record} cannot be read as a recipe ({error!r}); write it by the recipe anew") from error
    return found


def refuse_heard(model: str | PathLike[str], speakers: Iterable[str]) -> Hearing:
    """`hearing(model)`, unless it has heard one of `speakers`. Raises PlanError that names them."""
    found = hearing(model)
    met = sorted(speaker for speaker in set(speakers) if found.heard(speaker))
    if met:
        raise PlanError(
            f"{model} has heard {', '.join(met)} in its own training, as its recipe.json says: what it makes of them "
            "says nothing of strangers. Start from a model that never heard them, or keep out other speakers"
        )
    return found


def _encoder(model: str, recipe: dict[str, Any]) -> Hearing:
    people = bool(recipe["real"])
    return Hearing(model, True, people and bool(recipe["digits"]), people, people)


def _ctc(model: str, recipe: dict[str, Any], row: dict[str, Any]) -> Hearing:
    own, start = _own(model, row), recipe.get("started_from") or ""
    named = re.match(r"demo/([\w-]+)", start)
    if not start:
        return own
    if named and named[1] in demo.models():
        return own | hearing(named[0])
    if start.startswith(EARLIER) and recipe["language"] in demo.models():
        # it is not named; where it is not the very one asked about, the embedded one stands for it
        record = demo.model_path(recipe["language"]) / "recipe.json"
        return own | _own(model, json.loads(record.read_text(encoding="utf-8")))
    return own | Hearing(start, known=False)


def _own(model: str, row: dict[str, Any]) -> Hearing:
    """Of this training alone. A recipe that was given recordings scored itself on those kept out: its results tell."""
    real = bool({"digits", "words"} & set(row["results"]))
    return Hearing(model, True, real, real, spared=frozenset(row["recipe"]["exclude_speakers"]))


def _both(one: Hearing, other: Hearing) -> frozenset[str]:
    """Speakers spared by both; a side that heard no digits at all spares everybody."""
    if one.digits and other.digits:
        return one.spared & other.spared
    return one.spared if one.digits else other.spared
