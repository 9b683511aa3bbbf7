"""A card's roofline with the works under it and the points that were measured → matplotlib figure. Pure drawing.

In: a `speechkit_kernels.roofline.Card`, works by name, rates by name. Where a work stands from left to right is its
arithmetic intensity, how high its hollow mark stands is the most that the card can do of it. The twin in text is
`speechkit_kernels.figures.goals`, or the table of what was measured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from speechkit.widgets.palette import INK, KINDS, LINE, PANEL, PAPER, SOFT, Theme, figure_theme

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from speechkit_kernels.roofline import Card, Work

__all__ = ["roofline_plot"]

WIDE_IN, TALL_IN = 8.6, 5.4
LEFT, CROWDED = 0.2, 2.0  # operations a byte: of the panel's edge, and up to which names stand above the slope
ROOF, MARKS = KINDS[0], (KINDS[1], KINDS[3])
SHAPES = {"square": "s", "diamond": "D"}  # matplotlib's names
SIZE, STEP = 9, 0.052  # points of a name; distance between two, in heights of the panel


def roofline_plot(
    card: Card,
    works: Mapping[str, Work],
    measured: Mapping[str, Mapping[str, float]] | None = None,
    theme: Theme | Literal["auto"] = "auto",
) -> Figure:
    """`works` hollow on the roof of `card`; `measured` filled below: provider → name of the work → 10**12 operations/s.

    `theme="auto"` follows matplotlib's background. The figure is closed for pyplot.
    """
    import matplotlib.pyplot as plt

    kind = figure_theme(theme)
    figure, axes = plt.subplots(figsize=(WIDE_IN, TALL_IN), layout="constrained", facecolor=PAPER.of(kind))
    plt.close(figure)  # pyplot would show it a second time
    ridge = 1000 * card.tensor_tflop_s / card.gb_s
    _roof(axes, card, max(10 * ridge, *(3 * work.intensity for work in works.values()), 1), kind)
    _labelled(axes, card, works, kind)
    for (provider, rates), mark in zip((measured or {}).items(), MARKS, strict=False):
        names = [name for name in rates if name in works]
        if not names:
            continue
        axes.set_ylim(bottom=min([axes.get_ylim()[0], *(1000 * rates[name] / 3 for name in names)]))
        axes.scatter(
            [works[name].intensity for name in names], [1000 * rates[name] for name in names], s=40, zorder=4,
            color=mark.shade.of(kind), marker=SHAPES[mark.shape], label=f"measured: {provider}",
        )  # fmt: skip
    axes.set_title(f"{card.name}: {card.gb_s:,.0f} GB/s; {card.source}", color=INK.of(kind), size=11, loc="left")
    _dress(axes, kind)
    return figure


def _roof(axes: Axes, card: Card, right: float, theme: Theme) -> None:
    x = np.geomspace(LEFT, right, 400)
    shade, tensor = ROOF.shade.of(theme), 1000 * card.tensor_tflop_s
    axes.plot(x, np.minimum(x * card.gb_s, tensor), color=shade, lw=1.8, label="roof: memory, then matrix products")
    if card.vector_tflop_s is not None:
        vector = 1000 * card.vector_tflop_s
        beyond = x[x * card.gb_s > vector]
        axes.plot(beyond, np.full_like(beyond, vector), color=shade, lw=1.8, ls="--", label="all else, in float32")
    axes.set(xscale="log", yscale="log", xlim=(LEFT, right), ylim=(LEFT * card.gb_s / 30, 12 * tensor))


def _labelled(axes: Axes, card: Card, works: Mapping[str, Work], theme: Theme) -> None:
    """Marks and names: above the slope, beside it, below the flat; no line crosses a name."""
    ranked = sorted(works.items(), key=lambda pair: pair[1].intensity)
    above = [name for name, work in ranked if work.intensity < CROWDED]
    below = [name for name, work in ranked if work.intensity >= CROWDED and work.bound(card) != "memory"]
    heights = {name: 0.97 - STEP * at for at, name in enumerate(above)}
    heights |= {name: 0.04 + STEP * at for at, name in enumerate(reversed(below))}
    line = {"arrowstyle": "-", "color": SOFT.of(theme), "lw": 0.7, "shrinkA": 0, "shrinkB": 4}
    some: dict[str, Any] = {"size": SIZE, "color": INK.of(theme), "va": "center"}
    for name, work in ranked:
        x, y = work.intensity, 1000 * card.best_tflop_s(work)
        if name in heights:
            side = "left" if name in above else "right"
            some |= {"textcoords": axes.get_xaxis_transform(), "ha": side}
            some["arrowprops"] = line | {"relpos": (float(side == "right"), 0.5)}
            axes.annotate(name, (x, y), (x, heights[name]), **some)
        else:
            axes.annotate(
                name, (x, y), (9, -5), **some | {"textcoords": "offset points", "ha": "left", "arrowprops": None}
            )
    axes.scatter(
        [work.intensity for work in works.values()], [1000 * card.best_tflop_s(work) for work in works.values()],
        s=44, facecolors=PAPER.of(theme), edgecolors=ROOF.shade.of(theme), linewidths=1.6, zorder=3,
        label="the most a kernel can do",
    )  # fmt: skip


def _dress(axes: Axes, theme: Theme) -> None:
    axes.set_facecolor(PANEL.of(theme))
    axes.set_xlabel("operations for each byte that must be moved", color=SOFT.of(theme))
    axes.set_ylabel("10⁹ operations a second", color=SOFT.of(theme))
    axes.tick_params(colors=SOFT.of(theme), which="both")
    for side in axes.spines.values():
        side.set_color(LINE.of(theme))
    axes.legend(
        frameon=False,
        labelcolor=SOFT.of(theme),
        fontsize=SIZE,
        ncols=3,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.13),
    )
