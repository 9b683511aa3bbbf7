"""The microphone's Python side: pieces in, words out, both transports, files, mistakes; with the real model."""

from __future__ import annotations

import base64
import sys
from types import ModuleType

import jiwer
import numpy as np
import pytest

from speechkit import audio, demo
from speechkit.errors import PlanError
from speechkit.types import Event, Word
from speechkit.widgets import microphone as module
from speechkit.widgets.microphone import microphone

CLIP = demo.clips("en")[1]


def pieces(samples, size=1600):
    data = np.clip(samples * 32768, -32768, 32767).astype("<i2")
    return [data[at : at + size].tobytes() for at in range(0, len(data), size)]


def speak(widget, samples, size=1600, rate=16000):
    """Start, the sound in pieces, stop: the answers."""
    content = {"kind": "chunk", "rate": rate}
    answers = [widget.hear({"kind": "start"})]
    answers += [widget.hear(content, piece) for piece in pieces(samples, size)]
    return [*answers, widget.hear({"kind": "stop"})]


def send_file(widget, data, size=40_000):
    """A file as the view sends it: parts, then `more` until nothing is left."""
    cuts = range(0, max(len(data), 1), size)
    answers = []
    for at in cuts:
        content = {"kind": "part", "first": at == 0, "last": at == cuts[-1]}
        answers.append(widget.hear(content, data[at : at + size]))
    while answers[-1]["more"]:
        answers.append(widget.hear({"kind": "more"}))
    return answers


@pytest.fixture(scope="module")
def whole(recognizer):
    """What the recogniser hears in the clip as a whole."""
    return recognizer.transcribe(CLIP.path).text


@pytest.fixture
def widget(recognizer):
    return microphone(recognizer)


def test_speech_in_pieces_becomes_partials_and_then_what_the_whole_clip_says(widget, whole):
    answers = speak(widget, audio.load(CLIP.path))
    assert all(answer["kind"] == "said" for answer in answers)
    assert any(answer.get("stable") for answer in answers) and any(answer.get("open") for answer in answers)
    said = [text for answer in answers for text in answer["finals"]]
    assert said == widget.lines == widget.text.split("\n") == [event.text for event in widget.finals]
    assert jiwer.wer(whole, " ".join(said)) < 0.2
    assert answers[-1]["stable"] == answers[-1]["open"] == "", "nothing is left open"
    assert answers[-1]["count"] == len(said)


def test_each_word_reports_once_how_long_it_took_to_settle(widget):
    answers = speak(widget, audio.load(CLIP.path))
    lags = [lag for answer in answers for lag in answer["lags_s"]]
    assert len(lags) >= len(widget.text.split()) - 2
    assert all(0 <= lag < 6 for lag in lags), lags


def test_the_finals_do_not_depend_on_the_size_of_the_pieces(recognizer):
    samples, texts = audio.load(CLIP.path), set()
    for size in (777, 16000):
        found = microphone(recognizer)
        speak(found, samples, size)
        texts.add(found.text)
    assert len(texts) == 1


def test_after_stop_it_listens_again(widget):
    speak(widget, audio.load(CLIP.path))
    first = widget.lines
    assert widget.hear({"kind": "stop"})["finals"] == []
    speak(widget, audio.load(CLIP.path))
    assert first and widget.lines == [*first, *first]


def test_start_ends_what_a_page_that_was_reloaded_left_open(widget):
    samples = audio.load(CLIP.path)
    for piece in pieces(samples):
        widget.hear({"kind": "chunk", "rate": 16000}, piece)
    widget.hear({"kind": "start"})
    assert widget.text, "what was heard is kept"
    assert widget.hear({"kind": "chunk", "rate": 48000}, pieces(samples)[0])["kind"] == "said", "and the rate is free"


def test_another_rate_is_resampled_and_a_change_of_rate_is_told(widget, recognizer, whole):
    import soxr

    speak(widget, soxr.resample(audio.load(CLIP.path), 16000, 48000), 4800, 48000)
    assert jiwer.wer(whole, widget.text.replace("\n", " ")) < 0.2
    widget.hear({"kind": "chunk", "rate": 48000}, b"\0\0")
    answer = widget.hear({"kind": "chunk", "rate": 44100}, b"\0\0")
    assert answer["kind"] == "failed" and "one stream has one rate" in answer["reason"]


