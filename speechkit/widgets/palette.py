"""One palette for every view: widgets, static HTML and matplotlib. Plain values in, plain values out.

Confidence is never shown by colour alone: each level also has its own line (solid, dashed, wavy). Every colour that
draws text reaches a contrast of 4.5 against its paper in both themes, every line 3 (WCAG 2.2, 1.4.3 and 1.4.11).
The style sheets in `static/` repeat these values, because a style sheet cannot import; a test keeps them in step.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "ACCENT",
    "HIGH",
    "INK",
    "KINDS",
    "LEVELS",
    "LINE",
    "LOW",
    "NOW",
    "OUTLINES",
    "PANEL",
    "PAPER",
    "SOFT",
    "Kind",
    "Level",
    "Shade",
    "card",
    "figure_theme",
    "legend_of",
    "level",
]

Theme = Literal["light", "dark"]

HIGH = 0.85  # from here up a word is taken as heard
LOW = 0.6  # below this a word wants a listener


@dataclass(frozen=True, slots=True)
class Shade:
    """One colour in both themes, as `#rrggbb`."""

    light: str
    dark: str

    def of(self, theme: Theme) -> str:
        return self.dark if theme == "dark" else self.light

    @property
    def css(self) -> str:
        """CSS that follows the element's `color-scheme`."""
        return f"light-dark({self.light}, {self.dark})"


@dataclass(frozen=True, slots=True)
class Level:
    """One band of confidence: how it is called, drawn and explained."""

    name: Literal["high", "mid", "low"]
    line: Literal["solid", "dashed", "wavy"]  # the CSS underline style
    shade: Shade
    meaning: str


@dataclass(frozen=True, slots=True)
class Kind:
    """One class of points: a colour and a shape of its own, so that colour is never alone."""

    shape: Literal["circle", "square", "triangle", "diamond", "cross", "wedge", "bar", "pole"]
    shade: Shade

    def path(self, x: float, y: float, size: float) -> str:
        """SVG path of the shape around (x, y), about as large as a circle of radius `size`."""
        if self.shape == "circle":
            radius, across = f"{size:g} {size:g}", f"{2 * size:g}"
            return f"M{x - size:.1f} {y:.1f}a{radius} 0 1 0 {across} 0a{radius} 0 1 0 -{across} 0Z"
        corners = (f"{x + size * dx:.1f} {y + size * dy:.1f}" for dx, dy in OUTLINES[self.shape])
        return f"M{'L'.join(corners)}Z"


INK = Shade("#1b1f24", "#e6edf3")
SOFT = Shade("#59636e", "#9198a1")  # secondary text
LINE = Shade("#d1d9e0", "#3d444d")
PAPER = Shade("#ffffff", "#0d1117")
PANEL = Shade("#f6f8fa", "#151b23")
ACCENT = Shade("#0b62c4", "#4493f8")
NOW = Shade("#ddf4ff", "#0c2d6b")  # behind the word that is playing

LEVELS = (
    Level("high", "solid", Shade("#1a7f37", "#3fb950"), f"≥ {HIGH}"),
    Level("mid", "dashed", Shade("#9a6700", "#d29922"), f"{LOW}–{HIGH}"),
    Level("low", "wavy", Shade("#c9302c", "#f85149"), f"< {LOW}: listen"),
)


OUTLINES: dict[str, tuple[tuple[float, float], ...]] = {
    "square": ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    "triangle": ((0, -1.2), (1.1, 0.8), (-1.1, 0.8)),
    "diamond": ((0, -1.3), (1.1, 0), (0, 1.3), (-1.1, 0)),
    "cross": (
        (-0.4, -1.2), (0.4, -1.2), (0.4, -0.4), (1.2, -0.4), (1.2, 0.4), (0.4, 0.4),
        (0.4, 1.2), (-0.4, 1.2), (-0.4, 0.4), (-1.2, 0.4), (-1.2, -0.4), (-0.4, -0.4),
    ),
    "wedge": ((-1.1, -0.8), (1.1, -0.8), (0, 1.2)),
    "bar": ((-1.3, -0.5), (1.3, -0.5), (1.3, 0.5), (-1.3, 0.5)),
    "pole": ((-0.5, -1.3), (0.5, -1.3), (0.5, 1.3), (-0.5, 1.3)),
}  # fmt: skip

OTHER = "other"  # the label of all that have no kind of their own

# after Okabe & Ito (2008), darkened or lightened until each has a contrast of 3 on its paper
KINDS = (
    Kind("circle", Shade("#0b62c4", "#56b4e9")),
    Kind("square", Shade("#b85c00", "#e69f00")),
    Kind("triangle", Shade("#00795a", "#2fc49a")),
    Kind("diamond", Shade("#b0468a", "#e79ac6")),
    Kind("cross", Shade("#59636e", "#9198a1")),
    Kind("wedge", Shade("#8a6d00", "#f0e442")),
    Kind("bar", Shade("#c9302c", "#ff8066")),
    Kind("pole", Shade("#5b4bc4", "#b3a6ff")),
)


def card() -> str:
    """Inline CSS of the box around a static twin; colours twice: without `light-dark()` the first one holds."""
    return (
        f"color-scheme:light dark;color:{INK.light};color:{INK.css};background:{PAPER.light};background:{PAPER.css};"
        f"border:1px solid {LINE.light};border-color:{LINE.css};border-radius:10px;max-width:860px;padding:10px 14px;"
        "font:15px/1.55 system-ui,-apple-system,'Segoe UI',sans-serif"
    )


def figure_theme(theme: Theme | Literal["auto"] = "auto") -> Theme:
    """The theme of a matplotlib figure: "auto" follows matplotlib's background. Raises ValueError for another name."""
    if theme in ("light", "dark"):
        return theme
    if theme != "auto":
        raise ValueError(f'theme is {theme!r}; use "auto", "light" or "dark"')
    import matplotlib as mpl
    from matplotlib.colors import to_rgb

    return "light" if sum(to_rgb(mpl.rcParams["figure.facecolor"])) > 1.5 else "dark"


def legend_of(labels: Sequence[str]) -> tuple[list[str], list[int]]:
    """Labels → names in the legend (commonest first), and the place of each label in it."""
    ranked = [name for name, _ in sorted(Counter(labels).items(), key=lambda item: (-item[1], item[0]))]
    if len(ranked) > len(KINDS):
        ranked = [*[name for name in ranked if name != OTHER][: len(KINDS) - 1], OTHER]
    place = {name: kind for kind, name in enumerate(ranked)}
    return ranked, [place.get(label, len(ranked) - 1) for label in labels]


def level(confidence: float) -> Level:
    """The band of a confidence in [0, 1]; NaN counts as low, because nothing vouches for the word."""
    high, mid, low = LEVELS
    if confidence >= HIGH:
        return high
    return mid if confidence >= LOW else low
