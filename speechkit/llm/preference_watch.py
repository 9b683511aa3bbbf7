"""What trl logs while it trains by preference → points of a curve; a wish to stop → the end of the run."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from speechkit.llm.watch import Memory
from speechkit.training.callbacks import asked
from speechkit.training.curve import Point

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["PreferenceWatch"]


class PreferenceWatch(TrainerCallback):
    """See the head of the file. `score` is trl's name of the figure that should rise."""

    def __init__(self, score: str, device: str, tell: Callable[[Point], None] | None, stop: Any) -> None:
        self.score, self.tell, self.stop = score, tell, stop
        self.points: list[Point] = []
        self.memory = Memory(device)
        self.start_s = time.perf_counter()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.start_s = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if asked(self.stop):
            control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        logs: dict[str, float] = given["logs"]
        if "loss" not in logs:
            return
        point = Point(
            step=state.global_step,
            elapsed_s=time.perf_counter() - self.start_s,
            loss=logs["loss"],
            learning_rate=logs.get("learning_rate"),
            grad_norm=logs.get("grad_norm"),
            memory_mib=self.memory.look(),
            reward=logs.get(self.score),
        )
        if not math.isfinite(logs["loss"]):
            control.should_training_stop = True
        self.points.append(point)
        if self.tell is not None:
            self.tell(point)