@pytest.mark.parametrize(
    ("content", "data", "reason"),
    [
        ({"kind": "dance"}, b"", "the view sent 'dance'; known are start, chunk, stop, part, more"),
        ({}, b"", "the view sent None"),
        ({"kind": "chunk", "rate": 16000}, b"\0\0\0", "3 bytes are no whole number of int16 samples"),
        ({"kind": "chunk"}, b"\0\0", "sample rate is None; a chunk comes with its rate in Hz"),
        ({"kind": "chunk", "rate": "fast"}, b"\0\0", "sample rate is 'fast'"),
        ({"kind": "chunk", "rate": 3}, b"\0\0", "sample rate is 3"),
    ],
)
def test_messages_that_make_no_sense_get_an_answer_that_says_so(widget, content, data, reason):
    answer = widget.hear(content, data)
    assert answer["kind"] == "failed" and reason in answer["reason"] and answer["finals"] == []
    assert widget.hear({"kind": "chunk", "rate": 16000}, b"\0\0" * 1600)["kind"] == "said", "and it goes on"


def test_an_empty_piece_is_silence(widget):
    assert widget.hear({"kind": "chunk", "rate": 16000}, b"")["finals"] == []


def test_a_file_in_parts_says_what_the_recording_says(widget, whole):
    answers = send_file(widget, CLIP.path.read_bytes(), 1000)
    assert all(answer["kind"] == "said" for answer in answers) and answers[-1]["more"] is False
    assert jiwer.wer(whole, widget.text.replace("\n", " ")) < 0.2


@pytest.mark.parametrize(
    ("data", "reason"), [(b"this is no recording", "not audio"), (b"", "empty"), (b"RIFF" + b"\0" * 60, "")]
)
def test_a_file_that_is_no_audio_is_told(widget, data, reason):
    answer = send_file(widget, data)[-1]
    assert answer["kind"] == "failed" and reason in answer["reason"] and answer["reason"]
    assert send_file(widget, CLIP.path.read_bytes())[-1]["kind"] == "said", "the next one works"


