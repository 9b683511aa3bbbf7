"""CTC prefix beam search, batched: log-probabilities → the most probable texts, with a language model and hotwords.

In: (F, V) natural-log probabilities per clip, or `Emissions`. Out: `Hypothesis`, best first. Knows no torch, no audio.

Greedy search takes the best token of each frame; a text's probability under CTC is a sum over all the frame paths that
spell it, and it is the text that a language model and a list of hotwords have something to say about. How the search
goes stands in `search.py`, what of the frames it sees in `emissions.py`, what else it listens to in `fusion.py`.
"""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from speechkit.asr.decode import BestPath, decode, text_of
from speechkit.asr.emissions import Emissions
from speechkit.asr.frames import FrameGrid
from speechkit.asr.fusion import fuse
from speechkit.asr.lm import NGram
from speechkit.asr.search import Found, Search
from speechkit.errors import DataError, PlanError
from speechkit.subtitles import UNSPACED
from speechkit.text import has_unspaced_script

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from speechkit.asr.decode import Alphabet

__all__ = ["BeamDecoder", "BeamOptions", "Hypothesis", "Wanted", "choose"]

Wanted = Literal["greedy", "beam"] | None  # or a BeamDecoder, or BeamOptions: see `choose`

HELD = 1 << 23  # prefixes of a batch times its frames: 16 bytes of trace each, so 128 MiB; a longer clip goes alone
UNSPACED_ALONE = re.compile(f"(?:{UNSPACED.pattern})+")
CLIPS = 32  # clips per batch: beyond that a step's arrays leave the fast cache


