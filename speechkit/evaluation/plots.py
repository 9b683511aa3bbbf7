"""Results of evaluation → matplotlib figures in the palette of the widgets, light and dark. Pure drawing, no measuring.

Every figure has a twin in text: `table()` of what it draws, or its `repr`. Matrices and error rates are drawn by
`rate_plots`.
"""

from __future__ import annotations

from itertools import cycle
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from speechkit.errors import DataError
from speechkit.evaluation.calibration import BeforeAfter
from speechkit.widgets.palette import (
    ACCENT,
    INK,
    KINDS,
    LEVELS,
    LINE,
    OUTLINES,
    PANEL,
    PAPER,
    SOFT,
    Theme,
    figure_theme,
    legend_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from speechkit.evaluation.latency import StreamScore
    from speechkit.evaluation.probe import Probe
    from speechkit.evaluation.reliability import Reliability
    from speechkit.evaluation.review import ReviewQueue

__all__ = ["latency_curve", "layer_curve", "reliability_diagram", "review_curve", "scatter"]

WIDE_IN, TALL_IN = 4.4, 5.2  # one panel of a diagram
LOW = LEVELS[2].shade  # gaps are drawn like doubtful words


def reliability_diagram(result: Reliability | BeforeAfter, theme: Theme | Literal["auto"] = "auto") -> Figure:
    """Share that is right against confidence, bin by bin, and under it how many units each bin holds.

    A dot on the diagonal is a bin whose confidence is true; its stem is the gap, and the ECE is the mean stem. The band
    is where a bin of that size would fall 19 times of 20 were its confidences true: a hollow dot lies outside it. A
    `BeforeAfter` draws two panels. `theme="auto"` follows matplotlib's background. The figure is closed for pyplot.
    """
    import matplotlib.pyplot as plt

    pair = isinstance(result, BeforeAfter)
    shown = [("before", result.before), ("after", result.after)] if isinstance(result, BeforeAfter) else [("", result)]
    kind = figure_theme(theme)
    figure, axes = plt.subplots(
        2,
        len(shown),
        figsize=(WIDE_IN * len(shown), TALL_IN),
        height_ratios=(4, 1),
        sharex=True,
        sharey="row",
        squeeze=False,
        layout="constrained",
        facecolor=PAPER.of(kind),
    )
    plt.close(figure)  # pyplot would show it a second time
    for column, (name, one) in enumerate(shown):
        upper, under = axes[0, column], axes[1, column]
        title = f"{name}: ECE {one.ece:.3f}" if pair else f"ECE {one.ece:.3f}"
        upper.set_title(f"{title} (by chance {one.ece_by_chance:.3f})", color=INK.of(kind), size=11)
        _bins(upper, one, kind)
        _counts(under, one, kind)
        for panel in (upper, under):
            _dress(panel, kind)
    axes[0, 0].set_ylabel(f"{shown[0][1].unit}s that are right", color=SOFT.of(kind))
    key = "band: within chance\nhollow: beyond it"
    axes[0, 0].text(0.03, 0.97, key, va="top", size=9, color=SOFT.of(kind), transform=axes[0, 0].transAxes)
    axes[1, 0].set_ylabel(f"{shown[0][1].unit}s", color=SOFT.of(kind))
    return figure


def review_curve(
    queue: ReviewQueue, real: NDArray[np.float64] | None = None, theme: Theme | Literal["auto"] = "auto"
) -> Figure:
    """Share of the errors found against share of the words checked: what the queue promises (solid) and, from
    `review.errors_found`, what came true (dashed). The dotted diagonal is checking in any order."""
    import matplotlib.pyplot as plt

    kind = figure_theme(theme)
    figure, axes = plt.subplots(figsize=(WIDE_IN, WIDE_IN), layout="constrained", facecolor=PAPER.of(kind))
    plt.close(figure)
    axes.plot([0, 1], [0, 1], ls=":", lw=1.2, color=SOFT.of(kind), label="any order")
    axes.plot(_steps(queue.found), queue.found, lw=2.2, color=ACCENT.of(kind), label="expected")
    if real is not None:
        axes.plot(_steps(real), real, ls="--", lw=1.8, color=INK.of(kind), label="came true")
    axes.set(xlim=(0, 1), ylim=(0, 1.01))
    axes.set_xlabel("words checked, least sure first", color=SOFT.of(kind))
    axes.set_ylabel("errors found", color=SOFT.of(kind))
    _dress(axes, kind)
    axes.legend(loc="lower right", frameon=False, labelcolor=SOFT.of(kind))
    return figure


def layer_curve(probes: Sequence[Probe], theme: Theme | Literal["auto"] = "auto") -> Figure:
    """Accuracy by layer, a line for each probe with its standard deviation over the folds; dotted: its chance.

    The twin in text is `str` of a `Probe`. Raises DataError without a probe.
    """
    import matplotlib.pyplot as plt

    if not probes:
        raise DataError("no probes to draw; `probe` makes one")
    kind = figure_theme(theme)
    figure, axes = plt.subplots(figsize=(1.6 * WIDE_IN, WIDE_IN * 0.8), layout="constrained", facecolor=PAPER.of(kind))
    plt.close(figure)
    for one, drawn, marker in zip(probes, cycle(KINDS), cycle("osD^v"), strict=False):
        layers = [score.layer for score in one.layers]
        accuracy = np.array([score.accuracy for score in one.layers])
        spread = np.array([score.spread for score in one.layers])
        color = drawn.shade.of(kind)
        axes.fill_between(layers, accuracy - spread, np.minimum(accuracy + spread, 1), color=color, alpha=0.18, lw=0)
        axes.plot(layers, accuracy, marker=marker, lw=2, color=color, label=one.label)
        axes.axhline(one.chance, ls=":", lw=1.2, color=color)
    axes.set(ylim=(0, 1.02), xticks=sorted({score.layer for one in probes for score in one.layers}))
    axes.set_xlabel("layer (0 enters the first block)", color=SOFT.of(kind))
    axes.set_ylabel("accuracy of a linear probe", color=SOFT.of(kind))
    _dress(axes, kind)
    axes.legend(frameon=False, labelcolor=SOFT.of(kind))
    return figure


def latency_curve(scores: Sequence[StreamScore], theme: Theme | Literal["auto"] = "auto") -> Figure:
    """Word errors against latency, a point for each setting of a stream: what a word costs that is shown early.

    Circles are words as they were first called stable, squares the finals; bars reach from the median to p95 and end at
    the setting's number, counted from 1. The twin in text is `str` of a `StreamScore`.
    """
    import matplotlib.pyplot as plt

    kind = figure_theme(theme)
    figure, axes = plt.subplots(figsize=(1.6 * WIDE_IN, WIDE_IN * 0.8), layout="constrained", facecolor=PAPER.of(kind))
    plt.close(figure)
    p50 = np.array([score.p50_s for score in scores]) * 1000
    p95 = np.array([score.p95_s for score in scores]) * 1000
    committed = np.array([score.committed_wer for score in scores]) * 100
    final = np.array([score.final_wer for score in scores]) * 100
    axes.hlines(committed, p50, p95, color=ACCENT.of(kind), lw=1.4)
    axes.scatter(p50, committed, s=46, color=ACCENT.of(kind), zorder=3, label="when first called stable")
    for number, place in enumerate(zip(p95, committed, strict=True), 1):
        axes.annotate(str(number), place, (4, 0), textcoords="offset points", va="center", color=SOFT.of(kind))
    axes.scatter(p50, final, s=40, marker="s", facecolors="none", edgecolors=INK.of(kind), label="final")
    axes.set_xlabel("latency in ms: median (mark) to p95 (end of the bar)", color=SOFT.of(kind))
    axes.set_ylabel("word error rate in %", color=SOFT.of(kind))
    axes.set_ylim(0, 1.12 * max(committed.max(initial=1.0), final.max(initial=1.0)))
    axes.set_xlim(0, 1.08 * np.fmax.reduce(p95, initial=1.0))
    _dress(axes, kind)
    axes.legend(frameon=False, labelcolor=SOFT.of(kind))
    return figure


def scatter(
    points: NDArray[np.floating], labels: Sequence[str], title: str = "", theme: Theme | Literal["auto"] = "auto"
) -> Figure:
    """A projection (N, 2) as a picture, a colour and a shape for each label: the still twin of `widgets.sound_map`.

    The commonest labels have kinds of their own, the rest is "other". One scale for both directions. Raises DataError
    for another shape and for a number of labels that is not that of the points.
    """
    import matplotlib.pyplot as plt

    if np.ndim(points) != 2 or np.shape(points)[1] != 2 or len(points) != len(labels):
        raise DataError(f"points of shape {np.shape(points)} and {len(labels)} labels; give (N, 2) and N labels")
    kind = figure_theme(theme)
    figure, axes = plt.subplots(figsize=(1.6 * WIDE_IN, WIDE_IN), layout="constrained", facecolor=PAPER.of(kind))
    plt.close(figure)
    names, kinds = legend_of(labels)
    for number, (name, drawn) in enumerate(zip(names, KINDS, strict=False)):
        chosen = np.asarray(points)[np.array(kinds) == number]
        marker: Any = (
            [(x, -y) for x, y in OUTLINES[drawn.shape]] if drawn.shape in OUTLINES else "o"
        )  # SVG counts downwards
        axes.scatter(
            chosen[:, 0], chosen[:, 1], s=42, marker=marker, color=drawn.shade.of(kind), label=f"{name} {len(chosen)}"
        )
    axes.set(aspect="equal", xticks=[], yticks=[])
    axes.set_title(title, color=INK.of(kind), fontsize=11)
    _dress(axes, kind)
    if names:
        axes.legend(frameon=False, labelcolor=SOFT.of(kind), loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _bins(axes: Axes, one: Reliability, theme: Theme) -> None:
    mean, right, spread = (
        np.array([getattr(b, name) for b in one.bins]) for name in ("confidence", "accuracy", "spread")
    )
    low, high = np.clip(mean - 1.96 * spread, 0, 1), np.clip(mean + 1.96 * spread, 0, 1)
    axes.plot([0, 1], [0, 1], ls="--", lw=1.0, color=SOFT.of(theme))
    axes.fill_between(mean, low, high, color=LINE.of(theme), alpha=0.6, lw=0, label="by chance")
    axes.vlines(mean, np.minimum(mean, right), np.maximum(mean, right), color=LOW.of(theme), lw=1.6)
    outside = np.abs(right - mean) > 1.96 * spread
    faces = [PAPER.of(theme) if out else ACCENT.of(theme) for out in outside]
    axes.scatter(mean, right, s=34, c=faces, edgecolors=ACCENT.of(theme), linewidths=1.6, zorder=3)
    axes.set(xlim=(0, 1), ylim=(-0.02, 1.02))


def _counts(axes: Axes, one: Reliability, theme: Theme) -> None:
    left = [b.low for b in one.bins]
    # a bin of equal mass may hold a single confidence, and a bar needs some width
    width = [max(b.high - b.low, 0.004) for b in one.bins]
    axes.bar(left, [b.count for b in one.bins], width, align="edge", color=ACCENT.of(theme), ec=PAPER.of(theme), lw=0.6)
    axes.set_xlabel("confidence", color=SOFT.of(theme))


def _dress(axes: Axes, theme: Theme) -> None:
    axes.set_facecolor(PANEL.of(theme))
    axes.tick_params(colors=SOFT.of(theme))
    for side in axes.spines.values():
        side.set_color(LINE.of(theme))


def _steps(found: NDArray[Any]) -> NDArray[np.float64]:
    return np.linspace(0, 1, len(found))
