"""Settings and curve of a pretraining run. In: plain values. Out: frozen, checked, written and read. Trains nothing."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from speechkit.device import Choice, Hardware, detect
from speechkit.errors import DataError, PlanError
from speechkit.training.curve import Curve, Point
from speechkit.training.precision import choose_precision
from speechkit.training.settings import read_settings

if TYPE_CHECKING:
    from os import PathLike

__all__ = ["PretrainConfig", "PretrainCurve", "PretrainPoint", "precision"]


@dataclass(frozen=True)
class PretrainConfig:
    """Everything that decides a run; saved beside its result. Defaults as published for the base model, where short
    runs do not need others (arXiv:2006.11477, section 4.2 and appendix B).
    """

    output: str  # folder of the run
    start: str = ""  # checkpoint to continue from: a folder, a Hub id, "demo/en"; empty: random weights
    steps: int = 20_000
    learning_rate: float = 5e-4  # the highest; rises over `warmup`, then falls to zero in a straight line
    warmup: float = 0.08  # share of the steps
    batch_s: float = 24.0  # seconds of sound per batch and process
    accumulation: int = 1  # batches per step
    max_grad_norm: float = 1.0
    shortest_s: float = 0.3  # shorter sound is left out
    longest_s: float = 15.6  # longer sound is cut into windows of this length
    mask_start: float = 0.065  # share of the frames that begin a masked span
    mask_frames: int = 10  # length of a span: 0.2 s
    negatives: int = 100  # wrong answers per masked frame
    codebooks: int = 2  # groups G of a fresh quantiser
    codes: int = 320  # entries V of each
    code_width: int = 256  # of the joined entries
    code_spread: float = 1.0  # standard deviation of a fresh quantiser's weights, as published; small: softer choices
    projection: int = 256  # width in which predictions and targets are compared
    logit_temperature: float = 0.1  # κ of equation 3
    diversity_weight: float = 0.1  # α of equation 2
    # weight of the mean square of the convolutional features; None: 10 from random weights, 0 from a checkpoint, whose
    # features have found their size (demo/en's have a mean square of 15,000: nothing else would be trained)
    feature_penalty: float | None = None
    cnn_gradient: float = 0.1  # the convolutions' gradients are scaled by this
    # besides, masked frames' clusters of MFCCs are named (`masked_units.py`), with this weight; 0: as published
    unit_weight: float = 0.0
    units: int = 100  # clusters
    temperature: tuple[float, float] = (2.0, 0.5)  # Gumbel softmax, from and to
    temperature_share: float = 0.6  # of the steps, over which it falls exponentially
    precision: str = "auto"  # "float32", "bfloat16", "float16"; the weights are always float32
    log_every: int = 50
    save_every: int = 500
    workers: int = 1  # processes that compose batches
    seed: int = 1
    name: str = ""  # of the curve

    FREE: ClassVar[frozenset[str]] = frozenset({"steps", "save_every", "workers", "output", "name"})

    def __post_init__(self) -> None:
        object.__setattr__(self, "temperature", tuple(self.temperature))
        for names, least in (
            (("steps", "accumulation", "log_every", "save_every", "mask_frames", "negatives", "codebooks"), 1),
            (("codes", "units"), 2),
        ):
            for name in names:
                if getattr(self, name) < least:
                    raise PlanError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        for name in ("learning_rate", "batch_s", "shortest_s", "mask_start", "logit_temperature", "code_spread"):
            if not getattr(self, name) > 0:
                raise PlanError(f"{name} is {getattr(self, name)}; it must be above 0")
        if not self.shortest_s <= self.longest_s <= self.batch_s:
            raise PlanError(
                f"shortest_s {self.shortest_s:g}, longest_s {self.longest_s:g} and batch_s {self.batch_s:g} must rise: "
                "a window has to fit into a batch"
            )
        if not 0 < self.temperature[1] <= self.temperature[0]:
            raise PlanError(f"temperature is {self.temperature}; it falls from the first to the second, both above 0")
        if self.code_width % self.codebooks:
            raise PlanError(f"code_width {self.code_width} cannot be shared by {self.codebooks} codebooks evenly")
        if self.save_every % self.log_every and self.save_every < self.steps:
            raise PlanError(
                f"save_every {self.save_every} is no multiple of log_every {self.log_every}: a resumed run would begin "
                "in the middle of a point of the curve"
            )

    @property
    def penalty(self) -> float:
        """`feature_penalty`, or what None stands for."""
        if self.feature_penalty is not None:
            return self.feature_penalty
        return 0.0 if self.start else 10.0

    def temperature_at(self, step: int) -> float:
        """The Gumbel softmax's temperature while step `step` (from 0) is made."""
        first, last = self.temperature
        done = min(1.0, step / max(1.0, self.temperature_share * self.steps))
        return float(first * (last / first) ** done)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> PretrainConfig:
        """The inverse of :meth:`to_json`.

        Raises PlanError for text that is no JSON object, and a setting that does not exist (naming the nearest), is
        absent or of the wrong type.
        """
        row = read_settings(text, [f.name for f in fields(cls)])
        try:
            return cls(**row)
        except TypeError as error:
            raise PlanError(f"a setting is absent or of the wrong type: {error}") from error


