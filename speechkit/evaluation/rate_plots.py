"""Error rates → matplotlib figures in the palette of the widgets, light and dark. Pure drawing, no measuring.

In: `CrossLingual`, `Efficiency`, `Breakdown` and `Characters`. Every figure has a twin in text: `table()` of
what it draws. A shade is never alone: its number stands in it.
"""

from __future__ import annotations

import math
from itertools import cycle
from typing import TYPE_CHECKING, Literal

import numpy as np

from speechkit.errors import DataError
from speechkit.evaluation.cells import check_figure
from speechkit.evaluation.confusions import shown
from speechkit.evaluation.metrics import NAMES
from speechkit.widgets.palette import ACCENT, INK, KINDS, LINE, PANEL, PAPER, SOFT, Theme, figure_theme

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Picture
    from numpy.typing import NDArray

    from speechkit.evaluation.breakdown import Breakdown
    from speechkit.evaluation.cells import Figure
    from speechkit.evaluation.confusions import Characters
    from speechkit.evaluation.crosslingual import CrossLingual
    from speechkit.evaluation.efficiency import Efficiency

__all__ = ["breakdown_bars", "character_map", "cross_map", "efficiency_lines"]

Themed = Theme | Literal["auto"]


def cross_map(result: CrossLingual, figure: Figure = "romanized", theme: Themed = "auto") -> Picture:
    """The matrix as a heat map: models down, languages across, the rate in % and its interval in each cell.

    The darker (in the dark theme the brighter) a cell, the lower its rate: the more of the language the model hears. A
    frame marks a model's own language; a cell that could not be measured is empty and says "no rate".
    """
    check_figure(figure)
    kind = figure_theme(theme)
    values = result.matrix(figure)
    rows, columns = values.shape
    picture, axes = _sheet(2.2 + 1.3 * columns, 1.2 + 0.62 * rows, kind)
    _shades(axes, 1 - np.clip(values, 0, 1), kind)
    for i, model in enumerate(result.models):
        for j, language in enumerate(result.languages):
            cell = result.cell(model, language)
            rate = cell.rate(figure)
            ends = "" if rate is None or math.isnan(rate.low) else f"\n{100 * rate.low:.0f}–{100 * rate.high:.0f}"
            told = "no rate" if rate is None or math.isnan(rate.value) else f"{100 * rate.value:.1f}{ends}"
            share = 0.0 if told == "no rate" else 1 - min(values[i, j], 1.0)
            _write(axes, (j, i), told, share, kind, 9)
            if cell.native:
                _frame(axes, i, j, kind)
    _ticks(axes, result.models, result.languages, kind)
    name = {"wer": "WER", "cer": "CER", "romanized": f"error rate of romanised {result.scheme}"}[figure]
    axes.set_title(f"{name} in %, with 95 % interval", color=INK.of(kind), fontsize=11)
    axes.set_xlabel("language heard (framed: the model's own)", color=SOFT.of(kind))
    return picture


def character_map(result: Characters, most: int = 30, theme: Themed = "auto") -> Picture:
    """The confusion matrix of the `most` commonest characters: rows what was said, columns what was heard, as shares
    of the row; the row ∅ holds insertions, as shares of all characters. Shares of 1 % and more are written in."""
    kind = figure_theme(theme)
    size = min(len(result.labels), most + 1)
    counts = result.counts[:size, :size].astype(np.float64)
    totals = result.counts.sum(axis=1)[:size].astype(np.float64)
    totals[0] = result.counts[1:].sum()
    shares = counts / np.maximum(totals, 1)[:, None]  # (L, L)
    side = 1.4 + 0.3 * size
    picture, axes = _sheet(side, side, kind)
    _shades(axes, np.sqrt(shares), kind)  # a root, or a confusion of 4 % would not be seen
    for i, j in np.argwhere(shares >= 0.01).tolist():
        _write(axes, (j, i), f"{100 * shares[i, j]:.0f}", math.sqrt(shares[i, j]), kind, 6)
    labels = [shown(name) for name in result.labels[:size]]
    _ticks(axes, labels, labels, kind)
    axes.set_ylabel("said", color=SOFT.of(kind))
    axes.set_xlabel("heard, in % of the times it was said", color=SOFT.of(kind))
    return picture


