"""`speechkit.asr.files` with a real recogniser (tiny, random weights) and real audio files."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import soundfile
from file_runs import RATE, rows, run, tone

from speechkit.asr import files
from speechkit.asr.manifest import Manifest
from speechkit.errors import DataError, OutputError
from speechkit.types import Transcript

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def recognizer(tiny_ctc):
    from speechkit.asr.model import load_asr

    return load_asr(str(tiny_ctc), device="cpu")


def test_each_file_gives_its_own_transcript_in_the_order_given(recognizer, tmp_path):
    paths = [tone(tmp_path / f"{n}.wav", 0.3 + 0.2 * n, n) for n in (2, 0, 1)]
    results = run(recognizer, paths)
    assert [row.path for row in results] == paths
    assert [row.transcript.text for row in results] == [recognizer.transcribe(path).text for path in paths]
    assert [row.audio_s for row in results] == pytest.approx([0.7, 0.3, 0.5])


def test_a_broken_file_among_good_ones_is_a_row_with_the_reason(recognizer, tmp_path):
    good = [tone(tmp_path / "a.wav"), tone(tmp_path / "z.wav")]
    (tmp_path / "m.wav").write_text("not audio at all")
    (tmp_path / "n.wav").touch()
    missing = tmp_path / "nowhere.wav"
    results = run(recognizer, [good[0], tmp_path / "m.wav", tmp_path / "n.wav", missing, good[1]], tmp_path / "out")
    assert [row.status for row in results] == ["ok", "error", "error", "error", "ok"]
    for row in results[1:4]:
        assert row.reason and row.path.name in row.reason and row.transcript is None
    assert [row["status"] for row in rows(tmp_path / "out")] == ["ok", "error", "error", "error", "ok"]
    assert [row["reason"] for row in rows(tmp_path / "out")] == [row.reason for row in results]


def test_a_broken_file_in_a_gpu_batch_costs_only_itself(recognizer, tmp_path, monkeypatch):
    monkeypatch.setattr(files._Run, "_batches", lambda _: True)  # group as on a GPU, compute on this machine
    paths = [tone(tmp_path / f"{n}.wav", 0.4 + 0.1 * n, n) for n in range(3)]
    # a header without complaint over samples that are none: the trouble shows only when the batch is loaded
    soundfile.write(tmp_path / "nan.wav", np.full(RATE, np.nan, np.float32), RATE, subtype="FLOAT")
    results = run(recognizer, [*paths[:2], tmp_path / "nan.wav", paths[2]], tmp_path / "out")
    assert [row.status for row in results] == ["ok", "ok", "error", "ok"]
    assert [results[n].transcript.text for n in (0, 1, 3)] == [recognizer.transcribe(path).text for path in paths]


def test_a_gpu_batch_gives_the_transcripts_of_single_files(recognizer, tmp_path, monkeypatch):
    paths = [tone(tmp_path / f"{n}.wav", 0.3 + 0.35 * n, n) for n in range(5)]
    alone = [row.transcript.text for row in run(recognizer, paths)]
    monkeypatch.setattr(files._Run, "_batches", lambda _: True)
    together = run(recognizer, paths)
    assert [row.transcript.text for row in together] == alone
    assert sum(row.wall_s for row in together) > 0


def test_folders_and_patterns_give_all_audio_below_them_once(tmp_path):
    for name in ("b/x.wav", "b/c/y.FLAC", "a.ogg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b" / "notes.txt").touch()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "z.wav").touch()
    found = files.find([tmp_path / "a.ogg", tmp_path, str(tmp_path / "**" / "*.wav")])
    assert [job.path.relative_to(tmp_path).as_posix() for job in found] == ["a.ogg", "b/c/y.FLAC", "b/x.wav"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow no such names")
def test_a_name_that_is_not_utf_8_is_transcribed_recorded_and_found_again(recognizer, tmp_path):
    audio, out = tone(tmp_path / "in" / "x.wav"), tmp_path / "out"
    odd = audio.rename(os.fsdecode(os.fsencode(audio.parent) + b"/caf\xe9.wav"))
    assert [row.status for row in run(recognizer, odd, out)] == ["ok"]
    assert os.listdir(os.fsencode(out)).count(b"caf\xe9.txt") == 1
    assert rows(out)[0]["path"] == str(odd)
    with Manifest(out) as manifest:
        manifest._compact()
    assert [row.status for row in run(recognizer, odd, out)] == ["skipped"]


def test_a_name_of_the_greatest_length_is_written(recognizer, tmp_path):
    result = run(recognizer, tone(tmp_path / f"{'n' * 251}.wav"), tmp_path / "out")[0]
    assert result.status == "ok" and len(result.outputs[0].name) == 255


def test_names_that_lead_nowhere_are_rows(recognizer, tmp_path):
    good = tone(tmp_path / "good.wav")
    results = run(recognizer, ["", "a\0b.wav", f"{'n' * 300}.wav", good], tmp_path / "out")
    assert [row.status for row in results] == ["error", "error", "error", "ok"]
    reasons = ["the path is empty", "null byte", "File name too long"]
    assert all(part in row.reason for row, part in zip(results, reasons, strict=False))


def test_a_tilde_is_the_home_folder_unless_a_file_is_called_so(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    home, named = tone(tmp_path / "home.wav"), tone(tmp_path / "~draft.wav")
    assert [job.path for job in files.find(["~/home.wav", "~draft.wav"])] == [home, Path(named.name)]
    files.check_output("~/texts")
    assert (tmp_path / "texts").is_dir()


@pytest.mark.skipif(os.name != "posix", reason="named pipes are POSIX")
@pytest.mark.parametrize("grouped", [False, True], ids=["one by one", "grouped as on a GPU"])
def test_a_pipe_is_read_once_and_transcribed(recognizer, tmp_path, monkeypatch, grouped):
    monkeypatch.setattr(files._Run, "_batches", lambda _: grouped)
    audio, pipe = tone(tmp_path / "x.wav"), tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = subprocess.Popen(["sh", "-c", 'cat "$0" > "$1"', str(audio), str(pipe)])
    result = run(recognizer, pipe)[0]
    writer.wait(timeout=10)
    assert (result.status, result.reason) == ("ok", "")
    assert result.transcript.text == recognizer.transcribe(audio).text


def test_an_empty_folder_and_a_pattern_without_match_say_so(recognizer, tmp_path):
    (tmp_path / "empty").mkdir()
    results = run(recognizer, [tmp_path / "empty", tmp_path / "*.wav"])
    assert [row.status for row in results] == ["error", "error"]
    assert "no audio file in this folder (looked for .3gp .aac" in results[0].reason
    assert "no file matches this pattern" in results[1].reason


def test_outputs_keep_the_place_of_files_inside_a_given_folder(recognizer, tmp_path):
    tone(tmp_path / "corpus/a/x.wav"), tone(tmp_path / "corpus/b/x.wav", seed=1)
    results = run(recognizer, tmp_path / "corpus", tmp_path / "out")
    names = [path.relative_to(tmp_path / "out").as_posix() for row in results for path in row.outputs]
    assert names == ["a/x.txt", "b/x.txt"]


def test_inputs_of_one_name_get_outputs_of_different_names(recognizer, tmp_path):
    same = [tone(tmp_path / name, seed=n) for n, name in enumerate(["a/x.wav", "b/x.flac", "c/x.wav", "d/x.wav"])]
    results = run(recognizer, same, tmp_path / "out")
    assert [row.outputs[0].name for row in results] == ["x.txt", "x.flac.txt", "x.wav.txt", "x.wav.2.txt"]
    for row, path in zip(results, same, strict=True):
        assert row.outputs[0].read_text(encoding="utf-8").strip() == recognizer.transcribe(path).text


def test_a_later_run_with_other_inputs_of_the_same_name_overwrites_nothing(recognizer, tmp_path):
    first = run(recognizer, tone(tmp_path / "a/x.wav"), tmp_path / "out")[0]
    text = first.outputs[0].read_bytes()
    second = run(recognizer, tone(tmp_path / "b/x.wav", 1.5, 7), tmp_path / "out")[0]
    assert second.outputs[0].name == "x.wav.txt"
    assert first.outputs[0].read_bytes() == text


def test_a_text_that_was_there_before_is_not_overwritten(recognizer, tmp_path):
    audio = tone(tmp_path / "talk.wav")
    (tmp_path / "talk.txt").write_text("what was really said")
    result = run(recognizer, audio, tmp_path)[0]
    assert (tmp_path / "talk.txt").read_text() == "what was really said"
    assert result.outputs == (tmp_path / "talk.wav.txt",)


def test_a_text_that_was_there_before_is_not_overwritten_by_a_further_format(recognizer, tmp_path):
    audio, out = tone(tmp_path / "talk.wav"), tmp_path / "out"
    run(recognizer, audio, out)
    (out / "talk.srt").write_text("somebody's own subtitles")
    result = run(recognizer, audio, out, formats=["srt"])[0]
    assert (out / "talk.srt").read_text() == "somebody's own subtitles"
    assert result.outputs == (out / "talk.wav.srt",)


def test_outputs_stay_ours_through_other_formats_and_a_failure(recognizer, tmp_path):
    audio, out = tone(tmp_path / "x.wav"), tmp_path / "out"
    run(recognizer, audio, out)
    run(recognizer, audio, out, formats=["srt"])
    audio.write_text("broken")
    assert run(recognizer, audio, out)[0].status == "error"
    tone(audio, 1.5, 9)
    assert run(recognizer, audio, out)[0].outputs == (out / "x.txt",)
    assert (out / "x.txt").read_text(encoding="utf-8").strip() == recognizer.transcribe(audio).text


def test_every_format_holds_the_transcript(recognizer, tmp_path):
    result = run(recognizer, tone(tmp_path / "x.wav", 2.0), tmp_path / "out", formats=list(files.FORMATS))[0]
    texts = {path.suffix: path.read_text(encoding="utf-8") for path in result.outputs}
    assert set(texts) == {".txt", ".json", ".jsonl", ".srt", ".vtt"}
    assert Transcript.from_json(texts[".json"]) == result.transcript == Transcript.from_json(texts[".jsonl"])
    assert texts[".jsonl"].count("\n") == 1
    assert texts[".txt"] == result.transcript.text + "\n"
    assert texts[".srt"] == result.transcript.to_srt() and texts[".vtt"] == result.transcript.to_vtt()
    assert not list((tmp_path / "out").glob(".*"))


def test_an_output_folder_that_is_a_file_is_refused_before_any_work(tmp_path):
    (tmp_path / "out").write_text("I am a file")
    with pytest.raises(OutputError, match=r"cannot write to the output folder .*out: .*choose a folder"):
        files.transcribe_files(None, tone(tmp_path / "x.wav"), tmp_path / "out")


def test_a_folder_that_refuses_new_files_is_refused_before_any_work(tmp_path):
    if not Path("/proc/self").is_dir():
        pytest.skip("no /proc: nothing here that root may not write either")
    with pytest.raises(OutputError, match="cannot write to the output folder /proc/self"):
        files.transcribe_files(None, tone(tmp_path / "x.wav"), "/proc/self/out")


AS_NOBODY = """
    import os, sys, tempfile
    from pathlib import Path
    from speechkit.asr.files import transcribe_files
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        if os.geteuid() == 0:
            os.seteuid(65534)  # root may write everywhere
        try:
            transcribe_files(None, "x.wav", Path(folder, "out"))
        except Exception as error:
            print(type(error).__name__, error)
        if os.getuid() == 0:
            os.seteuid(0)
        os.chmod(folder, 0o755)
