"""The units browser's ES module in a real browser, before a real `UnitBrowser`."""

from __future__ import annotations

import numpy as np
import pytest

from speechkit.asr.frames import FrameGrid
from speechkit.asr.units import Units
from speechkit.types import Char, Transcript, Word
from speechkit.widgets.unit_browser import unit_browser

pytestmark = pytest.mark.browser

GRID = FrameGrid()
PLAYING = "!window.audios[0].paused"


def _clip(*spans: tuple[int, int]) -> Units:
    """(code, frames) spans → units of one clip."""
    ids = np.repeat([code for code, _ in spans], [frames for _, frames in spans]).astype(np.int32)
    return Units(ids[:, None], (9,), GRID, GRID.samples(len(ids)) / 16000, "test")


UNITS = [_clip((4, 20), (7, 10), (4, 15), (7, 5)), _clip((7, 20), (1, 10))]
SOUNDS = [np.full(GRID.samples(len(units)), 0.1, np.float32) for units in UNITS]
LETTERS = (Char("s", 0.0, 0.4, 1.0), Char("o", 0.4, 0.6, 1.0), Char("s", 0.6, 0.85, 1.0))
SPOKEN = [Transcript("sos", (Word("sos", 0.0, 0.9, 1.0, LETTERS),), "en", 1.0, 1.0, "test"), None]


@pytest.fixture
def widget():
    return unit_browser(SOUNDS, UNITS, SPOKEN, "nine units")


@pytest.fixture
def watched(open_widget, widget):
    opened = open_widget(widget, "unit_browser")
    yield opened
    assert opened.errors == []
    assert opened.outside == []


@pytest.fixture
def page(watched):
    return watched.page


def _unit(page, name: str):
    return page.locator(".ub-unit").filter(has=page.locator(".ub-name", has_text=name))


def test_units_are_listed_with_their_letters_and_counts_the_commonest_first(page):
    assert page.locator(".ub-unit").all_inner_texts() == ["7\no 33%\n3×", "4\ns 100%\n2×", "1\n1×"]
    assert page.get_by_role("button", name="unit 4, 2 stretches, said: s 100%").count() == 1
    assert page.evaluate("window.sent") == [], "no sound is asked for before a click"


def test_a_click_plays_all_stretches_of_the_unit_and_shows_them_by_clip(page):
    _unit(page, "7").click()
    page.wait_for_function("window.audios[0].ended")
    assert page.locator(".ub-row").all_inner_texts() == ["clip 1\nsos\npause", "clip 2\n0.00 s"]
    assert page.locator(".ub-stretch b").all_inner_texts() == ["o"]
    spans = [(0.4, 0.6), (0.9, 1.005), (0.0, 0.4)]
    around = sum(end - start + 0.06 * (start > 0) + 0.06 * (end < 1) for start, end in spans)
    assert page.evaluate("window.audios[0].duration") == pytest.approx(around + 3 * 0.15, abs=0.05)
    assert page.evaluate("window.state.selected") == 0
    assert _unit(page, "7").get_attribute("aria-pressed") == "true"


def test_each_stretch_lights_up_while_it_is_heard(page):
    page.evaluate(
        "window.lit = []; new MutationObserver(() => window.lit.push("
        "[...document.querySelectorAll('.ub-stretch')].findIndex((chip) => chip.matches('.ub-now'))))"
        ".observe(document.querySelector('.ub-detail'), { subtree: true, attributeFilter: ['class'] })"
    )
    page.evaluate("window.audios[0].defaultPlaybackRate = 0.4")  # a busy machine looks at the sound rarely
    _unit(page, "7").click()
    page.wait_for_function("window.audios[0].ended")
    page.wait_for_function("window.lit.at(-1) === -1")
    lit = [index for index in page.evaluate("window.lit") if index >= 0]
    assert list(dict.fromkeys(lit)) == [0, 1, 2]


def test_a_click_on_a_stretch_plays_that_one_alone(page):
    _unit(page, "4").click()
    page.wait_for_function("window.audios[0].ended")
    page.evaluate("window.audios[0].playbackRate = 0.25")  # a busy machine looks at the sound rarely
    page.evaluate("window.audios[0].onplaying = () => { window.begun ??= window.audios[0].currentTime; }; 0")
    page.get_by_role("button", name="s in sos, clip 1, 0.60–0.90 s").click()
    page.wait_for_function("window.begun !== undefined && window.audios[0].paused")
    first = 0.4 + 0.06 + 0.15
    assert first - 0.02 <= page.evaluate("window.begun") < first + 0.42
    assert first + 0.4 <= page.evaluate("window.audios[0].currentTime")
    page.locator(".ub-stretch").first.click()
    page.wait_for_function(f"{PLAYING} && window.audios[0].currentTime < 0.4")
    page.wait_for_function("window.audios[0].paused")
    assert 0.4 <= page.evaluate("window.audios[0].currentTime") < first + 0.4, "it stopped before the last one's end"
    assert page.evaluate("window.sent.length") == 1, "the sound was there already"


