"""`speechkit models`: names that load, and what is known of each family of language models."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from speechkit import demo
from speechkit.cli import main
from speechkit.llm.registry import FAMILIES


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert main(["models"]) == 0
    return capsys.readouterr().out.splitlines()


def test_short_names_are_listed_with_where_they_come_from(lines: list[str]) -> None:
    listed = dict(line.split(maxsplit=1) for line in lines if len(line.split()) > 1)
    assert listed["demo/en"] == "embedded, no download" and listed["en"] == "facebook/wav2vec2-base-960h"
    assert listed["qwen3-0.6b"] == "Qwen/Qwen3-0.6B"
    for name in demo.chat_models():
        assert listed[f"demo/{name}"] == "embedded, no download"


def test_every_family_has_a_line_with_its_types_targets_and_stop_tokens(lines: list[str]) -> None:
    table = lines[lines.index("Families of language models") + 1 :]
    assert table[0].split()[:1] == ["family"] and len(table) == len(FAMILIES) + 2
    rows = {line.split("  ")[0]: line for line in table[1:-1]}
    assert list(rows) == [family.name for family in FAMILIES]
    assert "qkv o gate_up down (…_proj)" in rows["Phi 3 and 4"] and "<|end|>" in rows["Phi 3 and 4"]
    assert "qwen2_vl, qwen2_5_vl  " in rows["Qwen 2 and 2.5 VL"]
    assert max(map(len, table)) <= 180, "a wide terminal holds it"
    assert "without kernels" in table[-1] and "all linear layers but the head" in table[-1]


def test_gemma_is_the_family_without_float16_and_r1_distils_follow_their_base(lines: list[str]) -> None:
    table = {line.split("  ")[0]: line.split() for line in lines}
    assert "no" in table["Gemma 2"] and "no" not in table["Llama 3"]
    assert "as its base" in " ".join(table["DeepSeek R1 distilled"])
    assert "as its base" in " ".join(table["Llava"])


def test_as_json_each_list_has_a_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["speech"]["en"] == "facebook/wav2vec2-base-960h"
    assert found["language"]["qwen3-0.6b"] == "Qwen/Qwen3-0.6B"
    assert found["encoders"]["minilm-l6"] == "sentence-transformers/all-MiniLM-L6-v2"
    rows = {row["name"]: row for row in found["families"]}
    assert rows["Gemma 3"]["float16"] is False and rows["Gemma 3"]["gguf_architecture"] == "gemma3"
    assert rows["Llama 3"]["stop_tokens"][0] == "<|eot_id|>"


def test_the_table_needs_no_torch() -> None:
    code = "import sys; from speechkit.cli import main; main(['models']); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("room", [80, 120])
def test_a_terminal_that_is_too_narrow_for_the_table_gets_lists_that_fit_it(
    room: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(room))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    table = lines[lines.index("Families of language models") + 1 :]
    assert max(map(len, table)) <= room
    said = " ".join(" ".join(table).split())
    assert (
        "qkv o gate_up down (…_proj): Phi 3 and 4" in said and "<|eot_id|> <|end_of_text|> <|eom_id|>: Llama 3" in said
    )


def test_an_encoder_without_a_head_is_not_listed_as_a_transcriber(lines: list[str]) -> None:
    assert "demo/encoder  embedded, no download; a start for finetune, transcribes nothing by itself" in lines