"""


@pytest.mark.skipif(os.name != "posix", reason="folder permissions are POSIX")
def test_a_read_only_folder_is_refused_before_any_work():
    command = [sys.executable, "-c", textwrap.dedent(AS_NOBODY)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.stdout.startswith("OutputError cannot write to the output folder"), done.stderr
    assert "Permission denied; choose a folder you may write to (--out DIR)" in done.stdout


IN_A_CLOSED_FOLDER = """
    import os, sys, tempfile
    from pathlib import Path
    from speechkit.asr import files, registry
    class Deaf:
        name = "deaf"
        def transcribe(self, path):
            return __import__("speechkit").audio.load(path)
    with tempfile.TemporaryDirectory() as folder:
        os.mkdir(Path(folder, "closed"), 0o000)
        os.chmod(folder, 0o755)
        if os.geteuid() == 0:
            os.seteuid(65534)  # root may enter everywhere
        for row in files.transcribe_files(Deaf(), [Path(folder, "closed", "x.wav"), Path(folder, "closed", "*.wav")]):
            print(row.status, row.reason)
        try:
            registry.resolve(f"{folder}/closed/model")
        except Exception as error:
            print(type(error).__name__, error)
        if os.getuid() == 0:
            os.seteuid(0)
        os.chmod(Path(folder, "closed"), 0o755)
