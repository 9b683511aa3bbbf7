"""Learning by preference: a margin that grows, a verifiable toy task that improves."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from tiny_llm_runs import model_folder

from speechkit.errors import DataError, PlanError
from speechkit.llm.load import load_llm
from speechkit.llm.preference import train_dpo, train_grpo
from speechkit.llm.preference_config import PreferenceConfig

if TYPE_CHECKING:
    from speechkit.llm.rows import Row

PAIRS = [{"prompt": f"{n}?", "chosen": "yes", "rejected": "no, never"} for n in range(12)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("base") / "model")


def small(folder: Path, model: Path, **changes: Any) -> PreferenceConfig:
    settings: dict[str, Any] = {
        "model": str(model), "folder": str(folder), "steps": 8, "learning_rate": 1e-2, "precision": "float32",
        "device": "cpu", "rank": 4, "alpha": 8,
    }  # fmt: skip
    return PreferenceConfig(**{**settings, **changes})


def likelihood(model: Any, tokenizer: Any, answer: str) -> float:
    """Log-probability of the answer's tokens after the question, by transformers alone."""
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "3?"}], add_generation_prompt=True, return_dict=False
    )
    whole = asked + tokenizer(answer + "<|end|>", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logp = model(torch.tensor([whole])).logits[0].log_softmax(-1)
    return float(sum(logp[i - 1, whole[i]] for i in range(len(asked), len(whole))))


def test_chosen_answers_become_likelier_than_rejected_ones(model: Path, tmp_path: Path) -> None:
    before, tokenizer = load_llm(model, device="cpu", dtype="float32")
    margin = likelihood(before, tokenizer, "yes") - likelihood(before, tokenizer, "no, never")
    told: list[Any] = []
    result = train_dpo(small(tmp_path, model), PAIRS, on_point=told.append)
    after = likelihood(result.model, tokenizer, "yes") - likelihood(result.model, tokenizer, "no, never")
    assert after > margin + 0.5, "in the words of the model itself"
    assert result.after > result.before and "margin between the answers" in str(result)
    assert tuple(told) == result.curve.points and [point.step for point in told] == list(range(1, 9))
    assert set(result.model.peft_config) == {"default"} and not result.model.training
    loaded, _ = load_llm(result.best, device="cpu", dtype="float32")
    assert likelihood(loaded, tokenizer, "yes") == pytest.approx(likelihood(result.model, tokenizer, "yes"), abs=1e-3)
    assert json.loads((tmp_path / "result.json").read_text())["kind"] == "dpo"
    with pytest.raises(PlanError, match="holds a finished run"):
        train_dpo(small(tmp_path, model), PAIRS)


def test_columns_in_another_order_are_the_same_pairs(model: Path, tmp_path: Path) -> None:
    turned = [{name: row[name] for name in ("rejected", "chosen", "prompt")} for row in PAIRS]
    first, second = (
        train_dpo(small(tmp_path / name, model, steps=2), rows) for name, rows in (("a", PAIRS), ("b", turned))
    )
    assert [point.loss for point in first.curve.points] == [point.loss for point in second.curve.points]
    assert [point.reward for point in first.curve.points] == [point.reward for point in second.curve.points]


def share(row: Row, answer: str) -> float:
    """Of the answer's letters those that the row asks for."""
    return sum(letter in row.extra["letters"] for letter in answer) / max(1, len(answer))


def test_answers_that_a_function_rewards_become_frequent(model: Path, tmp_path: Path) -> None:
    prompts = [{"prompt": f"{n}?", "letters": "abcdefghijklm"} for n in range(8)]
    config = small(tmp_path, model, method="full", steps=25, rows=4, max_new_tokens=8, learning_rate=2e-2)
    result = train_grpo(config, prompts, share)
    assert result.kind == "grpo" and len(result.curve.points) == 25
    assert result.before < 0.1 and result.after > 0.5
    assert "mean reward" in str(result)


def test_the_reward_is_asked_with_the_row_its_tools_and_its_columns(model: Path, tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
    prompts = [{"prompt": "1+1?", "tools": [tool], "answer": "2"}, {"prompt": "2+2?", "answer": "4"}]
    seen: list[Row] = []

    def reward(row: Row, answer: str) -> float:
        seen.append(row)
        assert "<|" not in answer
        return float(answer.startswith(row.extra["answer"]))

    result = train_grpo(small(tmp_path, model, steps=1, rows=2, generations=2, max_new_tokens=4), prompts, reward)
    assert result.steps == 1 and {row.messages[-1].content for row in seen} == {"1+1?", "2+2?"}
    assert {bool(row.tools) for row in seen} == {True, False}


def test_a_wish_to_stop_ends_the_run_with_its_model_written(model: Path, tmp_path: Path) -> None:
    result = train_dpo(small(tmp_path, model), PAIRS, stop=lambda: True)
    assert result.steps == 1 and (result.best / "adapter_model.safetensors").is_file()


def test_what_cannot_be_learnt_from_is_said(model: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="reward is a str; give a function of a row and an answer"):
        train_grpo(small(tmp_path / "a", model), [{"prompt": "1?"}], "length")  # type: ignore[arg-type]
    short = small(tmp_path / "b", model, rows=1, generations=2, max_new_tokens=2)
    with pytest.raises(DataError, match="the reward of an answer to row 0 is None; it should be a number"):
        train_grpo(short, [{"prompt": "1?"}], lambda *_: None)  # type: ignore[arg-type, return-value]
    same = [{"prompt": "1?", "chosen": "a", "rejected": "a"}]
    with pytest.raises(DataError, match=r"none of 1 pairs can be used|no usable row"):
        train_dpo(small(tmp_path / "c", model), same)
    chat = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
    with pytest.raises(DataError, match="preference"):
        train_dpo(small(tmp_path / "d", model), chat)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"generations": 1}, "generations is 1: answers to a prompt are judged against each other"),
        ({"temperature": 0}, "temperature is 0; it should be more than 0"),
        ({"beta": -1}, "beta is -1; it should be 0 or more"),
        ({"quant": "nf4"}, 'quant is "nf4" and method "lora"'),
        ({"method": "dpo"}, "method is 'dpo'; it can be 'lora', 'qlora', 'full'"),
    ],
)
def test_settings_that_cannot_be_are_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(PlanError) as caught:
        PreferenceConfig(**changes)
    assert said in str(caught.value)


def test_settings_come_back_from_json() -> None:
    config = PreferenceConfig(steps=3, beta=0.2, targets=("q_proj",))
    assert PreferenceConfig.from_json(config.to_json()) == config
