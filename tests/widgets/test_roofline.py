"""Where marks stand: hollow on the roof, filled where they were measured; names apart from one another."""

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.text import Text
from speechkit_kernels.figures import works
from speechkit_kernels.roofline import CARDS, Card, Work

from speechkit.widgets.roofline import roofline_plot

mpl.use("agg")
CPU = Card("a CPU", 40, 0.2, None, "measured")


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_every_work_stands_on_the_roof_of_the_card_under_its_name(card: Card) -> None:
    [axes] = roofline_plot(card, works()).axes
    [hollow] = axes.collections
    expected = [(work.intensity, 1000 * min(work.intensity * card.gb_s / 1000, card.rate(work)))
                for work in works().values()]  # fmt: skip
    np.testing.assert_allclose(np.asarray(hollow.get_offsets()), expected)
    assert {text.get_text() for text in axes.texts} == set(works())
    assert card.name in axes.get_title(loc="left")


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_no_name_lies_over_another(card: Card) -> None:
    figure = roofline_plot(card, works())
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in figure.axes[0].texts]  # without the lines that lead to them
    assert boxes and not any(a.overlaps(b) for at, a in enumerate(boxes) for b in boxes[:at])


def test_what_was_measured_stands_where_it_was_measured_and_is_never_cut_off() -> None:
    mine = {"rms_norm": Work(100, 100), "swiglu": Work(60, 50)}
    measured = {"kernel": {"rms_norm": 0.03}, "plain": {"rms_norm": 1e-6, "unknown": 1.0}}
    [axes] = roofline_plot(CPU, mine, measured).axes
    offsets = {one.get_label(): np.asarray(one.get_offsets()).tolist() for one in axes.collections}
    assert offsets["measured: kernel"] == [[1.0, pytest.approx(30)]]
    assert offsets["measured: plain"] == [[1.0, pytest.approx(1e-3)]]
    assert axes.get_ylim()[0] < 1e-3


def test_a_roof_without_works_can_be_drawn_and_both_themes() -> None:
    light, dark = (roofline_plot(CPU, {}, theme=theme) for theme in ("light", "dark"))
    assert light.get_facecolor() != dark.get_facecolor()
    with pytest.raises(ValueError, match="theme"):
        roofline_plot(CPU, {}, theme="blue")  # type: ignore[arg-type]
