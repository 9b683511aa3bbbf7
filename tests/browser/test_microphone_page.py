"""The microphone's ES module in a browser that hears an embedded clip, before a real `Microphone` and its model."""

from __future__ import annotations

import re
import time

import pytest

from speechkit.types import Event
from speechkit.widgets.microphone import microphone

pytestmark = pytest.mark.browser

MINUTE = 60_000
NOTE = ".mi-note"
RECORD = """
window.streams = [];
const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
navigator.mediaDevices.getUserMedia = async (wanted) => {
  const stream = await ask(wanted);
  window.streams.push(stream);
  return stream;
};
"""
TRACKS = "window.streams.flatMap((stream) => stream.getTracks())"
RECORDING = f"{TRACKS}.filter((track) => track.readyState === 'live').length"


@pytest.fixture
def widget(recognizer):
    return microphone(recognizer)


@pytest.fixture
def opened(open_widget, widget, stays_clean):
    """The widget in a page that may use the microphone."""
    return stays_clean(open_widget(widget, "microphone", allow=["microphone"], before=RECORD))


def _button(page, name: str):
    return page.get_by_role("button", name=name, exact=True)


def _says(page, text: str, most: float = 0.7, where: str = ".mi-log p"):
    """Wait until one line holds most of the words of `text`; the browser may begin in the middle of the clip."""
    page.wait_for_function(
        "([where, words, most]) => [...document.querySelectorAll(where)].some((line) =>"
        " words.filter((word) => line.textContent.split(' ').includes(word)).length >= most * words.length)",
        arg=[where, text.split(), most],
        timeout=MINUTE,
    )


def test_what_the_microphone_hears_appears_and_stop_ends_it(opened, widget, spoken_clip):
    page = opened.page
    assert page.get_by_text("Start, speak, Stop.").is_visible()
    _button(page, "Start").click()
    page.wait_for_function("document.querySelector('.mi-open').textContent.trim()", timeout=MINUTE)
    page.wait_for_function("Number(document.querySelector('.mi-meter').getAttribute('aria-valuenow')) > 0.4")
    page.wait_for_function("document.querySelector('.mi-stable').textContent.trim()", timeout=MINUTE)
    _says(page, spoken_clip.text)
    delay = re.compile(r"sound to screen \d+\.\d\d s · words settle in \d+\.\d s")
    assert delay.fullmatch(page.locator(".mi-lag").inner_text())
    assert page.evaluate(RECORDING) == 1
    _button(page, "Stop").click()
    page.get_by_text("Start, speak, Stop.").wait_for(timeout=MINUTE)
    assert page.evaluate(RECORDING) == 0, "the browser's recording light goes out"
    assert page.locator(".mi-log p").all_inner_texts() == widget.lines
    assert page.locator(".mi-now").inner_text() == ""
    assert page.locator(".mi-meter").get_attribute("aria-valuenow") == "0.00"
    assert widget._stream is None


def test_started_again_it_goes_on_below(opened, widget, spoken_clip):
    page = opened.page
    widget.finals = [Event("final", "said before")]
    for _ in range(2):
        _button(page, "Start").click()
        page.wait_for_function("document.querySelector('.mi-open').textContent.trim()", timeout=MINUTE)
        _button(page, "Stop").click()
        page.get_by_text("Start, speak, Stop.").wait_for(timeout=MINUTE)
    assert [content["kind"] for content in page.evaluate("window.sent")].count("start") == 2
    assert page.locator(".mi-log p").count() == len(widget.finals) - 1 >= 1


def test_stable_and_unstable_words_look_different(opened):
    style = "node => [getComputedStyle(node).fontStyle, getComputedStyle(node).color]"
    styles = [opened.page.locator(f".mi-{kind}").evaluate(style) for kind in ("stable", "open")]
    assert styles[0][0] == "normal" and styles[1][0] == "italic", "not by colour alone"
    assert styles[0][1] != styles[1][1]


