"""What the figures of rates hold: their numbers, both themes, marks that need no colour, text that can be read."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb

from speechkit.errors import DataError
from speechkit.evaluation.breakdown import Breakdown
from speechkit.evaluation.crosslingual import cross_evaluate
from speechkit.evaluation.efficiency import Efficiency, EfficiencyPoint
from speechkit.evaluation.errors import score
from speechkit.evaluation.metrics import Rate
from speechkit.evaluation.rate_plots import breakdown_bars, character_map, cross_map, efficiency_lines
from speechkit.types import Transcript
from speechkit.widgets.palette import PAPER

SETS = {code: [(np.full(800 + at, 0.1, np.float32), "a b c d") for at in range(2)] for code in ("pl", "cs", "uk")}


class Ear:
    """Gets so many words of each clip wrong: proves where a cell's numbers come from."""

    def __init__(self, language: str, wrong: int) -> None:
        self.name, self.language, self.wrong = f"ear-{language}", language, wrong

    def transcribe(self, audio: list) -> list[Transcript]:
        return [Transcript(" ".join(["x"] * self.wrong + list("abcd")[self.wrong :])) for _ in audio]


@pytest.fixture(scope="module")
def cross():
    return cross_evaluate([Ear("pl", 0), Ear("cs", 2), Ear("uk", 4), "demo/none"], SETS)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_cell_of_the_map_holds_its_rate_and_its_interval(cross, theme):
    picture = cross_map(cross, "wer", theme)
    picture.canvas.draw()
    axes = picture.axes[0]
    told = [text.get_text() for text in axes.texts]
    assert told[3] == "50.0\n50–50" and told[6] == "100.0\n100–100" and told[9:] == ["no rate"] * 3
    assert told[0].startswith("0.0\n0–")
    assert [label.get_text() for label in axes.get_yticklabels()] == list(cross.models)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["pl", "cs", "uk"]
    frames = np.array([(p.get_x() + p.get_width() / 2, p.get_y() + p.get_height() / 2) for p in axes.patches])
    assert frames == pytest.approx(np.array([(0, 0), (1, 1), (2, 2)]))
    assert to_hex(picture.get_facecolor()) == PAPER.of(theme) and plt.get_fignums() == []
    assert axes.images[0].get_array()[:3, 0].tolist() == [1, 0.5, 0]


def luminance(color) -> float:
    """Relative luminance by the definition of WCAG 2.2."""
    parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)[:3]]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_numbers_stand_out_from_their_cell_at_any_shade(theme):
    many = {f"l{at}": [(np.full(800, 0.1, np.float32), "w " * 20)] for at in range(1)}
    for wrong in range(0, 21, 2):
        ear = Ear("en", 0)
        ear.transcribe = lambda audio, wrong=wrong: [Transcript("x " * wrong + "w " * (20 - wrong)) for _ in audio]
        axes = cross_map(cross_evaluate([ear], many), "wer", theme).axes[0]
        image = axes.images[0]
        ground = luminance(image.cmap(image.norm(image.get_array()[0, 0])))
        ink = luminance(axes.texts[0].get_color())
        assert (max(ink, ground) + 0.05) / (min(ink, ground) + 0.05) > 3.9


def point(start: str, minutes: float, value: float, fresh: bool = False) -> EfficiencyPoint:
    return EfficiencyPoint(start, minutes, Rate(value, value / 2, value * 1.5, 1, 10), fresh=fresh)


def test_efficiency_is_drawn_on_a_logarithmic_axis_with_fresh_points_filled():
    curve = Efficiency((point("a", 1, 0.4, True), point("a", 10, 0.2), point("b", 1, 0.8), point("b", 10, 0.6)))
    axes = efficiency_lines(curve, "dark").axes[0]
    assert axes.get_xscale() == "log" and [t.get_text() for t in axes.get_xticklabels()] == ["1", "10"]
    lines = [line for line in axes.lines if line.get_linestyle() == "-"]
    assert [list(line.get_ydata()) for line in lines] == [[40, 20], [80, 60]]
    assert {to_hex(line.get_markerfacecolor()) for line in lines} == {PAPER.dark}
    filled = [line for line in axes.lines if line.get_linestyle() == "None"]
    assert [list(line.get_ydata()) for line in filled] == [[40], []]
    assert len({line.get_marker() for line in lines}) == 2
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]
    stems = np.array([path.vertices[:, 1] for path in axes.collections[0].get_paths()])
    assert stems == pytest.approx(np.array([[20, 60], [10, 30]]))
    with pytest.raises(DataError, match="no points to draw"):
        efficiency_lines(Efficiency(()))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_characters_are_shares_of_what_was_said(theme):
    found = score(["aaab"], ["aacb x"]).characters()
    axes = character_map(found, theme=theme).axes[0]
    shares = np.asarray(axes.images[0].get_array()) ** 2
    a = found.labels.index("a")
    assert shares[a, a] == pytest.approx(2 / 3) and shares[a, found.labels.index("c")] == pytest.approx(1 / 3)
    assert {"67", "33", "100"} <= {text.get_text() for text in axes.texts}
    assert [label.get_text() for label in axes.get_yticklabels()] == list(found.labels)
    assert len(character_map(found, most=1, theme=theme).axes[0].get_yticklabels()) == 2
    assert "◌ि" in [
        label.get_text() for label in character_map(score("हि", "हि").characters()).axes[0].get_yticklabels()
    ]


def test_parts_of_a_breakdown_are_bars_from_top_to_bottom():
    report = score(["a b"] * 4, ["a x", "a b", "x y", "x b"], speakers=["s", "s", "t", "t"])
    axes = breakdown_bars(report.by("speaker")).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["t  (2)", "s  (2)"]
    assert [bar.get_width() for bar in axes.patches] == [75, 25]
    low, high = axes.get_ylim()
    assert low > high, "the first part is on top"
    with pytest.raises(DataError, match="no part of the breakdown by snr has a rate"):
        breakdown_bars(Breakdown("snr", ()))
