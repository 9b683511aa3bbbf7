"""The command line with the embedded model: in this process where text is asked for, as a real process where signals,
terminals and exit statuses are."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechkit import cli, demo, terminal
from speechkit.types import Transcript, Word

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {
    **{key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "SPEECHKIT_PROGRESS")},
    "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    "COLUMNS": "100",
    "TERM": "xterm",
}


def process(*arguments, **options):
    command = [sys.executable, "-m", "speechkit", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, **options
    )


def finish(child, timeout=120):
    out, err = child.communicate(timeout=timeout)
    return child.returncode, out, err


@pytest.fixture
def run(capsys, monkeypatch):
    """Call the command line here → (exit status, stdout, stderr)."""
    monkeypatch.setenv("COLUMNS", "100")

    def call(*arguments):
        try:
            status = cli.main([str(argument) for argument in arguments])
        except SystemExit as stop:  # argparse
            status = stop.code
        out, err = capsys.readouterr()
        return status, out, err

    return call


@pytest.fixture(scope="module")
def clips():
    return demo.clips("en")


@pytest.fixture
def broken(tmp_path):
    path = tmp_path / "broken.wav"
    path.write_text("this is a text")
    return path


def test_one_file_prints_its_text_and_nothing_else(run, clips):
    status, out, err = run("transcribe", clips[0].path)
    assert status == 0 and err == ""
    assert len(out.strip().splitlines()) == 1 and len(out.split()) > 1


def test_several_files_are_told_apart_by_their_names(run, clips):
    status, out, err = run("transcribe", clips[0].path, clips[1].path)
    assert status == 0
    assert [line.partition(": ")[0] for line in out.splitlines()] == [str(clip.path) for clip in clips[:2]]
    assert re.search(r"2 of 2 files transcribed, \d+ s of audio in \d+\.\d s, real-time factor \d\.\d{3}", err)


def test_json_is_one_object_per_file_errors_included(run, clips, broken):
    status, out, err = run("transcribe", "--json", clips[0].path, broken)
    good, bad = map(json.loads, out.splitlines())
    assert status == 1
    assert good["status"] == "ok" and Transcript.from_dict(good["transcript"]).words
    assert bad["status"] == "error" and "broken.wav" in bad["reason"]
    assert "speechkit: error:" in err and "1 failed" in err


@pytest.mark.parametrize("kind", ["srt", "vtt", "json", "jsonl"])
def test_a_format_on_stdout_is_the_one_of_the_transcript(run, clips, kind):
    status, out, _ = run("transcribe", clips[0].path, "--format", kind)
    assert status == 0
    if kind in ("json", "jsonl"):
        assert Transcript.from_json(out).words
    else:
        assert "-->" in out and out.startswith({"srt": "1\n", "vtt": "WEBVTT\n"}[kind])


def test_a_batch_with_a_broken_file_writes_the_rest_and_a_second_run_only_retries_it(run, clips, broken, tmp_path):
    first = run("transcribe", clips[0].path, broken, clips[1].path, "--format", "txt,srt", "--out", tmp_path / "out")
    again = run("transcribe", clips[0].path, broken, clips[1].path, "--format", "txt,srt", "--out", tmp_path / "out")
    assert first[0] == again[0] == 1
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    stems = sorted(clip.path.stem for clip in clips[:2])
    assert written == sorted(["manifest.jsonl", *(f"{stem}.{kind}" for stem in stems for kind in ("txt", "srt"))])
    assert "2 of 3 files transcribed, 1 failed" in first[2]
    assert "0 of 3 files transcribed, 2 skipped (already done), 1 failed" in again[2]
    assert f"manifest: {tmp_path / 'out' / 'manifest.jsonl'}" in again[2]


def test_no_resume_does_everything_again(run, clips, tmp_path):
    run("transcribe", clips[0].path, "--out", tmp_path)
    status, _, err = run("transcribe", clips[0].path, "--out", tmp_path, "--no-resume")
    assert status == 0 and "1 of 1 files transcribed" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param([], "the following arguments are required: COMMAND", id="no command"),
        pytest.param(["transcribe"], "the following arguments are required: PATH", id="no path"),
        pytest.param(["sing"], "invalid choice: 'sing'", id="unknown command"),
        pytest.param(
            ["transcribe", "{clip}", "--format", "docx"],
            "unknown output format 'docx'; choose from txt, json, jsonl, srt, vtt",
            id="unknown format",
        ),
        pytest.param(
            ["transcribe", "{clip}", "--format", "txt,srt"],
            "several formats (txt, srt) need --out DIR; stdout takes one",
            id="two formats for one stdout",
        ),
        pytest.param(
            ["transcribe", "/nowhere/a.wav"],
            "nothing to do: none of the paths leads to a file",
            id="nothing but missing files",
        ),
        pytest.param(["transcribe", "{clip}", "--model", "klingon"], "klingon", id="unknown model"),
        pytest.param(
            ["transcribe", "{clip}", "--out", "{clip}"],
            "cannot write to the output folder",
            id="output folder is a file",
        ),
        pytest.param(["demo", "--language", "tlh"], "tlh", id="demo in a language without a model"),
    ],
)
def test_wrong_usage_has_status_2_and_a_message_on_stderr(run, clips, arguments, message):
    status, out, err = run(*(argument.format(clip=clips[0].path) for argument in arguments))
    assert status == 2 and out == ""
    assert message in err and "Traceback" not in err


def test_an_unknown_model_lists_the_known_ones(run, clips):
    _, _, err = run("transcribe", clips[0].path, "--model", "klingon")
    assert all(name in err for name in ("demo/en", "zh", "ko", "pt", "pl"))


@pytest.mark.parametrize("arguments", [["--help"], ["transcribe", "--help"], ["--version"], ["doctor", "--help"]])
def test_help_answers_without_torch(arguments):
    code = (
        "import sys; from speechkit.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=ENVIRONMENT, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/nowhere/missing.wav"], "/nowhere/missing.wav: no such file"),
        (["{clip}", "--model", "klingon"], "unknown model 'klingon'; known names: demo/en, "),
        (["{clip}", "--dtype", "int3"], "dtype is 'int3'; it can be"),
    ],
    ids=["a missing file", "an unknown model", "an unknown dtype"],
)
def test_a_mistake_is_told_before_torch_is_loaded(clips, arguments, message):
    code = "import sys; from speechkit.cli import main; print(main(sys.argv[1:]), 'torch' in sys.modules)"
    given = [argument.format(clip=clips[0].path) for argument in arguments]
    done = subprocess.run(
        [sys.executable, "-c", code, "transcribe", *given],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=60,
    )
    assert done.stdout.strip() == "2 False"
    assert message in done.stderr


def test_what_the_encoding_of_a_stream_lacks_is_shown_as_an_escape():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    terminal.Bar(stream).write("caf\u00e9 \udcff: 你好", stream)
    assert raw.getvalue() == rb"caf\xe9 \udcff: \u4f60\u597d" + b"\n"


def test_doctor_as_json_agrees_with_its_exit_status(run):
    status, out, _ = run("doctor", "--json")
    seen = json.loads(out)
    assert seen["ok"] is (status == 0)
    assert {"name", "status", "detail", "next_step"} == set(seen["findings"][0])


def test_demo_shows_text_times_confidence_reference_wer_and_what_to_try(run, clips):
    status, out, err = run("demo")
    assert status == 0 and err == "" and "\x1b" not in out
    for clip in clips:
        assert clip.path.name in out
    assert out.count("  reference ") == out.count("  heard ") == len(clips)
    assert re.search(r"  seconds +\d+\.\d\d–\d+\.\d\d", out) and re.search(r"  confidence +[01]\.\d\d", out)
    assert re.search(rf"WER +\d+\.\d % over {len(clips)} clips", out)
    assert re.search(r"real-time factor +\d\.\d{3}, \d+ times faster", out)
    steps = out[out.index("Next, try") :]
    assert [f"  {n}. " in steps for n in (1, 2, 3)] == [True] * 3
    assert "transcribe YOUR.wav --format txt,srt" in steps and "--model en" in steps and "00_start.ipynb" in steps
    assert max(map(len, out.splitlines())) <= 100


def test_demo_as_json_ends_with_a_total_that_follows_from_its_rows(run, clips):
    status, out, _ = run("demo", "--json")
    *per_clip, last = map(json.loads, out.splitlines())
    assert status == 0 and len(per_clip) == len(clips) == last["total"]["clips"]
    errors = sum(row["wer"] * len(row["reference"].split()) for row in per_clip)
    words = sum(len(row["reference"].split()) for row in per_clip)
    assert last["total"]["wer"] == pytest.approx(errors / words, abs=0.01)
    assert last["total"]["wer"] == pytest.approx(demo.results("en")["clips"].wer, abs=0.005), "the card is not true"


def test_ctrl_c_ends_cleanly_and_the_next_run_goes_on(clips, tmp_path):
    inputs = tmp_path / "in"
    inputs.mkdir()
    noise = np.random.default_rng(0).normal(0, 0.1, 16000 * 20).astype(np.float32)
    for n in range(30):
        soundfile.write(inputs / f"{n:02d}.flac", noise, 16000)
    child = process("transcribe", inputs, "--out", tmp_path / "out")
    manifest = tmp_path / "out" / "manifest.jsonl"
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and not (manifest.exists() and manifest.stat().st_size):
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    status, _, err = finish(child)
    assert status == 130 and "Traceback" not in err, err
    done = int(re.search(r"stopped after (\d+) of 30 files; the same command carries on from here", err)[1])
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    assert 1 <= len(rows) < 30 and len(rows) - done in (0, 1)
    assert not list((tmp_path / "out").glob(".*"))


def test_a_reader_that_leaves_early_causes_no_traceback(clips):
    child = process("transcribe", *(clip.path for clip in clips))
    child.stdout.close()
    child.stdout = None
    _, err = child.communicate(timeout=120)
    assert "Traceback" not in err and "BrokenPipe" not in err


def on_terminal(*arguments, **more):
    """Run with stdout and stderr on a pseudo-terminal → what a person would see."""
    pty = pytest.importorskip("pty", reason="pseudo-terminals are POSIX only")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "speechkit", *map(str, arguments)]
    child = subprocess.Popen(command, stdout=theirs, stderr=theirs, env={**ENVIRONMENT, **more})
    os.close(theirs)
    seen = b""
    while True:
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # Linux's way to say that the other end has gone
            break
        if not chunk:
            break
        seen += chunk
    os.close(ours)
    assert child.wait(timeout=60) in (0, 1)
    return seen.decode(errors="replace")


def test_a_terminal_sees_colour_and_a_progress_bar_with_time_left(clips, broken, tmp_path):
    seen = on_terminal("transcribe", *(clip.path for clip in clips), broken, "--out", tmp_path / "out")
    assert re.search(rf"\d+% .*{len(clips)}/{len(clips) + 1} files, real-time factor \d\.\d+, \d+ s left", seen)
    assert "1 failed" in seen


@pytest.mark.parametrize(("setting", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)])
def test_colour_goes_to_terminals_that_want_it(setting, coloured):
    seen = on_terminal("doctor", HF_HUB_OFFLINE="1", **setting)
    assert "OK" in seen and ("\x1b[32m" in seen) is coloured


def test_progress_can_be_turned_off_on_a_terminal(clips, tmp_path):
    seen = on_terminal("transcribe", clips[0].path, "--out", tmp_path, SPEECHKIT_PROGRESS="0")
    assert "% " not in seen and "1 of 1 files transcribed" in seen


def test_words_are_set_in_columns_and_wrapped(monkeypatch):
    monkeypatch.setenv("COLUMNS", "50")
    found = [Word(text, n, n + 0.5, 0.95 - 0.1 * n) for n, text in enumerate(["one", "twenty", "你好", "four", "five"])]
    lines = terminal.words(found, terminal.Paint(False)).splitlines()
    assert [line.split()[0] for line in lines] == ["words", "seconds", "confidence"] * 2
    assert all(terminal.width(line) <= 50 for line in lines)
    for block in zip(lines[::3], lines[1::3], lines[2::3], strict=True):
        starts = [
            [terminal.width(line[: cell.start(1)]) for cell in re.finditer(r" (\S+)", line[1:])] for line in block
        ]
        assert starts[0][1:] == starts[1][1:] == starts[2][1:]  # the first is the label
    assert "0.55?" in lines[-1] and "0.65?" not in "".join(lines)


@pytest.mark.parametrize(("seconds", "shown"), [(41.2, "41 s"), (59.7, "1:00"), (185, "3:05"), (7389, "2:03:09")])
def test_a_duration_reads_as_a_clock(seconds, shown):
    assert terminal.clock(seconds) == shown


# A text, or the file that holds it


@pytest.mark.parametrize("name", ["scirpt.md", "script.TXT", "my script.txt", "texts/script", "folder/"])
def test_a_text_file_that_is_not_there_is_not_taken_for_speech(run, clips, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    status, out, err = run("align", clips[0].path, name)
    assert status == 2 and out == ""
    assert f"{name}: " in err and "TEXT is a file or the text itself" in err and "a space behind it" in err
    status, out, err = run("transcribe", clips[0].path, "--hotwords", name)
    assert status == 2 and "--hotwords is a file or the text itself" in err


@pytest.mark.parametrize("text", ["", " "])
def test_an_empty_text_is_told_as_such(run, clips, text):
    status, out, err = run("align", clips[0].path, text)
    assert status == 2 and out == ""
    assert "the text is '', without a word" in err


@pytest.mark.parametrize(
    "text", ["london", "3.14", "U.S.", "node.js ", "london,node.js", "well. and/or not", "吗。" * 99]
)
def test_what_looks_like_no_file_name_is_text_even_where_a_folder_has_that_name(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    assert cli._text_of(text) == text
    (tmp_path / "london").mkdir()
    assert cli._text_of(text) == text


def test_a_text_comes_from_its_file_whatever_the_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("script.md", "script", "my script", "a,b"):
        (tmp_path / name).write_text("\ufeffheard\n", encoding="utf-8")
        assert cli._text_of(name) == "heard\n"