def test_of_a_file_that_is_cut_off_what_could_be_read_is_said(widget, whole):
    data = audio.encode(np.concatenate([audio.load(CLIP.path)] * 3), "wav")
    answer = send_file(widget, data[: len(data) // 2])
    assert answer[-1]["kind"] == "failed" and "can be read" in answer[-1]["reason"]
    assert len(set(whole.split()) & set(widget.text.split())) >= len(set(whole.split())) - 2


def test_a_file_that_is_too_large_is_refused_before_it_is_held(widget, monkeypatch):
    monkeypatch.setattr(module, "MAX_FILE", 3 << 20)
    answers = send_file(widget, bytes(4 << 20), 1 << 20)
    assert [answer["kind"] for answer in answers][3] == "failed"
    assert "larger than 3 MB" in answers[3]["reason"] and "recognizer.transcribe(path)" in answers[3]["reason"]


def test_stop_leaves_the_rest_of_a_file_alone(widget):
    data = audio.encode(np.concatenate([audio.load(CLIP.path)] * 5), "wav")
    widget.hear({"kind": "part", "first": True, "last": True}, data)
    widget.hear({"kind": "stop"})
    assert widget.hear({"kind": "more"}) == {**widget.hear({"kind": "stop"}), "more": False}


def test_the_answer_to_a_widget_message_carries_its_number(widget):
    sent = []
    widget.send = lambda content, buffers=None: sent.append(content)
    widget._handle_custom_msg({"kind": "chunk", "rate": 16000, "seq": "x.9"}, [memoryview(b"\0\0" * 1600)])
    assert sent[0]["seq"] == "x.9" and sent[0]["kind"] == "said"


def test_a_failure_that_nobody_foresaw_reaches_the_view_and_the_log(widget, monkeypatch):
    sent = []
    widget.send = lambda content, buffers=None: sent.append(content)
    monkeypatch.setattr(widget._stream, "push", lambda *_args, **_rate: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        widget._message(widget, {"kind": "chunk", "rate": 16000, "seq": "x.1"}, [b""])
    assert sent == [
        {"kind": "failed", "reason": "ZeroDivisionError: division by zero", "finals": [], "count": 0, "seq": "x.1"}
    ]


@pytest.fixture
def colab(monkeypatch):
    """Colab's module as far as widgets use it; here: the functions that were registered, by their names."""
    registered = {}
    output = ModuleType("google.colab.output")
    output.enable_custom_widget_manager = lambda: None  # which anywidget calls
    output.register_callback = registered.__setitem__
    package = ModuleType("google.colab")
    package.output = output
    for name, stand_in in (("google.colab", package), ("google.colab.output", output)):
        monkeypatch.setitem(sys.modules, name, stand_in)
    return registered


@pytest.fixture
def widget_in_colab(colab, recognizer):
    return microphone(recognizer)


def test_in_colab_the_view_gets_a_name_to_call_and_hears_the_same(colab, recognizer, whole):
    from IPython.display import JSON

    found = microphone(recognizer)
    call = colab[found.channel]
    for piece in pieces(audio.load(CLIP.path), 16000):
        answer = call({"kind": "chunk", "rate": 16000, "seq": "y.1"}, base64.b64encode(piece).decode())
        assert isinstance(answer, JSON) and answer.data["seq"] == "y.1" and answer.data["kind"] == "said"
    call({"kind": "stop", "seq": "y.2"})
    assert jiwer.wer(whole, found.text.replace("\n", " ")) < 0.2
    for lost in ("not base64!", "AAA", "\u00e4"):
        broken = call({"kind": "chunk", "rate": 16000, "seq": "y.3"}, lost).data
        assert (broken["kind"], broken["seq"]) == ("failed", "y.3") and "did not arrive whole" in broken["reason"]


def test_in_colab_a_failure_that_nobody_foresaw_is_told_as_what_it_is(colab, widget_in_colab, monkeypatch, caplog):
    def fails(*_args, **_rate):
        raise ValueError("operands could not be broadcast")

    monkeypatch.setattr(widget_in_colab._stream, "push", fails)
    answer = colab[widget_in_colab.channel]({"kind": "chunk", "rate": 16000, "seq": "y.1"}, "AAA=").data
    reason = "ValueError: operands could not be broadcast"
    assert answer == {"kind": "failed", "reason": reason, "finals": [], "count": 0, "seq": "y.1"}
    assert caplog.records[0].exc_info[0] is ValueError, "the log has the traceback"


def test_outside_colab_there_is_no_name_to_call(widget):
    assert widget.channel == ""


def test_wrong_options_are_told_at_once(recognizer):
    with pytest.raises(PlanError, match="a stream has no option windows"):
        microphone(recognizer, windows=3)


def test_the_open_words_of_a_script_without_spaces_are_joined_without_any():
    words = tuple(Word(text, 0, 1, 1.0) for text in "你好世界")
    assert module._now(Event("partial", "你好世界", words, 2)) == {"stable": "你好", "open": "世界"}
    words = tuple(Word(text, 0, 1, 1.0) for text in ("bring", "the", "room"))
    assert module._now(Event("partial", "bring the room", words, 2)) == {"stable": "bring the", "open": " room"}


def test_the_twin_holds_what_was_said_escaped(widget):
    widget.finals = [Event("final", "a <b>bold</b> claim")]
    data, _ = widget._repr_mimebundle_()
    assert "a &lt;b&gt;bold&lt;/b&gt; claim" in data["text/html"] and "<b>" not in data["text/html"]
    assert "The microphone works in a live notebook" in data["text/html"]
    assert data["text/plain"] == "Microphone(demo/en, live): a <b>bold</b> claim"


def test_saved_state_holds_words_and_no_sound(widget):
    speak(widget, audio.load(CLIP.path))
    state = widget.get_state()
    assert state["lines"] == widget.lines and state["lines"]
    assert not any(isinstance(value, bytes | bytearray) for value in state.values())