def test_the_arrow_keys_move_through_units_and_enter_plays(page):
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("unit 7")
    for key, name in (("ArrowDown", "4"), ("End", "1"), ("ArrowDown", "1"), ("ArrowUp", "4"), ("Home", "7")):
        page.keyboard.press(key)
        assert page.evaluate("document.activeElement.querySelector('.ub-name').textContent") == name
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_function(PLAYING)
    assert page.evaluate("window.state.selected") == 1
    page.locator(".ub-stretch").first.wait_for()
    page.keyboard.press("Tab")  # from the list into the stretches, one stop each
    assert page.evaluate("document.activeElement.matches('.ub-stretch')")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "s in sos, clip 1, 0.60–0.90 s"


def test_keys_of_the_list_do_not_reach_the_notebook_and_others_do(page):
    page.evaluate("window.heard = []; document.addEventListener('keydown', (event) => window.heard.push(event.key))")
    _unit(page, "7").focus()
    for key in ("ArrowDown", "Home", "x", "Control+ArrowDown"):
        page.keyboard.press(key)
    assert page.evaluate("window.heard") == ["x", "Control", "ArrowDown"]


def test_another_unit_chosen_meanwhile_is_the_one_that_is_heard(page):
    _unit(page, "7").click()
    page.wait_for_function(PLAYING)
    _unit(page, "1").click()
    page.get_by_text("unit 1: 1 stretch", exact=True).wait_for()
    page.wait_for_function("window.audios[0].ended")
    assert page.evaluate("window.audios[0].duration") < 0.6


def test_a_unit_whose_clip_cannot_be_read_says_so(open_widget):
    page = open_widget(unit_browser([SOUNDS[0], "gone.wav"], UNITS), "unit_browser").page
    _unit(page, "1").click()
    page.get_by_text("no such file: gone.wav").wait_for()


def test_a_click_while_the_kernel_is_busy_says_why_it_is_quiet(open_widget, widget):
    page = open_widget(widget, "unit_browser", silent_kernel=True, clock=True).page
    _unit(page, "4").click()
    page.clock.fast_forward(3000)
    page.get_by_text("No audio yet: it comes when the kernel is free.").wait_for()
    assert page.get_by_text("unit 4: 2 stretches").is_visible()


def test_rarer_units_that_do_not_come_say_why(open_widget, widget):
    page = open_widget(widget, "unit_browser", silent_kernel=True, clock=True, more=7).page
    page.get_by_role("button", name="and 7 rarer ones").click()
    page.clock.fast_forward(3000)
    page.get_by_text("No units yet: they come when the kernel is free.").wait_for()


def test_nothing_in_units_or_title_becomes_markup(open_widget):
    attack = "<img src=x onerror='window.hit=1'>"
    chars = (Char(attack, 0.0, 0.4, 1.0), Char("x", 0.4, 1.0, 1.0))
    spoken = Transcript(attack, (Word(f"{attack}x", 0.0, 1.0, 1.0, chars),), "en", 1.0, 1.0, "test")
    opened = open_widget(unit_browser(SOUNDS[:1], UNITS[:1], [spoken], attack), "unit_browser")
    page = opened.page
    _unit(page, "4").click()
    page.locator(".ub-stretch").first.wait_for()
    assert page.locator(".ub-stretch").first.inner_text() == f"{attack}x"
    assert page.locator("#el img").count() == 0 and page.evaluate("window.hit") is None
    assert opened.errors == []


@pytest.fixture
def crowded(open_widget):
    """Units 3 and 5 with 101 stretches each, in two clips, and 600 with one."""
    often = [_clip(*[(code, 1) for code in [3, 5] * 50]), _clip(*[(code, 1) for code in [3, 5] * 50])]
    many = Units(np.arange(600, dtype=np.int32)[:, None], (600,), GRID, GRID.samples(600) / 16000, "test")
    sounds = [np.zeros(GRID.samples(len(units)), np.float32) for units in (*often, many)]
    opened = open_widget(unit_browser(sounds, [*often, many]), "unit_browser")
    opened.page.evaluate("window.audios[0].defaultPlaybackRate = window.audios[0].playbackRate = 16")
    yield opened.page
    assert opened.errors == []