"""


@pytest.mark.skipif(os.name != "posix", reason="folder permissions are POSIX")
def test_a_path_below_a_folder_that_may_not_be_entered_is_a_row_and_for_a_model_a_typed_error():
    command = [sys.executable, "-c", textwrap.dedent(IN_A_CLOSED_FOLDER)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
    file, pattern, model = done.stdout.splitlines() or [done.stderr] * 3
    assert file.startswith("error cannot read ") and "Permission denied" in file
    assert pattern.startswith("error ") and "no file matches this pattern" in pattern
    assert model.startswith("ModelError ") and "may not enter it" in model


class _Echo:
    """A recogniser that hears what it is told, so that rows can be made long."""

    name = "echo"

    def transcribe(self, _):
        return Transcript(text="word " * 400, duration_s=1.0, model=self.name)


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="file size limits are POSIX")
def test_a_full_disk_ends_the_run_with_a_typed_error_and_a_manifest_that_can_be_resumed(tmp_path):
    import resource

    paths, out = [tone(tmp_path / f"{n}.wav", seed=n) for n in range(4)], tmp_path / "out"
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, usual[1]))  # two rows fit, as on a disk that fills up
    try:
        with pytest.raises(OutputError, match="cannot write to the output folder"):
            run(_Echo(), paths, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert [row.status for row in run(_Echo(), paths, out)] == ["skipped", "skipped", "ok", "ok"]
    assert len(rows(out)) == 4


def test_an_output_that_cannot_be_written_is_a_row(recognizer, tmp_path):
    paths, out = [tone(tmp_path / "in/a/x.wav"), tone(tmp_path / "in/y.wav")], tmp_path / "out"
    out.mkdir()
    (out / "a").write_text("in the way of the folder a")
    results = run(recognizer, tmp_path / "in", out)
    assert [row.status for row in results] == ["error", "ok"]
    assert "cannot write" in results[0].reason and len(paths) == len(rows(out))


def test_two_runs_into_one_folder_are_refused(tmp_path):
    pytest.importorskip("fcntl", reason="locks are POSIX only")
    with Manifest(tmp_path), pytest.raises(OutputError, match="another run is writing here"):
        Manifest(tmp_path)
    Manifest(tmp_path).close()


@pytest.mark.parametrize("formats", [["docx"], [], "txt"])
def test_unknown_formats_are_refused_with_the_known_ones(tmp_path, formats):
    with pytest.raises(DataError, match=r"choose from txt, json, jsonl, srt, vtt"):
        files.transcribe_files(None, tmp_path, formats=formats)


def test_no_path_at_all_is_refused():
    with pytest.raises(DataError, match="no input: give at least one audio file"):
        files.transcribe_files(None, [])


def test_stopping_early_leaves_a_whole_manifest_and_a_free_folder(recognizer, tmp_path):
    paths, out = [tone(tmp_path / f"{n}.wav", seed=n) for n in range(4)], tmp_path / "out"
    results = files.transcribe_files(recognizer, paths, out)
    next(results), next(results)
    results.close()
    assert len(rows(out)) == 2
    assert [row.status for row in run(recognizer, paths, out)] == ["skipped", "skipped", "ok", "ok"]


def test_progress_counts_files_bytes_and_the_time_left(recognizer, tmp_path):
    paths = [tone(tmp_path / f"{n}.wav", 1.0, n) for n in range(2)]
    seen: list[files.Progress] = []
    run(recognizer, [*paths, tmp_path / "missing.wav"], progress=seen.append)
    assert [state.files_done for state in seen] == [1, 2, 3]
    assert seen[0].bytes == sum(path.stat().st_size for path in paths) == seen[-1].bytes_done
    assert seen[0].eta_s == pytest.approx(seen[0].wall_s)  # half of the bytes are done
    assert seen[-1].audio_s == pytest.approx(2.0) and seen[-1].errors == 1
    assert seen[-1].real_time_factor == pytest.approx(seen[-1].wall_s / 2.0)
    assert files.Progress().eta_s is None


class _Interrupted:
    """A file whose third read is met by Ctrl-C, as when it is pressed while libsndfile asks for more bytes."""

    name = "interrupted"

    def __init__(self, path):
        self.path, self.reads = path, 0

    def transcribe(self, _):
        with self.path.open("rb") as file:
            usual = file.readinto

            class Reader:
                seek, tell, name = file.seek, file.tell, "x"

                def readinto(inner, buffer):
                    self.reads += 1
                    if self.reads == 3:
                        signal.raise_signal(signal.SIGINT)
                    return usual(buffer)

                def read(inner, size=-1):
                    return file.read(size)

            return soundfile.read(Reader())


def test_a_ctrl_c_inside_the_decoder_stops_the_run_and_blames_no_file(tmp_path, capfd):
    audio = tone(tmp_path / "x.flac", 5.0)
    broken = _Interrupted(audio)
    with pytest.raises(KeyboardInterrupt):
        run(broken, audio, tmp_path / "out")
    assert broken.reads >= 3 and (tmp_path / "out" / "manifest.jsonl").read_text() == ""
    assert "Traceback" not in capfd.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
