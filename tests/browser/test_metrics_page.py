"""The live metrics' ES module in a real browser, before a real `LiveMetrics`."""

from __future__ import annotations

import pytest

from speechkit.training.curve import Curve, Point
from speechkit.widgets.metrics import LiveMetrics

pytestmark = pytest.mark.browser

POINTS = tuple(
    Point(step, step / 2, 20 / step, 1e-4, audio_s=10.0 * step, wer=10 / step, cer=4 / step)
    for step in (10, 20, 40, 50)
)
STOPS = "window.sent.filter(({ kind }) => kind === 'stop').length"


@pytest.fixture
def widget() -> LiveMetrics:
    live = LiveMetrics(Curve(POINTS, 100), "digits <b>", fallback="never")
    live._turn("training")
    return live


@pytest.fixture
def show(open_widget, widget, stays_clean):
    return lambda **more: stays_clean(open_widget(widget, "metrics", **more)).page


def _told(page, name: str, value) -> None:
    """A trait changes in Python: the view hears of it as from a kernel."""
    page.evaluate("([name, value]) => { window.state[name] = value; window.say(`change:${name}`); }", [name, value])


def test_figures_and_charts_say_where_the_run_is(show):
    page = show()
    assert page.locator(".lm-title").inner_text() == "digits <b>"
    assert page.locator(".lm-figure").all_inner_texts() == [
        "loss\n0.4", "WER\n20.0 %\nbest 20.0 % at step 50", "CER\n8.0 %", "learning rate\n0.0001",
        "audio per second\n20 s", "time\n25 s\n25 s left",
    ]  # fmt: skip
    assert page.locator(".lm-count").inner_text() == "step 50 of 100 · 50 %"
    bar = page.get_by_role("progressbar", name="Steps")
    assert [bar.get_attribute(f"aria-value{which}") for which in ("min", "now", "max")] == ["0", "50", "100"]
    assert page.locator(".lm-told").all_inner_texts() == [
        "step 50: loss 0.4", "step 50: WER 20.0 %, CER 8.0 %", "step 50: learning rate 0.0001",
    ]  # fmt: skip
    dashes = page.locator(".lm-line").evaluate_all("(all) => all.map((line) => getComputedStyle(line).strokeDasharray)")
    assert [dash == "none" for dash in dashes] == [True, True, False, True], "CER is told from WER by more than colour"


def test_pointing_at_a_chart_reads_off_the_nearest_point(show):
    page = show()
    box = page.locator(".lm-plot").nth(1).bounding_box()
    at = page.evaluate("window.state.charts[1].series[0].points[1][0]") / 300 * box["width"]
    page.mouse.move(box["x"] + at + 2, box["y"] + 20)
    assert page.locator(".lm-told").nth(1).inner_text() == "step 20: WER 50.0 %, CER 20.0 %"
    assert page.locator(".lm-cross circle").count() == 2
    page.mouse.move(5, 5)
    assert page.locator(".lm-told").nth(1).inner_text() == "step 50: WER 20.0 %, CER 8.0 %"


def test_the_arrow_keys_read_a_chart_and_new_points_leave_focus_and_place(show, widget):
    page = show()
    page.locator(".lm-plot").first.focus()
    for key, told in (("ArrowLeft", "40"), ("ArrowLeft", "20"), ("Home", "10"), ("ArrowLeft", "10"), ("End", "50")):
        page.keyboard.press(key)
        assert page.locator(".lm-told").first.inner_text().startswith(f"step {told}: loss ")
    page.keyboard.press("Home")
    widget.add(Point(60, 30.0, 0.3))
    widget._push()
    _told(page, "charts", widget.get_state()["charts"])
    assert page.evaluate("document.activeElement === document.querySelector('.lm-plot')")
    assert page.locator(".lm-told").first.inner_text() == "step 10: loss 2"
    assert page.locator(".lm-plot").first.get_attribute("aria-label").startswith("step 10: loss 2")


def test_stop_is_sent_once_and_the_state_is_said(show, widget):
    page = show()
    page.get_by_role("button", name="Stop", exact=True).focus()
    page.keyboard.press("Enter")
    page.wait_for_function(f"{STOPS} === 1")
    assert page.locator(".lm-stop").is_disabled()
    assert widget.requested and widget.phase == "stopping"
    _told(page, "state", widget.state)
    _told(page, "phase", "stopping")
    assert "checkpoint" in page.get_by_role("status").first.inner_text()
    _told(page, "phase", "stopped")
    assert page.locator(".lm-stop").is_hidden()
    assert page.evaluate(STOPS) == 1
    for name, value in (("state", "waiting"), ("phase", "waiting")):  # the next run with the same view
        _told(page, name, value)
    assert page.get_by_role("button", name="Stop", exact=True).is_enabled()


INTERRUPTS = """
window.interrupts = 0;
const kernel = { interrupt: async () => { window.interrupts += 1; } };
Object.defineProperty(Object.prototype, "widget_manager", { get: () => ({ kernel }) }); // the page's model has none
"""


@pytest.mark.parametrize(("can", "times"), [(True, 1), (False, 0)])
def test_a_kernel_that_does_not_answer_is_interrupted_once_where_that_is_a_wish(show, can, times):
    page = show(clock=True, silent_kernel=True, can_interrupt=can, before=INTERRUPTS)
    page.get_by_role("button", name="Stop", exact=True).click()
    page.clock.run_for(1000)
    assert page.evaluate("window.interrupts") == 0, "it may still answer"
    page.clock.run_for(1000)
    assert page.evaluate("window.interrupts") == times
    page.clock.run_for(10_000)
    assert page.evaluate("window.interrupts") == times
    assert "Interrupt the cell" in page.locator(".lm-note").inner_text(), "and where nothing helps the reader is told"


def test_a_kernel_that_answers_is_not_interrupted(show):
    page = show(clock=True, can_interrupt=True, before=INTERRUPTS)
    page.get_by_role("button", name="Stop", exact=True).click()
    page.clock.run_for(500)
    _told(page, "phase", "stopping")
    page.clock.run_for(20_000)
    assert page.evaluate("window.interrupts") == 0
    assert page.locator(".lm-note").inner_text() == ""


def test_a_run_without_news_says_for_how_long(show):
    page = show(clock=True)
    page.clock.run_for(5_000)
    assert page.locator(".lm-note").inner_text() == ""
    page.clock.run_for(8_000)
    assert page.locator(".lm-note").inner_text() in ("last news 12 s ago", "last news 13 s ago")
    _told(page, "figures", [{"name": "loss", "value": "not a number", "note": "see the CTC doctor", "bad": True}])
    page.clock.run_for(1_000)
    assert page.locator(".lm-note").inner_text() == ""
    assert "!" in page.evaluate("getComputedStyle(document.querySelector('.lm-bad .lm-value'), '::before').content")


def test_before_the_first_point_the_view_says_what_comes(open_widget, stays_clean):
    page = stays_clean(open_widget(LiveMetrics(fallback="never"), "metrics")).page
    assert page.locator(".lm-state").inner_text() == "waiting for the first point"
    assert page.locator(".lm-chart").count() == 0 and page.locator(".lm-progress").is_hidden()
    assert "first" in page.evaluate("getComputedStyle(document.querySelector('.lm-figures'), '::before').content")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_theme_follows_the_reader(show, scheme):
    page = show(scheme=scheme)
    paper = page.evaluate("getComputedStyle(document.querySelector('.live-metrics')).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(13, 17, 23)"}[scheme]


def test_leaving_takes_everything_along(show):
    page = show()
    page.evaluate("window.cleanup()")
    assert set(page.evaluate("window.left()")) == {0}
