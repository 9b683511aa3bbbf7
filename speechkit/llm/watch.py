"""When the training of a language model reports, evaluates, saves and ends. In: steps. Out: points, and orders.

`training.callbacks.Watch` with what language models have: the loss on rows that were kept out in the place of error
rates, useful tokens in the place of seconds, and a line for memory. Without rows kept out nothing is evaluated:
checkpoints come at the same steps, and the last model is the one that is kept.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from speechkit.training.callbacks import Pace, Watch
from speechkit.training.curve import Point

if TYPE_CHECKING:
    from collections.abc import Callable

    from speechkit.llm.llm_config import LlmConfig
    from speechkit.training.curve import Curve
    from speechkit.training.runfolder import RunFolder

__all__ = ["LlmWatch", "Memory", "Pace"]

MIB = 2**20


class Memory:
    """The most memory that was in use so far: torch's on a GPU, elsewhere of the whole process."""

    def __init__(self, device: str, before_mib: float = 0.0) -> None:
        self.on_gpu = device.startswith("cuda")
        self.peak_mib = before_mib  # of earlier sittings
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()

    @property
    def what(self) -> str:
        return "GPU memory" if self.on_gpu else "memory of the process"

    def look(self) -> float:
        """MiB; call it now and then, on a CPU only what was looked at counts."""
        now = torch.cuda.max_memory_allocated() if self.on_gpu else _resident_bytes()
        self.peak_mib = max(self.peak_mib, now / MIB)
        return round(self.peak_mib, 1)


def _resident_bytes() -> float:
    """Bytes of main memory that this process has now; its peak where the system does not tell."""
    try:
        import psutil  # type: ignore[import-untyped]  # comes with accelerate
    except ImportError:
        import resource
        import sys

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return float(peak if sys.platform == "darwin" else peak * 1024)
    return float(psutil.Process().memory_info().rss)


class LlmWatch(Watch):
    """See the head of the file."""

    def __init__(
        self,
        config: LlmConfig,
        pace: Pace,
        folder: RunFolder | None,
        curve: Curve,
        tell: Callable[[Point], None] | None = None,
        stop: Any = None,
    ) -> None:
        # the base asks it for eval_every, log_every and patience, which both kinds of settings have
        super().__init__(config, pace, folder, curve, tell, stop)  # type: ignore[arg-type]
        self.tokens: Callable[[int], int] = lambda step: 0  # useful, of the first steps; the trainer sets it
        self.memory = Memory("cpu")
        self.has_dev = True

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        super().on_step_end(args, state, control, **more)
        self.memory.look()
        if not self.has_dev:
            control.should_evaluate = False

    def on_log(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        logs: dict[str, float] = given["logs"]
        if "loss" not in logs:
            return
        point = replace(
            self._point(state.global_step),
            loss=logs["loss"],
            learning_rate=logs.get("learning_rate"),
            grad_norm=logs.get("grad_norm"),
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
        loss: float = given["metrics"]["eval_loss"]
        point = self._pending or self._point(state.global_step)
        self._pending = None
        best = self.best
        self._add(replace(point, dev_loss=loss, elapsed_s=self.pace.elapsed_s))
        if point.step and math.isfinite(loss) and (best is None or loss < (best.dev_loss or 0.0)):
            self.save_best()
        if self.out_of_patience and not self.ending:
            self.ending = "patience"
            control.should_training_stop = True

    @property
    def best(self) -> Point | None:
        """The evaluation since training began with the lowest kept-out loss, the earliest of equals."""
        scored = [
            (point.dev_loss, point.step, point)
            for point in self.curve.points
            if point.step and point.dev_loss is not None and math.isfinite(point.dev_loss)
        ]
        return min(scored, key=lambda row: row[:2])[2] if scored else None

    @property
    def out_of_patience(self) -> bool:
        """Whether as many evaluations as `config.patience` have passed since the best one."""
        best = self.best
        since = sum(1 for p in self.curve.points if best and p.dev_loss is not None and p.step > best.step)
        return bool(self.config.patience) and since >= self.config.patience

    def _point(self, step: int) -> Point:
        return Point(step, self.pace.elapsed_s, tokens=self.tokens(step), memory_mib=self.memory.look())
