"""Two sliders, a stream's window and hop, and the curve of latency against word errors on which they set a point.

In: a recognizer, clips, their texts, scores measured before. Out: `LatencyPanel`. Measuring, and the picture, are
`evaluation`'s. Knows no torch.
"""

from __future__ import annotations

import base64
import io
from html import escape
from typing import TYPE_CHECKING, Any

import ipywidgets

from speechkit.errors import SpeechkitError
from speechkit.evaluation.latency import StreamScore, stream_score
from speechkit.evaluation.plots import latency_curve
from speechkit.widgets.palette import card

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["LatencyPanel", "latency_panel"]

SHOWN = 12  # points on the curve; older ones of the sliders make room


def latency_panel(
    recognizer: Any, clips: Sequence[Any], texts: Sequence[str], scores: Sequence[StreamScore] = (), **options: Any
) -> LatencyPanel:
    """Sliders that begin at `options`: moving one plays `clips` anew and adds a point to those of `scores`."""
    return LatencyPanel(recognizer, clips, texts, scores, **options)


class LatencyPanel(ipywidgets.VBox):  # type: ignore[misc]
    """Use :func:`latency_panel`. `scores` holds what was measured, the sliders' last setting at its end."""

    _ipython_display_ = None  # as in Player: ipywidgets 7 would hide the twins

    def __init__(
        self, recognizer: Any, clips: Sequence[Any], texts: Sequence[str], scores: Sequence[StreamScore], **options: Any
    ) -> None:
        self._recognizer, self._clips, self._texts = recognizer, list(clips), list(texts)
        self._options, self._given = dict(options), tuple(scores)
        self._added: tuple[StreamScore, ...] = ()
        self.window = _slider("window", options.get("window_s", 6.0), 2.0, 12.0, 0.5)
        self.hop = _slider("hop", options.get("hop_s", 0.12), 0.08, 1.0, 0.02)
        self.told, self.picture = ipywidgets.HTML(), ipywidgets.Image(format="png")
        self.picture.layout.max_width = "700px"  # its own width: larger is blurred
        super().__init__([ipywidgets.HBox([self.window, self.hop]), self.told, self.picture])
        for slider in (self.window, self.hop):
            slider.observe(self._moved, "value")
        self._tell("Move a slider: the clips are played anew.")
        self._draw()

    @property
    def scores(self) -> tuple[StreamScore, ...]:
        return (*self._given, *self._added)

    def _moved(self, _change: Any) -> None:
        """Measure the setting and show it; a setting that cannot be is told, and the curve stays."""
        wanted = {**self._options, "window_s": self.window.value, "hop_s": self.hop.value}
        self._tell("Measuring …")
        try:
            score = stream_score(self._recognizer, self._clips, self._texts, wanted)
        except SpeechkitError as error:
            self._tell(str(error))
            return
        self._added = (*self._added, score)[-max(1, SHOWN - len(self._given)) :]
        self._draw()
        self._tell(f"{len(self.scores)}: {score}")

    def _tell(self, line: str) -> None:
        self.told.value = f'<div role="status">{escape(line)}</div>'

    def _draw(self) -> None:
        if self.scores:
            file = io.BytesIO()
            latency_curve(self.scores).savefig(file, format="png", dpi=96)
            self.picture.value = file.getvalue()

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The live view, with both twins beside it for whoever opens the saved notebook."""
        view = {"version_major": 2, "version_minor": 0, "model_id": self.model_id}
        data = {"application/vnd.jupyter.widget-view+json": view, "text/html": self._twin(), "text/plain": repr(self)}
        return data, {}

    def _twin(self) -> str:
        lines = "".join(f"<li>{escape(str(score))}</li>" for score in self.scores)
        source = base64.b64encode(self.picture.value).decode()
        image = f'<img alt="Word errors against latency" src="data:image/png;base64,{source}">' if source else ""
        return f'<section aria-label="Latency and word errors" style="{card()}">{image}<ol>{lines}</ol></section>'

    def __repr__(self) -> str:
        rows = (f"{number:2}  {score}" for number, score in enumerate(self.scores, 1))
        return "\n".join(["latency and word errors by setting", *rows])


def _slider(name: str, value: float, low: float, high: float, step: float) -> Any:
    return ipywidgets.FloatSlider(
        value=min(max(value, low), high), min=low, max=high, step=step, description=f"{name}, s",
        readout_format=".2f", continuous_update=False,
    )  # fmt: skip
