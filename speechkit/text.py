"""Text → the form that models are trained on and scored in. One definition for both, so a score means what it says.

In: any string. Out: NFC, lower case, no punctuation, single spaces. Combining marks stay: in Hindi, Thai or Arabic they
are vowels, and dropping them would count different words as equal. Knows no tokenizer and no model.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

from speechkit.subtitles import UNSPACED

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["alphabet", "has_unspaced_script", "normalize", "split_words"]

# Letters that are another letter's typographic form: ligatures, Arabic presentation forms, full and half width. Only
# these are folded (NFKC): folding everything would split Thai sara am in two and turn Korean letters into jamo.
_FORMS = re.compile(r"[\ufb00-\ufdff\ufe70-\ufeff\uff00-\uffef]+")
_APOSTROPHES = re.compile(r"[\u2019\u02bc\u2018\u00b4\u0060]")
_INNER_APOSTROPHE = re.compile(r"(?<=[^\W\d_])'(?=[^\W\d_])")
_UNSPACED_GAP = re.compile(rf"(?<={UNSPACED.pattern})\s+(?={UNSPACED.pattern})")
_TATWEEL = "\u0640"  # stretches an Arabic word on the line and says nothing
_KEPT = "\ue000"  # stands for an apostrophe that stays; private-use characters are dropped from the input first


def normalize(text: str, language: str | None = None) -> str:
    """Lower-case words separated by single spaces, without punctuation and symbols.

    An apostrophe between two letters stays, always as `'` (`don’t` → `don't`); other marks part words (`well-known` →
    `well known`). Invisible characters (soft hyphen, zero-width joiners) go. Spaces between two characters of a script
    written without them go too. Numbers stay as written. `normalize(normalize(x)) == normalize(x)`.

    `language` matters for casing only: `"tr"` and `"az"` lower I to ı; all others follow Unicode's default.
    """
    text = _FORMS.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text)
    if (language or "").split("-")[0] in ("tr", "az"):
        text = unicodedata.normalize("NFC", text).replace("İ", "i").replace("I", "ı")
    text = unicodedata.normalize("NFC", text.lower())
    text = "".join(_visible(char) for char in text)
    text = _INNER_APOSTROPHE.sub(_KEPT, _APOSTROPHES.sub("'", text))
    text = "".join(char if char == _KEPT or _is_letter(char) else " " for char in text)
    text = " ".join(text.replace(_KEPT, "'").split())
    return unicodedata.normalize("NFC", _UNSPACED_GAP.sub("", text))


def split_words(text: str) -> list[str]:
    """Normalised text → words; in scripts written without spaces every character, with its marks, is a word."""
    words: list[str] = []
    for piece in text.split():
        alone = True  # the next character starts a word
        for index, char in enumerate(piece):
            if index and unicodedata.category(char)[0] == "M":
                words[-1] += char
                continue
            unspaced = has_unspaced_script(char)
            if alone or unspaced:
                words.append(char)
            else:
                words[-1] += char
            alone = unspaced
    return words


def has_unspaced_script(text: str) -> bool:
    """Whether any character belongs to a script written without spaces (Chinese, Japanese kana, Thai, Lao, Khmer)."""
    return UNSPACED.search(text) is not None


def alphabet(texts: Iterable[str], language: str | None = None) -> tuple[str, ...]:
    """The characters that the normalised texts are made of, sorted by code point, the space left out."""
    seen = {char for text in texts for char in normalize(text, language)}
    return tuple(sorted(seen - {" "}))


def _visible(char: str) -> str:
    """`char`, or nothing for what no reader sees: format and private-use characters, tatweel."""
    return "" if char == _TATWEEL or unicodedata.category(char) in ("Cf", "Co", "Cs") else char


def _is_letter(char: str) -> bool:
    return unicodedata.category(char)[0] in "LMN"
