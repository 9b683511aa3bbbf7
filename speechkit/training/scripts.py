"""Characters → the writing system they belong to, and which one a language is written in. Text in, names out."""

from __future__ import annotations

import unicodedata
from collections import Counter
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["described", "expected", "main_script", "script_of", "scripts", "scripts_of"]

# first word of a character's Unicode name → what readers call the script, where the two differ
NAMES = {"Cjk": "Han", "Hiragana": "Kana", "Katakana": "Kana", "Katakana-hiragana": "Kana"}
_WRITTEN = {
    "Latin": "af az bs ca cs cy da de en eo es et eu fi fr ga gl hr hu id is it lt lv ms mt nb nl nn no pl pt ro sk sl "
    "sq sv sw tl tr uz vi",
    "Cyrillic": "be bg kk ky mk mn ru tg tt uk",
    "Arabic": "ar ckb fa ps sd ug ur",
    "Devanagari": "hi mr ne sa",
    "Hebrew": "he yi",
    "Greek": "el",
    "Bengali": "as bn",
    "Armenian": "hy",
    "Georgian": "ka",
    "Thai": "th",
    "Tamil": "ta",
    "Telugu": "te",
    "Kannada": "kn",
    "Malayalam": "ml",
    "Gujarati": "gu",
    "Gurmukhi": "pa",
    "Sinhala": "si",
    "Khmer": "km",
    "Lao": "lo",
    "Myanmar": "my",
    "Ethiopic": "am ti",
    "Han": "zh yue cmn",
    "Hangul": "ko",
}
_EXPECTED: dict[str, tuple[str, ...]]
_EXPECTED = {language: (script,) for script, names in _WRITTEN.items() for language in names.split()}
_EXPECTED |= {"ja": ("Kana", "Han"), "ko": ("Hangul", "Han"), "sr": ("Cyrillic", "Latin")}


@lru_cache(maxsize=65536)
def script_of(char: str) -> str:
    """`"Latin"`, `"Han"`, `"Kana"`, `"Hangul"`, …; "" for digits, marks, punctuation and what has no script."""
    if unicodedata.category(char)[0] != "L":
        return ""
    first = unicodedata.name(char, "").partition(" ")[0].capitalize()
    return NAMES.get(first, "" if first in ("Modifier", "") else first)


def scripts(texts: Iterable[str]) -> Counter[str]:
    """How many letters of each script the texts hold."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    return scripts_of(counts)


def scripts_of(counts: Mapping[str, int]) -> Counter[str]:
    """Characters and how often they occur → how many letters of each script those are."""
    found: Counter[str] = Counter()
    for char, count in counts.items():
        found[script_of(char)] += count
    found.pop("", None)
    return found


def expected(language: str | None) -> tuple[str, ...]:
    """The scripts that a language (ISO 639 code, with or without a region) is written in; () where that is unknown."""
    return _EXPECTED.get((language or "").replace("_", "-").split("-")[0].lower(), ())


def main_script(found: Mapping[str, int]) -> str:
    """The script with the most letters, "" for none."""
    return max(found, key=lambda name: (found[name], name), default="")


def described(found: Mapping[str, int]) -> str:
    """`Latin 98.0 %, Cyrillic 2.0 %`, the largest first."""
    total = sum(found.values())
    ranked = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{name} {count / total:.1%}".replace("%", " %") for name, count in ranked) or "no letters"
