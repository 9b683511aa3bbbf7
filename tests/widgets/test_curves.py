"""What a training curve becomes in a view: figures, charts, table, static HTML."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from speechkit.training.curve import Curve, Point
from speechkit.widgets.curves import KEPT, LEFT, TALL, WIDE, charts, curve_html, curve_text, figures, pace, span

POINTS = (
    Point(10, 10.0, 40.0, 1e-5, audio_s=200.0),
    Point(20, 20.0, 4.0, 3e-5, audio_s=400.0, wer=0.5, cer=0.2),
    Point(30, 45.0, 0.4, 3e-5, audio_s=600.0, wer=0.125, cer=0.0625),
    Point(40, 60.0, 0.39, 2.5e-5, audio_s=900.0, wer=0.25, cer=0.1),
)
CURVE = Curve(POINTS, 120)


def test_the_figures_say_where_the_run_is_and_what_was_best():
    told = {figure.name: (figure.value, figure.note) for figure in figures(CURVE)}
    assert told == {
        "loss": ("0.39", ""),
        "WER": ("25.0 %", "best 12.5 % at step 30"),
        "CER": ("10.0 %", ""),
        "learning rate": ("2.5e-5", ""),
        "audio per second": ("12.5 s", ""),  # 500 s of audio in the 40 s since the last point at least 30 s back
        "time": ("1 min 00 s", "2 min 00 s left"),  # 60 s for 40 of 120 steps
    }
    assert figures(CURVE, going=False)[-1].note == "", "a run that has ended has no time left"


LLM = Curve(
    (
        Point(0, 1.0, dev_loss=4.0, tokens=0, memory_mib=500.0),
        Point(10, 11.0, 3.0, 2e-4, dev_loss=2.5, tokens=20_000, memory_mib=812.4),
        Point(20, 21.0, 2.0, 1e-4, tokens=45_000, memory_mib=1536.0),
        Point(30, 31.0, 1.5, 1e-5, dev_loss=2.75, tokens=61_000, memory_mib=1536.0),
    ),
    60,
)


def test_a_language_model_is_told_by_kept_out_loss_tokens_and_memory():
    told = {figure.name: (figure.value, figure.note) for figure in figures(LLM)}
    assert told == {
        "loss": ("1.5", ""),
        "kept-out loss": ("2.75", "best 2.5 at step 10"),
        "learning rate": ("1e-5", ""),
        "tokens per second": ("2,033", "padding not counted"),  # 61,000 tokens in the 30 s since the first point
        "memory": ("1.5 GiB", "peak"),
        "time": ("31 s", "31 s left"),
    }
    assert LLM.best == LLM.points[1]


def test_a_language_models_charts_draw_both_losses_in_one_and_its_memory():
    loss, rate, memory = charts(LLM)
    assert [(s.name, s.steps, s.dashed) for s in loss.series] == [
        ("loss", (10, 20, 30), False), ("kept-out loss", (0, 10, 30), True),
    ]  # fmt: skip
    assert _read(loss, 1) == pytest.approx([4, 2.5, 2.75], abs=0.05)
    assert loss.best == loss.series[1].points[1], "the ring is on the line that decides"
    assert (rate.name, memory.name) == ("learning rate", "memory")
    assert memory.series[0].told == ("500 MiB", "812 MiB", "1.5 GiB", "1.5 GiB")


def test_a_language_models_table_has_columns_of_its_own():
    top, head, *rows = curve_text(LLM).splitlines()
    assert top.startswith("loss 1.5, kept-out loss 2.75 (best 2.5 at step 10)")
    assert head.split() == "step time loss kept out tokens memory rate".split()
    assert [row.split()[0] for row in rows] == ["0", "10", "30"]
    assert rows[1].split() == "10 of 60 11 s 3 2.5 20,000 812 MiB 0.0002".split()
    assert len({len(row) for row in rows[1:]} | {len(head)}) == 1, "columns stand under each other"


def test_a_reward_has_a_figure_and_a_chart():
    curve = Curve((Point(1, 1.0, 0.7, reward=0.05), Point(2, 2.0, 0.6, reward=0.8)))
    assert ("reward", "0.8") in [(figure.name, figure.value) for figure in figures(curve)]
    chart = next(chart for chart in charts(curve) if chart.name == "reward")
    assert chart.series[0].told == ("0.05", "0.8")


def test_a_broken_loss_of_a_language_model_does_not_send_to_the_ctc_doctor():
    broken = figures(Curve((Point(1, 1.0, math.nan, dev_loss=math.nan, tokens=5),)))
    assert [(f.value, f.bad) for f in broken[:2]] == [("not a number", True)] * 2
    assert broken[0].note == "a lower learning rate may help"


def test_what_was_never_reported_has_no_figure_and_no_chart():
    curve = Curve((Point(5, 1.0, loss=2.0),))
    assert [figure.name for figure in figures(curve)] == ["loss", "time"]
    assert [chart.name for chart in charts(curve)] == ["loss"]
    assert figures(Curve()) == () and charts(Curve()) == ()


def test_a_loss_that_is_no_number_is_said_and_not_drawn():
    curve = Curve((Point(1, 1.0, 2.0), Point(2, 2.0, 1.0), Point(3, 3.0, math.nan), Point(4, 4.0, math.inf)))
    figure = figures(curve)[0]
    assert (figure.value, figure.bad) == ("not a number", True)
    (chart,) = charts(curve)
    assert chart.series[0].steps == (1, 2)
    assert "nan" not in curve_html(curve).lower()
    assert charts(Curve((Point(1, 1.0, math.nan),))) == ()


@pytest.mark.parametrize(
    ("seconds", "told"), [(0, "0 s"), (59.6, "1 min 00 s"), (3599, "59 min 59 s"), (7620, "2 h 07 min")]
)
def test_times_read_as_people_say_them(seconds, told):
    assert span(seconds) == told


def test_the_pace_is_that_of_the_last_half_minute_and_of_all_where_that_is_less():
    slow_then_fast = [Point(i, float(i), audio_s=float(i if i < 100 else 100 + 10 * (i - 100))) for i in range(200)]
    assert pace(Curve(tuple(slow_then_fast))) == pytest.approx(10)
    assert pace(Curve((Point(1, 4.0, audio_s=8.0),))) == pytest.approx(2)
    assert pace(Curve((Point(1, 0.0, audio_s=8.0),))) is None
    assert pace(Curve((Point(1, 4.0, loss=1.0),))) is None


def _read(chart, series: int = 0) -> list[float]:
    """Values read off the picture with the chart's own ticks as a ruler: an oracle that knows no scale but theirs."""
    numbers = [float(text.replace(" %", "")) / (100 if "%" in text else 1) for _, text in chart.ticks]
    (low_y, low), (high_y, high) = (chart.ticks[0][0], numbers[0]), (chart.ticks[-1][0], numbers[-1])
    log = chart.name.endswith("logarithmic")
    if log:
        low, high = math.log10(low), math.log10(high)
    values = [low + (y - low_y) / (high_y - low_y) * (high - low) for _, y in chart.series[series].points]
    return [10**value if log else value for value in values]


