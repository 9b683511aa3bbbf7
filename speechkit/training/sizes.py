"""What smaller models cost and save: error rates beside size and speed. In: recognisers, examples. Out: `SizeTable`.

Speed is a ratio: the models take turns on the same clips, and each round gives one ratio to the first model, so that
what else the machine does meets all of them alike. Knows no training.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from speechkit.errors import DataError
from speechkit.evaluation.metrics import cer, wer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from speechkit.asr.model import Recognizer

__all__ = ["Scorable", "SizeTable", "Sized", "size_table"]


class Scorable(Protocol):
    """An utterance with its reference, as `training.data.Example` is."""

    @property
    def text(self) -> str: ...

    def samples(self) -> NDArray[np.float32]: ...


@dataclass(frozen=True)
class Sized:
    """One model of the table."""

    name: str
    parameters: int
    bytes: int  # of the weights, in the precision they run in
    wer: float
    cer: float
    speed: float  # times as fast as the first model, median over rounds
    spread: tuple[float, float]  # slowest and fastest round


@dataclass(frozen=True)
class SizeTable:
    """Models in the order given; printing it gives the table."""

    rows: tuple[Sized, ...]
    clips: int
    audio_s: float
    rounds: int

    def __str__(self) -> str:
        width = max(len("model"), *(len(row.name) for row in self.rows))
        head = f"{'model':<{width}}  parameters       MB     WER     CER  speed (slowest to fastest round)"
        lines = [
            f"{row.name:<{width}}  {row.parameters:>10,}  {row.bytes / 1e6:7.1f}  {row.wer:6.1%}  {row.cer:6.1%}  "
            f"{row.speed:4.2f}x ({row.spread[0]:.2f}-{row.spread[1]:.2f})"
            for row in self.rows
        ]
        note = f"{self.clips} clips, {self.audio_s:.1f} s of audio, {self.rounds} interleaved rounds"
        return "\n".join([head, *lines, f"{note}; speed against {self.rows[0].name}"])


def size_table(models: Mapping[str, Recognizer], examples: Sequence[Scorable], rounds: int = 3) -> SizeTable:
    """Transcribe the examples with each model: corpus-level WER and CER, size, speed against the first model.

    Raises DataError for no models, no examples, or fewer than one round.
    """
    if not models or not len(examples) or rounds < 1:
        raise DataError(
            f"{len(models)} models, {len(examples)} examples and {rounds} rounds: give at least one of each; the first "
            "model is what the others are compared with"
        )
    clips = [example.samples() for example in examples]
    texts = [example.text for example in examples]
    heard = {name: _texts(model, clips) for name, model in models.items()}  # also warms each model up
    times = np.array([[_seconds(model, clips) for model in models.values()] for _ in range(rounds)])  # (rounds, models)
    ratios = times[:, :1] / times
    rows = []
    for column, (name, model) in enumerate(models.items()):
        weights, language = list(model.model.parameters()), model.language
        own = ratios[:, column]
        rows.append(
            Sized(
                name=name,
                parameters=sum(weight.numel() for weight in weights),
                bytes=sum(weight.numel() * weight.element_size() for weight in weights),
                wer=float(wer(texts, heard[name], language)),
                cer=float(cer(texts, heard[name], language)),
                speed=float(np.median(own)),
                spread=(float(own.min()), float(own.max())),
            )
        )
    audio_s = sum(len(clip) for clip in clips) / 16_000
    return SizeTable(tuple(rows), len(clips), audio_s, rounds)


def _texts(model: Any, clips: list[NDArray[np.float32]]) -> list[str]:
    return [spoken.text for spoken in model.transcribe(clips, words=False)]


def _seconds(model: Any, clips: list[NDArray[np.float32]]) -> float:
    begun = time.perf_counter()
    _texts(model, clips)
    return time.perf_counter() - begun
