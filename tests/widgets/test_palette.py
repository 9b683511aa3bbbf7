"""Levels at their edges, contrast by the WCAG formula, and the style sheet in step."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from speechkit.widgets import palette
from speechkit.widgets.palette import LEVELS, Shade, level

CSS = Path(palette.__file__).parent / "static" / "player.css"
JS = Path(palette.__file__).parent / "static" / "player.js"


@pytest.mark.parametrize(
    ("confidence", "name"),
    [(1.0, "high"), (0.85, "high"), (0.8499, "mid"), (0.6, "mid"), (0.5999, "low"), (0.0, "low"), (math.nan, "low")],
)
def test_a_confidence_falls_into_its_band_and_nan_is_never_trusted(confidence, name):
    assert level(confidence).name == name


def test_no_two_levels_share_a_line_so_colour_is_never_alone():
    assert len({kind.line for kind in LEVELS}) == len(LEVELS) == 3


def _luminance(colour: str) -> float:
    channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: str, other: str) -> float:
    dim, bright = sorted((_luminance(one), _luminance(other)))
    return (bright + 0.05) / (dim + 0.05)


def test_the_contrast_formula_gives_21_for_black_on_white():
    assert _contrast("#000000", "#ffffff") == pytest.approx(21)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_reaches_contrast_4_5_and_lines_3_on_every_ground(theme):
    grounds = [palette.PAPER.of(theme), palette.PANEL.of(theme)]
    for ground in grounds:
        assert _contrast(palette.INK.of(theme), ground) >= 4.5
        assert _contrast(palette.SOFT.of(theme), ground) >= 4.5
        assert _contrast(palette.ACCENT.of(theme), ground) >= 3
        for kind in LEVELS:
            assert _contrast(kind.shade.of(theme), ground) >= 3, kind
    assert _contrast(palette.INK.of(theme), palette.NOW.of(theme)) >= 4.5


def test_the_style_sheet_repeats_every_colour_under_its_name():
    css = CSS.read_text(encoding="utf-8")
    named: dict[str, Shade] = {kind.name: kind.shade for kind in LEVELS}
    named |= {
        name: getattr(palette, name.upper()) for name in ("ink", "soft", "line", "paper", "panel", "accent", "now")
    }
    for name, shade in named.items():
        line = next(row for row in css.splitlines() if row.strip().startswith(f"--tp-{name}:"))
        assert shade.css in line, line


def test_the_legend_of_the_es_module_names_the_same_bands():
    code = JS.read_text(encoding="utf-8")
    for kind in LEVELS:
        assert f'key("{kind.name}", "{kind.line}", "{kind.meaning}")' in code
