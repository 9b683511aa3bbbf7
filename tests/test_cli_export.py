"""`speechkit export`: arguments to calls, results as text and JSON, refusals as one sentence and exit status 2."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from speechkit import cli, cli_export
from speechkit.cli import main
from speechkit.errors import PlanError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("text", "size"), [("2G", 2 * 10**9), ("500M", 5 * 10**8), ("1.5gb", 15 * 10**8), ("64k", 64_000), ("10", 10)]
)
def test_sizes(text: str, size: int) -> None:
    assert cli_export._size(text) == size


@pytest.mark.parametrize("text", ["", "0", "-2G", "two", "2T"])
def test_what_is_no_size_is_told(text: str) -> None:
    with pytest.raises(PlanError, match="is no size: give bytes, or 500M, or 2G"):
        cli_export._size(text)


def test_a_gguf_file_is_written_and_told_as_json_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "chat.gguf"
    assert main(["export", "gguf", "demo/chat", str(file), "--quant", "Q8_0", "--no-proof", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["quant"] == "Q8_0" and told["files"] == ["chat.gguf"] and told["bytes"] == file.stat().st_size
    assert told["proof"] is None

    assert main(["export", "gguf", "demo/chat", str(file)]) == 2
    said = capsys.readouterr().err
    assert "pass --overwrite to replace it" in said and "=True" not in said

    assert main(["export", "ollama", str(file), "--system", "Be brief."]) == 0
    assert "Modelfile" in capsys.readouterr().out
    assert "Be brief." in (tmp_path / "Modelfile").read_text()
    assert main(["export", "ollama", str(file), "--overwrite", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["path"] == "Modelfile"

    assert main(["export", "hub", str(tmp_path), "me/chat", "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["dry_run"] and {"chat.gguf", "README.md"} <= {one["path"] for one in plan["files"]}


def test_a_file_with_its_proof_is_told_to_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "gguf", "demo/chat", str(tmp_path / "chat.gguf"), "--quant", "F16"]) == 0
    printed = capsys.readouterr().out
    assert "passed" in printed and "top-1 agrees on 100.0%" in printed
    assert json.loads((tmp_path / "chat.proof.json").read_text())["verdict"] == "passed"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["gguf", "demo/chat", "{}/chat.bin"], ".gguf"),
        (["gguf", "demo/chat", "{}/chat.gguf", "--quant", "Q3_K_M"], "Q3_K_M"),
        (["gguf", "demo/chatt", "{}/chat.gguf"], "demo/chat"),
        (["gguf", "demo/chat", "{}/chat.gguf", "--split", "many"], "is no size"),
        (["merged", "demo/chat", "{}/out", "--format", "int3"], "int3"),
        (["ollama", "{}/nothing.gguf"], "nothing.gguf"),
        (["hub", "{}/nothing", "me/chat", "--dry-run"], "nothing"),
        (["hub", "demo/chat", "no repository", "--dry-run"], "no repository"),
    ],
)
def test_mistakes_are_one_sentence(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", *(one.replace("{}", str(tmp_path)) for one in arguments)]) == 2
    printed = capsys.readouterr()
    assert said in printed.err and printed.out == "" and "Traceback" not in printed.err
    assert list(tmp_path.iterdir()) == []


def test_of_the_folder_of_a_run_its_best_model_is_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run" / "best").mkdir(parents=True)
    (tmp_path / "run" / "run.json").write_text("{}")
    assert cli_export._best(str(tmp_path / "run")) == str(tmp_path / "run" / "best")
    assert "exporting" in capsys.readouterr().err
    assert cli_export._best("demo/chat") == "demo/chat"


def test_remarks_on_a_push_name_options_and_leave_the_card_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "README.md").write_text("# Mine\n\nMade with overwrite=True.\n")
    save_file({"a": np.zeros(4, np.float32)}, tmp_path / "model.safetensors")
    assert main(["export", "hub", str(tmp_path), "me/mine", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "note: no licence is known, so nobody else may use the model: say --licence apache-2.0" in printed
    assert "Made with overwrite=True." in printed


def test_publishing_is_private_unless_asked_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    import speechkit.export.hub as hub

    seen: list[dict[str, Any]] = []

    def push(folder: str, repo: str, **given: Any) -> str:
        seen.append({"folder": folder, "repo": repo, **given})
        return "pushed"

    monkeypatch.setattr(hub, "push", push)
    assert cli.main(["export", "hub", "demo/en", "me/en"]) == 0
    assert cli.main(["export", "hub", "demo/en", "me/en", "--public", "--version", "v1.0.0", "--message", "new"]) == 0
    first, second = seen
    assert first["private"] and first["version"] == "auto" and not first["dry_run"]
    assert not second["private"] and (second["version"], second["message"]) == ("v1.0.0", "new")
