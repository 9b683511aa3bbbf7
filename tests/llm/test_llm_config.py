"""Settings of a language model's run: JSON and back, every mistake named with what is allowed."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from speechkit.errors import PlanError
from speechkit.llm.llm_config import LlmConfig

if TYPE_CHECKING:
    from pathlib import Path


def test_settings_come_back_from_json_as_they_were(tmp_path: Path) -> None:
    config = LlmConfig(steps=7, targets=("q_proj", "v_proj"), method="qlora", max_len=512, folder=tmp_path / "run")  # type: ignore[arg-type]
    assert LlmConfig.from_json(config.to_json()) == config
    config.save(tmp_path / "run.json")
    assert LlmConfig.load(tmp_path / "run.json") == config
    assert config.folder == str(tmp_path / "run"), "a path is kept as text"
    assert json.loads(config.to_json())["targets"] == ["q_proj", "v_proj"]


def test_what_json_does_not_name_keeps_its_default_and_changes_are_checked() -> None:
    config = LlmConfig.from_json('{"epochs": 2, "learning_rate": 1}')
    assert config == LlmConfig(epochs=2, learning_rate=1)
    assert config.replace(method="full").method == "full"
    with pytest.raises(PlanError, match="method is 'lara'"):
        config.replace(method="lara")
    with pytest.raises(PlanError, match="no setting 'ranks'; did you mean 'rank'"):
        config.replace(ranks=3)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "the run has no end: give steps, epochs or minutes"),
        ({"steps": 0}, "steps is 0; it should be more than 0"),
        ({"steps": 1.5}, "steps is 1.5, which is of the wrong type; it should be int or null"),
        ({"steps": True}, "steps is True, which is of the wrong type"),
        ({"steps": 1, "method": "dora"}, "method is 'dora'; it can be 'lora', 'qlora', 'full'"),
        ({"steps": 1, "optimizer": "sgd"}, "optimizer is 'sgd'; it can be 'adamw', 'adamw_8bit', 'paged_adamw'"),
        ({"steps": 1, "checkpointing": True}, "checkpointing is True, which is of the wrong type"),
        ({"steps": 1, "checkpointing": "all"}, "checkpointing is 'all'; it can be 'none', 'layers', 'offload'"),
        ({"steps": 1, "precision": "fp16"}, "precision is 'fp16'; it can be 'auto', 'float32', 'bfloat16', 'float16'"),
        ({"steps": 1, "quant": "q4"}, "quant is 'q4'; it can be 'nf4', 'int8'"),
        ({"steps": 1, "quant": "nf4"}, 'quant is "nf4" and method "lora": plain LoRA has no quant; method "qlora"'),
        ({"steps": 1, "quant": "nf4", "method": "full"}, "weights that learn cannot be quantised"),
        ({"steps": 1, "rank": 0}, "rank is 0; it should be 1 or more"),
        ({"steps": 1, "dropout": 1}, "dropout is 1, with which nothing reaches the adapters"),
        ({"steps": 1, "dropout": -0.1}, "dropout is -0.1, a share"),
        ({"steps": 1, "targets": []}, "targets is empty; give names of layers"),
        ({"steps": 1, "targets": [1]}, "it should be a list of strings"),
        ({"steps": 1, "max_len": 4096}, "max_len is 4096 and batch_tokens 2048: a row of that length fits no batch"),
        ({"steps": 1, "warmup": 0.7}, "warmup 0.7 and decay 0.5 are more than the whole run together"),
        ({"steps": 1, "learning_rate": 0}, "learning_rate is 0; it should be more than 0, and finite"),
        ({"steps": 1, "learning_rate": float("nan")}, "learning_rate is nan; it should be more than 0, and finite"),
        ({"steps": 1, "weight_decay": float("nan")}, "weight_decay is nan; it should be 0 or more"),
    ],
)
def test_mistakes_are_named_with_what_is_allowed(given: dict[str, Any], said: str) -> None:
    with pytest.raises(PlanError) as caught:
        LlmConfig(**given)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("steps: 3", "run.json is not JSON"),
        ("[3]", "run.json holds a list; it should be an object of settings"),
        ('{"step": 3}', "run.json has no setting 'step'; did you mean 'steps'?"),
    ],
)
def test_a_file_that_is_no_configuration_is_told_by_its_name(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(PlanError, match=r"run\.json") as caught:
        LlmConfig.load(tmp_path / "run.json")
    assert said in str(caught.value)
    with pytest.raises(PlanError, match=r"none\.json cannot be read .* give a JSON file of settings"):
        LlmConfig.load(tmp_path / "none.json")


def test_only_what_changes_the_curve_counts_as_a_difference() -> None:
    one = LlmConfig(steps=3)
    assert one.differences(one.replace(steps=9, folder="elsewhere", keep=5, checkpointing="layers")) == ()
    assert one.differences(one.replace(rank=8, seed=1)) == ("rank is 16, was 8", "seed is 0, was 1")


def test_qlora_means_four_bits_unless_told_otherwise() -> None:
    assert LlmConfig(steps=1, method="qlora").base_quant == "nf4"
    assert LlmConfig(steps=1, method="qlora", quant="int8").base_quant == "int8"
    assert LlmConfig(steps=1).base_quant is None


def test_reading_settings_loads_nothing_heavy() -> None:
    code = "import sys; from speechkit.llm.llm_config import LlmConfig; print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"
