"""The player's ES module in a real browser, with the traits of a real `Player` behind a stub of the model."""

from __future__ import annotations

import pytest

from speechkit.types import Transcript, Word
from speechkit.widgets.palette import LEVELS, NOW, PAPER

pytestmark = pytest.mark.browser

NOW_S = "window.audios[0].currentTime"
PAUSED = "window.audios[0].paused"


def _settles(page, expression, value):
    """The browser tells of a seek or a pause a task later; playwright gives up after its own time."""
    page.wait_for_function(f"Math.abs({expression} - {value}) < 0.05")


def _word(page, index: int):
    return page.locator(".tp-words .tp-word").nth(index)


def _rgb(colour: str) -> str:
    return f"rgb({int(colour[1:3], 16)}, {int(colour[3:5], 16)}, {int(colour[5:7], 16)})"


def _style(locator, name: str) -> str:
    return locator.evaluate(f"node => getComputedStyle(node).{name}")


@pytest.fixture
def watched(open_player, stays_clean):
    """The ten-word recording, open and with its sound loaded."""
    opened = stays_clean(open_player())
    opened.page.wait_for_function("window.audios[0].readyState >= 3")
    return opened


def test_the_words_the_title_and_the_waveform_are_there(page):
    assert page.locator(".tp-words").inner_text() == "please bring the patient in room fourteen before nine thirty"
    assert page.locator(".tp-title").inner_text() == "clinic-07.flac"
    assert page.locator(".tp-rest").get_attribute("d").count("M") == 150
    assert page.evaluate("window.sent") == [{"kind": "audio", "opus": True}]


def test_a_click_on_a_word_plays_it_from_its_start_and_stops_behind_it(page):
    _word(page, 5).click()
    assert page.evaluate(PAUSED) is False
    assert 2.65 <= page.evaluate(NOW_S) < 3.1
    page.wait_for_function(PAUSED)
    assert 3.1 <= page.evaluate(NOW_S) <= 3.4
    assert page.evaluate("window.state.selected") == 5


def test_shift_click_plays_on_past_the_word(page):
    _word(page, 0).click(modifiers=["Shift"])
    page.wait_for_function(f"{NOW_S} > 1.0")
    assert page.evaluate(PAUSED) is False


def test_the_highlight_follows_the_sound(page):
    page.get_by_role("button", name="Play", exact=True).click()
    for index in (0, 1, 2):
        # asked in one breath: the sound goes on between two questions
        page.wait_for_function(
            f"document.querySelectorAll('.tp-words .tp-word')[{index}].matches('.tp-now[aria-current]')"
            f" && Math.abs({NOW_S} - {0.4 + 0.5 * index}) < 0.45 && document.querySelectorAll('.tp-now').length === 1"
        )


def test_a_long_pause_between_words_lights_none(page):
    page.evaluate("window.audios[0].currentTime = 5.5")
    page.wait_for_function("document.querySelector('.tp-time').textContent.startsWith('0:05.5')")
    assert page.locator(".tp-now").count() == 0


def test_space_plays_and_pauses_from_a_word_and_from_the_waveform(page):
    for start in (_word(page, 3), page.get_by_role("slider")):
        start.focus()
        page.keyboard.press("Space")
        page.wait_for_function(f"!{PAUSED}")
        page.get_by_role("button", name="Pause").wait_for()
        page.keyboard.press("Space")
        page.wait_for_function(PAUSED)


def test_space_on_the_play_button_acts_once(page):
    page.get_by_role("button", name="Play", exact=True).focus()
    page.keyboard.press("Space")
    page.wait_for_function(f"{NOW_S} > 0.2")
    assert page.evaluate(PAUSED) is False


def test_arrows_move_between_words_and_enter_plays_the_one_reached(page):
    _word(page, 4).focus()
    page.evaluate("document.querySelectorAll('.tp-words .tp-word')[4].click()")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.textContent") == "fourteen"
    page.keyboard.press("Enter")
    page.wait_for_function(f"{NOW_S} >= 3.1")
    assert page.evaluate(NOW_S) < 5, "from the word, not from the end"
    page.keyboard.press("End")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.textContent") == "thirty"
    page.keyboard.press("Home")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("document.activeElement.textContent") == "please"


def test_tab_reaches_each_part_once_and_shows_where_it_is(page):
    reached = []
    for _ in range(4):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.getAttribute('aria-label')"))
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert reached == ["Play the next of 2 doubtful words", "Play", "Position", "please"]


