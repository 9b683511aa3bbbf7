"""Text of any of the kit's scripts → Latin letters, so that what a Polish model heard in Ukrainian can be compared.

In: a text and its language. Out: `letters` (a–z, readable) or `sounds` (one sign per sound, as far as spelling tells).
Cyrillic by table (Ukrainian: resolution 55 of 2010; Russian: BGN/PCGN 1947, simplified), Hangul by arithmetic (Revised
Romanization, 2000), Latin letters by their base letter, Mandarin by the package pypinyin (MIT, extra `train`), which
tells readings apart by phrase (银行 yin hang); uroman and anyascii read character by character, and unidecode is GPL.
Knows no pronunciation dictionary: English, whose spelling hides its sounds, is read by its digraphs only.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, get_args

from speechkit import text as texts
from speechkit.errors import DataError
from speechkit.evaluation.families import bare_code
from speechkit.evaluation.hangul import revised_romanization
from speechkit.evaluation.readings import BASE, CYRILLIC, INITIAL, READINGS, UKRAINIAN
from speechkit.extras import require

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Scheme", "check_scheme", "letters", "romanize", "sounds"]

Scheme = Literal["letters", "sounds"]
_HAN = re.compile(r"[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0002fa1f]+")
_HANGUL = re.compile(r"[\uac00-\ud7a3\u3131-\u3163]+")


def romanize(text: str, language: str | None = None, scheme: Scheme = "letters") -> str:
    """:func:`letters` or :func:`sounds`. Raises DataError for another scheme."""
    check_scheme(scheme)
    return letters(text, language) if scheme == "letters" else sounds(text, language)


def check_scheme(scheme: str) -> None:
    """Raises DataError unless `scheme` is one of `Scheme`."""
    if scheme not in get_args(Scheme):
        raise DataError(f'scheme is {scheme!r}; it can be "letters" or "sounds"')


def letters(text: str, language: str | None = None) -> str:
    """Normalised words in a–z, digits and apostrophes: `Київ` → `kyiv`, `żółć` → `zolc`, `한국어` → `hangugeo`.

    `language` tells Ukrainian from Russian (Cyrillic without a language is read as Ukrainian) and sets the casing.
    Mandarin is one word per character. Raises DataError for letters of a script that has no table here, MissingExtra
    for Chinese characters without pypinyin.
    """
    return " ".join(_latin(texts.normalize(text, language), bare_code(language)).split())


def sounds(text: str, language: str | None = None) -> str:
    """Words as a row of broad sounds, the same sign for nearly the same sound in every language.

    `szkoła` (Polish) → `škova`, `škola` (Czech) → `škola`, `школа` (Ukrainian) → `škola`. Length, stress, tone and most
    palatalisation are left out. Rules for the languages in `readings.READINGS`; others are read as their letters.
    Raises what :func:`letters` raises.
    """
    code = bare_code(language)
    level = texts.normalize(text, language)
    if code in READINGS and not (_HAN.search(level) or _HANGUL.search(level)):
        level = _rules(code)(level)
    level = _HAN.sub(lambda found: _rules("zh")(_pinyin(found[0])), level)
    level = _HANGUL.sub(lambda found: _rules("ko")(revised_romanization(found[0])), level)
    kept = _latin(level, code, keep=frozenset("čňšžǯ"))
    kept = re.sub(r"([^aeiouy\W\d])\1+", r"\1", kept.replace("'", ""))  # a long consonant counts as one
    return " ".join(kept.replace("x", "h").split())


def _latin(level: str, code: str, keep: frozenset[str] = frozenset()) -> str:
    """Lower-case text → base letters; letters in `keep` stay."""
    level = _HAN.sub(lambda found: f" {_pinyin(found[0])} ", level)
    level = _HANGUL.sub(lambda found: revised_romanization(found[0]), level)
    if any("\u0400" <= char <= "\u052f" for char in level):
        level = _cyrillic(level, code)
    out = "".join(char if char in keep else BASE.get(char) or _base(char) for char in level)
    unknown = sorted({char for char in out if not (char.isascii() or char in keep or char.isdigit())})
    if unknown:
        shown = ", ".join(f"{char} ({unicodedata.name(char, 'unnamed')})" for char in unknown[:3])
        raise DataError(
            f"no romanisation for {shown}; there are tables for Latin, Cyrillic, Hangul and Chinese characters: "
            "compare texts of other scripts as they are"
        )
    return out


def _base(char: str) -> str:
    """`ž` → `z`: the letter without its marks; a lone mark → nothing."""
    bare = unicodedata.normalize("NFD", char)
    return "".join(part for part in bare if unicodedata.category(part)[0] != "M")


def _cyrillic(level: str, code: str) -> str:
    table = CYRILLIC if code not in ("", "uk") else CYRILLIC | UKRAINIAN
    initial = INITIAL if table is not CYRILLIC else {}
    if initial:
        level = level.replace("зг", "zgh").replace("'", "")
    out = []
    for at, char in enumerate(level):
        first = at == 0 or level[at - 1] == " "
        out.append(initial[char] if first and char in initial else table.get(char, char))
    return "".join(out)


def _pinyin(run: str) -> str:
    package = require("pypinyin", extra="train", purpose="romanising Chinese characters")
    return " ".join(package.lazy_pinyin(run, errors="ignore", v_to_u=False)).replace("v", "u")


@lru_cache
def _rules(code: str) -> Callable[[str], str]:
    """One pass over the text, the first rule that fits at each place; what no rule names stays."""
    found = READINGS[code]
    pattern = re.compile("|".join(f"({rule})" for rule, _ in found))
    heard = [sound for _, sound in found]
    return lambda line: pattern.sub(lambda match: heard[(match.lastindex or 1) - 1], line)
