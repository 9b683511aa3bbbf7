"""Text → the form that models are trained on and scored in. One definition for both, so a score means what it says.

In: any string. Out: NFC, lower case, no punctuation, single spaces. Combining marks stay: in Hindi, Thai or Arabic they
are vowels, and dropping them would count different words as equal; `vowels=False` drops those that Arabic and Hebrew
may leave unwritten. Knows no tokenizer and no model.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

from speechkit.subtitles import UNSPACED

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "alphabet",
    "as_written",
    "from_jamo",
    "has_unspaced_script",
    "normalize",
    "split_words",
    "to_jamo",
]

# Letters that are another letter's typographic form: radicals that stand for an ideograph, ligatures, Arabic
# presentation forms, full and half width. Only these are folded (NFKC): folding everything would split Thai sara am in
# two and turn Korean letters into jamo.
_FORMS = re.compile(r"[\u2e80-\u2fdf\ufb00-\ufdff\ufe70-\ufeff\uff00-\uffef]+")
_APOSTROPHES = re.compile(r"[\u2019\u02bc\u2018\u00b4\u0060]")
_INNER_APOSTROPHE = re.compile(r"(?<=[^\W\d_])'(?=[^\W\d_])")
_UNSPACED_GAP = re.compile(rf"(?<={UNSPACED.pattern})\s+(?={UNSPACED.pattern})")
_TATWEEL = "\u0640"  # stretches an Arabic word on the line and says nothing
# vowel signs that writers of Arabic and Hebrew may leave out: harakat, dagger alif, Koranic signs; niqqud, cantillation
_OPTIONAL_VOWELS = re.compile(r"[\u0610-\u061a\u064b-\u0652\u0656-\u065f\u0670\u06d6-\u06ed\u0591-\u05bd\u05bf-\u05c7]")
# Hangul is arithmetic (Unicode 16, section 3.12): syllable = first + (lead * 21 + vowel) * 28 + tail
_HANGUL = 0xAC00
_LEADS = "ㄱㄲㄴㄷㄸㄹㅁㅂㅃㅅㅆㅇㅈㅉㅊㅋㅌㅍㅎ"
_VOWELS = "ㅏㅐㅑㅒㅓㅔㅕㅖㅗㅘㅙㅚㅛㅜㅝㅞㅟㅠㅡㅢㅣ"
_TAILS = " ㄱㄲㄳㄴㄵㄶㄷㄹㄺㄻㄼㄽㄾㄿㅀㅁㅂㅄㅅㅆㅇㅈㅊㅋㅌㅍㅎ"
_SYLLABLE = re.compile(rf"([{_LEADS}])([{_VOWELS}])(?:([{_TAILS[1:]}])(?![{_VOWELS}]))?")
_KEPT = "\ue000"  # stands for an apostrophe that stays; private-use characters are dropped from the input first


def normalize(text: str, language: str | None = None, *, vowels: bool = True) -> str:
    """Lower-case words separated by single spaces, without punctuation and symbols.

    An apostrophe between two letters stays, always as `'` (`don’t` → `don't`); other marks part words (`well-known` →
    `well known`). Invisible characters (soft hyphen, zero-width joiners) go. Spaces between two characters of a script
    written without them go too. Numbers stay as written. `normalize(normalize(x)) == normalize(x)`.

    `language` matters for casing only: `"tr"` and `"az"` lower I to ı; all others follow Unicode's default.
    `vowels=False` drops the vowel signs that Arabic and Hebrew may leave out: for comparing vowelled text with bare.
    """
    text = _FORMS.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text)
    if (language or "").split("-")[0] in ("tr", "az"):
        text = unicodedata.normalize("NFC", text).replace("İ", "i").replace("I", "ı")
    text = unicodedata.normalize("NFC", text.lower())
    text = "".join(_visible(char) for char in text)
    text = _INNER_APOSTROPHE.sub(_KEPT, _APOSTROPHES.sub("'", text))
    text = "".join(char if char == _KEPT or _is_letter(char) else " " for char in text)
    if not vowels:
        text = _OPTIONAL_VOWELS.sub("", text)
    text = " ".join(text.replace(_KEPT, "'").split())
    return unicodedata.normalize("NFC", _UNSPACED_GAP.sub("", text))


def as_written(text: str) -> str:
    """Only what no reader could see is levelled: NFC, single spaces. Case and punctuation stay: for raw error rates."""
    return " ".join(unicodedata.normalize("NFC", text).split())


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


def to_jamo(text: str) -> str:
    """Korean syllables → their letters (`한글` → `ㅎㅏㄴㄱㅡㄹ`); all else stays. The inverse of :func:`from_jamo`."""
    return "".join(_letters(char) if 0 <= ord(char) - _HANGUL < 11172 else char for char in text)


def from_jamo(text: str) -> str:
    """Korean letters → syllables; letters that form none stay. The inverse of :func:`to_jamo` of whole syllables."""
    return _SYLLABLE.sub(_syllable, text)


def alphabet(texts: Iterable[str], language: str | None = None) -> tuple[str, ...]:
    """The characters that the normalised texts are made of, sorted by code point, the space left out."""
    seen = {char for text in texts for char in normalize(text, language)}
    return tuple(sorted(seen - {" "}))


def _visible(char: str) -> str:
    """`char`, or nothing for what no reader sees: format and private-use characters, tatweel."""
    return "" if char == _TATWEEL or unicodedata.category(char) in ("Cf", "Co", "Cs") else char


def _is_letter(char: str) -> bool:
    return unicodedata.category(char)[0] in "LMN"


def _letters(syllable: str) -> str:
    block, tail = divmod(ord(syllable) - _HANGUL, len(_TAILS))
    lead, vowel = divmod(block, len(_VOWELS))
    return _LEADS[lead] + _VOWELS[vowel] + _TAILS[tail].strip()


def _syllable(found: re.Match[str]) -> str:
    lead, vowel = _LEADS.index(found[1]), _VOWELS.index(found[2])
    return chr(_HANGUL + (lead * len(_VOWELS) + vowel) * len(_TAILS) + _TAILS.index(found[3] or " "))
