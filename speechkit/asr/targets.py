"""A text as people write it → the tokens of a model's alphabet, each with the letters that it stands for.

In: any text. Out: `Spelling`. What is aligned follows `text.normalize`: letter case is the alphabet's, punctuation is
silent and parts what it stands between, an apostrophe counts inside a word only. What is shown is the text as given:
each word keeps its capitals and its punctuation. Letters that the alphabet lacks are tried in their plain forms
(`é` → `e`, `ﬁ` → `f i`); digits, symbols and foreign script become a star. Knows no audio and no times.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from speechkit.errors import DataError
from speechkit.text import has_unspaced_script

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from speechkit.asr.decode import Alphabet

__all__ = ["STAR", "Letter", "Spelling", "SpeltWord", "spell"]

STAR = -1  # the token of what cannot be spelt
NAMED = 8  # words that a warning names
_APOSTROPHES = "'\u2019\u02bc\u2018\u00b4\u0060"
_SPOKEN = "%‰&@#§"  # punctuation to Unicode, but read aloud
_TATWEEL = "\u0640"  # stretches an Arabic word on the line
_UNSPOKEN = "|" + _TATWEEL  # a symbol and a letter to Unicode, but never read aloud


@dataclass(frozen=True, slots=True)
class Letter:
    """A stretch of a word's text and the tokens `first`..`stop - 1` that spell it, or the star that stands for it."""

    text: str
    first: int
    stop: int
    starred: bool


@dataclass(frozen=True, slots=True)
class SpeltWord:
    """A word as the text has it, punctuation included, and its letters."""

    text: str
    letters: tuple[Letter, ...]

    @property
    def starred(self) -> bool:
        return any(letter.starred for letter in self.letters)


@dataclass(frozen=True, slots=True)
class Spelling:
    """`text` with single spaces; `tokens` (L,) ids, word gaps and `STAR` among them; `words` point into them."""

    text: str
    tokens: NDArray[np.int64]
    words: tuple[SpeltWord, ...]

    @property
    def warnings(self) -> tuple[str, ...]:
        """One line that names the words with a star, if there are any."""
        starred = [_bare(word.text) for word in self.words if word.starred]
        if not starred:
            return ()
        named = ", ".join(starred[:NAMED]) + (f" and {len(starred) - NAMED} more" if len(starred) > NAMED else "")
        return (
            f"not in the model's alphabet: {named}; {len(starred)} of {len(self.words)} words are placed by what is "
            "around them, with confidence 0",
        )


def spell(text: str, alphabet: Alphabet, language: str | None = None) -> Spelling:
    """Text → its tokens in `alphabet`. `language` matters for casing only: "tr" and "az" lower I to ı.

    A word is what stands between spaces; in scripts written without spaces, a character with its marks. What has no
    letter (a dash between words) stays with the word before it, or with the first. Word gaps are tokens where the text
    has a space and the alphabet a delimiter, except between two characters of an unspaced script.
    Raises DataError for what is no str, for text without words and for text of which nothing is in the alphabet.
    """
    if not isinstance(text, str):
        raise DataError(f"the text is {_short(repr(text))}, no str; give the words that are spoken in the audio")
    speller = _Speller(alphabet, language)
    text = " ".join(unicodedata.normalize("NFC", text).split())
    for word, spaced in _split(text):
        speller.add(word, spaced)
    if not speller.words:
        raise DataError(f"the text is {text!r}, without a word; give the words that are spoken in the audio")
    if all(letter.starred for word in speller.words for letter in word.letters):
        known = "".join(symbol for symbol in alphabet.symbols if symbol.strip())
        raise DataError(
            f"nothing in the text {_short(text)!r} is in the model's alphabet ({_short(known)}): "
            "use a model of the text's language, or spell it in the model's letters"
        )
    return Spelling(text, np.array(speller.tokens, np.int64), tuple(speller.words))