def test_without_permission_a_sentence_says_what_to_do_and_a_file_still_works(open_widget, widget, spoken_clip):
    page = open_widget(widget, "microphone").page
    _button(page, "Start").click()
    page.get_by_text("The browser denied the microphone. Allow it for this page").wait_for()
    assert _button(page, "Start").is_enabled()
    page.get_by_label("Choose an audio file").set_input_files(spoken_clip.path)
    _says(page, spoken_clip.text)
    page.get_by_text(f"{spoken_clip.path.name} is done.").wait_for(timeout=MINUTE)
    assert not page.locator(".mi-bad").count()


REFUSED = "navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException('what it says', '{}'));"


@pytest.mark.parametrize(
    ("before", "sentence"),
    [
        (REFUSED.format("NotFoundError"), "No microphone was found on this computer."),
        (REFUSED.format("NotReadableError"), "The microphone is in use by another program"),
        (REFUSED.format("AbortError"), "The microphone does not start: what it says."),
        ("Object.defineProperty(navigator, 'mediaDevices', { value: undefined });", "on https and on localhost only"),
    ],
)
def test_every_other_reason_has_a_sentence_that_offers_a_file(open_widget, widget, before, sentence):
    opened = open_widget(widget, "microphone", before=before)
    _button(opened.page, "Start").click()
    opened.page.get_by_text(sentence).wait_for()
    assert "Or choose an audio file." in opened.page.locator(f"{NOTE}.mi-bad").inner_text()
    assert _button(opened.page, "Start").is_enabled() and opened.errors == []
    assert opened.page.evaluate("window.sent") == []


def test_a_browser_that_does_not_convert_rates_hands_over_its_own(open_widget, widget, spoken_clip):
    """As Firefox: no context at 16 kHz for this microphone."""
    picky = """const Real = window.AudioContext;
    window.AudioContext = class extends Real {
      constructor(options) {
        super(options);
        const refuse = () => { throw new DOMException("", "NotSupportedError"); };
        if (options?.sampleRate) this.createMediaStreamSource = refuse;
      }
    };"""
    page = open_widget(widget, "microphone", allow=["microphone"], before=picky).page
    _button(page, "Start").click()
    _says(page, spoken_clip.text)
    rates = {content["rate"] for content in page.evaluate("window.sent") if content["kind"] == "chunk"}
    assert len(rates) == 1 and rates <= {44100, 48000}


def test_a_microphone_that_is_muted_is_noticed(open_widget, widget):
    silent = "async () => new AudioContext().createMediaStreamDestination().stream"
    page = open_widget(widget, "microphone", before=f"navigator.mediaDevices.getUserMedia = {silent};").page
    _button(page, "Start").click()
    page.get_by_text("The microphone is on, but silent").wait_for(timeout=MINUTE)


def test_a_microphone_that_is_unplugged_is_told(opened):
    page = opened.page
    _button(page, "Start").click()
    _button(page, "Stop").wait_for()
    page.evaluate("window.streams[0].getTracks()[0].dispatchEvent(new Event('ended'))")
    page.get_by_text("The microphone was switched off.").wait_for()
    assert _button(page, "Start").is_enabled() and page.evaluate(RECORDING) == 0


@pytest.mark.parametrize(("data", "sentence"), [(b"this is no recording", "not audio"), (b"", "empty")])
def test_a_file_that_is_no_audio_is_told(open_widget, widget, tmp_path, data, sentence):
    path = tmp_path / "notes.wav"
    path.write_bytes(data)
    page = open_widget(widget, "microphone").page
    page.get_by_label("Choose an audio file").set_input_files(path)
    page.locator(f"{NOTE}.mi-bad").filter(has_text=sentence).wait_for(timeout=MINUTE)
    assert _button(page, "Start").is_enabled() and page.get_by_label("Choose an audio file").is_enabled()


