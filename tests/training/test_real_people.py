"""People: one shortened fold of `kernels/bench/real_people.py`, and what that script refuses and remembers."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import jiwer
import pytest

ROOT = Path(__file__).parents[2]
# a few clips of each word: minutes become seconds. The seed is the configuration's, so a run repeats itself
SHORT = ["--tasks", "digits", "--start", "demo/en", "--takes", "8", "--steps", "80", "--batch-s", "8"]


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("real_people", ROOT / "kernels/bench/real_people.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["real_people"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_training_on_three_people_lowers_the_word_error_rate_of_a_fourth(
    bench: ModuleType, speech_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = ["--speech-data", str(speech_data), "--work", str(tmp_path), *SHORT, "--folds", "fsdd-jackson"]
    assert bench.main(told) == 0
    (file,) = tmp_path.rglob("fold.json")
    heard = json.loads(file.read_text(encoding="utf-8"))["what was heard"]
    assert {row[0] for row in heard["test after"]} == {"fsdd-jackson"} and len(heard["test after"]) == 80
    rates = {
        (when, reading): jiwer.wer([row[1] for row in heard[when]], [row[at] or "-" for row in heard[when]])
        for when in ("test before", "test after")
        for reading, at in (("spelt", 2), ("listed", 3))
    }
    print(rates)
    assert rates["test after", "spelt"] < 0.8 * rates["test before", "spelt"]
    assert rates["test after", "listed"] < rates["test before", "spelt"]
    shown = capsys.readouterr().out
    assert f"{100 * rates['test after', 'spelt']:.1f} %" in shown and "Speech Commands" in shown
    written = file.stat().st_mtime_ns
    assert bench.main(told) == 0
    assert file.stat().st_mtime_ns == written and "step" not in capsys.readouterr().out, "nothing is trained twice"
    assert bench.main([*told, "--learning-rate", "1e-5"]) == 0
    assert "was measured otherwise (learning_rate is 1e-05, was 0.0005)" in capsys.readouterr().out


def test_a_start_that_heard_the_fourth_is_left_out_with_the_reason(
    bench: ModuleType, speech_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = ["--speech-data", str(speech_data), "--work", str(tmp_path), *SHORT, "--folds", "fsdd-lucas"]
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
