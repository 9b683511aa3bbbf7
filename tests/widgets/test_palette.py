"""Levels and kinds at their edges, contrast by the WCAG formula, and the style sheets in step."""

from __future__ import annotations

import math
import re
from itertools import combinations
from pathlib import Path

import pytest

from speechkit.widgets import palette
from speechkit.widgets.palette import KINDS, LEVELS, Shade, level

STATIC = Path(palette.__file__).parent / "static"
SHEETS = {
    "player": "tp",
    "sound_map": "sm",
    "unit_browser": "ub",
    "microphone": "mi",
    "metrics": "lm",
    "error_board": "eb",
}
NAMED: dict[str, Shade] = {kind.name: kind.shade for kind in LEVELS} | {
    name: getattr(palette, name.upper()) for name in ("ink", "soft", "line", "paper", "panel", "accent", "now")
}


@pytest.mark.parametrize(
    ("confidence", "name"),
    [(1.0, "high"), (0.85, "high"), (0.8499, "mid"), (0.6, "mid"), (0.5999, "low"), (0.0, "low"), (math.nan, "low")],
)
def test_a_confidence_falls_into_its_band_and_nan_is_never_trusted(confidence, name):
    assert level(confidence).name == name


def test_no_two_levels_share_a_line_so_colour_is_never_alone():
    assert len({kind.line for kind in LEVELS}) == len(LEVELS) == 3


def _ring(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"(-?[\d.]+) (-?[\d.]+)", path)]


def test_no_two_kinds_of_points_share_a_shape_so_colour_is_never_alone():
    for one, other in combinations(KINDS, 2):
        assert _ring(one.path(0, 0, 5)) != _ring(other.path(0, 0, 5)), (one.shape, other.shape)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.shape)
def test_a_shape_lies_around_its_place_and_is_about_as_large_as_the_circle(kind):
    if kind.shape == "circle":
        assert kind.path(10, 20, 5) == "M5.0 20.0a5 5 0 1 0 10 0a5 5 0 1 0 -10 0Z"
        return
    ring = _ring(kind.path(10, 20, 5))
    xs, ys = zip(*ring, strict=True)
    assert min(xs) < 10 < max(xs) and min(ys) < 20 < max(ys)
    after = [*ring[1:], ring[0]]
    area = abs(sum(x * v - u * y for (x, y), (u, v) in zip(ring, after, strict=True))) / 2  # the shoelace formula
    assert 0.5 < area / (math.pi * 25) < 1.2


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
        for kind in (*LEVELS, *KINDS):
            assert _contrast(kind.shade.of(theme), ground) >= 3, kind
    assert _contrast(palette.INK.of(theme), palette.NOW.of(theme)) >= 4.5


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_microphones_button_and_its_complaints_can_be_read(theme):
    text = {"light": "#ffffff", "dark": "#0d1117"}[theme]
    assert "color: light-dark(#ffffff, #0d1117)" in (STATIC / "microphone.css").read_text(encoding="utf-8")
    assert _contrast(text, palette.ACCENT.of(theme)) >= 4.5
    assert _contrast(text, LEVELS[2].shade.of(theme)) >= 4.5
    assert _contrast(LEVELS[2].shade.of(theme), palette.PAPER.of(theme)) >= 4.5


@pytest.mark.parametrize(("sheet", "prefix"), SHEETS.items())
def test_the_style_sheets_repeat_the_colours_under_their_names(sheet, prefix):
    css = (STATIC / f"{sheet}.css").read_text(encoding="utf-8")
    repeated = dict(re.findall(rf"--{prefix}-(\w+): (.*);", css))
    assert {"ink", "soft", "line", "paper", "panel", "accent"} <= set(repeated) <= set(NAMED)
    for name, value in repeated.items():
        assert NAMED[name].css in value, name
    assert set(re.findall(rf"var\(--{prefix}-(\w+)", css)) <= set(repeated), "a colour is used that is not defined"


def test_no_style_sheet_holds_a_colour_of_its_own():
    for sheet in SHEETS:
        css = (STATIC / f"{sheet}.css").read_text(encoding="utf-8")
        known = {colour for shade in NAMED.values() for colour in (shade.light, shade.dark)}
        assert set(re.findall(r"#[0-9a-f]{6}", css)) <= known, sheet


def test_the_legend_of_the_es_module_names_the_same_bands():
    code = (STATIC / "player.js").read_text(encoding="utf-8")
    for kind in LEVELS:
        assert f'key("{kind.name}", "{kind.line}", "{kind.meaning}")' in code


def test_the_static_card_says_each_colour_twice_for_browsers_without_light_dark():
    style = [rule.split(":", 1) for rule in palette.card().split(";")]
    for name in ("color", "background"):
        first, second = (value for key, value in style if key == name)
        assert second.startswith("light-dark(") and first in second
