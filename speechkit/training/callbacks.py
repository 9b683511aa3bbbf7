"""When a run reports, evaluates, saves and ends. In: steps as the trainer makes them. Out: points, and its orders.

`Pace` knows how far the run is, by steps and by the clock; `Watch` is the callback that acts on it. In a run of several
processes the first one's clock and Stop button count for all, else they would part.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from speechkit.training.curve import Point

if TYPE_CHECKING:
    from collections.abc import Callable

    from speechkit.training.config import FinetuneConfig
    from speechkit.training.curve import Curve
    from speechkit.training.runfolder import RunFolder

__all__ = ["Pace", "Watch", "asked"]

EVALUATIONS = 10  # over a run, where `eval_every` is 0


@dataclass
class Pace:
    """How much of a run lies behind: the larger of its shares of steps and of minutes."""

    steps: int | None
    minutes: float | None
    before_s: float = 0.0  # of earlier sittings
    now: Callable[[], float] = time.perf_counter
    agreed_s: float = field(default=0.0, init=False)  # elapsed, as all processes know it
    _since: float | None = field(default=None, init=False)

    def start(self) -> None:
        self._since, self.agreed_s = self.now(), self.before_s

    @property
    def elapsed_s(self) -> float:
        return self.before_s + (self.now() - self._since if self._since is not None else 0.0)

    def share(self, step: float) -> float:
        """In [0, 1]; `step` may lie between two updates."""
        parts = [step / self.steps if self.steps else 0.0]
        parts += [self.agreed_s / 60 / self.minutes] if self.minutes else []
        return min(1.0, max(parts))

    def factor(self, step: int, warmup: float, decay: float) -> float:
        """Learning rate of update `step` (from 0) as a share of the highest: up, level, down (wav2vec 2.0, app. B)."""
        at = self.share(step + 0.5)  # the middle of an update: the first is not made at zero, nor the last
        rising = at / warmup if warmup else 1.0
        falling = (1 - at) / decay if decay else 1.0
        return max(0.0, min(1.0, rising, falling))


class Watch(TrainerCallback):
    """Gives the trainer its orders step by step, keeps the curve, keeps the best model."""

    def __init__(
        self,
        config: FinetuneConfig,
        pace: Pace,
        folder: RunFolder | None,
        curve: Curve,
        tell: Callable[[Point], None] | None = None,
        stop: Any = None,
    ) -> None:
        self.config, self.pace, self.folder, self.curve = config, pace, folder, curve
        self.tell, self.stop = tell, stop
        self.ending = ""  # a key of `report.ENDINGS`
        self.heard_s: Callable[[int], float] = lambda step: 0.0  # audio of the first steps; the trainer sets it
        self.save_best: Callable[[], None] = lambda: None
        self.agree: Callable[[list[float]], list[float]] = lambda row: row  # the first process's numbers, for all
        self.scaled = False  # float16: gradients may overflow now and then, and the step is then left out
        self._pending: Point | None = None
        self._marks = self._marks_at(curve)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.pace.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        step = state.global_step
        self.pace.agreed_s, stopped = self.agree([self.pace.elapsed_s, float(asked(self.stop))])
        if stopped:
            self.ending = "stopped"
        elif self.pace.steps and step >= self.pace.steps:
            self.ending = "steps"
        elif self.pace.minutes and self.pace.agreed_s >= 60 * self.pace.minutes:
            self.ending = "minutes"
        control.should_evaluate = self._due(step) or self.ending in ("steps", "minutes")
        control.should_save = control.should_evaluate or bool(self.ending)
        control.should_log = control.should_save or step == 1 or step % self.config.log_every == 0
        control.should_training_stop = bool(self.ending)

    def on_log(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        logs: dict[str, float] = given["logs"]
        if "loss" not in logs:
            return
        point = Point(
            step=state.global_step,
            elapsed_s=self.pace.elapsed_s,
            loss=logs["loss"],
            learning_rate=logs.get("learning_rate"),
            grad_norm=logs.get("grad_norm"),
            audio_s=self.heard_s(state.global_step),
        )
        healthy = math.isfinite(logs["loss"]) and (self.scaled or math.isfinite(logs.get("grad_norm") or 0.0))
        if not healthy:
            # nothing is saved any more: the last checkpoint is from before
            self.ending = "diverged"
            control.should_save = control.should_evaluate = False
            control.should_training_stop = True
        if control.should_evaluate:
            self._pending = point  # one point for both
        else:
            self._add(point)

    def on_evaluate(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        metrics: dict[str, float] = given["metrics"]
        point = self._pending or Point(state.global_step, self.pace.elapsed_s)
        self._pending = None
        best = self.best
        point = replace(point, wer=metrics["eval_wer"], cer=metrics["eval_cer"], elapsed_s=self.pace.elapsed_s)
        self._add(point)
        if point.step and (best is None or _key(point) < _key(best)):
            self.save_best()
        if self.out_of_patience and not self.ending:
            self.ending = "patience"
            control.should_training_stop = True

    @property
    def best(self) -> Point | None:
        """The best evaluation since training began: by WER, of equals by CER, of equals the earliest."""
        scored = [point for point in self.curve.points if point.step and point.wer is not None]
        return min(scored, key=_key) if scored else None

    @property
    def out_of_patience(self) -> bool:
        """Whether as many evaluations as `config.patience` have passed since the best one."""
        best = self.best
        since = sum(1 for p in self.curve.points if best and p.wer is not None and p.step > best.step)
        return bool(self.config.patience) and since >= self.config.patience

    def _due(self, step: int) -> bool:
        if self.config.eval_every:
            return step % self.config.eval_every == 0
        mark = int(self.pace.share(step) * EVALUATIONS + 1e-9)
        if mark <= self._marks:
            return False
        self._marks = mark
        return True

    def _marks_at(self, curve: Curve) -> int:
        """How many of the evenly spread evaluations lie behind when a run goes on."""
        if not curve.last or not curve.last.step:
            return 0
        self.pace.agreed_s = curve.last.elapsed_s
        return int(self.pace.share(curve.last.step) * EVALUATIONS + 1e-9)

    def _add(self, point: Point) -> None:
        self.curve = replace(self.curve, points=(*self.curve.points, point))
        if self.folder is not None:
            self.folder.append(point)
        if self.tell is not None:
            self.tell(point)


def asked(stop: Any) -> bool:
    """Whether a Stop button (an object with `requested`) or a callable asks the run to end."""
    if stop is None:
        return False
    requested = getattr(stop, "requested", None)
    if requested is None:
        return bool(stop())
    return bool(requested() if callable(requested) else requested)


def _key(point: Point) -> tuple[float, float]:
    return (point.wer if point.wer is not None else math.inf, point.cer if point.cer is not None else math.inf)
