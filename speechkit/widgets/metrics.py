"""A training run, live in the notebook: loss, error rates or kept-out loss, pace, memory, and a Stop button.

In: `training.curve.Point`s, one call of `add` each. Out: the view, its twins, and `requested`, which the trainer reads
at each step. The Stop button reaches a cell that is busy training in one of four ways, whichever comes first: its
message is handled at once (training in a thread); it is seen waiting (ipykernel 6, Colab's); the view interrupts the
kernel (JupyterLab, Notebook 7); the reader does (everywhere: inside `with`, an interrupt is a wish to stop and no
exception). Where no notebook runs, or with `fallback="always"`, lines are printed instead. Uses only what ipywidgets
7.7 and 8 share. Knows no torch.
"""

from __future__ import annotations

import math
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import anywidget
import traitlets as t

from speechkit.errors import DataError
from speechkit.training.curve import Curve, Point
from speechkit.widgets.curves import Chart, charts, curve_html, curve_text, figures, head_line, point_line
from speechkit.widgets.interrupts import gentle_interrupt, notebook_kernel, overheard

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["LiveMetrics"]

STATIC = Path(__file__).parent / "static"
UPDATE_S = 0.25  # the view hears of points no more often
LOOK_S = 0.2  # nor does the kernel's queue get looked through
PRINT_S = 15.0  # and no more often are points without an evaluation printed
Phase = Literal["waiting", "training", "stopping", "stopped", "finished", "failed"]
STATES: dict[Phase, str] = {
    "waiting": "waiting for the first point",
    "training": "training",
    "stopping": "stopping: the step under way is finished and a checkpoint written",
    "stopped": "stopped as asked",
    "finished": "finished",
    "failed": "broken off",
}


