"""What the figures hold: bins at their numbers, the palette's colours, marks that need no colour."""

from __future__ import annotations

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex

from speechkit.errors import DataError
from speechkit.evaluation.calibration import before_and_after
from speechkit.evaluation.judge import Judged
from speechkit.evaluation.plots import layer_curve, reliability_diagram, review_curve, scatter
from speechkit.evaluation.probe import LayerScore, Probe
from speechkit.evaluation.reliability import reliability
from speechkit.evaluation.review import errors_found, review_queue
from speechkit.types import Transcript, Word
from speechkit.widgets.palette import ACCENT, KINDS, PAPER


def rows(count: int = 2000) -> Judged:
    rng = np.random.default_rng(0)
    sure = rng.beta(3, 1, count)
    return Judged.of(sure, rng.random(count) < sure**2)


@pytest.mark.parametrize("binning", ["width", "mass"])
def test_every_bin_is_a_dot_at_its_confidence_and_its_share(binning):
    found = reliability(rows(), 10, binning)
    figure = reliability_diagram(found)
    dots = figure.axes[0].collections[-1]
    places = np.array([(b.confidence, b.accuracy) for b in found.bins])
    assert np.asarray(dots.get_offsets()) == pytest.approx(places)
    assert [bar.get_height() for bar in figure.axes[1].patches] == [b.count for b in found.bins]
    assert figure.axes[0].get_title() == f"ECE {found.ece:.3f} (by chance {found.ece_by_chance:.3f})"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_bin_beyond_chance_is_hollow_in_both_themes(theme):
    sure = np.repeat([0.25, 0.75], 400)
    right = np.concatenate([np.arange(400) < 100, np.arange(400) < 100])  # true at 0.25, far off at 0.75
    figure = reliability_diagram(reliability(Judged.of(sure, right), 2), theme)
    dots = figure.axes[0].collections[-1]
    assert [to_hex(c) for c in dots.get_facecolors()] == [ACCENT.of(theme), PAPER.of(theme)]
    assert {to_hex(c) for c in dots.get_edgecolors()} == {ACCENT.of(theme)}
    assert to_hex(figure.get_facecolor()) == PAPER.of(theme)


def test_before_and_after_stand_side_by_side_on_one_scale():
    shown = before_and_after(rows())
    figure = reliability_diagram(shown)
    before, after = figure.axes[0], figure.axes[1]
    assert before.get_title().startswith(f"before: ECE {shown.before.ece:.3f}")
    assert after.get_title().startswith(f"after: ECE {shown.after.ece:.3f}")
    assert before.get_ylim() == after.get_ylim()


def test_one_word_can_be_drawn():
    figure = reliability_diagram(reliability(Judged.of([1.0], [False])))
    figure.canvas.draw()
    assert figure.axes[0].collections[-1].get_offsets().tolist() == [[1.0, 0.0]]


def test_the_review_curve_draws_promise_and_truth_with_different_lines():
    rng = np.random.default_rng(0)
    sure = rng.random(50)
    words = tuple(Word("w", 0, 1, p) for p in sure.tolist())
    queue = review_queue([Transcript("w " * 50, words)])
    real = errors_found(Judged.of(sure, rng.random(50) < sure))
    axes = review_curve(queue, real).axes[0]
    assert [line.get_linestyle() for line in axes.lines] == [":", "-", "--"]
    assert axes.lines[1].get_ydata() == pytest.approx(queue.found)
    assert axes.lines[2].get_ydata() == pytest.approx(real)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["any order", "expected", "came true"]
    assert len(review_curve(queue).axes[0].lines) == 2


def test_the_theme_follows_matplotlib_unless_told_and_pyplot_is_left_alone():
    found, before = reliability(rows()), dict(mpl.rcParams)
    with mpl.rc_context({"figure.facecolor": "#111111"}):
        assert to_hex(reliability_diagram(found).get_facecolor()) == PAPER.dark
    assert to_hex(reliability_diagram(found).get_facecolor()) == PAPER.light
    with pytest.raises(ValueError, match='theme is \'blue\'; use "auto", "light" or "dark"'):
        reliability_diagram(found, "blue")
    assert plt.get_fignums() == []
    assert dict(mpl.rcParams) == before


def test_the_layer_curve_draws_every_probe_with_its_own_mark_and_its_chance():
    probes = [
        Probe("word", (LayerScore(0, 0.3, 0.05), LayerScore(1, 0.98, 0.05)), 0.25, 4, 80, 4, True),
        Probe("speaker", (LayerScore(0, 0.7, 0.1), LayerScore(1, 0.4, 0.1)), 0.5, 2, 80, 4, True),
    ]
    axes = layer_curve(probes).axes[0]
    curves = [line for line in axes.lines if line.get_linestyle() == "-"]
    chances = [line for line in axes.lines if line.get_linestyle() == ":"]
    assert [list(line.get_ydata()) for line in curves] == [[0.3, 0.98], [0.7, 0.4]]
    assert [line.get_ydata()[0] for line in chances] == [0.25, 0.5]
    assert len({line.get_marker() for line in curves}) == len({line.get_color() for line in curves}) == 2
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["word", "speaker"]
    upper = max(place[1] for place in axes.collections[0].get_paths()[0].vertices)
    assert upper == 1, "no accuracy above 100 %"
    assert list(axes.get_xticks()) == [0, 1] and plt.get_fignums() == []
    with pytest.raises(DataError, match="no probes to draw"):
        layer_curve([])


def test_a_scatter_has_a_colour_a_shape_and_a_line_in_the_legend_for_each_label():
    points = np.array([[0.0, 1.0], [0.5, -1.0], [-0.5, 0.0], [0.2, 0.3]])
    figure = scatter(points, ["b", "a", "b", "c"], "four", theme="dark")
    drawn = figure.axes[0].collections
    assert [np.asarray(one.get_offsets()).tolist() for one in drawn] == [[[0, 1], [-0.5, 0]], [[0.5, -1]], [[0.2, 0.3]]]
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["b 2", "a 1", "c 1"]
    assert len({to_hex(one.get_facecolor()[0]) for one in drawn}) == 3
    assert len({one.get_paths()[0].vertices.tobytes() for one in drawn}) == 3
    assert to_hex(figure.get_facecolor()) == PAPER.dark


def test_labels_beyond_the_kinds_share_the_last_one():
    labels = [f"label {i % 11}" for i in range(44)]
    figure = scatter(np.random.default_rng(0).normal(size=(44, 2)), labels)
    assert len(figure.axes[0].collections) == len(KINDS)
    assert figure.axes[0].get_legend().get_texts()[-1].get_text() == "other 16"


@pytest.mark.parametrize(("points", "labels"), [(np.zeros((3, 2)), ["a"]), (np.zeros((3, 3)), list("abc"))])
def test_points_and_labels_that_do_not_meet_are_told(points, labels):
    with pytest.raises(DataError, match=r"points of shape \(3, [23]\) and [13] labels"):
        scatter(points, labels)


def test_a_scatter_of_nothing_is_an_empty_picture():
    assert scatter(np.zeros((0, 2)), []).axes[0].collections[:] == []