@dataclass(frozen=True, slots=True)
class PretrainPoint(Point):
    """The state of a pretraining run at one step; all values are means since the point before."""

    contrastive: float | None = None  # nats per masked frame; chance is log(negatives + 1)
    diversity: float | None = None  # 0: all entries used alike
    accuracy: float | None = None  # share of masked frames whose true target scored above all negatives
    perplexity: float | None = None  # entries in use per codebook, 1 to V, counted since the point before
    temperature: float | None = None  # of the Gumbel softmax
    unit_accuracy: float | None = None  # share of masked frames whose acoustic unit was named

    def __str__(self) -> str:
        parts = [f"step {self.step}"]
        for name, form in (("loss", "loss {:.3f}"), ("contrastive", "contrastive {:.3f}")):
            value = getattr(self, name)
            parts += [form.format(value)] if value is not None else []
        parts += [f"accuracy {self.accuracy:.1%}"] if self.accuracy is not None else []
        parts += [f"units named {self.unit_accuracy:.1%}"] if self.unit_accuracy is not None else []
        parts += [f"{self.perplexity:.1f} codes in use per book"] if self.perplexity is not None else []
        return ", ".join(parts)


@dataclass(frozen=True)
class PretrainCurve(Curve):
    """The points of one pretraining run in the order of their steps."""

    points: tuple[PretrainPoint, ...] = ()
    steps: int = 0
    name: str = field(default="", compare=False)

    @property
    def last(self) -> PretrainPoint | None:
        return self.points[-1] if self.points else None

    @classmethod
    def load(cls, path: str | PathLike[str]) -> PretrainCurve:
        """Raises DataError for a file that is no pretraining curve. A last line cut short is left out."""
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        own = {f.name for f in fields(PretrainPoint)} - {f.name for f in fields(Point)}
        points: list[PretrainPoint] = []
        try:
            head = json.loads(lines[0])
            curve = cls((), int(head["steps"]), str(head["name"]))
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path} is no training curve: its first line should name steps and name") from error
        for number, line in enumerate(lines[1:], 2):
            try:
                points.append(PretrainPoint(**json.loads(line)))
            except (TypeError, ValueError) as error:
                if number == len(lines):
                    break
                raise DataError(
                    f"{path}, line {number}: no point of a pretraining curve ({', '.join(sorted(own))}): {line[:80]!r}"
                ) from error
        return replace(curve, points=tuple(points))


def precision(wish: str = "auto", hardware: Hardware | None = None) -> Choice[str]:
    """The dtype of the large products while training; the weights and the loss stay float32.

    Raises PlanError for an unknown name, or one that the device cannot train in.
    """
    have = hardware or detect()
    return choose_precision("cuda" if have.gpus else "cpu", wish, have)