def test_keys_do_not_reach_the_page_but_shortcuts_with_control_do(page):
    page.evaluate("window.heard = []; document.addEventListener('keydown', (event) => window.heard.push(event.key))")
    _word(page, 0).focus()
    for key in ("ArrowRight", "Enter", "Space", "x", "Control+ArrowRight"):
        page.keyboard.press(key)
    assert page.evaluate("window.heard") == ["x", "Control", "ArrowRight"]


def test_a_click_on_the_waveform_seeks_and_tells_python(page):
    box = page.get_by_role("slider").bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + 10)
    _settles(page, NOW_S, 3.3)
    _settles(page, "window.state.current_s", 3.3)
    page.keyboard.press("ArrowLeft")
    _settles(page, NOW_S, 2.3)
    page.locator("[role=slider][aria-valuetext='0:02.3 / 0:06.6']").wait_for()


def test_python_hears_the_time_a_few_times_a_second_not_every_frame(page):
    page.get_by_role("button", name="Play", exact=True).click()
    page.wait_for_function(f"{NOW_S} > 1.5")
    page.get_by_role("button", name="Pause").click()
    _settles(page, "window.state.current_s", NOW_S)
    assert 3 <= len(page.evaluate("window.saves")) <= 10


def test_the_doubtful_words_are_found_one_after_the_other(page):
    button = page.get_by_role("button", name="Play the next of 2 doubtful words")
    selected = []
    for _ in range(3):
        button.click()
        selected.append(page.evaluate("window.state.selected"))
    assert selected == [6, 9, 6]


def test_space_and_enter_press_the_button_for_doubtful_words(page):
    page.get_by_role("button", name="Play the next of 2 doubtful words").focus()
    for key, word in (("Space", 6), ("Enter", 9)):
        page.keyboard.press(key)
        page.wait_for_function(f"window.state.selected === {word}", timeout=5000)


def test_the_waveform_answers_every_key_of_a_slider(page):
    slider = page.get_by_role("slider")
    slider.focus()
    for key, seconds in (("End", 6.6), ("ArrowDown", 5.6), ("ArrowUp", 6.6), ("Home", 0.0), ("ArrowUp", 1.0)):
        page.keyboard.press(key)
        _settles(page, NOW_S, seconds)
        _settles(page, "Number(document.querySelector('[role=slider]').getAttribute('aria-valuenow'))", seconds)


def test_a_key_held_down_does_not_play_and_pause_in_turns(page):
    _word(page, 3).focus()
    page.keyboard.down("Space")
    page.keyboard.down("Space")  # playwright marks the second as a repeat, as a held key does
    page.wait_for_function(f"{NOW_S} > 0.2", timeout=5000)
    assert page.evaluate(PAUSED) is False
    page.keyboard.up("Space")


def test_play_at_the_end_starts_again(page):
    page.evaluate("window.audios[0].currentTime = 6.58")
    page.wait_for_function("document.querySelector('.tp-time').textContent.startsWith('0:06.6')")
    page.get_by_role("button", name="Play", exact=True).click()
    page.wait_for_function(f"{NOW_S} < 2")


def test_screen_readers_get_names_values_and_the_doubt(page):
    assert page.get_by_role("region", name="Transcript player").count() == 1
    assert page.get_by_role("button", name="room, less certain").count() == 1
    assert page.get_by_role("button", name="fourteen, doubtful").count() == 1
    slider = page.get_by_role("slider", name="Position")
    assert [slider.get_attribute(f"aria-value{end}") for end in ("min", "max", "now")] == ["0", "6.6", "0.0"]
    assert _word(page, 5).get_attribute("title") == "0:02.7–0:03.1 · confidence 0.71"
    assert page.locator(".tp-words").get_attribute("lang") == "en"
    assert page.locator("svg:not([aria-hidden])").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colour_and_line_of_each_level_follow_the_system_theme(open_player, scheme):
    page = open_player(scheme=scheme).page
    for index, kind in zip((0, 5, 6), LEVELS, strict=True):
        assert _style(_word(page, index), "textDecorationStyle") == kind.line
        assert _style(_word(page, index), "textDecorationColor") == _rgb(kind.shade.of(scheme))
    assert _style(page.locator(".transcript-player"), "backgroundColor") == _rgb(PAPER.of(scheme))
    page.evaluate("window.audios[0].currentTime = 0.3")
    page.locator(".tp-now").wait_for()
    page.mouse.move(0, 0)
    assert _style(page.locator(".tp-now"), "backgroundColor") == _rgb(NOW.of(scheme))