class _Speller:
    """Collects tokens and words, one word at a time."""

    def __init__(self, alphabet: Alphabet, language: str | None) -> None:
        symbols = [unicodedata.normalize("NFC", symbol) for symbol in alphabet.symbols]  # as the text is
        # the first of equal symbols counts
        self.ids = {symbol: token for token, symbol in reversed(list(enumerate(symbols))) if symbol.strip()}
        self.gap = alphabet.delimiter
        if self.gap is None and " " in symbols:
            self.gap = symbols.index(" ")
        self.dotless = (language or "").split("-")[0] in ("tr", "az")
        self.known: dict[tuple[str, str], tuple[int, ...]] = {}
        self.tokens: list[int] = []
        self.words: list[SpeltWord] = []
        self.before = ""  # text without a letter at the very beginning

    def add(self, text: str, spaced: bool) -> None:
        """One word; `spaced`: a space stands before it."""
        letters = self._letters(text)
        if not letters:
            self._attach(f" {text}" if spaced else text)
            return
        if self.words and spaced and not _run_together(self.words[-1].letters[-1].text, letters[0].text):
            self._part()
        spelt = []
        for letter in letters:
            if letter.parted:
                self._part()
            first = len(self.tokens)
            self.tokens.extend(letter.ids or (STAR,))
            spelt.append(Letter(letter.text, first, len(self.tokens), not letter.ids))
        self.words.append(SpeltWord(f"{self.before} {text}".lstrip(), tuple(spelt)))
        self.before = ""

    def _attach(self, silent: str) -> None:
        if self.words:
            last = self.words[-1]
            self.words[-1] = SpeltWord(last.text + silent, last.letters)
        else:
            self.before = (self.before + silent).lstrip()

    def _part(self) -> None:
        if self.gap is not None:
            self.tokens.append(self.gap)

    def _letters(self, word: str) -> list[_Sound]:
        """The sounding letters of a word, with what is silent in between decided on."""
        letters: list[_Sound] = []
        silent = ""
        for char, lower in zip(word, self._lower(word), strict=True):
            if _is_mark(char):
                if letters and not silent:
                    letters[-1] = letters[-1].marked(char, self.ids.get(char))
            elif _is_silent(char):
                silent += char
            else:
                ids = self._ids(char, lower)
                if letters and not ids and not letters[-1].ids:  # one star for all of 3.14
                    letters[-1] = _Sound(letters[-1].text + silent + char, (), letters[-1].parted)
                else:
                    parted = bool(letters) and self._parts(letters, silent, bool(ids))
                    letters.append(_Sound(char, ids, parted))
                silent = ""
        return letters

    def _parts(self, letters: list[_Sound], silent: str, spelt: bool) -> bool:
        """Whether silent text inside a word leaves a word gap. A single sign that the alphabet has becomes a letter."""
        seen = "".join(char for char in silent if not _is_invisible(char))
        apostrophe = len(seen) == 1 and seen in _APOSTROPHES
        sign = silent if silent in self.ids else "'" if apostrophe else seen
        if sign in self.ids and spelt and letters[-1].ids:
            letters.append(_Sound(silent, (self.ids[sign],), False))
            return False
        return bool(seen) and not apostrophe

    def _lower(self, word: str) -> list[str]:
        """The lower-case form of each character; of the word as a whole where that keeps its length (final sigma)."""
        if self.dotless:
            word = word.replace("İ", "i").replace("I", "ı")
        whole = word.lower()
        return list(whole) if len(whole) == len(word) else [char.lower() for char in word]

    def _ids(self, char: str, lower: str) -> tuple[int, ...]:
        """A character's tokens, () if it has none: as it is, in the other case, in its plain form."""
        found = self.known.get((char, lower))
        if found is None:
            found = self.known[char, lower] = next(filter(None, map(self._exact, _forms(char, lower))), ())
        return found

    def _exact(self, form: str) -> tuple[int, ...]:
        """Tokens of every character of `form` or (); a mark that the alphabet lacks is left out."""
        kept = [char for char in form if char in self.ids or not _is_mark(char)]
        return tuple(self.ids[char] for char in kept) if all(char in self.ids for char in kept) else ()


@dataclass(frozen=True, slots=True)
class _Sound:
    """A letter on its way: text, tokens (none: a star), and whether a word gap comes before it."""

    text: str
    ids: tuple[int, ...]
    parted: bool

    def marked(self, mark: str, token: int | None) -> _Sound:
        ids = (*self.ids, token) if self.ids and token is not None else self.ids
        return _Sound(self.text + mark, ids, self.parted)


def _forms(char: str, lower: str) -> Iterator[str]:
    cased = (char, lower, char.upper())
    yield from cased
    if char >= "\ufb00":  # ligatures, Arabic presentation forms, full and half width: as in `text.normalize`
        yield from (unicodedata.normalize("NFKC", form) for form in cased)
    yield from (unicodedata.normalize("NFD", form) for form in cased)


def _split(text: str) -> Iterator[tuple[str, bool]]:
    """Words with their punctuation, and whether a space stands before each."""
    for piece in text.split():
        part, last, spaced = "", "", True
        for char in piece:
            sounds = not (_is_silent(char) or _is_mark(char))
            opens = unicodedata.category(char) in ("Ps", "Pi")
            if last and (has_unspaced_script(last + char) if sounds else opens and has_unspaced_script(last)):
                yield part, spaced
                part, last, spaced = "", "", False
            part += char
            last = char if sounds else last
        yield part, spaced


def _run_together(left: str, right: str) -> bool:
    return has_unspaced_script(left[-1]) and has_unspaced_script(right[0])


def _is_mark(char: str) -> bool:
    return unicodedata.category(char)[0] == "M"


def _is_silent(char: str) -> bool:
    """Punctuation, spaces and what no reader sees; not the signs that are read aloud."""
    category = unicodedata.category(char)
    return char in _UNSPOKEN or category == "Sk" or (category[0] in "PZC" and char not in _SPOKEN)


def _is_invisible(char: str) -> bool:
    """Format and private-use characters and tatweel, as in `text.normalize`: they part nothing."""
    return char == _TATWEEL or unicodedata.category(char) in ("Cf", "Co", "Cs")


def _bare(word: str) -> str:
    """A word without the punctuation around it."""
    sounding = [at for at, char in enumerate(word) if not _is_silent(char)]
    return word[sounding[0] : sounding[-1] + 1]


def _short(text: str, most: int = 40) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