def test_a_large_file_goes_in_parts_and_stop_leaves_the_rest(open_widget, widget, tmp_path):
    import numpy as np

    from speechkit import audio

    path = audio.write(tmp_path / "long.wav", np.zeros(1_200_000, np.float32))  # 2.4 MB: five parts of half a megabyte
    page = open_widget(widget, "microphone").page
    never = "content.kind === 'more' ? new Promise(() => {}) : real(content, sounds)"  # or it might be done too soon
    page.evaluate(f"const real = window.python; window.python = (content, sounds) => {never}; 0")
    page.get_by_label("Choose an audio file").set_input_files(path)
    page.get_by_text("transcribing long.wav").wait_for(timeout=MINUTE)
    assert page.get_by_label("Choose an audio file").is_disabled()
    _button(page, "Stop").click()
    page.get_by_text("Start, speak, Stop.").wait_for(timeout=MINUTE)
    parts = [content for content in page.evaluate("window.sent") if content["kind"] == "part"]
    assert [(part["first"], part["last"]) for part in parts] == [(n == 0, n == 4) for n in range(5)]
    assert widget._blocks is None and widget._stream is None


COLAB = """
window.google = { colab: { kernel: { invokeFunction: async (name, [content, text]) => {
  const data = await window.colab(name, content, text);
  return { data: { "application/json": data } };
} } } };
"""


def test_in_colab_everything_goes_through_its_own_call(open_widget, widget, spoken_clip):
    opened = open_widget(widget, "microphone", allow=["microphone"], before=COLAB, channel="speechkit.microphone.1")
    names, page = set(), opened.page

    def called(name, content, text):
        names.add(name)
        return widget._called(content, text).data

    page.expose_function("colab", called)
    _button(page, "Start").click()
    _says(page, spoken_clip.text)
    _button(page, "Stop").click()
    page.get_by_text("Start, speak, Stop.").wait_for(timeout=MINUTE)
    assert page.evaluate("window.sent") == [] and names == {"speechkit.microphone.1"}
    assert page.locator(".mi-log p").all_inner_texts() == widget.lines
    assert opened.errors == []


def test_a_call_that_colab_cannot_make_ends_the_recording_with_a_reason(open_widget, widget):
    lost = "window.google = { colab: { kernel: { invokeFunction: () => Promise.reject(new Error('no kernel')) } } };"
    page = open_widget(widget, "microphone", allow=["microphone"], before=RECORD + lost, channel="c").page
    _button(page, "Start").click()
    page.get_by_text("Colab did not reach Python (no kernel): run the cell again.").wait_for()
    _button(page, "Start").wait_for()
    assert page.evaluate(RECORDING) == 0


def test_words_that_come_twice_are_shown_once(open_widget, widget):
    """By the answer to the view, and as `lines`, which every view of the widget gets."""
    page = open_widget(widget, "microphone", silent_kernel=True, lines=["one"]).page
    page.get_by_label("Choose an audio file").set_input_files(
        {"name": "a.wav", "mimeType": "audio/wav", "buffer": b"x"}
    )
    page.wait_for_function("window.sent.length === 1")
    page.evaluate("window.state.lines = ['one', 'two']; window.say('change:lines')")
    answer = "{ kind: 'said', seq: window.sent[0].seq, finals: ['two', 'three'], count: 3, lags_s: [], more: false }"
    page.evaluate(f"window.say('msg:custom', {answer})")
    page.evaluate("window.state.lines = ['one', 'two', 'three']; window.say('change:lines')")
    assert page.locator(".mi-log p").all_inner_texts() == ["one", "two", "three"]
    page.evaluate("window.say('msg:custom', { kind: 'said', seq: 'other.1', finals: ['not ours'], count: 4 })")
    assert page.locator(".mi-log p").count() == 3


def test_while_the_kernel_is_busy_the_view_says_so(open_widget, widget):
    page = open_widget(widget, "microphone", allow=["microphone"], silent_kernel=True, clock=True).page
    _button(page, "Start").click()
    page.wait_for_function("window.sent.length")
    page.clock.fast_forward(5000)
    page.get_by_text("No answer yet: it comes when the kernel is free.").wait_for(timeout=MINUTE)
    assert [content["kind"] for content in page.evaluate("window.sent")] == ["start"], "one message at a time"