@pytest.mark.parametrize(("system", "notebook"), [("light", "dark"), ("dark", "light")])
def test_the_notebooks_theme_outranks_the_systems(open_player, system, notebook):
    page = open_player(scheme=system).page
    page.evaluate(f"document.body.dataset.jpThemeLight = '{str(notebook == 'light').lower()}'")
    page.evaluate("document.body.style.setProperty('--jp-layout-color1', 'rgb(1, 2, 3)')")
    assert _style(_word(page, 6), "textDecorationColor") == _rgb(LEVELS[2].shade.of(notebook))
    assert _style(page.locator(".transcript-player"), "backgroundColor") == "rgb(1, 2, 3)"


def test_nothing_in_a_transcript_becomes_markup(open_player, spoken):
    attack = "<script>window.hit=1</script><img src=x onerror='window.hit=1'>"
    hostile = Transcript(attack, (Word(attack, 0, 1, 0.2),), "en", 6.6, 0.2, attack, (attack,))
    watched = open_player(transcript=hostile, title=attack)
    page = watched.page
    assert _word(page, 0).inner_text() == attack
    assert page.locator(".tp-title").inner_text() == attack
    assert page.locator("#el img, #el script").count() == 0
    assert page.evaluate("window.hit") is None
    assert watched.errors == []


def test_an_empty_transcript_says_so_and_still_plays(open_player):
    watched = open_player(transcript=Transcript("", duration_s=6.6))
    page = watched.page
    assert page.locator(".tp-words").inner_text() == "(no speech)"
    page.get_by_role("slider").focus()
    page.keyboard.press("Space")
    page.wait_for_function(f"{NOW_S} > 0.1")
    page.get_by_role("button", name="Pause").focus()
    page.keyboard.press("ArrowRight")
    assert watched.errors == []


def test_a_click_before_the_sound_has_come_plays_when_it_comes(open_player):
    page = open_player(silent_kernel=True).page
    _word(page, 6).click()
    page.get_by_text("No audio yet: it comes when the kernel is free.").wait_for()
    page.evaluate("window.answer('audio.wav', 'audio/wav')")
    page.wait_for_function(f"{NOW_S} > 3.1 && !{PAUSED}")
    assert page.locator(".tp-note").inner_text() == ""


def test_sound_that_cannot_be_played_is_reported_in_words(open_player):
    page = open_player(silent_kernel=True).page
    page.evaluate("window.answer('player.css', 'audio/ogg')")
    page.get_by_text("This browser cannot play the audio.").wait_for()


def test_leaving_stops_the_sound_and_frees_it(page):
    _word(page, 0).click(modifiers=["Shift"])
    url = page.evaluate("window.audios[0].src")
    assert url.startswith("blob:")
    page.evaluate("window.cleanup()")
    assert page.evaluate("window.revoked") == [url]
    assert page.evaluate(PAUSED) is True
    assert page.evaluate("[document.getElementById('el').children.length, window.handlers.size]") == [0, 0]


def test_a_long_transcript_scrolls_inside_its_own_box(open_player, spoken):
    words = tuple(Word(f"word{i}", i * 0.01, i * 0.01 + 0.01, 0.9) for i in range(600))
    page = open_player(transcript=Transcript("", words, "en", 6.6)).page
    box = page.locator(".tp-words")
    assert box.evaluate("node => node.clientHeight") <= 300
    page.get_by_role("button", name="Play", exact=True).click()
    page.wait_for_function("document.querySelector('.tp-words').scrollTop > 100")
    assert page.evaluate("window.scrollY") == 0


def test_right_to_left_words_move_the_way_the_arrow_points(open_player):
    words = tuple(Word(text, i, i + 0.5, 0.9) for i, text in enumerate(["مرحبا", "بكم", "هنا"]))
    page = open_player(transcript=Transcript("مرحبا بكم هنا", words, "ar", 6.6)).page
    first = _word(page, 0).bounding_box()["x"]
    assert _word(page, 1).bounding_box()["x"] < first
    _word(page, 0).focus()
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("document.activeElement.textContent") == "بكم"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00.0"), (59.96, "1:00.0"), (7325.5, "2:02:05.5"), (3599.97, "1:00:00.0")]
)
def test_the_clock_agrees_with_pythons(page, seconds, text):
    from speechkit.widgets.rows import clock

    assert page.evaluate(f"parts.clock({seconds})") == clock(seconds) == text
