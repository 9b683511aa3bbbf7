"""Which languages are the same or kin. In: a language code (ISO 639-1). Out: its bare code, the name of its family.

Branches of Indo-European stand as families of their own, because that is the kinship that transfer follows: Polish and
Ukrainian share sounds and words, Polish and Hindi share an ancestor. After Glottolog 5; a table, to be extended.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["FAMILIES", "UNKNOWN", "bare_code", "family_of"]

UNKNOWN = "unknown family"

FAMILIES: Mapping[str, str] = {
    code: family
    for family, codes in {
        "Slavic": "pl cs sk uk ru be bg sr hr bs sl mk",
        "Baltic": "lt lv",
        "Germanic": "en de nl sv da nb nn no is af",
        "Romance": "pt es gl ca fr it ro",
        "Celtic": "ga cy br gd",
        "Hellenic": "el",
        "Indo-Iranian": "hi ur bn mr gu pa ne fa ps ku",
        "Uralic": "fi et hu",
        "Turkic": "tr az kk uz ky tt",
        "Semitic": "ar he mt am",
        "Sino-Tibetan": "zh yue my bo",
        "Koreanic": "ko",
        "Japonic": "ja",
        "Kra-Dai": "th lo",
        "Austroasiatic": "vi km",
        "Austronesian": "id ms tl jv",
        "Dravidian": "ta te kn ml",
        "Bantu": "sw rw zu xh",
    }.items()
    for code in codes.split()
}


def bare_code(language: str | None) -> str:
    """`pt-BR` and `pt_br` → `pt`; "" for None."""
    return (language or "").replace("_", "-").split("-")[0].lower()


def family_of(language: str | None, more: Mapping[str, str] | None = None) -> str:
    """The family of a language (a region may follow the code); `more` adds to the table or overrides it."""
    return {**FAMILIES, **(more or {})}.get(bare_code(language), UNKNOWN)
