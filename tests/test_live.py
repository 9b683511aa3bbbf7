"""`speechkit stream`: sound at its own pace or from a pipe, lines for people and for programs; with the real model."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import soundfile

from speechkit import cli, demo, live
from speechkit.errors import AudioError
from speechkit.types import Event, Word

if TYPE_CHECKING:
    from pathlib import Path

CLIP = demo.clips("en")[1]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """Time that passes only while somebody sleeps or works."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(live.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(live.time, "sleep", self.pass_by)

    def pass_by(self, seconds: float) -> None:
        assert seconds >= 0
        self.now += seconds


def spoken(kind: Any, *texts: str, stable: int = 0, start_s: float = 1.5) -> Event:
    words = tuple(Word(text, start_s + n / 3, start_s + n / 3 + 0.1, 0.5) for n, text in enumerate(texts))
    return Event(kind, " ".join(texts), words, stable, start_s, 9.0)


@pytest.fixture
def wav(tmp_path: Path) -> Path:
    """Three seconds whose samples count up, so that losses and repeats show."""
    path = tmp_path / "count.wav"
    soundfile.write(path, np.arange(48_000, dtype=np.int16), 16_000)
    return path


# Where the sound comes from


def test_a_file_comes_when_it_would_have_been_spoken(wav: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, heard = Clock(monkeypatch), 0
    for samples, rate in live.paced(str(wav)):
        heard += len(samples)
        assert rate == 16_000 and clock.now - 100 == pytest.approx(heard / 16_000)
    assert heard == 48_000


@pytest.mark.parametrize("work_s", [0.03, 0.25, 1.7])
def test_what_is_late_comes_as_one_piece_and_nothing_is_lost(
    wav: Path, monkeypatch: pytest.MonkeyPatch, work_s: float
) -> None:
    clock, pieces = Clock(monkeypatch), []
    for samples, _ in live.paced(str(wav)):
        pieces.append(samples)
        assert clock.now - 100 >= sum(map(len, pieces)) / 16_000 - 1e-9 or work_s > 0.1
        clock.pass_by(work_s)
    assert np.concatenate(pieces) * 32768 == pytest.approx(
        np.arange(48_000) % 32768 - 32768 * (np.arange(48_000) > 32767)
    )
    assert max(map(len, pieces)) / 16_000 <= work_s + 0.2, "no more than piled up while somebody worked"


def test_a_file_in_a_hurry_does_not_wait(wav: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    assert [len(samples) for samples, _ in live.paced(str(wav), real_time=False)] == [16_000] * 3
    assert clock.now == 100


class Pipe:
    """A pipe that hands over what has been written so far, in the pieces given."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = list(pieces)

    def read1(self, _most: int) -> bytes:
        return self.pieces.pop(0) if self.pieces else b""


def test_a_sample_that_is_torn_between_two_reads_is_put_together() -> None:
    data = np.arange(-500, 500, dtype="<i2").tobytes()
    pieces = [piece for piece, _ in live.raw(Pipe(data[:1], data[1:334], data[334:335], data[335:]), 8000)]
    assert b"".join(pieces) == data and all(len(piece) % 2 == 0 for piece in pieces)


def test_the_bytes_of_a_file_are_not_taken_for_samples() -> None:
    sound = io.BytesIO()
    soundfile.write(sound, np.zeros(100), 16_000, format="WAV")
    with pytest.raises(AudioError, match="begins like a WAV file, and - takes raw int16 samples: give the file's name"):
        list(live.raw(Pipe(sound.getvalue()), 16_000))


# What is shown


def test_finals_are_lines_and_partials_are_for_terminals_only(capsys: pytest.CaptureFixture[str]) -> None:
    screen = live.Screen()
    for event in (spoken("partial", "a"), spoken("final", "a", "b"), spoken("final", start_s=7.0)):
        screen(event)
    screen.close()
    assert capsys.readouterr().out == "    1.50  a b\n", "an utterance without words is no line"


def test_a_terminal_shows_the_end_of_the_partial_stable_words_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    shown = Terminal()
    monkeypatch.setattr("sys.stdout", shown)
    screen = live.Screen()
    screen(spoken("partial", *["early"] * 20, "settled", "open", stable=21))
    line = shown.getvalue()
    assert line.startswith("\r\x1b[K") and not line.endswith("\n")
    assert "settled \x1b[2mopen\x1b[0m" in line and 1 <= line.count("early") <= 3
    screen(spoken("final", "all"))
    assert shown.getvalue().endswith("all\n")


def test_json_has_a_line_for_each_event_with_times_to_the_millisecond(capsys: pytest.CaptureFixture[str]) -> None:
    live.Screen(as_json=True)(spoken("partial", "good", "day", stable=1))
    (line,) = capsys.readouterr().out.splitlines()
    row = json.loads(line)
    assert (row["kind"], row["text"], row["stable"], row["start_s"], row["heard_s"]) == (
        "partial",
        "good day",
        1,
        1.5,
        9.0,
    )
    assert row["words"][1] == {"text": "day", "start_s": 1.833, "end_s": 1.933, "confidence": 0.5}


class Recorded:
    """A stream that says one final when it is closed."""

    def push(self, _samples: Any, _rate: float) -> list[Event]:
        return []

    def close(self) -> list[Event]:
        return [spoken("final", "the", "end")]


@pytest.mark.parametrize("problem", [KeyboardInterrupt, AudioError])
def test_what_was_heard_is_told_when_the_sound_breaks_off(
    capsys: pytest.CaptureFixture[str], problem: type[BaseException]
) -> None:
    def chunks() -> Any:
        yield np.zeros(100, np.float32), 16_000
        raise problem("the sound breaks off")

    stream: Any = Recorded()
    if problem is KeyboardInterrupt:
        assert live.run(stream, chunks(), live.Screen()) is False
    else:
        with pytest.raises(AudioError, match="breaks off"):
            live.run(stream, chunks(), live.Screen())
    assert capsys.readouterr().out == "    1.50  the end\n"


# The command


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str, stdin: bytes = b"") -> int:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
    return cli.main(["stream", *arguments])


def test_a_file_and_its_samples_on_stdin_say_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], recognizer: Any
) -> None:
    assert command(monkeypatch, str(CLIP.path), "--at-once") == 0
    from_file = capsys.readouterr()
    samples = soundfile.read(CLIP.path, dtype="int16")[0]
    assert command(monkeypatch, "-", stdin=samples.tobytes()) == 0
    from_pipe = capsys.readouterr()
    assert from_file.out == from_pipe.out
    assert from_file.out.split()[1:] == recognizer.transcribe(CLIP.path).text.split()
    assert "1 utterance, load" in from_file.err and len(from_file.err.splitlines()) == 1


def test_json_partials_come_before_the_final(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, str(CLIP.path), "--json", "--no-vad", "--hop", "0.4") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["kind"] for row in rows[-2:]] == ["partial", "final"]
    assert [row["heard_s"] for row in rows] == sorted(row["heard_s"] for row in rows)


@pytest.mark.parametrize("seconds", ["0.8", "25"])
def test_a_window_may_be_short_or_long(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], seconds: str
) -> None:
    assert command(monkeypatch, str(CLIP.path), "--at-once", "--window", seconds) == 0
    assert capsys.readouterr().out.split()[1:]


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        (["nowhere.wav"], b"", "nowhere.wav: no such file; - reads raw samples from stdin"),
        ([str(CLIP.path), "--rate", "8000"], b"", "--rate is for raw samples on stdin; a file tells its own rate"),
        (["-", "--rate", "5"], bytes(200), "sample rate is 5.0; it is given in Hz"),
        (["-"], b"RIFF" + bytes(100), "stdin begins like a WAV file"),
        ([str(CLIP.path), "--hop", "0"], b"", "it must hold that 0 < hop_s <= window_s"),
        ([__file__], b"", "test_live.py"),
    ],
    ids=["missing", "rate of a file", "rate", "a file on stdin", "hop", "no audio"],
)
def test_mistakes_are_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    stdin: bytes,
    message: str,
) -> None:
    assert command(monkeypatch, *arguments, stdin=stdin) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and len(err.splitlines()) == 1


def test_a_terminal_on_stdin_is_told_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal())
    assert cli.main(["stream", "-"]) == 2
    assert "stdin is a terminal: pipe raw int16 samples into it" in capsys.readouterr().err
