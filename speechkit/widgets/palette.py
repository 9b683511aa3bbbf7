"""One palette for every view: widgets, static HTML and matplotlib. Plain values in, plain values out.

Confidence is never shown by colour alone: each level also has its own line (solid, dashed, wavy). Every colour that
draws text reaches a contrast of 4.5 against its paper in both themes, every line 3 (WCAG 2.2, 1.4.3 and 1.4.11).
`static/player.css` repeats these values, because a style sheet cannot import; a test keeps the two in step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["ACCENT", "HIGH", "INK", "LEVELS", "LINE", "LOW", "NOW", "PANEL", "PAPER", "SOFT", "Level", "Shade", "level"]

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


def level(confidence: float) -> Level:
    """The band of a confidence in [0, 1]; NaN counts as low, because nothing vouches for the word."""
    high, mid, low = LEVELS
    if confidence >= HIGH:
        return high
    return mid if confidence >= LOW else low
