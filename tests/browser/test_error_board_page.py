"""The error board's ES module in a real browser, before a real `ErrorBoard`."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest

from speechkit import audio
from speechkit.evaluation.errors import ErrorReport, ScoreOptions, score
from speechkit.types import Transcript, Word
from speechkit.widgets.error_board import PAGE, ErrorBoard

pytestmark = pytest.mark.browser

PAIRS = [  # said, heard, by whom, how sure
    ("please the bring fourteen pens now", "please bring forty pens now red", "bo", 0.5),
    ("افتح الباب الآن", "افتح باب الآن", "amal", 0.7),
    ("fourteen doors", "forty doors", "anna", 0.8),
    ("all is well", "all is well", "anna", 0.95),
]


def _spoken(text: str, sure: float) -> Transcript:
    """Word i is heard from 0.2 + i/2 s on, for 0.4 s."""
    words = tuple(Word(word, 0.2 + i / 2, 0.6 + i / 2, sure) for i, word in enumerate(text.split()))
    return Transcript(text, words, None, 4.0, sure, "test")


@pytest.fixture
def report(tmp_path) -> ErrorReport:
    time_s = np.arange(4 * 16000) / 16000
    path = audio.write(tmp_path / "tone.wav", (0.3 * np.sin(2 * np.pi * 330 * time_s)).astype(np.float32))
    said, heard, speakers, sure = zip(*PAIRS, strict=True)
    spoken = [_spoken(*each) for each in zip(heard, sure, strict=True)]
    names = ["clip-1", "clip-2", "clip-10", "clip-3 <b>"]
    beside = {"names": names, "speakers": speakers, "audio": [path] * 4, "language": ["en", "ar", "en", "en"]}
    return score(said, spoken, **beside, options=ScoreOptions(estimate_snr=False))


@pytest.fixture
def widget(report) -> ErrorBoard:
    return ErrorBoard(report, "four <i>clips")


@pytest.fixture
def show(open_widget, widget, stays_clean):
    return lambda **more: stays_clean(open_widget(widget, "error_board", **more)).page


@pytest.fixture
def page(show):
    return show()


def names(page) -> list[str]:
    return page.locator(".eb-row th bdi").all_inner_texts()


def _wait_for(page, expected: list[str]) -> None:
    page.wait_for_function(
        "(names) => names.join() === [...document.querySelectorAll('.eb-row th bdi')].map((e) => e.textContent).join()",
        arg=expected,
    )


def test_the_worst_stands_first_with_its_figures(page):
    assert page.locator(".eb-title").inner_text() == "four <i>clips"
    assert names(page) == ["clip-1", "clip-10", "clip-2", "clip-3 <b>"]
    cells = page.locator(".eb-row").first.locator("td").all_inner_texts()
    assert cells == ["bo", "50.0 %", "3 of 6 (≠1 −1 +1)", "0.50", "4.0"]
    assert page.locator(".eb-about").inner_text().splitlines()[0] == "4 utterances"
    assert page.evaluate("window.sent") == [], "the first page is there at once"


def test_said_stands_over_heard_and_each_error_is_told_by_sign_line_and_name(page):
    box = page.locator(".eb-diff").first
    columns = box.locator("button.eb-col")
    assert columns.evaluate_all("(all) => all.map((one) => one.getAttribute('aria-label'))") == [
        "please", "deleted: the", "bring", "substituted: fourteen, heard forty", "pens", "now", "inserted: red",
    ]  # fmt: skip
    assert box.locator(".eb-sign").all_inner_texts() == ["−", "≠", "+"]
    lines = {".eb-delete .eb-said": "line-through solid", ".eb-substitute .eb-heard": "underline dashed"}
    for where, line in (lines | {".eb-insert .eb-heard": "underline solid"}).items():
        style = box.locator(where).evaluate(
            "(one) => ['Line', 'Style'].map((part) => getComputedStyle(one)[`textDecoration${part}`]).join(' ')"
        )
        assert style == line, where
    said, heard = (box.locator(f".eb-equal .{which}").last.bounding_box() for which in ("eb-said", "eb-heard"))
    assert said["y"] + said["height"] <= heard["y"] + 1 and abs(said["x"] - heard["x"]) < 1


def test_arabic_runs_from_right_to_left_and_so_do_its_arrow_keys(page):
    box = page.locator('.eb-diff[dir="rtl"]')
    assert box.get_attribute("lang") == "ar"
    lefts = box.locator("button.eb-col").evaluate_all("(all) => all.map((one) => one.getBoundingClientRect().x)")
    assert lefts == sorted(lefts, reverse=True) and len(lefts) == 3
    box.locator("button.eb-col").first.focus()
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "substituted: الباب, heard باب"
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "افتح"


def test_a_click_on_a_word_plays_its_stretch(page, widget):
    page.get_by_role("button", name="substituted: fourteen, heard forty").first.click()
    page.wait_for_function("window.audios[0].ended")
    assert page.evaluate("window.audios[0].duration") == pytest.approx(0.4 + 0.06 + 0.1, abs=0.05)
    sent = page.evaluate("window.sent")[-1]
    assert (sent["kind"], sent["row"], sent["column"]) == ("audio", 0, 3)
    assert page.evaluate("window.state.selected") == 0
    page.wait_for_function("!document.querySelector('.eb-now')")


def test_the_whole_utterance_plays_and_escape_stops_it(page):
    page.get_by_role("button", name="Hear clip-2").click()
    page.wait_for_function("!window.audios[0].paused && window.audios[0].currentTime > 0.05")
    assert page.evaluate("window.audios[0].duration") == pytest.approx(4.0, abs=0.05)
    assert page.locator(".eb-note").inner_text() == "playing clip-2"
    page.keyboard.press("Escape")
    assert page.evaluate("window.audios[0].paused")
    assert page.locator(".eb-now").count() == 0 and page.locator(".eb-note").inner_text() == ""


def test_a_head_sorts_and_once_more_the_other_way(page):
    head = page.get_by_role("columnheader", name="utterance")
    head.get_by_role("button").click()
    _wait_for(page, ["clip-1", "clip-2", "clip-3 <b>", "clip-10"])
    assert head.get_attribute("aria-sort") == "ascending"
    head.get_by_role("button").focus()
    page.keyboard.press("Enter")
    _wait_for(page, ["clip-10", "clip-3 <b>", "clip-2", "clip-1"])
    assert head.get_attribute("aria-sort") == "descending"
    page.get_by_role("button", name="confidence", exact=True).click()
    _wait_for(page, ["clip-1", "clip-2", "clip-10", "clip-3 <b>"])
    assert page.locator("[aria-sort=none]").count() == 5


def test_filters_by_text_kind_and_confidence_go_together(page):
    page.get_by_role("searchbox").fill("fourteen")
    _wait_for(page, ["clip-1", "clip-10"])
    inserted = page.get_by_role("button", name="inserted 1")
    inserted.click()
    _wait_for(page, ["clip-1"])
    assert inserted.get_attribute("aria-pressed") == "true"
    assert page.locator(".eb-pager [role=status]").inner_text() == "1–1 of the 1 that match, 4 in all"
    inserted.click()
    page.get_by_role("searchbox").fill("")
    page.get_by_role("slider").fill("0.75")
    _wait_for(page, ["clip-1", "clip-2"])
    assert page.locator(".eb-below").inner_text() == "0.75"
    page.get_by_role("searchbox").fill("nowhere")
    page.get_by_text("No utterance is like that.").wait_for()
    assert page.locator(".eb-pager [role=status]").inner_text() == "none of 4"


def test_the_matrix_counts_confusions_and_a_click_shows_where(page):
    page.get_by_role("tab", name="Confused words").click()
    page.locator(".eb-matrix").wait_for()
    assert page.locator(".eb-top li").first.inner_text().split() == ["fourteen", "→", "forty", "2"]
    assert page.get_by_role("tab", name="Confused words").get_attribute("aria-selected") == "true"
    cell = page.locator(".eb-matrix").get_by_role("button", name="fourteen heard as forty: show these utterances")
    assert cell.inner_text() == "2"
    cell.click()
    _wait_for(page, ["clip-1", "clip-10"])
    assert page.locator(".eb-pair").inner_text() == "fourteen heard as forty ✕"
    page.locator(".eb-pair").click()
    _wait_for(page, ["clip-1", "clip-10", "clip-2", "clip-3 <b>"])
    assert page.locator(".eb-pair").is_hidden()


def test_tabs_answer_to_the_arrow_keys_and_characters_have_a_matrix_too(page):
    page.get_by_role("tab", name="Utterances").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.locator(".eb-matrix[aria-label='Confusion matrix of characters']").wait_for()
    page.get_by_role("button", name="ا heard as ∅: show these utterances").first.click()
    _wait_for(page, ["clip-2"])


def test_the_table_is_saved_as_a_file(page, report):
    with page.expect_download() as saving:
        page.get_by_role("button", name="Save as CSV").click()
    saved = saving.value
    assert saved.suggested_filename == "four--i-clips.csv"
    text = saved.path().read_text(encoding="utf-8-sig")
    assert [row["reference"] for row in csv.DictReader(io.StringIO(text))] == [
        row.reference for row in report.utterances
    ]


def test_thousands_are_paged_and_the_focus_stays_in_the_pager(open_widget, stays_clean):
    lines = [f"word{i} right" for i in range(2000)]
    board = ErrorBoard(score(lines, [line.replace("right", "bright") for line in lines]))
    page = stays_clean(open_widget(board, "error_board")).page
    status = page.locator(".eb-pager [role=status]")
    assert status.inner_text() == f"1–{PAGE} of 2,000"
    assert page.locator(".eb-row").count() == PAGE
    assert page.get_by_role("button", name="‹ before").is_disabled()
    page.get_by_role("button", name="next ›").focus()
    page.keyboard.press("Enter")
    page.wait_for_function(f"document.querySelector('.eb-row th bdi').textContent === '{PAGE + 1}'")
    assert status.inner_text() == f"{PAGE + 1}–{2 * PAGE} of 2,000"
    assert page.evaluate("document.activeElement.closest('.eb-pager') !== null")
    assert page.locator("[data-column]").count() == 0, "without times there is nothing to click"


def test_a_long_utterance_is_lengthened_on_demand(open_widget, stays_clean):
    line = " ".join(f"w{i}" for i in range(400))
    page = stays_clean(open_widget(ErrorBoard(score([line], [line])), "error_board")).page
    page.get_by_role("button", name="and 150 more").click()
    page.wait_for_function("document.querySelectorAll('.eb-diff .eb-equal').length === 400")
    assert page.locator(".eb-said").last.inner_text() == "w399"
    assert page.locator(".eb-more").count() == 0


def test_two_long_utterances_are_lengthened_before_the_first_answer_is_there(open_widget, stays_clean):
    line = " ".join(f"w{i}" for i in range(400))
    page = stays_clean(open_widget(ErrorBoard(score([line] * 2, [line] * 2)), "error_board")).page
    page.evaluate("document.querySelectorAll('.eb-more').forEach((more) => more.click())")
    page.wait_for_function("document.querySelectorAll('.eb-diff .eb-equal').length === 800")


def test_mistakes_are_told_where_the_click_was(page, report):
    report.utterances[0].audio.unlink()
    page.locator("button.eb-col").first.click()
    page.locator(".eb-note.eb-bad").wait_for()
    assert "no such file" in page.locator(".eb-note").inner_text()
    assert page.locator(".eb-now").count() == 0


def test_a_kernel_that_is_busy_is_named(show):
    page = show(silent_kernel=True, clock=True)
    page.get_by_role("button", name="inserted 1").click()
    page.clock.run_for(3000)
    assert "when the kernel is free" in page.locator(".eb-note").inner_text()
    assert page.locator("[aria-busy]").count() == 1


def test_answers_to_another_view_are_left_alone(page):
    page.evaluate("window.say('msg:custom', { kind: 'rows', seq: 'other-1', rows: [], total: 0 }, [])")
    page.evaluate("window.say('msg:custom', { kind: 'failed', of: 'rows', seq: 'other-1', reason: 'x' }, [])")
    page.evaluate("window.say('msg:custom', null, [])")
    assert page.locator(".eb-row").count() == 4 and page.locator(".eb-note").inner_text() == ""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_theme_follows_the_reader(show, scheme):
    paper = show(scheme=scheme).evaluate("getComputedStyle(document.querySelector('.error-board')).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(13, 17, 23)"}[scheme]


def test_leaving_stops_the_sound_and_frees_it(page):
    page.get_by_role("button", name="Hear clip-2").click()
    page.wait_for_function("!window.audios[0].paused")
    url = page.evaluate("window.audios[0].src")
    page.evaluate("window.cleanup()")
    assert page.evaluate("[window.audios[0].paused, window.revoked]") == [True, [url]]
    assert set(page.evaluate("window.left()")) == {0}
