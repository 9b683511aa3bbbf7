"""Forced alignment: when was each word of a given text spoken? Text and log-probabilities in, `Word`s out.

Three steps, for a list of texts. `prepare` writes them in the model's alphabet (see `targets`). `Columns.take` keeps of
(F, V) log-probabilities what the texts need, so that an hour under 3,500 ideographs stays small. `place` searches
(exactly, whatever the length: see `viterbi`) and turns frames into seconds. `align` is all three for one text. Knows no
torch and no audio.

What the alphabet cannot spell is a *star*, a token that stands for anything. Its emission at a frame is
log max(p(blank), 1 - p(blank)) - `STAR_COST`: none or some token, whichever is likelier. The star of Pratap et al. 2022
(star temporal classification, arXiv:2201.12208) is the sum over all tokens, 1 - p(blank): it pays for every blank frame
inside the unspelt word, and a CTC path is mostly blank frames, so it ends too early. The star of the MMS aligner
(Pratap et al. 2023, arXiv:2305.13516; its code adds a column of zeros) is certain in every frame: it takes the pauses
beside the word too. A small cost per frame keeps the star within the word. Starring each word of the embedded clips in
turn moved its boundaries by 7 ms on average, and by 87 and 33 ms with those two (`kernels/bench/align.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from speechkit.asr import viterbi
from speechkit.asr.targets import STAR, spell
from speechkit.errors import DataError
from speechkit.types import Char, Word

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from speechkit.asr.decode import Alphabet
    from speechkit.asr.frames import FrameGrid
    from speechkit.asr.targets import Spelling

    Emissions = NDArray[np.float32]

__all__ = ["STAR_COST", "Columns", "align", "place", "prepare"]

STAR_COST = 0.1  # natural log; anything from 0.05 to 0.3 places the words of the embedded clips alike
BATCH_BYTES = 32 * 2**20  # padded emissions and back-pointers of the texts searched side by side
POSITIVE = 1e-3  # the rounding of a log-softmax may pass 0 by less


def align(
    log_probs: NDArray[Any],
    text: str,
    alphabet: Alphabet,
    grid: FrameGrid,
    duration_s: float,
    language: str | None = None,
) -> tuple[Word, ...]:
    """(F, V) natural log and the text spoken in them → the text's words with times, confidence and spelt characters.

    Confidence is that of `decode`: a character's is the geometric mean of its token's probability over the frames of
    the path that belong to it, a word's is its least character's; a word with a star has 0.0, as no one heard it. Times
    are cut at `duration_s`, and characters do not overlap. `language` matters for casing only ("tr", "az").

    Raises DataError: what is no str, empty text, text of which nothing is in the alphabet, text that needs more frames
    than there are, log-probabilities of another width, with NaN, above 0, or that leave the text no probability.
    """
    spellings, columns = prepare([text], alphabet, language)
    return place([columns.take(log_probs)], spellings, columns, grid, [duration_s])[0]


def prepare(texts: Sequence[str], alphabet: Alphabet, language: str | None = None) -> tuple[list[Spelling], Columns]:
    """Texts → their spellings, and the columns that they need together.

    Raises DataError for a text that cannot be spelt; with more than one, with its number.
    """
    spellings = []
    for number, text in enumerate(texts, 1):
        try:
            spellings.append(spell(text, alphabet, language))
        except DataError as error:
            raise DataError(_of(number, texts) + str(error)) from error
    return spellings, Columns.of(spellings, alphabet)


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of (F, V) log-probabilities that some texts need: `ids` (U,) ascending; the star's column follows."""

    ids: NDArray[np.int64]
    blank: int  # the blank's place among `ids`
    size: int  # V

    @classmethod
    def of(cls, spellings: Iterable[Spelling], alphabet: Alphabet) -> Columns:
        used = {int(token) for spelling in spellings for token in np.unique(spelling.tokens)}
        ids = np.array(sorted((used | {alphabet.blank}) - {STAR}), np.int64)
        return cls(ids, int(np.searchsorted(ids, alphabet.blank)), len(alphabet.symbols))

    def take(self, log_probs: NDArray[Any]) -> Emissions:
        """(F, V) natural log → (F, U + 1) float32. Raises DataError for a wrong shape, NaN or values above 0."""
        rows = np.asarray(log_probs)
        if rows.ndim != 2 or rows.shape[1] != self.size:
            raise DataError(
                f"log_probs has shape {rows.shape}; the alphabet of {self.size} tokens wants (F, {self.size})"
            )
        top = rows.max(axis=1)  # hands a NaN on
        if np.isnan(top).any():
            bad = np.flatnonzero(np.isnan(top))
            raise DataError(
                f"log_probs has NaN in {len(bad)} of {len(top)} frames, first in frame {bad[0]}: a model in half "
                'precision can overflow; load it with dtype="float32"'
            )
        if (top > POSITIVE).any():
            raise DataError(
                f"log_probs reaches {top.max():.3g}; a log-probability is at most 0: apply log_softmax first"
            )
        out = np.empty((len(rows), len(self.ids) + 1), np.float32)
        out[:, :-1] = rows[:, self.ids]
        out[:, -1] = _star(out[:, self.blank])
        return out

    def targets(self, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """(L,) token ids → (L,) their columns in what :meth:`take` returns."""
        return np.where(tokens == STAR, len(self.ids), np.searchsorted(self.ids, tokens))


def place(
    emissions: Sequence[Emissions],
    spellings: Sequence[Spelling],
    columns: Columns,
    grid: FrameGrid,
    durations_s: Sequence[float],
) -> list[tuple[Word, ...]]:
    """(F_b, U + 1) of each audio, from `columns.take`, and its spelling → its words; short audio in batches.

    Raises DataError where a text needs more frames than its audio has, or has probability 0; with more than one
    audio, with its number.
    """
    for number, (rows, spelling) in enumerate(zip(emissions, spellings, strict=True), 1):
        needed = viterbi.frames_needed(spelling.tokens)
        if needed > len(rows):
            raise DataError(_of(number, emissions) + _too_long(spelling, needed, len(rows), grid))
    words: list[tuple[Word, ...]] = [()] * len(emissions)
    for chosen in _batches([len(rows) for rows in emissions], spellings, len(columns.ids) + 1):
        paths = _search([emissions[i] for i in chosen], [columns.targets(spellings[i].tokens) for i in chosen], columns)
        for item, owners, score in zip(chosen, paths.owners, paths.scores.tolist(), strict=True):
            if score == -np.inf:
                raise DataError(
                    f"{_of(item + 1, emissions)}every path through the text has probability 0: log_probs has a -inf "
                    "wherever one could pass. Is it the text of this audio?"
                )
            spans = _Spans.of(owners[: len(emissions[item])], emissions[item], columns.targets(spellings[item].tokens))
            words[item] = _words(spellings[item], spans, grid, durations_s[item])
    return words


def _star(blank: Emissions) -> Emissions:
    """log p(blank) (F,) → the star's emission (F,); see the file's head."""
    share = np.exp(np.minimum(blank, 0.0))
    return np.log(np.maximum(share, 1.0 - share)) - np.float32(STAR_COST)


def _too_long(spelling: Spelling, needed: int, frames: int, grid: FrameGrid) -> str:
    return (
        f"the text needs at least {_frames(needed, grid)}: one for each of {len(spelling.tokens)} letters and word "
        f"gaps, one more between equal neighbours. The audio has {_frames(frames, grid)}. "
        "Is it the text of this audio alone?"
    )


def _frames(count: int, grid: FrameGrid) -> str:
    return f"{count} frame{'s' if count != 1 else ''} ({grid.samples(count) / grid.rate:.3f} s)"


def _of(number: int, items: Sequence[Any]) -> str:
    return f"item {number} of {len(items)}: " if len(items) > 1 else ""


def _batches(frames: Sequence[int], spellings: Sequence[Spelling], width: int) -> Iterator[list[int]]:
    """Items of like length together, as many as `BATCH_BYTES` hold; a long one alone."""
    chosen: list[int] = []
    tokens = 0
    for item in np.argsort(frames, kind="stable").tolist():
        longest = max(tokens, len(spellings[item].tokens))
        if chosen and (len(chosen) + 1) * frames[item] * (4 * width + longest) > BATCH_BYTES:
            yield chosen
            chosen, longest = [], len(spellings[item].tokens)
        chosen.append(item)
        tokens = longest
    if chosen:
        yield chosen


def _search(rows: Sequence[Emissions], targets: Sequence[NDArray[np.int64]], columns: Columns) -> viterbi.Paths:
    frames, tokens = np.array([len(row) for row in rows]), np.array([len(target) for target in targets])
    if len(rows) == 1:  # an hour is not copied
        return viterbi.search(rows[0][None], targets[0][None], blank=columns.blank)
    padded = np.zeros((len(rows), frames.max(), rows[0].shape[1]), np.float32)
    ids = np.zeros((len(rows), tokens.max()), np.int64)
    for item, (row, target) in enumerate(zip(rows, targets, strict=True)):
        padded[item, : len(row)], ids[item, : len(target)] = row, target
    return viterbi.search(padded, ids, frames, tokens, columns.blank)


@dataclass(frozen=True, slots=True)
class _Spans:
    """Of each token (L,): its first and last frame on the path, and the geometric mean of its probability there."""

    first: list[int]
    last: list[int]
    confidence: list[float]

    @classmethod
    def of(cls, owners: NDArray[np.int32], emissions: Emissions, targets: NDArray[np.int64]) -> _Spans:
        frames = np.flatnonzero(owners >= 0)
        token = owners[frames]  # ascending, and every token occurs
        starts = np.searchsorted(token, np.arange(len(targets)))
        ends = np.append(starts[1:], len(frames))
        # float64: a running sum over an hour of frames loses the short runs in float32
        sums = np.add.reduceat(emissions[frames, targets[token]].astype(np.float64), starts)
        confidence = np.clip(np.exp(sums / (ends - starts)), 0.0, 1.0)
        return cls(frames[starts].tolist(), frames[ends - 1].tolist(), confidence.tolist())


def _words(spelling: Spelling, spans: _Spans, grid: FrameGrid, duration_s: float) -> tuple[Word, ...]:
    starts = [grid.start_s(spans.first[letter.first]) for word in spelling.words for letter in word.letters]
    limits = iter([*starts[1:], duration_s])
    words = []
    for word in spelling.words:
        heard = []
        for letter in word.letters:
            start_s = grid.start_s(spans.first[letter.first])
            end_s = min(grid.end_s(spans.last[letter.stop - 1], duration_s), next(limits))
            confidence = 0.0 if letter.starred else min(spans.confidence[letter.first : letter.stop])
            heard.append(Char(letter.text, start_s, end_s, confidence))
        chars = tuple(char for char, letter in zip(heard, word.letters, strict=True) if not letter.starred)
        least = min(char.confidence for char in heard)
        words.append(Word(word.text, heard[0].start_s, heard[-1].end_s, least, chars))
    return tuple(words)