@dataclass(frozen=True)
class BeamOptions:
    """How wide to search, what to leave out, and what else than the sound to listen to. Raises PlanError."""

    # prefixes kept per clip and frame
    beam: int = 32
    # tokens less probable than this in a frame are taken as impossible there; the frame's best and the blank stay
    token_threshold: float = 1e-3
    # frames whose blank is more probable than this hold nothing else; 1 visits every frame
    blank_skip: float = 0.999
    # weight of the language model's natural-log probability
    lm_weight: float = 1.0
    # nats for each word (character, for a character model): makes up for what every word costs in the language model
    word_bonus: float = 2.0
    # nats for each character of a hotword
    hotword_weight: float = 1.0
    # hypotheses returned per clip, best first
    n_best: int = 1

    def __post_init__(self) -> None:
        for name in ("beam", "n_best"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise PlanError(f"{name} is {value!r}; it must be a whole number, 1 or more")
        if self.n_best > self.beam:
            raise PlanError(f"n_best is {self.n_best} and beam is {self.beam}: widen the beam to at least n_best")
        for name in ("token_threshold", "blank_skip"):
            if not 0 <= getattr(self, name) <= 1:
                raise PlanError(f"{name} is {getattr(self, name)!r}; it is a probability, 0 to 1")
        for name in ("lm_weight", "word_bonus", "hotword_weight"):
            if not math.isfinite(getattr(self, name)):
                raise PlanError(f"{name} is {getattr(self, name)!r}; it must be a finite number")
        if self.lm_weight < 0:
            raise PlanError(f"lm_weight is {self.lm_weight}; below 0 it would reward what the language model denies")


@dataclass(frozen=True)
class Hypothesis:
    """One reading of a clip. Scores are natural logarithms.

    `total` = `acoustic` + lm_weight · `lm` + word_bonus · words + `hotwords`, where `acoustic` is the probability of
    the text, summed over all paths that the search kept. Token sequences of one text, with a space more at the end or
    between words, are one hypothesis; `tokens`, and with them `lm` and `hotwords`, are the most probable of these.
    `path` is the best single path that says `tokens` (Viterbi, followed beam by beam), so `decode(path, …)` gives words
    with times and confidences as it does for greedy search, and `runs(path, blank)` the frames of each token.
    """

    text: str
    tokens: tuple[int, ...]
    total: float
    acoustic: float
    lm: float
    hotwords: float
    path: BestPath = field(repr=False, compare=False)


class BeamDecoder:
    """A beam search made ready for one alphabet, language model and list of hotwords; used as often as you like.

    `lm` is an `NGram` or the path of an ARPA file. `notes` says what of them the alphabet cannot write; each note is
    warned about, too. Raises DataError for what cannot be used at all. Safe to use from several threads.
    """

    def __init__(
        self,
        alphabet: Alphabet,
        options: BeamOptions | None = None,
        lm: NGram | str | os.PathLike[str] | None = None,
        hotwords: Sequence[str] | None = None,
    ) -> None:
        self.alphabet, self.options = alphabet, options or BeamOptions()
        hotwords = () if hotwords is None else hotwords
        model = NGram.read(lm) if lm is not None and not isinstance(lm, NGram) else lm
        self.fusions, self.notes = fuse(alphabet, self.options, model, hotwords)
        self.lm, self.hotwords = model, tuple(hotwords)

    def __repr__(self) -> str:
        parts = [f"beam {self.options.beam}", *([repr(self.lm)] if self.lm else [])]
        parts += [f"{len(self.hotwords)} hotwords"] if self.hotwords else []
        return f"BeamDecoder({', '.join(parts)})"

    @cached_property
    def identity(self) -> str:
        """Changes with anything that may change a text: what a resumed batch compares."""
        digest = hashlib.sha256(repr((self.options, self.hotwords)).encode())
        if self.lm is not None:
            digest.update("\n".join((self.lm.unit, *self.lm.words)).encode())
            # the keys say which n-grams there are, and where a level ends follows from them
            for values in (self.lm.trie.keys, self.lm.logp, self.lm.backoff):
                digest.update(values.tobytes())
        return f"beam-{digest.hexdigest()[:12]}"

    def emissions(self, log_probs: NDArray[np.floating]) -> Emissions:
        """(F, V) natural log → what the search needs of it; see `Emissions.of` for the errors."""
        logp = np.asarray(log_probs)
        if logp.ndim == 2 and logp.shape[1] != len(self.alphabet.symbols):
            raise DataError(f"log-probabilities have {logp.shape[1]} tokens, the alphabet {len(self.alphabet.symbols)}")
        options = self.options
        return Emissions.of(logp, self.alphabet.blank, options.token_threshold, options.blank_skip)

    def decode(self, clips: Sequence[Any] | NDArray[np.floating]) -> list[tuple[Hypothesis, ...]]:
        """Clips, each (F, V) log-probabilities or `Emissions` (or one array (B, F, V)) → hypotheses, best first.

        A clip's result does not depend on the clips beside it. Raises DataError, with the clip's number, for what
        `Emissions.of` refuses.
        """
        ready = [clip if isinstance(clip, Emissions) else self._numbered(clip, b) for b, clip in enumerate(clips, 1)]
        results: list[tuple[Hypothesis, ...]] = [()] * len(ready)
        for batch in _batches(ready, self.options.beam):
            search = Search([ready[b] for b in batch], self.alphabet, self.options.beam, self.fusions)
            for b, row in zip(batch, search.run(self.options.n_best, self._write), strict=True):
                results[b] = tuple(map(self._hypothesis, row))
        return results

    def _numbered(self, clip: Any, number: int) -> Emissions:
        try:
            return self.emissions(clip)
        except DataError as error:
            raise DataError(f"clip {number}: {error}") from error

    def _write(self, tokens: list[int]) -> str:
        return _text(tokens, self.alphabet)

    def _hypothesis(self, found: Found) -> Hypothesis:
        worth = {fusion.kind: fusion.worth(found.tokens) for fusion in self.fusions}
        lm, words = worth.get("lm", (0.0, 0))
        hotwords, _ = worth.get("hotwords", (0.0, 0))
        fused = self.options.lm_weight * lm + self.options.word_bonus * words + hotwords
        return Hypothesis(found.text, tuple(found.tokens), found.total, found.total - fused, lm, hotwords, found.path)


def choose(
    alphabet: Alphabet,
    decoder: Wanted | BeamOptions | BeamDecoder = None,
    lm: NGram | str | os.PathLike[str] | None = None,
    hotwords: Sequence[str] | None = None,
) -> BeamDecoder | None:
    """What `transcribe(decoder=, lm=, hotwords=)` asks for; None is greedy search, the default without lm and hotwords.

    Raises PlanError for what is no decoder, one for another alphabet, or greedy search with something to listen to.
    """
    extra = lm is not None or (hotwords is not None and len(hotwords) > 0)
    if isinstance(decoder, BeamDecoder):
        if extra:
            raise PlanError("the decoder has its language model and hotwords already: give them to it, or leave it out")
        if decoder.alphabet != alphabet:
            raise PlanError(
                f"the decoder was made for an alphabet of {len(decoder.alphabet.symbols)} tokens and the model has "
                f"{len(alphabet.symbols)}, or in another order: make one with recognizer.decoder(…)"
            )
        return decoder
    if decoder == "greedy" and extra:
        raise PlanError('greedy search listens to no language model and no hotwords: use decoder="beam"')
    if decoder == "greedy" or (decoder is None and not extra):
        return None
    if decoder in (None, "beam"):
        return BeamDecoder(alphabet, None, lm, hotwords)
    if isinstance(decoder, BeamOptions):
        return BeamDecoder(alphabet, decoder, lm, hotwords)
    raise PlanError(f'decoder is {decoder!r}; it can be "greedy", "beam", BeamOptions(…) or a BeamDecoder')


def _text(tokens: list[int], alphabet: Alphabet) -> str:
    """Tokens → the text that `decode` writes for them."""
    text = "".join(" " if token == alphabet.delimiter else alphabet.symbols[token] for token in tokens)
    if not has_unspaced_script(text):
        return " ".join(text.split())
    squeezed = "".join(text.split())
    if UNSPACED_ALONE.fullmatch(squeezed):  # what `decode` would make of it; it takes forty times as long
        return squeezed
    ids = np.full(2 * len(tokens), alphabet.blank, np.int32)
    ids[::2] = tokens
    return text_of(decode(BestPath(ids, np.zeros(len(ids), np.float32)), alphabet, FrameGrid(), math.inf))


def _batches(clips: list[Emissions], width: int) -> Iterator[list[int]]:
    """Numbers of the clips, longest first, in batches whose traces fit."""
    batch: list[int] = []
    for b in sorted(range(len(clips)), key=lambda b: -len(clips[b].kept)):
        if batch and (len(batch) == CLIPS or (len(batch) + 1) * width * len(clips[batch[0]].kept) > HELD):
            yield batch
            batch = []
        batch.append(b)
    if batch:
        yield batch