def test_values_can_be_read_off_the_charts_with_their_own_ticks():
    loss, errors, rate = charts(CURVE)
    assert loss.name == "loss, logarithmic", "it fell a hundredfold"
    assert _read(loss) == pytest.approx([40, 4, 0.4, 0.39], rel=0.03)
    assert _read(errors) == pytest.approx([0.5, 0.125, 0.25], abs=0.003)
    assert _read(errors, 1) == pytest.approx([0.2, 0.0625, 0.1], abs=0.003)
    assert _read(rate) == pytest.approx([1e-5, 3e-5, 3e-5, 2.5e-5], abs=2e-7)
    assert errors.series[1].dashed and not errors.series[0].dashed, "not by colour alone"
    assert errors.best == errors.series[0].points[1]
    assert errors.series[0].told == ("50.0 %", "12.5 %", "25.0 %")


@pytest.mark.parametrize("values", [[0.0], [0.0, 0.0], [3.0, 3.0], [-2.0, 5.0], [1e-9, 2e-9], [1e-12, 1e6], [7e8, 9e8]])
def test_whatever_the_values_every_point_lies_within_its_plot(values):
    curve = Curve(tuple(Point(10 * i, float(i), value, value) for i, value in enumerate(values)))
    for chart in charts(curve):
        for x, y in chart.series[0].points:
            assert LEFT <= x <= WIDE and 0 <= y <= TALL
        ys = [y for y, _ in chart.ticks]
        assert ys == sorted(ys, reverse=True) and 2 <= len(ys) <= 6
        assert min(ys) <= min(y for _, y in chart.series[0].points) + 0.1
        assert max(ys) >= max(y for _, y in chart.series[0].points) - 0.1


def test_a_long_run_is_thinned_and_no_spike_is_lost():
    points = [Point(i, float(i), 1.0 + (i == 4321) * 5 - (i == 777) * 0.5) for i in range(10_000)]
    (chart,) = charts(Curve(tuple(points)))
    steps = chart.series[0].steps
    assert len(steps) <= KEPT + 2 and list(steps) == sorted(set(steps))
    assert {0, 777, 4321, 9999} <= set(steps)


def test_the_table_has_a_row_for_each_evaluation_and_one_for_the_end():
    lines = curve_text(CURVE, "digits", "finished").splitlines()
    assert lines[0].startswith("digits · finished · loss 0.39, WER 25.0 % (best 12.5 % at step 30)")
    assert [line.split()[0] for line in lines[2:]] == ["20", "30", "40"]
    assert lines[3].split() == "30 of 120 45 s 0.4 12.5 % 6.2 % 3e-5".split()
    assert len({line.index("of") for line in lines[2:]}) == 1, "columns stand under each other"
    assert curve_text(Curve()) == "no point yet"
    many = Curve(tuple(Point(i, 1.0 * i, wer=0.5) for i in range(1000)))
    assert len(curve_text(many).splitlines()) == 22 and curve_text(many).splitlines()[-1].split()[0] == "999"


def test_the_static_twin_is_well_formed_draws_every_series_and_escapes():
    html = curve_html(CURVE, "<i>&", "stopped <b>")
    tree = ElementTree.fromstring(html.replace("&nbsp;", " "))  # noqa: S314 (our own text, well formed or not)
    assert tree.findtext("strong") == "<i>&" and "stopped <b>" in "".join(tree.itertext())
    drawn = [path.get("d") for path in tree.iter("path") if path.get("fill") == "none"]
    assert drawn == [series.path for chart in charts(CURVE) for series in chart.series]
    labels = [svg.get("aria-label") for svg in tree.iter("svg")]
    assert labels[1] == "WER 50.0 % at step 20, 25.0 % at step 40, CER 20.0 % at step 20, 10.0 % at step 40"
    assert not re.search(r"<script|onload|href", html)
