"""People: one shortened fold of `kernels/bench/real_people.py`, and what that script refuses and remembers."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import jiwer
import pytest

from speechkit import load_asr
from speechkit.demo.recipes.encoder_speech import HELD_OUT_ARABIC
from speechkit.training.data import read_examples

ROOT = Path(__file__).parents[2]
# a few clips of a few words: minutes become seconds. The seed is the configuration's, so a run repeats itself
WORDS = 4
SHORT = [
    "--start",
    "demo/en",
    "--synthetic",
    "0",
    "--words",
    str(WORDS),
    "--takes",
    "3",
    "--steps",
    "160",
    "--batch-s",
    "8",
]


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("real_people", ROOT / "kernels/bench/real_people.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["real_people"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_training_on_eighteen_people_lowers_the_word_error_rate_of_six_others(
    bench: ModuleType, speech_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = ["--speech-data", str(speech_data), "--work", str(tmp_path), "--tasks", "arabic", *SHORT]
    assert bench.main(told) == 0
    (file,) = tmp_path.rglob("fold.json")
    heard = json.loads(file.read_text(encoding="utf-8"))["what was heard"]["test after"]
    assert {row[0] for row in heard} == set(HELD_OUT_ARABIC) and len(heard) == 6 * WORDS * 3
    said, read = [row[1] for row in heard], [row[2] for row in heard]
    before = jiwer.wer(
        said, [told.text or "-" for told in load_asr("demo/en").transcribe(_clips(speech_data, heard), words=False)]
    )
    after = jiwer.wer(said, [text or "-" for text in read])
    assert before >= 1.0, "it cannot write a letter of it"
    assert after < 0.5, "far better than one and the same answer to everything, which errs three times in four"
    shown = capsys.readouterr().out
    assert f"{100 * after:.1f} %" in shown
    written = file.stat().st_mtime_ns
    assert bench.main(told) == 0
    assert file.stat().st_mtime_ns == written and "loss" not in capsys.readouterr().out, "nothing is trained twice"
    assert bench.main([*told, "--pad", "0.1"]) == 0
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found["pad_s"] == 0.1 and found["what was heard"]["test after"] != heard, "read anew"
    assert "step 20" not in capsys.readouterr().out, "and not trained anew"
    assert bench.main([*told, "--learning-rate", "1e-5"]) == 0
    assert "was measured otherwise (learning_rate is 1e-05, was 0.0015)" in capsys.readouterr().out


def _clips(speech_data: Path, heard: list[list[str]]) -> list[str]:
    """A clip of each row's speaker saying its text."""
    found = {(row.speaker, row.text): row.audio for row in read_examples(speech_data / "manifest.tsv")}
    return [found[speaker, text] for speaker, text, *_ in heard]


def test_a_start_that_heard_the_fourth_is_left_out_with_the_reason(
    bench: ModuleType, speech_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = ["--speech-data", str(speech_data), "--work", str(tmp_path), *SHORT]
    told += ["--tasks", "digits", "--folds", "fsdd-lucas"]
    assert bench.main(told) == 0
    assert "left out: demo/en has heard fsdd-lucas in its own training" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_without_recordings_there_is_nothing_to_measure_and_no_failure(
    bench: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.main(["--speech-data", str(tmp_path)]) == 0
    assert "nothing to measure; name the folder with --speech-data" in capsys.readouterr().out


def test_the_table_pools_the_folds_and_says_who_was_never_heard(bench: ModuleType) -> None:
    def fold(name: str, after: str) -> dict[str, object]:
        return {
            "task": "digits", "start": "scratch", "fold": name, "known": True, "strangers": ["sc-b"],
            "what was heard": {
                "test after": [[name, "one", after, "one"], [name, "two", "two", "two"]],
                "outside after": [["sc-a", "one", "won", "one"], ["sc-b", "two", "two", "two"]],
            },
        }  # fmt: skip

    shown = bench.table([fold("anna", "won"), fold("ben", "one")])
    lines = {line.strip().split("  ")[0]: line for line in shown.splitlines() if line.strip()}
    assert "50.0 %" in lines["anna"] and " 0.0 %" in lines["ben"]
    assert "25.0 %" in lines["2 folds pooled"], "one of four words"
    assert lines["mean of the folds, after: spelt 25.0%, listed 0.0%"]
    assert "50.0 %" in lines["Speech Commands, everybody"]
    assert "0.0 %" in lines["those that the start never heard"]
    assert "50.0 %" not in lines["those that the start never heard"]