class LiveMetrics(anywidget.AnyWidget):
    """The live view of one run. Feed it points, and let the trainer look at `requested`:

        with LiveMetrics(steps=600) as live:
            finetune(config, train, dev, on_point=live.add, stop=live)

    `plan` is the number of steps (0: not known), or a `Curve` whose points are shown from the start: a run that is
    resumed, or one to look at again. `with` shows the view, and turns the first interrupt into a wish to stop; a second
    one raises KeyboardInterrupt as ever. `fallback` says when lines are printed instead of the
    widget: `"auto"` where no notebook kernel runs, `"always"`, or `"never"`.
    """

    _esm = STATIC / "metrics.js"
    _css = STATIC / "metrics.css"
    _ipython_display_ = None  # as in Player: ipywidgets 7 would hide the twins

    title = t.Unicode("").tag(sync=True)
    phase = t.Unicode("waiting").tag(sync=True)
    state = t.Unicode("").tag(sync=True)  # the phase in words
    step = t.Int(0).tag(sync=True)
    steps = t.Int(0).tag(sync=True)
    figures = t.List(t.Dict()).tag(sync=True)  # curves.Figure
    charts = t.List(t.Dict()).tag(sync=True)  # curves.Chart
    can_interrupt = t.Bool(False).tag(sync=True)  # an interrupt is a wish to stop now

    def __init__(
        self, plan: int | Curve = 0, title: str = "", fallback: Literal["auto", "always", "never"] = "auto"
    ) -> None:
        if fallback not in ("auto", "always", "never"):
            raise ValueError(f'fallback is {fallback!r}; use "auto", "always" or "never"')
        curve = plan if isinstance(plan, Curve) else Curve(steps=_steps(plan))
        self._points, self._plan, self._name = list(curve.points), curve.steps, curve.name
        self._plain = fallback == "always" or (fallback == "auto" and notebook_kernel() is None)
        self._requested = False
        self._why = ""  # it broke off
        self._lock = threading.RLock()
        self._timer: threading.Timer | None = None
        self._sent_s = self._looked_s = self._printed_s = -math.inf
        self._printed_step: int | None = None
        self._shown: Any = None  # the output that holds the view
        self._within = ExitStack()
        super().__init__(title=title or curve.name, steps=curve.steps, state=STATES["waiting"])
        if self._points:
            self._push()
        self.on_msg(self._message)

    @property
    def curve(self) -> Curve:
        """Everything that was reported so far."""
        return Curve(tuple(self._points), self._plan, self._name)

    @property
    def requested(self) -> bool:
        """Whether somebody wants the run to stop; the trainer asks at each step, leaves a checkpoint and returns."""
        if not self._requested and time.monotonic() - self._looked_s >= LOOK_S:
            self._looked_s = time.monotonic()
            kernel = None if self._plain else notebook_kernel()
            if kernel is not None and self.comm is not None and overheard(kernel, self.comm.comm_id, "stop"):
                self._requested = True
        if self._requested and self.phase in ("waiting", "training"):
            self._turn("stopping")
        return self._requested

    def stop(self) -> None:
        """What the Stop button does: from now on `requested` is True."""
        self._requested = True
        self._turn("stopping")

    def add(self, point: Point) -> None:
        """Show one more point. A step before the last one takes back what came after it: the run was resumed there."""
        if not isinstance(point, Point):
            raise DataError(f"a {type(point).__name__} is no point; give a speechkit.training.curve.Point")
        with self._lock:
            if self._points and point.step < self._points[-1].step:
                self._points = [kept for kept in self._points if kept.step < point.step]
            self._points.append(point)
            if self.phase == "waiting":
                self._turn("stopping" if self._requested else "training")
            if self._plain:
                self._print(point)
            else:
                self._soon()

    def __enter__(self) -> LiveMetrics:
        self._requested, self._why = False, ""
        self.can_interrupt = self._within.enter_context(gentle_interrupt(self._wish, lambda: self._requested))
        self._turn("waiting")
        self._show()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._within.close()
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            self.can_interrupt = False
            if error is not None:
                self._why = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            self._turn("failed" if error is not None else "stopped" if self._requested else "finished")
            self._last()

    @property
    def _going(self) -> bool:
        return self.phase in ("waiting", "training", "stopping")

    def _wish(self) -> None:
        """What an interrupt does: nothing more, as it may come in the midst of a message to the view."""
        self._requested = True

    def _turn(self, phase: Phase) -> None:
        if phase == self.phase:
            return
        told = STATES[phase]
        if phase == "stopped" and self._points:
            told = f"stopped as asked, at step {self._points[-1].step}"
        if phase == "failed" and self._why:
            told = f"broken off by {self._why}"
        with self._lock, self.hold_sync():
            self.phase, self.state = phase, told
        if self._plain and phase == "stopping":
            print(told, flush=True)

    def _soon(self) -> None:
        """Tell the view now, or when it may hear the next; then it hears the latest."""
        wait_s = self._sent_s + UPDATE_S - time.monotonic()
        if wait_s <= 0:
            self._push()
        elif self._timer is None or not self._timer.is_alive():
            self._timer = threading.Timer(wait_s, self._push)
            self._timer.daemon = True
            self._timer.start()

    def _push(self) -> None:
        with self._lock, self.hold_sync():
            self._sent_s, curve = time.monotonic(), self.curve
            self.step = curve.last.step if curve.last else 0
            self.figures = [
                {"name": f.name, "value": f.value, "note": f.note, "bad": f.bad} for f in figures(curve, self._going)
            ]
            self.charts = [_drawn(chart) for chart in charts(curve)]

    def _print(self, point: Point) -> None:
        """A row for every evaluation, and one now and then between."""
        scored = point.wer is not None or point.dev_loss is not None
        if not scored and time.monotonic() - self._printed_s < PRINT_S:
            return
        if self._printed_step is None:
            print("\n".join(filter(None, [self.title, head_line(point)])))
        self._printed_s, self._printed_step = time.monotonic(), point.step
        print(point_line(point, self._plan), flush=True)

    def _last(self) -> None:
        """The last point is shown whatever the clock says, and the twins beside the view say how it ended."""
        if not self._plain:
            self._push()
            if self._shown is not None:
                self._shown.update(self)
            return
        if self._points and self._printed_step != self._points[-1].step:
            self._printed_s = -math.inf
            self._print(self._points[-1])
        told = ", ".join(
            f"{f.name} {f.value}{f' ({f.note})' if f.note else ''}" for f in figures(self.curve, self._going)
        )
        print(" · ".join(filter(None, [self.state, told])), flush=True)

    def _show(self) -> None:
        if self._plain:
            return
        from IPython.display import display

        self._shown = display(self, display_id=True)  # type: ignore[no-untyped-call]

    def _message(self, _widget: Any, content: dict[str, Any], _buffers: Any) -> None:
        """Handled after the cell has ended, the wish is stale: `phase` tells."""
        if content.get("kind") == "stop" and self.phase in ("waiting", "training"):
            self.stop()

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The live view, with both twins beside it for whoever opens the saved notebook."""
        html = curve_html(self.curve, self.title, self.state, self._going)
        if self._plain:
            return {"text/html": html, "text/plain": repr(self)}, {}
        data, metadata = super()._repr_mimebundle_(**kwargs) or ({}, {})
        return {**data, "text/html": html, "text/plain": repr(self)}, metadata

    def __repr__(self) -> str:
        return curve_text(self.curve, self.title, self.state, self._going)


def _steps(plan: Any) -> int:
    if isinstance(plan, bool) or not isinstance(plan, int) or plan < 0:
        raise DataError(f"the plan is {plan!r}; give the number of steps, 0 where it is not known, or a Curve")
    return plan


def _drawn(chart: Chart) -> dict[str, Any]:
    """A chart as the view draws it."""
    return {
        "name": chart.name,
        "series": [
            {
                "name": s.name,
                "path": s.path,
                "points": s.points,
                "steps": s.steps,
                "told": s.told,
                "dashed": s.dashed,
            }
            for s in chart.series
        ],
        "ticks": chart.ticks,
        "steps": chart.steps,
        "best": chart.best,
    }
