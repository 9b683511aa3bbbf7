"""What the recipes know of each language: espeak-ng's names for its accents, and the tokens of its models.

In: an ISO 639-1 code. Out: a `Language`. The sentences are in `grammar_<code>.toml`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from speechkit.demo.recipes.grammar import Grammar
from speechkit.errors import DataError

__all__ = ["LANGUAGES", "SPECIAL", "Language", "language", "tokens"]

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "|"]  # <pad> is CTC's blank, | stands between words


@dataclass(frozen=True)
class Language:
    """One language of the embedded models and clips."""

    code: str
    name: str
    accents: tuple[str, ...]  # espeak-ng languages; one named twice is drawn twice as often
    letters: str = ""  # those of its models; "" takes the characters of the grammar: too many to list
    flite: bool = False  # whether flite speaks it


LANGUAGES = {
    row.code: row
    for row in (
        Language(
            "en",
            "English",
            ("en-us",) * 4 + ("en",) * 2 + ("en-gb-x-rp", "en-us-nyc", "en-gb-scotland", "en-gb-x-gbcwmd", "en-029"),
            "etaonihsrdlumwcfgypbvk'xjqz",
            flite=True,
        ),
        Language("zh", "Mandarin", ("cmn",)),
        Language("ko", "Korean", ("ko",)),
        Language("pt", "Portuguese", ("pt-br", "pt-br", "pt"), "abcdefghijklmnopqrstuvwxyzáâãàçéêíóôõú"),
        Language("pl", "Polish", ("pl",), "abcdefghijklmnoprstuwyząćęłńóśźż"),
        Language("cs", "Czech", ("cs",), "abcdefghijklmnopqrstuvwxyzáčďéěíňóřšťúůýž"),
        Language("sk", "Slovak", ("sk",), "abcdefghijklmnopqrstuvwxyzáäčďéíĺľňóôŕšťúýž"),
        Language("uk", "Ukrainian", ("uk",), "абвгґдеєжзиіїйклмнопрстуфхцчшщьюя'"),
    )
}


def language(code: str) -> Language:
    """The row of `code`. Raises DataError that lists the languages with a grammar."""
    if code not in LANGUAGES:
        raise DataError(f"no recipe for the language {code!r}; there are recipes for: {', '.join(LANGUAGES)}")
    return LANGUAGES[code]


@cache
def tokens(code: str) -> tuple[str, ...]:
    """Tokens of the language's models in the order of their ids: five special ones, then single characters."""
    letters = language(code).letters or "".join(sorted(set("".join(Grammar(code).vocabulary()))))
    return (*SPECIAL, *letters)
