"""`speechkit finetune`: settings from file and options, a run from a table to a model, mistakes told in one line."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import soundfile

sys.path.insert(0, str(Path(__file__).parent / "training"))

from tiny_runs import examples, model_folder, small

from speechkit import cli, cli_training
from speechkit.training.config import FinetuneConfig
from speechkit.training.report import FinetuneResult


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV with 24 clips by four speakers, and one row without a file."""
    folder = tmp_path_factory.mktemp("corpus")
    rows = ["path,sentence,client_id"]
    for row in examples(24):
        soundfile.write(folder / f"{row.name}.wav", row.audio, 16_000)
        rows.append(f"{row.name}.wav,{row.text},{row.speaker}")
    (folder / "train.csv").write_text("\n".join([*rows, "gone.wav,abc,speaker-1"]) + "\n")
    return folder / "train.csv"


@pytest.fixture(scope="module")
def settings(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration file of a short run on that table."""
    work = tmp_path_factory.mktemp("cli")
    file = work / "run.json"
    config = small(work / "run", model_folder(work / "model"), steps=3, eval_every=2, train=str(table))
    file.write_text(config.to_json())
    return file


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Arguments → the configuration that the command would run."""
    seen: list[FinetuneConfig] = []

    def keep(arguments: Any) -> int:
        seen.append(cli_training.config_of(arguments))
        return 0

    monkeypatch.setattr(cli_training, "_finetune", keep)

    def parse(*arguments: str) -> FinetuneConfig:
        assert cli.main(["finetune", *arguments]) == 0
        return seen[-1]

    return parse


def test_options_win_over_the_file(parsed: Any, settings: Path) -> None:
    config = parsed("--config", str(settings), "--steps", "7", "--strategy", "top-1", "--out", "elsewhere")
    assert config == FinetuneConfig.load(settings).replace(steps=7, strategy="top-1", folder="elsewhere")
    assert parsed("--config", str(settings)) == FinetuneConfig.load(settings)


def test_a_run_can_be_described_by_options_alone(parsed: Any) -> None:
    config = parsed("--train", "data", "--minutes", "5", "--learning-rate", "1e-4", "--no-resume")
    assert config == FinetuneConfig(train="data", minutes=5, learning_rate=1e-4, resume=False)


def test_a_table_becomes_a_model(settings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert cli.main(["finetune", "--config", str(settings)]) == 0
    printed = capsys.readouterr()
    assert "step      3" in printed.out and "WER" in printed.out and "all steps were made" in printed.out
    assert "development set:" in printed.err
    assert "left out: 1 row\n       1  unreadable" in printed.err, "told before the first step, with the reason"
    result = FinetuneResult.load(settings.parent / "run")
    assert result.train_clips + result.dev_clips == 24
    listed = json.loads((settings.parent / "run/data.json").read_text())["left_out"]
    assert [row["name"] for row in listed] == ["gone.wav"] and listed[0]["kind"] == "unreadable"
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_record_of_a_run_is_a_configuration_that_makes_it_longer(
    settings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = str(settings.parent / "run/run.json")
    assert cli.main(["finetune", "--config", record, "--steps", "4", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["step"] for row in rows[:-1]] == [4] and rows[-1]["steps"] == 4


def test_a_signal_ends_the_run_after_the_step_at_hand(
    settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = cli_training._Printer.__call__

    def press(self: Any, point: Any) -> None:
        plain(self, point)
        if point.step == 1:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(cli_training._Printer, "__call__", press)
    assert cli.main(["finetune", "--config", str(settings), "--out", str(tmp_path)]) == 130
    printed = capsys.readouterr()
    assert "once more stops at once" in printed.err and "the same call goes on from here" in printed.out
    assert (tmp_path / "checkpoints/checkpoint-2/model.safetensors").is_file()


def test_data_of_which_nothing_can_be_used_is_refused_with_the_reasons(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "t.csv"
    table.write_text("path,text\na.wav,hello\nb.wav,there\nc.wav,\n")
    assert cli.main(["finetune", "--train", str(table), "--steps", "1"]) == 2
    printed = capsys.readouterr().err
    assert "none of the 3 rows can be trained on: 1 empty text" in printed and "2 unreadable" in printed
    row = examples(1)[0]
    soundfile.write(tmp_path / "a.wav", row.audio, 16_000)
    assert cli.main(["finetune", "--train", str(table), "--steps", "1"]) == 2
    printed = capsys.readouterr().err
    assert "one clip cannot be both trained on and judged by" in printed
    assert "no such file" in printed and "b.wav; did you mean a.wav?" in printed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "the run has no end: give steps, epochs or minutes"),
        (["--steps", "3"], "no training data is named: give --train PATH"),
        (["--steps", "3", "--strategy", "top"], "strategy is 'top'; it can be"),
        (["--config", "none.json"], "none.json cannot be read"),
        (["--steps", "3", "--train", "/no/such/folder"], "/no/such/folder"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["finetune", *arguments]) == 2
    printed = capsys.readouterr().err
    assert said in printed and printed.count("\n") == 1 and "Traceback" not in printed