def efficiency_lines(result: Efficiency, theme: Themed = "auto") -> Picture:
    """WER against labelled minutes on a logarithmic axis, a line with its intervals for each start.

    Filled marks were measured in this session, hollow ones come from a file. Raises DataError without a point.
    """
    if not result.points:
        raise DataError("no points to draw; `efficiency_curve` or `Efficiency.load` makes some")
    kind = figure_theme(theme)
    picture, axes = _sheet(7.2, 4.2, kind)
    for number, (start, drawn, marker) in enumerate(zip(result.starts, cycle(KINDS), cycle("osD^v"), strict=False)):
        points = result.curve(start)
        aside = 1.02 ** (number - (len(result.starts) - 1) / 2)  # intervals of two starts would hide each other
        x = np.array([point.minutes for point in points]) * aside
        y, low, high = (100 * np.array([getattr(p.wer, end) for p in points]) for end in ("value", "low", "high"))
        color = drawn.shade.of(kind)
        axes.vlines(x, low, high, color=color, lw=1.4)
        axes.plot(x, y, lw=2, color=color, marker=marker, ms=7, mfc=PAPER.of(kind), mec=color, label=start)
        fresh = np.array([point.fresh for point in points])
        axes.plot(x[fresh], y[fresh], ls="", color=color, marker=marker, ms=7)
    axes.set_xscale("log")
    axes.set_xticks(result.minutes, [f"{minutes:g}" for minutes in result.minutes])
    axes.minorticks_off()
    axes.set_ylim(0, None)
    axes.set_xlabel("minutes of labelled speech (logarithmic); filled: measured now", color=SOFT.of(kind))
    axes.set_ylabel("word error rate in %", color=SOFT.of(kind))
    axes.legend(frameon=False, labelcolor=SOFT.of(kind))
    return picture


def breakdown_bars(result: Breakdown, theme: Themed = "auto") -> Picture:
    """A rate with its interval for each part, from top to bottom in the order of the table."""
    kind = figure_theme(theme)
    parts = [part for part in result.parts if not math.isnan(part.rate.value)]
    if not parts:
        raise DataError(f"no part of the breakdown by {result.key} has a rate to draw")
    picture, axes = _sheet(6.4, 1.1 + 0.36 * len(parts), kind)
    place = np.arange(len(parts))
    value, low, high = (100 * np.array([getattr(p.rate, end) for p in parts]) for end in ("value", "low", "high"))
    axes.barh(place, value, height=0.62, color=ACCENT.of(kind), alpha=0.35)
    axes.hlines(place, low, high, color=INK.of(kind), lw=1.6)
    axes.scatter(value, place, color=ACCENT.of(kind), s=30, zorder=3)
    axes.set_yticks(place, [f"{part.label}  ({part.utterances})" for part in parts])
    axes.invert_yaxis()
    axes.set_xlim(0, None)
    axes.set_xlabel(
        f"{NAMES[parts[0].rate.unit]} in % by {result.key}, 95 % intervals (utterances)", color=SOFT.of(kind)
    )
    return picture


def _sheet(wide: float, tall: float, theme: Theme) -> tuple[Picture, Axes]:
    """An empty figure with one panel, closed for pyplot, which would show it a second time."""
    import matplotlib.pyplot as plt

    picture, axes = plt.subplots(figsize=(wide, tall), layout="constrained", facecolor=PAPER.of(theme))
    plt.close(picture)
    axes.set_facecolor(PANEL.of(theme))
    axes.tick_params(colors=SOFT.of(theme))
    for side in axes.spines.values():
        side.set_color(LINE.of(theme))
    return picture, axes


def _shades(axes: Axes, shares: NDArray[np.float64], theme: Theme) -> None:
    """(R, C) shares → a mesh from the panel's colour (0, and NaN) to the accent (1)."""
    from matplotlib.colors import LinearSegmentedColormap

    shade = LinearSegmentedColormap.from_list("accent", [PANEL.of(theme), ACCENT.of(theme)])
    axes.imshow(np.nan_to_num(shares), cmap=shade, vmin=0, vmax=1, aspect="auto")


def _write(axes: Axes, place: tuple[int, int], told: str, share: float, theme: Theme, size: int) -> None:
    """A number in the colour that stands out more against its shade (WCAG 2.2 contrast)."""
    from matplotlib.colors import to_rgb

    panel, accent = (np.array(to_rgb(shade.of(theme))) for shade in (PANEL, ACCENT))
    ground = _luminance((1 - share) * panel + share * accent)
    inks = [INK.of(theme), PAPER.of(theme)]
    color = max(inks, key=lambda ink: _contrast(_luminance(np.array(to_rgb(ink))), ground))
    axes.text(*place, told, ha="center", va="center", color=color, fontsize=size)


def _luminance(rgb: NDArray[np.float64]) -> float:
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ np.array([0.2126, 0.7152, 0.0722]))


def _contrast(one: float, other: float) -> float:
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)


def _frame(axes: Axes, row: int, column: int, theme: Theme) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((column - 0.47, row - 0.46), 0.94, 0.92, fill=False, ec=INK.of(theme), lw=1.8))


def _ticks(axes: Axes, rows: Sequence[str], columns: Sequence[str], theme: Theme) -> None:
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0, colors=INK.of(theme))
