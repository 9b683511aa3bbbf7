"""Words ↔ the tokens of a CTC model. In: an `Alphabet`. Out: token ids that write a word, and what each token does."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

import numpy as np

from speechkit.text import normalize

if TYPE_CHECKING:
    from speechkit.asr.decode import Alphabet

__all__ = ["Speller"]


class Speller:
    """`boundary` and `silent` (V + 2,) say which tokens part words and which write nothing; ids V and V + 1, which a
    search uses for "no token", are silent. Where the alphabet has letters of one case only, case is ignored.
    """

    def __init__(self, alphabet: Alphabet) -> None:
        self.width = len(alphabet.symbols) + 2
        symbols = [*alphabet.symbols, "", ""]
        self.boundary = np.array([symbol != "" and not symbol.strip() for symbol in symbols])
        if alphabet.delimiter is not None:
            self.boundary[alphabet.delimiter] = True
        self.silent = np.array([not symbol for symbol in symbols]) & ~self.boundary
        written = "".join(symbols)
        self.folds = written == written.lower() or written == written.upper()
        self.letters: dict[str, int] = {}
        for token, symbol in enumerate(symbols):
            if not self.silent[token] and not self.boundary[token]:
                self.letters.setdefault(self.fold(symbol), token)
        parting = np.flatnonzero(self.boundary)
        self.space = alphabet.delimiter if alphabet.delimiter is not None else next(iter(parting.tolist()), None)
        self._longest = max(map(len, self.letters), default=0)

    def fold(self, text: str) -> str:
        return text.lower() if self.folds else text

    def spell(self, text: str) -> list[int] | None:
        """Tokens that write `text`, the longest symbol first; None when some of it cannot be written."""
        text, tokens, at = self.fold(text), [], 0
        while at < len(text):
            if text[at] == " " and self.space is not None:
                tokens.append(self.space)
                at += 1
                continue
            for size in range(min(self._longest, len(text) - at), 0, -1):
                token = self.letters.get(text[at : at + size])
                if token is not None:
                    break
            else:
                return None
            tokens.append(token)
            at += size
        return tokens

    def spell_freely(self, text: str) -> list[int] | None:
        """As :meth:`spell`, and where `text` cannot be written as it stands, its normalised form."""
        plain = " ".join(unicodedata.normalize("NFC", text).split())
        return self.spell(plain) or self.spell(normalize(plain)) or None