def _note_what_is_said(page):
    """`window.said` holds every text that the view showed, however briefly: a stretch lasts a millisecond here."""
    page.evaluate(
        "window.said = []; new MutationObserver(() => window.said.push(document.querySelector('#el').textContent))"
        ".observe(document.querySelector('#el'), { subtree: true, childList: true, characterData: true }); 0"
    )


def test_all_stretches_of_a_frequent_unit_are_heard_one_part_after_the_other(crowded):
    crowded.evaluate("window.whole = []; window.audios[0].addEventListener('ended', () => window.whole.push(1))")
    _note_what_is_said(crowded)
    crowded.locator(".ub-unit").first.click()
    crowded.wait_for_function("window.said.some((text) => text.includes('unit 3: 101 stretches, the first 60'))")
    crowded.get_by_text("unit 3: 101 stretches", exact=True).wait_for()
    crowded.wait_for_function("window.whole.length === 2")
    assert [(s["unit"], s["part"]) for s in crowded.evaluate("window.sent")] == [(0, 0), (0, 1)]
    assert crowded.locator(".ub-stretch").count() == 101
    assert crowded.locator(".ub-clip").all_inner_texts() == ["clip 1", "clip 2", "clip 3"], "parts meet inside clip 2"
    assert [row.locator(".ub-stretch").count() for row in crowded.locator(".ub-row").all()] == [50, 50, 1]
    crowded.get_by_text("click or Enter: hear all stretches").wait_for()
    crowded.locator(".ub-stretch").nth(70).click()
    crowded.wait_for_function("window.said.some((text) => text.includes('playing stretch, clip 2, 0.80–0.82 s'))")
    crowded.wait_for_function("window.audios[0].paused")
    assert crowded.evaluate("window.sent.length") == 2, "both parts were there already"


def test_the_next_part_can_be_asked_for_before_the_first_has_been_heard(crowded):
    crowded.evaluate("window.audios[0].defaultPlaybackRate = window.audios[0].playbackRate = 0.1")
    crowded.locator(".ub-unit").first.click()
    crowded.wait_for_function(PLAYING)
    first = crowded.evaluate("window.audios[0].src")
    crowded.get_by_role("button", name="and 41 more: hear the next").focus()
    crowded.keyboard.press("Enter")
    crowded.wait_for_function(f"{PLAYING} && window.audios[0].src !== '{first}'")
    assert crowded.locator(".ub-stretch").count() == 101
    assert not crowded.get_by_role("button", name="hear the next").is_visible()
    assert crowded.evaluate("[...document.querySelectorAll('.ub-stretch')].indexOf(document.activeElement)") == 60
    crowded.wait_for_function("document.querySelector('.ub-now')")
    lit = "[...document.querySelectorAll('.ub-stretch')].findIndex((chip) => chip.matches('.ub-now'))"
    assert crowded.evaluate(lit) >= 60


def test_hundreds_of_units_and_stretches_scroll_inside_their_panes(crowded):
    assert crowded.locator(".ub-unit").count() == 500
    crowded.locator(".ub-unit").first.click()
    crowded.get_by_text("unit 3: 101 stretches", exact=True).wait_for()
    assert crowded.locator(".unit-browser").bounding_box()["height"] < 480


def test_rarer_units_are_listed_when_asked_for_and_can_be_chosen(crowded):
    crowded.get_by_role("button", name="and 100 rarer ones: list more").focus()
    crowded.keyboard.press("Enter")
    crowded.wait_for_function("document.querySelectorAll('.ub-unit').length === 600")
    assert not crowded.get_by_role("button", name="rarer").is_visible()
    assert crowded.evaluate("[...document.querySelectorAll('.ub-unit')].indexOf(document.activeElement)") == 500
    crowded.keyboard.press("End")
    crowded.keyboard.press("Enter")
    crowded.get_by_text("unit 599: 1 stretch", exact=True).wait_for()
    crowded.wait_for_function("window.audios[0].ended")
    assert crowded.evaluate("window.state.selected") == 599
    assert crowded.locator(".ub-stretch").get_attribute("aria-label").startswith("stretch, clip 3, 11.98")


def test_leaving_stops_the_sound_and_frees_it(page):
    _unit(page, "7").click()
    page.wait_for_function(PLAYING)
    url = page.evaluate("window.audios[0].src")
    page.evaluate("window.cleanup()")
    assert page.evaluate("[window.audios[0].paused, window.revoked, window.left()]") == [True, [url], [0, 0]]
