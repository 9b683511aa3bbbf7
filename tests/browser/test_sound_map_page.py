"""The map's ES module in a real browser, before a real `SoundMap`: what is read, heard, reached and shown."""

from __future__ import annotations

import numpy as np
import pytest

from speechkit.widgets.palette import KINDS, PAPER
from speechkit.widgets.sound_map import sound_map

pytestmark = pytest.mark.browser

POINTS = [[-1.0, -0.6], [-0.2, 0.6], [0.3, 0.0], [1.0, 0.6], [1.0, 0.6]]
TEXTS = ["one, by amy", "two, by bob", "three, by amy", "four, by bob", "four again"]
LABELS = ["amy", "bob", "amy", "bob", "bob"]
HERE = "document.querySelector('.sm-tip.sm-on')?.textContent"


def tone(seconds: float) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * 330 * np.arange(round(seconds * 16000)) / 16000)).astype(np.float32)


@pytest.fixture
def widget():
    return sound_map(POINTS, [tone(0.5), tone(0.25), "gone.wav", None, tone(0.3)], TEXTS, LABELS, "five clips")


@pytest.fixture
def watched(open_widget, widget, stays_clean):
    return stays_clean(open_widget(widget, "sound_map"))


def _spot(page, index: int) -> tuple[float, float]:
    """Where a point is on the page, as the browser drew it."""
    box = page.locator(".sm-mark").nth(index).bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_title_points_and_legend_are_there(page):
    assert page.locator(".sm-title").inner_text() == "five clips"
    assert page.locator(".sm-mark").count() == 5
    assert page.locator(".sm-key").all_inner_texts() == ["bob\n3", "amy\n2"]
    assert page.evaluate("window.sent") == [], "no sound is asked for before a click"


def test_each_label_has_its_own_shape_in_its_own_colour(page):
    drawn = [page.locator(".sm-mark").nth(index).get_attribute("d") for index in range(5)]
    assert drawn[0] == drawn[2] != drawn[1] == drawn[3] == drawn[4]
    assert drawn[1] == KINDS[0].path(0, 0, 5) and drawn[0] == KINDS[1].path(0, 0, 5)


def test_the_pointer_near_a_point_shows_its_text_and_elsewhere_none(page):
    x, y = _spot(page, 1)
    page.mouse.move(x + 6, y - 4)
    page.wait_for_function(f"{HERE} === 'two, by bob'")
    page.mouse.move(x + 150, y + 60)
    page.wait_for_function(f"{HERE} === undefined")


def test_the_label_is_told_where_the_text_does_not_say_it(page):
    page.locator(".sm-field").focus()
    page.keyboard.press("PageUp")
    assert page.evaluate(HERE) == "four again (bob)"


def test_a_click_plays_the_sound_of_that_point_and_a_second_click_asks_no_more(page):
    for _ in range(2):
        page.mouse.click(*_spot(page, 0))
        page.wait_for_function("window.audios[0].duration > 0.4 && window.audios[0].ended")
    assert page.evaluate("window.audios[0].duration") == pytest.approx(0.5, abs=0.02)
    assert page.evaluate("window.sent") == [{"kind": "audio", "row": 0, "opus": True}]
    assert page.evaluate("window.state.selected") == 0


def test_the_point_that_plays_is_marked_until_its_end(page):
    page.evaluate("window.audios[0].loop = true")
    page.mouse.click(*_spot(page, 0))
    page.wait_for_function("document.querySelectorAll('.sm-mark')[0].matches('.sm-playing')")
    page.get_by_text("playing: one, by amy").wait_for()
    page.evaluate("window.audios[0].loop = false")
    page.wait_for_function("!document.querySelector('.sm-playing')")


def test_a_sound_that_is_missing_is_told_under_the_map(page):
    page.mouse.click(*_spot(page, 2))
    page.get_by_text("no such file: gone.wav").wait_for()
    page.locator(".sm-field").focus()
    page.keyboard.press("Escape")
    for _ in range(4):
        page.keyboard.press("PageDown")
    page.keyboard.press("Enter")
    page.get_by_text("this point has no sound").wait_for()


def test_the_arrow_keys_reach_the_point_in_their_direction(page):
    page.keyboard.press("Tab")
    read = []
    for key in ("ArrowRight", "ArrowRight", "ArrowUp", "ArrowLeft", "ArrowDown"):
        page.keyboard.press(key)
        read.append(page.evaluate(HERE))
    assert read[0] == TEXTS[0]
    assert read[1] == TEXTS[2], "to the right, and not far up"
    assert read[2] in (TEXTS[1], TEXTS[3]), "both are above"
    ring = page.locator(".sm-ring").bounding_box()
    assert page.evaluate(HERE) in TEXTS and ring["x"] > 0


def test_every_point_is_reached_by_page_down_also_two_at_one_place(page):
    page.locator(".sm-field").focus()
    read = []
    for _ in range(6):
        page.keyboard.press("PageDown")
        read.append(page.evaluate(HERE).removesuffix(" (bob)"))
    assert read == [*TEXTS, TEXTS[-1]]


def test_enter_plays_the_point_that_the_keys_reached(page):
    page.locator(".sm-field").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.wait_for_function("window.audios[0].ended")
    assert page.evaluate("window.state.selected") == 0


def test_what_is_reached_is_read_out(page):
    page.locator(".sm-field").focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("document.querySelector('.sm-reader[role=status]').textContent === 'one, by amy'")
    name = page.get_by_role("application").get_attribute("aria-label")
    assert name.startswith("5 points. Arrow keys move between them")
    assert page.locator("svg:not([aria-hidden])").count() == 0


