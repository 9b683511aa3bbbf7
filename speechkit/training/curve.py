"""What a training run reported, step by step. In: points, or the file that a run writes. Out: a `Curve`.

Knows no torch and no widget: the trainer writes it, the live view and the notebooks read it.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from speechkit.errors import DataError

if TYPE_CHECKING:
    from os import PathLike

__all__ = ["Curve", "Point"]


@dataclass(frozen=True, slots=True)
class Point:
    """The state of a run at one step; a quantity that was not measured there is None."""

    step: int
    elapsed_s: float  # of training, over all sittings of a resumed run
    loss: float | None = None  # mean since the point before
    learning_rate: float | None = None
    grad_norm: float | None = None
    audio_s: float | None = None  # seconds of audio trained on so far, padding not counted
    wer: float | None = None  # on the development set; 0.1 is 10 %
    cer: float | None = None
    dev_loss: float | None = None  # of a language model on rows that were kept out: nats per labelled token
    tokens: int | None = None  # trained on so far, padding not counted
    reward: float | None = None  # of answers, where a language model learns by preference; more is better
    memory_mib: float | None = None  # most that was in use so far: of the GPU, on a CPU of the process


@dataclass(frozen=True)
class Curve:
    """The points of one run in the order of their steps."""

    points: tuple[Point, ...] = ()
    steps: int = 0  # planned; 0 where the length is not known
    name: str = field(default="", compare=False)

    @property
    def last(self) -> Point | None:
        return self.points[-1] if self.points else None

    @property
    def best(self) -> Point | None:
        """The point with the lowest WER, or where there is none kept-out loss; the earliest of equals.

        None before the first evaluation.
        """
        by_wer = [(point.wer, point) for point in self.points if point.wer is not None]
        told = [(point.dev_loss, point) for point in self.points if point.dev_loss is not None]
        by_loss = [(loss, point) for loss, point in told if math.isfinite(loss)]
        return min(by_wer or by_loss, key=lambda pair: pair[0])[1] if by_wer or by_loss else None

    @property
    def time_left_s(self) -> float | None:
        """At the mean pace so far; None while there is nothing to go by."""
        if not self.steps or self.last is None or not self.last.step:
            return None
        return self.last.elapsed_s / self.last.step * max(0, self.steps - self.last.step)

    def save(self, path: str | PathLike[str]) -> None:
        """JSON lines: a head with the plan, then one point a line. The inverse of :meth:`load`."""
        head = json.dumps({"steps": self.steps, "name": self.name}, ensure_ascii=False)
        rows = [json.dumps({key: value for key, value in asdict(p).items() if value is not None}) for p in self.points]
        fresh = Path(path).with_name(f"{Path(path).name}.part")  # a kill must not cost the points so far
        fresh.write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
        fresh.replace(path)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Curve:
        """Raises DataError for a file that is no curve. A last line cut short by a crash is left out."""
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        try:
            head = json.loads(lines[0])
            steps, name = int(head["steps"]), str(head["name"])
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path} is no training curve: its first line should name steps and name") from error
        points = []
        for number, line in enumerate(lines[1:], 2):
            try:
                points.append(Point(**json.loads(line)))
            except (TypeError, ValueError) as error:
                if number == len(lines):
                    break
                raise DataError(f"{path}, line {number}: no point of a training curve: {line[:80]!r}") from error
        return cls(tuple(points), steps, name)
