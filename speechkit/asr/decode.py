"""Frame-wise log-probabilities → characters and words with times and confidences: greedy CTC in NumPy.

In: (F, V) float32, natural log, or the best path taken from it. Out: `Char` and `Word`. Knows no torch and no audio.

Confidence is the *maximum probability* measure of Laptev & Ginsburg 2022 (arXiv:2212.08703). A frame's confidence is
the probability of its winning token; a character's is the geometric mean over its run of frames (the mean of the
log-probabilities, so that a long vowel is not punished for being long); a word's is the minimum over its characters,
because one wrong character makes the word wrong. Blank frames are left out. The paper's entropy measures separate right
from wrong better, but need all V probabilities of every frame, which an hour of audio cannot keep; this one needs one.
These are scores for ranking and colouring, not calibrated probabilities.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from speechkit.subtitles import join_words
from speechkit.types import Char, Word

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from speechkit.asr.frames import FrameGrid

__all__ = ["Alphabet", "BestPath", "Run", "best_path", "decode", "runs", "text_of", "without_pad"]

_JAMO = re.compile(r"[\u1100-\u11ff]")  # Korean letters that NFC joins into syllables


@dataclass(frozen=True, slots=True)
class BestPath:
    """The winning token of each frame: `ids` (F,) int32 and its natural-log probability `scores` (F,) float32."""

    ids: NDArray[np.int32]
    scores: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, frames: slice) -> BestPath:
        return BestPath(self.ids[frames], self.scores[frames])


@dataclass(frozen=True, slots=True)
class Run:
    """One token as CTC emitted it: frames `first`..`last`, both included."""

    token: int
    first: int
    last: int
    confidence: float


@dataclass(frozen=True, slots=True)
class Alphabet:
    """What each token id means: `symbols[id]` is the text it writes, "" for blank, unknown and special tokens."""

    symbols: tuple[str, ...]
    blank: int
    delimiter: int | None

    @classmethod
    def from_tokenizer(cls, tokenizer: Any, size: int) -> Alphabet:
        """A transformers CTC tokenizer → its alphabet of `size` ids, in the letter case in which it decodes."""
        delimiter = tokenizer.word_delimiter_token
        silent = {*tokenizer.all_special_tokens, tokenizer.pad_token, tokenizer.unk_token} - {None, delimiter}
        tokens = tokenizer.convert_ids_to_tokens(list(range(size)))
        lower = bool(getattr(tokenizer, "do_lower_case", False))
        symbols = tuple("" if t in silent or t == delimiter else t.lower() if lower else t for t in tokens)
        at = tokens.index(delimiter) if delimiter in tokens else None
        return cls(symbols, int(tokenizer.pad_token_id), at)


def best_path(log_probs: NDArray[np.float32]) -> BestPath:
    """(F, V) natural log → the winning token of each frame and its log-probability, (F,) each."""
    ids = log_probs.argmax(axis=1)
    return BestPath(ids.astype(np.int32), np.take_along_axis(log_probs, ids[:, None], axis=1)[:, 0].astype(np.float32))


def runs(path: BestPath, blank: int) -> list[Run]:
    """Merge equal neighbours, then drop blanks (Graves et al. 2006, the map B). Confidence: see the file's head."""
    if not len(path):
        return []
    starts = np.flatnonzero(np.diff(path.ids, prepend=path.ids[0] - 1))  # (R,) first frame of every run
    ends = np.append(starts[1:], len(path.ids))
    # float64: a running sum over an hour of frames loses the short runs in float32
    means = np.add.reduceat(path.scores.astype(np.float64), starts) / (ends - starts)
    confidences = np.clip(np.exp(means), 0.0, 1.0)
    rows = zip(path.ids[starts].tolist(), starts.tolist(), ends.tolist(), confidences.tolist(), strict=True)
    return [Run(token, first, end - 1, confidence) for token, first, end, confidence in rows if token != blank]


def decode(path: BestPath, alphabet: Alphabet, grid: FrameGrid, duration_s: float) -> tuple[Word, ...]:
    """Best path → words with their characters. Times from `grid`, cut at `duration_s`.

    A character lasts from the first sample of its first frame to the last sample of its last, or until the next begins:
    fields overlap (25 ms every 20 ms in stock models), characters do not.

    A word ends at the delimiter; in scripts written without spaces every character is a word, and combining marks stay
    with the character they follow. Special and unknown tokens write nothing and do not split a word.
    """
    groups: list[list[Char]] = []
    open_word = False
    for run in runs(path, alphabet.blank):
        if run.token == alphabet.delimiter:
            open_word = False
            continue
        symbol = alphabet.symbols[run.token]
        if not symbol.strip():
            open_word = open_word and symbol == ""  # a vocabulary may hold a literal space: it separates words too
            continue
        char = Char(symbol, grid.start_s(run.first), grid.end_s(run.last, duration_s), run.confidence)
        if groups and groups[-1][-1].end_s > char.start_s:
            groups[-1][-1] = replace(groups[-1][-1], end_s=char.start_s)
        if open_word and (_is_mark(symbol) or not (_unspaced(symbol) or _unspaced(groups[-1][-1].text))):
            groups[-1].append(char)
        else:
            groups.append([char])
        open_word = True
    return tuple(_word(chars) for chars in groups)


def without_pad(words: tuple[Word, ...], pad_s: float, duration_s: float) -> tuple[Word, ...]:
    """Words with times on audio that had `pad_s` of silence before it → times on its own `duration_s` seconds."""

    def inside(time_s: float) -> float:
        return min(max(0.0, time_s - pad_s), duration_s)

    def moved(word: Word) -> Word:
        chars = (replace(char, start_s=inside(char.start_s), end_s=inside(char.end_s)) for char in word.chars)
        return replace(word, start_s=inside(word.start_s), end_s=inside(word.end_s), chars=tuple(chars))

    return tuple(moved(word) for word in words)


def text_of(words: tuple[Word, ...]) -> str:
    """The running text of words: spaces only where the script has them."""
    return join_words(word.text for word in words)


def _word(chars: list[Char]) -> Word:
    confidence = min(char.confidence for char in chars)
    text = "".join(char.text for char in chars)
    if _JAMO.search(text):  # a vocabulary of letters instead of syllables
        text = unicodedata.normalize("NFC", text)
    return Word(text, chars[0].start_s, chars[-1].end_s, confidence, tuple(chars))


@lru_cache(maxsize=8192)
def _unspaced(symbol: str) -> bool:
    """Whether the script of `symbol` is written without spaces; asked of `join_words`, which holds the definition."""
    return join_words((symbol, symbol)) == symbol + symbol


@lru_cache(maxsize=8192)
def _is_mark(symbol: str) -> bool:
    return unicodedata.category(symbol[0]).startswith("M")
