"""Several CTC models that share a vocabulary, averaged frame by frame.

In: (F, V) natural-log probabilities of the same audio from each model. Out: (F, V) of all together. `combine` is the
arithmetic; `Ensemble` holds recognisers and answers like one. Imports no torch by itself.

CTC models emit a character in a spike of a frame or two, and two models may put it into different frames: then neither
spike wins against the other's blank, and the character is lost (Kurata & Audhkhasi 2019, arXiv:1904.08311). Models
fine-tuned from one parent, or checkpoints of one training, spike together; strangers need not, and may do worse
together than alone. Compare the error rates before you trust an ensemble.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from speechkit import audio as audio_in
from speechkit.asr.decode import best_path, decode, text_of
from speechkit.errors import DataError, ModelError
from speechkit.types import Transcript

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    from speechkit.asr.decode import Alphabet

__all__ = ["Ensemble", "Rule", "combine"]

Rule = Literal["mean", "product"]


def combine(
    log_probs: Sequence[NDArray[np.float32]], weights: ArrayLike | None = None, rule: Rule = "mean"
) -> NDArray[np.float32]:
    """(F, V) natural log of each of M models → (F, V) float32 natural log of all, every frame summing to 1.

    rule: "mean", the weighted mean of the probabilities: a frame is as sure as the models agree. "product", the
    weighted mean of the log-probabilities, normalised anew: any model may veto, and the result is surer. `weights` (M,)
    are scaled to sum to 1; None weighs all alike; 0 leaves a model out.

    Raises DataError for no models, shapes that differ, NaN, weights that are negative, not finite or all 0, and a frame
    in which the models of a product leave no token possible.
    """
    rows = [np.asarray(row) for row in log_probs]
    if not rows or any(row.ndim != 2 or row.shape != rows[0].shape for row in rows):
        shapes = ", ".join(str(row.shape) for row in rows) or "none"
        raise DataError(
            f"log-probabilities of shapes {shapes}; give (F, V) of one clip per model, all alike: the same audio "
            "through models with the same frame grid and vocabulary"
        )
    share = _shares(weights, len(rows))
    if rule not in ("mean", "product"):
        raise DataError(f'rule is {rule!r}; it can be "mean" or "product"')
    broken = [number for number, row in enumerate(rows, 1) if np.isnan(row).any() or np.isposinf(row).any()]
    if broken:
        raise DataError(f"the log-probabilities of model {broken[0]} hold NaN or infinity")
    used = [(row.astype(np.float64), part) for row, part in zip(rows, share.tolist(), strict=True) if part]
    if rule == "product":
        total = np.sum([part * row for row, part in used], axis=0)
    else:
        total = np.logaddexp.reduce([row + np.log(part) for row, part in used], axis=0)
    return _normalised(total)


@dataclass(frozen=True)
class Ensemble:
    """Recognisers that share a vocabulary and a frame grid, used as one.

    Raises ModelError for no members and for members whose vocabularies or grids differ, DataError for weights that
    :func:`combine` would refuse.
    """

    members: tuple[Any, ...]  # each with `log_probs`, `alphabet`, `grid`, `language` and `name`, as a Recognizer has
    weights: tuple[float, ...] | None = None
    rule: Rule = "mean"

    def __post_init__(self) -> None:
        if not self.members:
            raise ModelError("an ensemble of no models; give one or more recognisers")
        _shares(self.weights, len(self.members))
        first = self.members[0]
        for other in self.members[1:]:
            _check_same(first, other)

    @property
    def name(self) -> str:
        parts = zip(self.members, _shares(self.weights, len(self.members)).tolist(), strict=True)
        return " + ".join(f"{part:.2f} {member.name}" for member, part in parts)

    @property
    def language(self) -> str | None:
        """The members' language; None where they differ."""
        found = {member.language for member in self.members}
        return found.pop() if len(found) == 1 else None

    @property
    def alphabet(self) -> Alphabet:
        alphabet: Alphabet = self.members[0].alphabet
        return alphabet

    def log_probs(self, audio: Any) -> Any:
        """Whatever `audio.load` takes → (F, V) float32, natural log; a list of such → a list in the same order."""
        items = audio if isinstance(audio, list) else [audio]
        clips = [audio_in.load(item) for item in items]  # once, not once per member
        rows = [member.log_probs(clips) for member in self.members]
        joined = [combine(clip, self.weights, self.rule) for clip in zip(*rows, strict=True)]
        return joined if isinstance(audio, list) else joined[0]

    def transcribe(self, audio: Any) -> Any:
        """Whatever `audio.load` takes → Transcript; a list of such → list of Transcripts in the same order.

        Greedy decoding of the combined frames. The whole clip is held in memory, which `Recognizer.transcribe` avoids.
        """
        items = audio if isinstance(audio, list) else [audio]
        clips = [audio_in.load(item) for item in items]
        spoken = [self._transcript(row, len(clip)) for row, clip in zip(self.log_probs(clips), clips, strict=True)]
        return spoken if isinstance(audio, list) else spoken[0]

    def _transcript(self, log_probs: NDArray[np.float32], samples: int) -> Transcript:
        grid = self.members[0].grid
        words = decode(best_path(log_probs), self.alphabet, grid, samples / grid.rate)
        sure = float(np.mean([word.confidence for word in words])) if words else 1.0
        return Transcript(text_of(words), words, self.language, samples / grid.rate, sure, self.name)


def _shares(weights: ArrayLike | None, count: int) -> NDArray[np.float64]:
    given = np.ones(count) if weights is None else np.asarray(weights, np.float64)
    if given.shape != (count,):
        raise DataError(f"weights of shape {given.shape} for {count} models; give one weight per model")
    if not np.isfinite(given).all() or (given < 0).any() or not given.any():
        raise DataError(f"weights are {given.tolist()}; they are finite numbers from 0 up, at least one above 0")
    return given / given.sum()


def _normalised(total: NDArray[np.float64]) -> NDArray[np.float32]:
    top = total.max(axis=1, keepdims=True)
    dead = np.flatnonzero(np.isneginf(top))
    if len(dead):
        raise DataError(
            f"in frame {dead[0]} no token is possible for all models together; use rule='mean', or models that give "
            "every token a probability"
        )
    norm = top + np.log(np.exp(total - top).sum(axis=1, keepdims=True))
    return (total - norm).astype(np.float32)


def _check_same(first: Any, other: Any) -> None:
    names = f"{first.name} and {other.name}"
    mine, theirs = first.alphabet, other.alphabet
    if len(mine.symbols) != len(theirs.symbols):
        raise ModelError(
            f"{names} have vocabularies of {len(mine.symbols)} and {len(theirs.symbols)} tokens; an ensemble averages "
            "token by token, so its models need the same vocabulary in the same order"
        )
    for number, (a, b) in enumerate(zip(mine.symbols, theirs.symbols, strict=True)):
        if a != b:
            raise ModelError(
                f"{names} differ in token {number}: {a!r} and {b!r}; an ensemble averages token by token, so its "
                "models need the same vocabulary in the same order"
            )
    if (mine.blank, mine.delimiter) != (theirs.blank, theirs.delimiter):
        raise ModelError(
            f"{names} have blank {mine.blank} and {theirs.blank}, word delimiter {mine.delimiter} and "
            f"{theirs.delimiter}; an ensemble needs the same"
        )
    if first.grid != other.grid:
        raise ModelError(
            f"{names} have frames of {first.grid} and {other.grid}; an ensemble averages frame by frame, so its models "
            "need the same hop, field and rate"
        )