def test_a_machine_that_is_too_slow_is_told_and_recording_goes_on(open_widget, widget):
    page = open_widget(widget, "microphone", allow=["microphone"], silent_kernel=True).page
    answer = "{{ kind: 'said', seq: window.sent[{}].seq, finals: [], count: 0, lags_s: [0.5], load: 1.4, more: false }}"
    _button(page, "Start").click()
    for index in range(2):
        page.wait_for_function(f"window.sent.length > {index}")
        page.evaluate(f"window.say('msg:custom', {answer.format(index)})")
    page.get_by_text("The machine is busy: words come late, none is lost.").wait_for()
    assert _button(page, "Stop").is_visible()


def test_nothing_that_was_said_becomes_markup(open_widget, widget):
    attack = "<img src=x onerror='window.hit=1'>"
    opened = open_widget(widget, "microphone", lines=[attack], title=attack)
    assert opened.page.locator(".mi-log p").inner_text() == attack
    assert opened.page.locator(".mi-title").inner_text() == attack
    assert opened.page.locator("#el img").count() == 0 and opened.page.evaluate("window.hit") is None


def test_keys_reach_every_part_and_names_tell_what_it_is(opened):
    page, reached, node = opened.page, [], "document.activeElement"
    name = f"{node}.getAttribute('aria-label') ?? {node}.closest('label, button').textContent"
    for _ in range(3):
        page.keyboard.press("Tab")
        reached.append(page.evaluate(name))
    assert reached == ["Start", "Words", "Choose an audio file"]
    assert page.get_by_role("meter", name="Level").count() == 1
    assert page.get_by_role("log", name="What was said").get_attribute("lang") == "en"
    _button(page, "Start").press("Enter")
    _button(page, "Stop").wait_for()
    _button(page, "Stop").press("Space")
    _button(page, "Start").wait_for()


def test_leaving_ends_the_recording(opened, widget):
    page = opened.page
    _button(page, "Start").click()
    page.wait_for_function("window.sent.some((content) => content.kind === 'chunk')")
    page.evaluate("window.cleanup()")
    page.wait_for_function(f"{RECORDING} === 0")
    assert [content["kind"] for content in page.evaluate("window.sent")][-1] == "stop"
    assert page.evaluate("window.left()") == [0, 0, 0]
    until = time.monotonic() + MINUTE / 1000
    while widget._stream is not None and time.monotonic() < until:
        page.wait_for_timeout(20)  # lets messages through to Python
    assert widget._stream is None


LATE = """
const load = AudioWorklet.prototype.addModule;
AudioWorklet.prototype.addModule = async function (...what) {
  await new Promise((go) => { window.go = go; });
  setTimeout(() => { window.later = true; }, 100);
  await load.apply(this, what);
};
"""


def test_leaving_while_the_recording_is_still_being_set_up_turns_the_microphone_off(open_widget, widget):
    opened = open_widget(widget, "microphone", allow=["microphone"], before=RECORD + LATE)
    page = opened.page
    _button(page, "Start").click()
    page.wait_for_function("typeof window.go === 'function'")
    assert page.evaluate(RECORDING) == 1
    page.evaluate("window.cleanup()")
    assert page.evaluate(RECORDING) == 0, "at once, however long the set-up hangs"
    page.evaluate("window.go()")
    page.wait_for_function("window.later")
    assert page.evaluate(RECORDING) == 0 and page.evaluate("window.sent") == []
    assert opened.errors == []


@pytest.mark.parametrize(
    ("level", "shown"),
    [(1.0, 1.0), (0.1, 2 / 3), (0.001, 0.0), (0.0, 0.0)],
    ids=["0 dB", "-20 dB", "-60 dB", "silence"],
)
def test_the_meter_shows_decibels(opened, level, shown):
    assert opened.page.evaluate(f"parts.meter(new Float32Array(320).fill({level}))") == pytest.approx(shown, abs=1e-6)


def test_samples_become_int16_as_python_reads_them(opened):
    values = opened.page.evaluate("[...parts.toInt16(new Float32Array([0, 1, -1, 2, -2, 0.5]))]")
    assert values == [0, 32767, -32767, 32767, -32767, 16384]
    whole = opened.page.evaluate("[...new Int16Array(parts.joined([new Int16Array([1, 2]), new Int16Array([3])]))]")
    assert whole == [1, 2, 3]
