"""A language model's run from rows to a folder. Oracles: plain torch, transformers and peft, row by row."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parent))

from tiny_llm_runs import chats, losses, model_folder, no_kernels, small

from speechkit.device import detect
from speechkit.errors import DataError, ModelError, PlanError
from speechkit.llm.data import tokenize
from speechkit.llm.finetune import finetune
from speechkit.llm.llm_config import LlmConfig
from speechkit.llm.llm_result import LlmResult
from speechkit.llm.load import load_llm
from speechkit.llm.rows import read_rows

if TYPE_CHECKING:
    from speechkit.training.curve import Point

TRAIN, DEV = chats(48), chats(8, first=100)
LONG = {"messages": [{"role": "user", "content": "x" * 300}, {"role": "assistant", "content": "y"}]}


definitions = pytest.fixture(scope="module", autouse=True)(no_kernels)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def told() -> list[Point]:
    return []


@pytest.fixture(scope="module")
def result(model: Path, tmp_path_factory: pytest.TempPathFactory, told: list[Point]) -> LlmResult:
    """A whole run with adapters."""
    return finetune(small(tmp_path_factory.mktemp("run"), model), TRAIN, DEV, on_point=told.append)


def row_losses(model: Any, folder: Path, rows: list[dict[str, Any]]) -> tuple[torch.Tensor, int]:
    """Sum over the labelled tokens of all rows, each row alone, by transformers; and how many those are."""
    found = tokenize(read_rows(rows), AutoTokenizer.from_pretrained(folder), 256).rows
    total, count = torch.zeros(()), 0
    for row in found:
        ids, labels = torch.tensor([row.input_ids]), torch.tensor(row.labels[1:])
        logits = model(ids).logits[0, :-1]
        total = total + torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
        count += int((labels != -100).sum())
    return total, count


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({}, id="packed, the loss by the kernel"),
        pytest.param({"kernels": False}, id="packed, the loss by trl"),
        pytest.param({"packing": False, "kernels": False}, id="padded"),
    ],
)
def test_an_update_over_several_batches_is_that_of_all_their_tokens(
    more: dict[str, Any], model: Path, tmp_path: Path
) -> None:
    from speechkit.llm.batches import batches_of

    settings = small(tmp_path, model, method="full", steps=1, batch_tokens=90, warmup=0.0, decay=0.0, **more)
    tokens = tokenize(read_rows(TRAIN[:17]), AutoTokenizer.from_pretrained(model), 90).rows
    items = batches_of(tokens, 90, settings.packing)
    assert len({item.labelled for item in items}) > 1, "uneven batches, or a wrong weighting would not show"
    finetune(settings.replace(accumulation=len(items)), TRAIN[:17])
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    total, count = row_losses(plain, model, TRAIN[:17])
    loss = total / count
    assert losses(tmp_path) == [pytest.approx(float(loss.detach()), rel=1e-5)]
    loss.backward()
    torch.nn.utils.clip_grad_norm_(plain.parameters(), settings.max_grad_norm)
    saved = load_file(tmp_path / "checkpoints/checkpoint-1/model.safetensors")
    for name, weight in plain.named_parameters():
        steady = weight.grad.abs() > 1e-5  # Adam's first step is the sign of the gradient, whatever its size
        moved = (saved[name] - weight.detach())[steady]
        assert torch.equal(moved.sign(), -weight.grad[steady].sign()), name


def test_the_folder_of_a_run_holds_what_repeats_and_explains_it(result: LlmResult, model: Path) -> None:
    folder = result.folder
    assert {path.name for path in folder.iterdir()} == {
        "run.json", "origin.json", "curve.jsonl", "checkpoints", "best", "result.json", "README.md",
    }  # fmt: skip
    assert LlmConfig.load(folder / "run.json") == small(folder, model)
    origin = json.loads((folder / "origin.json").read_text())
    assert origin["versions"]["torch"] == torch.__version__.partition("+")[0] and "trl" in origin["versions"]
    assert origin["hardware"] == str(detect())
    assert LlmResult.load(folder) == result
    card = (folder / "README.md").read_text()
    assert f"| this model (step {result.best_step}) | {result.dev_loss:.4f} |" in card
    assert "library_name: peft" in card and "speechkit llm-finetune --config run.json" in card
    assert (folder / "best/README.md").read_text() == card
    assert str(folder.parent) not in card and str(model.parent) not in card, "a published card tells nothing of here"
    assert not list(folder.rglob("training_args.bin"))


def test_the_result_reads_as_a_summary(result: LlmResult) -> None:
    text = str(result)
    assert text.startswith(f"kept-out loss {result.dev_loss:.3f} (perplexity ")
    assert "LoRA: 3,712 of 36,064 numbers learnt (10.3%), float32 (asked for)" in text
    assert "peak memory of the process:" in text and "all steps were made" in text
    assert result.tokens > 0 and result.fill == 1.0 and result.tokens_per_s


def test_any_user_of_peft_can_load_the_best_adapter_and_finds_the_loss_of_the_curve(
    result: LlmResult, model: Path
) -> None:
    from peft import PeftModel

    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    assert result.best is not None
    with torch.no_grad():
        before, count = row_losses(plain, model, DEV)
        total, _ = row_losses(PeftModel.from_pretrained(plain, result.best), model, DEV)
    assert result.dev_loss_before == pytest.approx(float(before) / count, rel=1e-5)
    assert result.dev_loss == pytest.approx(float(total) / count, rel=1e-5)
    assert result.dev_loss < result.dev_loss_before


def test_the_model_that_comes_back_is_the_best_one_ready_for_use(result: LlmResult, model: Path) -> None:
    with torch.no_grad():
        total, count = row_losses(result.model, model, DEV)
    assert float(total) / count == pytest.approx(result.dev_loss, rel=1e-5)
    assert not result.model.training and "forward" not in result.model.get_base_model().__dict__
    loaded, tokenizer = load_llm(result.best, device="cpu", dtype="float32")
    with torch.no_grad():
        total, count = row_losses(loaded, model, DEV)
    assert float(total) / count == pytest.approx(result.dev_loss, rel=1e-5)
    assert tokenizer.chat_template == result.tokenizer.chat_template


def test_points_tell_loss_tokens_and_memory_as_they_are_made(result: LlmResult, told: list[Point]) -> None:
    assert tuple(told) == result.curve.points
    assert [point.step for point in told] == list(range(9))
    assert [point.step for point in told if point.dev_loss is not None] == [0, 3, 6, 8]
    tokens = [point.tokens for point in told]
    assert tokens == sorted(tokens) and tokens[0] == 0 and tokens[-1] == result.tokens
    lengths = tokenize(read_rows(TRAIN), result.tokenizer, 128).tokens
    assert tokens[1] <= 128 and result.train_tokens == lengths
    assert all(100 < (point.memory_mib or 0) < 16_000 for point in told)


def test_a_run_on_four_bits_learns_and_its_adapter_stays_in_float32(tmp_path: Path) -> None:
    wide = model_folder(tmp_path / "model", hidden_size=64, intermediate_size=128, head_dim=16)
    result = finetune(small(tmp_path / "run", wide, method="qlora", learning_rate=2e-2, steps=12), TRAIN, DEV)
    base = result.model.get_base_model()
    assert base.is_loaded_in_4bit and type(base.model.layers[0].mlp.up_proj.base_layer).__name__ == "Linear4bit"
    assert result.dev_loss is not None and result.dev_loss_before is not None
    assert result.dev_loss < result.dev_loss_before - 0.1
    assert {weight.dtype for weight in load_file(result.best / "adapter_model.safetensors").values()} == {torch.float32}  # type: ignore[operator]
    assert result.total > 100_000, "what four bits stand for, not their bytes"


def test_every_weight_can_learn_and_a_whole_model_is_left(model: Path, tmp_path: Path) -> None:
    result = finetune(small(tmp_path, model, method="full", steps=6), TRAIN, DEV)
    plain, report = AutoModelForCausalLM.from_pretrained(result.best, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    with torch.no_grad():
        total, count = row_losses(plain, model, DEV)
    assert float(total) / count == pytest.approx(result.dev_loss, rel=1e-5)
    assert result.trainable == result.total and "library_name: transformers" in (tmp_path / "README.md").read_text()


def test_memory_saving_settings_leave_the_curve_as_it_is(model: Path, tmp_path: Path) -> None:
    plain = finetune(small(tmp_path / "a", model, steps=4), TRAIN)
    finetune(small(tmp_path / "b", model, steps=4, checkpointing="layers"), TRAIN)
    assert losses(tmp_path / "b") == pytest.approx(losses(tmp_path / "a"), rel=1e-5)
    eight = finetune(small(tmp_path / "c", model, steps=4, optimizer="adamw_8bit", method="full"), TRAIN)
    whole = finetune(small(tmp_path / "d", model, steps=4, method="full"), TRAIN)
    assert losses(tmp_path / "c") == pytest.approx(losses(tmp_path / "d"), rel=3e-2)
    assert losses(tmp_path / "c") != losses(tmp_path / "d"), "eight bits are coarser"
    assert (plain.dev_loss, plain.best_step, eight.steps, whole.steps) == (None, 4, 4, 4)
    assert "no row was kept out; loss " in str(plain)


def test_a_model_that_is_given_is_trained_in_place_and_can_be_trained_further(model: Path, tmp_path: Path) -> None:
    mine, tokenizer = load_llm(model, device="cpu", dtype="float32")
    config = small(tmp_path / "a", model, steps=2)
    first = finetune(config, TRAIN, DEV, model=mine, tokenizer=tokenizer)
    assert first.model.get_base_model() is mine
    with pytest.raises(PlanError, match=r"holds an adapter of an earlier run: give that run's `result.model`"):
        finetune(small(tmp_path / "b", model, steps=2), TRAIN, DEV, model=mine, tokenizer=tokenizer)
    again = finetune(config.replace(steps=4), TRAIN, DEV, model=first.model, tokenizer=tokenizer)
    assert again.steps == 4 and [p.step for p in again.curve.points] == [0, 1, 2, 3, 4]
    fresh = finetune(small(tmp_path / "b", model, steps=1), TRAIN, DEV, model=again.model, tokenizer=tokenizer)
    assert fresh.dev_loss_before == pytest.approx(again.dev_loss, rel=1e-5)
    assert any("the adapter that the model had goes on learning" in note for note in fresh.notes)


def test_broken_and_overlong_rows_are_left_out_and_said(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    lines = [json.dumps(row) for row in TRAIN[:12]]
    lines.insert(3, '{"messages": [')
    lines.append(
        json.dumps({"messages": [{"role": "user", "content": "x" * 300}, {"role": "assistant", "content": "y"}]})
    )
    file.write_text("\n".join(lines) + "\n")
    result = finetune(small(tmp_path / "run", model, steps=1), file, DEV)
    assert (result.train_rows, result.left_out) == (12, 2)
    note = next(note for note in result.notes if note.startswith("left out of the training rows: 2"))
    assert "line 4: is not JSON" in note and "line 14: longer than max_len 128" in note


def test_a_loss_that_is_no_number_ends_the_run_and_no_checkpoint_is_made_of_it(model: Path, tmp_path: Path) -> None:
    settings = small(tmp_path, model, method="full", learning_rate=1e30, max_grad_norm=1e30, warmup=0.0, eval_every=1)
    result = finetune(settings, TRAIN, DEV)
    assert result.ending == "diverged" and "no number any more" in str(result)
    steps = [int(path.name.partition("-")[2]) for path in (tmp_path / "checkpoints").iterdir()]
    assert all(step < result.steps for step in steps)


def test_patience_and_the_clock_end_a_run(model: Path, tmp_path: Path) -> None:
    worse = small(
        tmp_path / "a", model, method="full", learning_rate=3.0, warmup=0.0, steps=9, eval_every=1, patience=2
    )
    result = finetune(worse, TRAIN, DEV)
    assert result.ending == "patience" and result.steps == result.best_step + 2
    short = finetune(small(tmp_path / "b", model, steps=None, minutes=1e-4), TRAIN, DEV)
    assert short.ending == "minutes" and short.steps >= 1 and short.dev_loss is not None


def test_experts_are_balanced_once_per_update_whatever_the_accumulation(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", "qwen3_moe", router_aux_loss_coef=0.5)
    # one and the same batch, twice in an update or once: the update is the same
    rows = TRAIN[:4]
    for name, count in (("one", 1), ("two", 2)):
        finetune(small(tmp_path / name, folder, steps=2, accumulation=count, method="full"), rows)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"optimizer": "paged_adamw_8bit"}, 'cpu has no paged memory.* Use "adamw_8bit", which makes the same updates'),
        ({"checkpointing": "offload"}, 'checkpointing is "offload".* the device is cpu; use "layers"'),
        ({"precision": "float16"}, 'precision is "float16"'),
        ({"targets": ["qproj"]}, "qproj"),
        ({"distributed": "none.json"}, "none.json cannot be read as JSON"),
        ({"model": "no/such/folder-here"}, "folder-here"),
    ],
)
def test_what_cannot_work_here_is_refused_before_anything_runs(
    changes: dict[str, Any], said: str, model: Path, tmp_path: Path
) -> None:
    with pytest.raises((PlanError, ModelError), match=f"(?s){said}"):
        finetune(small(tmp_path, model).replace(**changes), TRAIN, DEV)
    assert not (tmp_path / "run.json").exists()


def test_a_model_that_does_not_go_with_the_method_is_refused(model: Path, tmp_path: Path) -> None:
    mine, tokenizer = load_llm(model, device="cpu", dtype="float32")
    given = {"model": mine, "tokenizer": tokenizer}
    with pytest.raises(PlanError, match="model and tokenizer go together"):
        finetune(small(tmp_path, model), TRAIN, model=mine)
    with pytest.raises(PlanError, match=r"not quantised: load it with load_llm\(name, .nf4"):
        finetune(small(tmp_path, model, method="qlora"), TRAIN, **given)
    with pytest.raises(PlanError, match="max_len is 300, and the model that was given takes 256 tokens"):
        finetune(small(tmp_path, model, max_len=300, batch_tokens=300), TRAIN, **given)
    adapted = finetune(small(tmp_path / "a", model, steps=1), TRAIN, **given).model
    with pytest.raises(PlanError, match=r"has an adapter: merge it first, or use method .lora"):
        finetune(small(tmp_path, model, method="full"), TRAIN, model=adapted, tokenizer=tokenizer)


def test_rows_without_anything_to_learn_are_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="longer than max_len 128"):
        finetune(small(tmp_path, model), [LONG])
    with pytest.raises(DataError, match="none of the training rows can be used"):
        finetune(small(tmp_path, model), [])


def test_what_is_wrong_with_the_template_is_among_the_notes(model: Path, tmp_path: Path) -> None:
    mine, tokenizer = load_llm(model, device="cpu", dtype="float32")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    )
    result = finetune(small(tmp_path, model, steps=1), TRAIN[:8], model=mine, tokenizer=tokenizer)
    assert any(note.startswith("lint: error: no stop token: ") for note in result.notes)
    assert "note: lint: error: no stop token: " in str(result)


def test_a_file_of_settings_for_several_processes_that_is_none_is_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"lr": 1}')
    with pytest.raises(PlanError, match=r"holds neither DeepSpeed's settings .* nor those of FSDP"):
        finetune(small(tmp_path / "run", model, distributed=str(tmp_path / "a.json")), TRAIN)


def test_random_numbers_and_loggers_are_as_they_were(model: Path, tmp_path: Path) -> None:
    import logging

    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        finetune(small(tmp_path, model, steps=1), TRAIN[:8])
    assert torch.equal(torch.rand(3), wanted)
    assert not [one for one in caught if "gradient_checkpointing" in str(one.message)]
    assert not logging.getLogger("trl").filters
