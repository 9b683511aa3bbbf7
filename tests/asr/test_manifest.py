"""What a manifest remembers: runs that resume, after a change, a failure, damage and a real kill."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from file_runs import RATE, rows, run, tone

from speechkit.asr import files
from speechkit.asr.manifest import Fingerprint, Manifest
from speechkit.errors import OutputError
from speechkit.types import Transcript

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def recognizer(tiny_ctc):
    from speechkit.asr.model import load_asr

    return load_asr(str(tiny_ctc), device="cpu")


def test_resume_skips_what_is_done_and_repeats_what_failed(recognizer, tmp_path):
    good, bad = tone(tmp_path / "good.wav"), tmp_path / "bad.wav"
    bad.write_text("broken")
    first = run(recognizer, [good, bad], tmp_path / "out")
    tone(bad, seed=3)
    second = run(recognizer, [good, bad], tmp_path / "out")
    assert [row.status for row in first] == ["ok", "error"]
    assert [row.status for row in second] == ["skipped", "ok"]
    assert second[0].transcript.text == first[0].transcript.text
    assert second[0].outputs == first[0].outputs
    assert [row["status"] for row in rows(tmp_path / "out")] == ["ok", "ok"]


def _touch(audio, _):
    os.utime(audio, ns=(1, 1))


def _rewrite(audio, _):
    tone(audio, 0.9, 9)


def _lose(_, out):
    (out / "x.json").unlink()


def _damage(_, out):
    (out / "x.json").write_text("{")


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(_touch, id="its time changed"),
        pytest.param(_rewrite, id="its bytes changed"),
        pytest.param(_lose, id="its output is gone"),
        pytest.param(_damage, id="its output is damaged"),
    ],
)
def test_resume_repeats_a_file_when(change, recognizer, tmp_path):
    audio, out = tone(tmp_path / "x.wav"), tmp_path / "out"
    run(recognizer, audio, out, formats=["json"])
    assert run(recognizer, audio, out, formats=["json"])[0].status == "skipped"
    change(audio, out)
    assert run(recognizer, audio, out, formats=["json"])[0].status == "ok"
    assert len(rows(out)) == 1


def test_resume_repeats_a_file_for_a_new_format_and_for_another_model(recognizer, tmp_path):
    audio, out = tone(tmp_path / "x.wav"), tmp_path / "out"
    run(recognizer, audio, out)
    assert run(recognizer, audio, out, formats=["txt", "srt"])[0].status == "ok"
    assert run(recognizer, audio, out)[0].status == "skipped"
    with Manifest(out) as manifest:
        assert manifest.done(audio, Fingerprint.of(audio), recognizer.identity, ("txt",))
        assert manifest.done(audio, Fingerprint.of(audio), "another model", ("txt",)) is None


def test_without_resume_everything_is_done_again_under_the_same_names(recognizer, tmp_path):
    audio, out = [tone(tmp_path / "a/x.wav"), tone(tmp_path / "b/x.wav", seed=1)], tmp_path / "out"
    first = run(recognizer, audio, out)
    second = run(recognizer, audio, out, resume=False)
    assert [row.status for row in second] == ["ok", "ok"]
    assert [row.outputs for row in second] == [row.outputs for row in first]
    assert len(rows(out)) == 2


def test_a_last_line_cut_short_is_dropped_and_its_file_done_again(recognizer, tmp_path):
    audio, out = [tone(tmp_path / f"{n}.wav", seed=n) for n in range(3)], tmp_path / "out"
    run(recognizer, audio, out)
    whole = (out / "manifest.jsonl").read_bytes()
    (out / "manifest.jsonl").write_bytes(whole[:-40])
    assert [row.status for row in run(recognizer, audio, out)] == ["skipped", "skipped", "ok"]
    assert [row["path"] for row in rows(out)] == [str(path) for path in audio]


def test_a_damaged_line_in_the_middle_is_told_and_costs_only_its_file(recognizer, tmp_path):
    audio, out = [tone(tmp_path / f"{n}.wav", seed=n) for n in range(3)], tmp_path / "out"
    run(recognizer, audio, out)
    lines = (out / "manifest.jsonl").read_bytes().splitlines(keepends=True)
    (out / "manifest.jsonl").write_bytes(lines[0] + b"\x00\x00\x00\n" + lines[2])
    with pytest.warns(UserWarning, match=r"cannot read lines \[2\]; their files are transcribed again"):
        statuses = [row.status for row in run(recognizer, audio, out)]
    assert statuses == ["skipped", "ok", "skipped"]


@pytest.mark.parametrize("text", ['{"audio_filepath": "x.wav", "text": "hi"}\n', "hello\n", "just words"])
def test_a_manifest_of_somebody_else_is_left_alone(recognizer, tmp_path, text):
    (tmp_path / "manifest.jsonl").write_text(text)
    with pytest.raises(OutputError, match="is not a manifest of speechkit; choose another folder"):
        files.transcribe_files(recognizer, tone(tmp_path / "x.wav"), tmp_path)
    assert (tmp_path / "manifest.jsonl").read_text() == text


SLOW = """
    import sys, time
    from speechkit.asr.files import transcribe_files
    from speechkit.asr.model import load_asr
    for row in transcribe_files(load_asr(sys.argv[1], device="cpu"), sys.argv[2], sys.argv[3], formats=["txt", "json"]):
        print(row.path.name, flush=True)
        time.sleep(0.02)
