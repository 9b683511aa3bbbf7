"""`speechkit llm-finetune`: settings from file and options, a run from a file of rows to an adapter, mistakes told."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent / "llm"))

from tiny_llm_runs import chats, model_folder, no_kernels, small

from speechkit import cli, cli_llm
from speechkit.llm.llm_config import LlmConfig
from speechkit.llm.llm_result import LlmResult
from speechkit.training.curve import Point

definitions = pytest.fixture(scope="module", autouse=True)(no_kernels)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 chats, and one line that is none."""
    file = tmp_path_factory.mktemp("rows") / "train.jsonl"
    lines = [json.dumps(row) for row in chats(40)]
    file.write_text("\n".join([*lines[:7], '{"messages": 3}', *lines[7:]]) + "\n")
    return file


@pytest.fixture(scope="module")
def settings(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration file of a short run on those rows."""
    work = tmp_path_factory.mktemp("cli")
    config = small(work / "run", model_folder(work / "model"), steps=3, eval_every=2, train=str(rows))
    config.save(work / "run.json")
    return work / "run.json"


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Arguments → the configuration that the command would run."""
    seen: list[LlmConfig] = []

    def keep(arguments: Any) -> int:
        seen.append(cli_llm.config_of(arguments))
        return 0

    monkeypatch.setattr(cli_llm, "_finetune", keep)

    def parse(*arguments: str) -> LlmConfig:
        assert cli.main(["llm-finetune", *arguments]) == 0
        return seen[-1]

    return parse


def test_options_win_over_the_file(parsed: Any, settings: Path) -> None:
    config = parsed("--config", str(settings), "--steps", "7", "--method", "full", "--out", "elsewhere")
    assert config == LlmConfig.load(settings).replace(steps=7, method="full", folder="elsewhere")
    assert parsed("--config", str(settings)) == LlmConfig.load(settings)


def test_a_run_can_be_described_by_options_alone(parsed: Any) -> None:
    config = parsed("--train", "a.jsonl", "--epochs", "2", "--rank", "8", "--max-len", "512", "--no-resume")
    assert config == LlmConfig(train="a.jsonl", epochs=2, rank=8, max_len=512, resume=False)


def test_a_file_of_chats_becomes_an_adapter(settings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert cli.main(["llm-finetune", "--config", str(settings)]) == 0
    printed = capsys.readouterr()
    assert "step      3" in printed.out and "kept-out loss" in printed.out and "all steps were made" in printed.out
    assert "tokens/s" in printed.out and "MiB" in printed.out
    assert "kept out: 4 of 40 rows, drawn by chance (seed 0)" in printed.err
    assert "line 8" in printed.err, "the broken row is told before the first step"
    result = LlmResult.load(settings.parent / "run")
    assert result.train_rows + result.dev_rows == 40 and result.best is not None
    assert result.left_out == 1, "the line that is no chat"
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_record_of_a_run_is_a_configuration_that_makes_it_longer(
    settings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = str(settings.parent / "run/run.json")
    assert cli.main(["llm-finetune", "--config", record, "--steps", "4", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["step"] for row in rows[:-1]] == [4] and rows[-1]["steps"] == 4


def test_a_signal_ends_the_run_after_the_step_at_hand(
    settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = cli_llm._Printer.__call__

    def press(self: Any, point: Point) -> None:
        plain(self, point)
        if point.step == 1:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(cli_llm._Printer, "__call__", press)
    assert cli.main(["llm-finetune", "--config", str(settings), "--out", str(tmp_path)]) == 130
    printed = capsys.readouterr()
    assert "once more stops at once" in printed.err and "the same call goes on from here" in printed.out
    assert (tmp_path / "checkpoints/checkpoint-2/model.safetensors").is_file()


def test_a_plan_is_printed_with_the_line_that_starts_the_run(
    settings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = ["llm-finetune", "--config", str(settings), "--plan", "4", "--strategy", "zero3", "--card", "H100"]
    assert cli.main(plan) == 0
    printed = capsys.readouterr().out
    assert "lora, zero3 × 4" in printed and "activations" in printed and "total" in printed
    line = printed.splitlines()[-1]
    assert "torchrun" in line and f"-m speechkit llm-finetune --config {settings} --distributed launch/" in line
    assert cli.main([*plan, "--write", str(settings.parent / "launch")]) == 0
    assert "launch.sbatch" in capsys.readouterr().out
    written = json.loads((settings.parent / "launch/deepspeed.json").read_text())
    assert written["zero_optimization"]["stage"] == 3


def test_lines_stand_under_each_other_and_tell_the_speed_between_them(capsys: pytest.CaptureFixture[str]) -> None:
    printer = cli_llm._Printer(as_json=False)
    printer(Point(0, 1.0, dev_loss=4.25, tokens=0, memory_mib=500.0))
    printer(Point(10, 3.0, 3.5, 2e-4, tokens=2400, memory_mib=812.0))
    lines = capsys.readouterr().out.splitlines()
    assert "kept-out loss 4.2500" in lines[0] and "tokens/s" not in lines[0]
    assert "loss 3.5000" in lines[1] and "1,200 tokens/s" in lines[1]
    assert lines[0].index("MiB") == lines[1].index("MiB")


def test_rows_that_ask_the_same_are_kept_out_together() -> None:
    from speechkit.llm.rows import read_rows

    rows = [*read_rows(chats(30)), *read_rows(chats(30))]
    kept, out = cli_llm._split(rows, seed=3)
    assert len(kept) + len(out) == 60 and out
    assert not {cli_llm._question(row) for row in kept} & {cli_llm._question(row) for row in out}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "the run has no end: give steps, epochs or minutes"),
        (["--steps", "3"], "no training rows are named: give --train FILE"),
        (["--steps", "3", "--method", "dora"], "method is 'dora'; it can be"),
        (["--config", "none.json"], "none.json cannot be read"),
        (["--steps", "3", "--train", "/no/such/rows.jsonl"], "/no/such/rows.jsonl"),
        (["--steps", "3", "--strategy", "zero3"], "--strategy belongs to a plan: give --plan N"),
        (["--plan", "3", "--strategy", "zero9"], "strategy is 'zero9'; it can be"),
        (["--plan", "0"], "ranks is 0"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["llm-finetune", *arguments]) == 2
    printed = capsys.readouterr().err
    assert said in printed and printed.count("\n") == 1 and "Traceback" not in printed


def test_rows_that_all_ask_the_same_cannot_be_split(
    settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "one.jsonl").write_text(json.dumps(chats(1)[0]) + "\n")
    assert cli.main(["llm-finetune", "--config", str(settings), "--train", str(tmp_path / "one.jsonl")]) == 2
    assert "all rows ask the same, so none can be kept out: name other rows with --dev" in capsys.readouterr().err