def test_keys_of_the_map_do_not_reach_the_notebook_and_others_do(page):
    page.evaluate("window.heard = []; document.addEventListener('keydown', (event) => window.heard.push(event.key))")
    page.locator(".sm-field").focus()
    for key in ("ArrowRight", "PageDown", "Enter", "x", "Control+ArrowRight"):
        page.keyboard.press(key)
    assert page.evaluate("window.heard") == ["x", "Control", "ArrowRight"]


def test_a_label_switched_off_hides_its_points_from_eye_pointer_and_keys(page):
    spot = _spot(page, 0)
    button = page.get_by_role("button", name="amy, 2 points")
    button.press("Enter")
    assert button.get_attribute("aria-pressed") == "false"
    assert [mark.is_visible() for mark in page.locator(".sm-mark").all()] == [False, True, False, True, True]
    page.mouse.move(*spot)
    assert page.evaluate(HERE) is None
    page.locator(".sm-field").focus()
    page.keyboard.press("PageDown")
    assert page.evaluate(HERE) == "two, by bob"
    button.click()
    assert page.locator(".sm-mark").first.is_visible()


@pytest.mark.parametrize(
    ("system", "notebook"), [("light", None), ("dark", None), ("light", "dark"), ("dark", "light")]
)
def test_colours_follow_the_notebooks_theme_else_the_systems(open_widget, widget, system, notebook):
    page = open_widget(widget, "sound_map", scheme=system).page
    if notebook:
        page.evaluate(f"document.body.dataset.jpThemeLight = '{str(notebook == 'light').lower()}'")
    theme = notebook or system
    colour = "#{:02x}{:02x}{:02x}"
    for locator, name, shade in (
        (page.locator(".sm-mark").nth(1), "fill", KINDS[0].shade),
        (page.locator(".sound-map"), "backgroundColor", PAPER),
    ):
        shown = locator.evaluate(f"node => getComputedStyle(node).{name}")
        assert colour.format(*(int(part) for part in shown[4:-1].split(","))) == shade.of(theme)


def test_nothing_in_texts_labels_or_title_becomes_markup(open_widget):
    attack = "<script>window.hit=1</script><img src=x onerror='window.hit=1'>"
    opened = open_widget(sound_map([[0, 0]], [attack], [attack], [attack], attack), "sound_map")
    page = opened.page
    page.mouse.click(*_spot(page, 0))
    page.get_by_text("no such file").wait_for()
    assert page.evaluate(HERE) == attack and page.locator(".sm-title").inner_text() == attack
    assert page.locator("#el img, #el script").count() == 0 and page.evaluate("window.hit") is None
    assert opened.errors == []


def test_a_map_without_sounds_offers_none(open_widget):
    page = open_widget(sound_map(POINTS, None, TEXTS, LABELS), "sound_map").page
    assert "hear" not in page.locator(".sm-note").inner_text()
    page.mouse.click(*_spot(page, 0))
    assert page.evaluate("window.state.selected") == 0 and page.evaluate("window.sent") == []


def test_a_map_without_points_says_so(open_widget):
    opened = open_widget(sound_map([], [], [], []), "sound_map")
    assert opened.page.get_by_text("no points", exact=True).is_visible()
    opened.page.locator(".sm-field").focus()
    for key in ("ArrowRight", "PageDown", "Enter"):
        opened.page.keyboard.press(key)
    assert opened.errors == []


def test_a_long_text_stays_inside_the_map(open_widget):
    points = [[x, y] for x in (-1, 0, 1) for y in (-1, 0, 1)]
    page = open_widget(sound_map(points, None, ["word " * 200] * 9, ["label " * 40] * 9), "sound_map").page
    page.locator(".sm-field").focus()
    for _ in points:
        page.keyboard.press("PageDown")
        tip, field = page.locator(".sm-tip").bounding_box(), page.locator(".sm-field").bounding_box()
        assert tip["x"] >= field["x"] and tip["x"] + tip["width"] <= field["x"] + field["width"]
        assert tip["y"] >= field["y"] and tip["y"] + tip["height"] <= field["y"] + field["height"]
    assert page.locator(".sm-key").bounding_box()["height"] < 40


def test_a_click_while_the_kernel_is_busy_says_why_it_is_quiet(open_widget, widget):
    page = open_widget(widget, "sound_map", silent_kernel=True, clock=True).page
    page.mouse.click(*_spot(page, 0))
    page.clock.fast_forward(3000)
    page.get_by_text("No audio yet: it comes when the kernel is free.").wait_for()


def test_sound_that_another_view_asked_for_is_not_played(page):
    page.evaluate("window.say('msg:custom', { kind: 'failed', row: 1, reason: 'not ours' }, [])")
    page.evaluate("window.say('msg:custom', { kind: 'audio', row: 1, mime: 'audio/ogg' }, [new ArrayBuffer(9)])")
    assert page.evaluate("window.audios[0].paused") and "not ours" not in page.locator(".sm-note").inner_text()


def test_leaving_stops_the_sound_and_frees_it(page):
    page.evaluate("window.audios[0].loop = true")
    page.mouse.click(*_spot(page, 0))
    page.wait_for_function("!window.audios[0].paused")
    url = page.evaluate("window.audios[0].src")
    page.evaluate("window.cleanup()")
    assert page.evaluate("[window.audios[0].paused, window.revoked, window.left()]") == [True, [url], [0, 0]]