"""


def test_a_real_kill_loses_at_most_the_file_in_hand(tiny_ctc, recognizer, tmp_path):
    for n in range(40):
        tone(tmp_path / "in" / f"{n:02d}.wav", 0.5, n)
    out = tmp_path / "out"
    command = [sys.executable, "-c", textwrap.dedent(SLOW), str(tiny_ctc), str(tmp_path / "in"), str(out)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    told = [child.stdout.readline().strip() for _ in range(5)]
    time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    told += child.stdout.read().split()
    child.wait()
    assert 5 <= len(told) < 40, "the kill came before the end"
    done = {Path(row["path"]).name for row in rows(out)}
    assert set(told) <= done and len(done) - len(told) <= 1
    results = run(recognizer, tmp_path / "in", out, formats=["txt", "json"])
    assert {row.path.name for row in results if row.status == "skipped"} == done
    assert len(rows(out)) == 40 and all(row["status"] == "ok" for row in rows(out))
    assert sorted(path.name for path in out.glob("*.txt")) == [f"{n:02d}.txt" for n in range(40)]


def test_a_retrained_model_of_the_same_name_is_another_model(tiny_ctc, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    from speechkit.asr.model import load_asr

    own = Path(shutil.copytree(tiny_ctc, tmp_path / "model"))
    clip = tmp_path / "a.wav"
    soundfile.write(clip, 0.1 * np.sin(np.arange(RATE) / 9), RATE)
    out = tmp_path / "out"
    first = list(files.transcribe_files(load_asr(own, device="cpu"), [clip], out=out))
    again = list(files.transcribe_files(load_asr(own, device="cpu"), [clip], out=out))
    weights = load_file(own / "model.safetensors")
    save_file({name: weight + 0.01 for name, weight in weights.items()}, own / "model.safetensors", {"format": "pt"})
    after = list(files.transcribe_files(load_asr(own, device="cpu"), [clip], out=out))
    assert [result[0].status for result in (first, again, after)] == ["ok", "skipped", "ok"]


def test_a_text_of_the_users_that_equals_ours_is_never_overwritten_later(tiny_ctc, recognizer, tmp_path):
    clip, out = tmp_path / "talk.wav", tmp_path / "out"
    soundfile.write(clip, 0.1 * np.sin(np.arange(RATE) / 9), RATE)
    out.mkdir()
    same = files.render(recognizer.transcribe(clip), "txt")
    (out / "talk.txt").write_text(same)
    assert next(iter(files.transcribe_files(recognizer, [clip], out=out))).ok

    class Other:
        name = "other"

        def transcribe(self, audio):
            return Transcript("something else", duration_s=1.0)

    result = next(iter(files.transcribe_files(Other(), [clip], out=out)))
    assert result.ok and result.outputs[0].name != "talk.txt"
    assert (out / "talk.txt").read_text() == same


@pytest.mark.parametrize("damage", ["null", "[]", '{"words": 3}'])
def test_a_damaged_json_output_is_made_again(recognizer, tmp_path, damage):
    clip, out = tmp_path / "a.wav", tmp_path / "out"
    soundfile.write(clip, 0.1 * np.sin(np.arange(RATE) / 9), RATE)
    list(files.transcribe_files(recognizer, [clip], out=out, formats=("json",)))
    (out / "a.json").write_text(damage)
    assert next(iter(files.transcribe_files(recognizer, [clip], out=out, formats=("json",)))).status == "ok"
    assert json.loads((out / "a.json").read_text())["duration_s"] == pytest.approx(1.0)


def test_a_manifest_row_that_somebody_edited_is_done_again(recognizer, tmp_path):
    clip, out = tmp_path / "a.wav", tmp_path / "out"
    soundfile.write(clip, 0.1 * np.sin(np.arange(RATE) / 9), RATE)
    list(files.transcribe_files(recognizer, [clip], out=out))
    row = json.loads((out / "manifest.jsonl").read_text())
    del row["transcript"], row["audio_s"]
    (out / "manifest.jsonl").write_text(json.dumps(row) + "\n")
    assert next(iter(files.transcribe_files(recognizer, [clip], out=out))).status == "ok"
