"""Bins to the letter, blocks and back, and batches that trainers take."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

from tiny_llms import tiny
from tiny_tokens import VOCABULARY, tokenizer
from token_rows import documents

from speechkit.errors import DataError
from speechkit.llm.data import Tokens
from speechkit.llm.packing import as_dataset, collate, fill_of, pack, plan_bins, report, unpack


def best_fit_decreasing(lengths: list[int], block: int) -> list[list[int]]:
    """The definition, one item after the other."""
    bins: list[list[int]] = []
    left: list[int] = []
    for item in sorted(range(len(lengths)), key=lambda n: (-lengths[n], n)):
        fitting = [(space, number) for number, space in enumerate(left) if space >= lengths[item]]
        if not fitting:
            bins.append([])
            left.append(block)
        number = min(fitting)[1] if fitting else len(bins) - 1
        bins[number].append(item)
        left[number] -= lengths[item]
    return bins


@st.composite
def lengths_and_block(draw: Any) -> tuple[list[int], int]:
    block = draw(st.integers(1, 50))
    longest = max(1, block // draw(st.integers(1, 5)))
    return draw(st.lists(st.integers(1, longest), max_size=90)), block


@given(lengths_and_block())
@settings(max_examples=150, deadline=None)
def test_bins_are_those_of_best_fit_decreasing_to_the_letter(case: tuple[list[int], int]) -> None:
    assert plan_bins(*case) == best_fit_decreasing(*case)


def test_long_lists_with_bins_beyond_sixteen_bits_are_sorted_right() -> None:
    bins = plan_bins([3] * 70_000, 5)
    assert bins == [[n] for n in range(70_000)]


def test_log_normal_lengths_fill_their_blocks() -> None:
    drawn = np.random.default_rng(0).lognormal(np.log(360), 0.8, 20_000)
    lengths = np.clip(drawn, 1, 2048).astype(int)
    assert lengths.mean() <= 2048 / 4
    bins = plan_bins(lengths, 2048)
    assert fill_of(bins, lengths, 2048) >= 0.98
    assert sorted(n for one in bins for n in one) == list(range(20_000))


@pytest.mark.parametrize(("lengths", "said"), [([3, 9], "length 9 (number 1)"), ([0], "length 0 (number 0)")])
def test_lengths_that_fit_no_bin_are_refused(lengths: list[int], said: str) -> None:
    with pytest.raises(DataError) as error:
        plan_bins(lengths, 8)
    assert said in str(error.value) and "1 to 8 do" in str(error.value)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=30), st.integers(20, 45), st.none() | st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_unpack_gives_back_what_was_packed(lengths: list[int], block: int, seed: int | None) -> None:
    rows = documents(*lengths)
    blocks = pack(rows, block, seed=seed)
    assert unpack(blocks) == rows
    assert all(len(one) <= block for one in blocks) and sum(map(len, blocks)) == sum(lengths)


def test_positions_begin_anew_and_no_first_token_has_a_loss() -> None:
    rows = [Tokens((5, 6, 7), (5, 6, 7)), Tokens((8, 9), (8, 9))]
    (block,) = pack(rows, 8, seed=None)
    assert block.input_ids.tolist() == [5, 6, 7, 8, 9] and block.position_ids.tolist() == [0, 1, 2, 0, 1]
    assert block.labels.tolist() == [-100, 6, 7, -100, 9]
    assert block.cu_seqlens.tolist() == [0, 3, 5] and block.max_seqlen == 3
    assert str(block) == "5 tokens, 2 documents, 3 with loss"


def test_the_same_seed_gives_the_same_blocks_and_another_another_order_of_the_same_bins() -> None:
    rows = documents(*np.random.default_rng(3).integers(1, 30, 60).tolist())
    first, again, other, plain = (
        [one.documents for one in pack(rows, 64, seed=seed)] for seed in (0, 0, 1, None)
    )  # fmt: skip
    assert first == again != other
    assert {frozenset(x) for x in first} == {frozenset(x) for x in other} == {frozenset(x) for x in plain}
    assert [list(x) for x in plain] == plan_bins([len(row) for row in rows], 64)


def test_a_row_longer_than_a_block_is_refused_by_its_place() -> None:
    with pytest.raises(DataError, match=r"line 2 has 9 tokens and a block 8 \(1 such rows\): .* max_len=8"):
        pack(documents(4, 9), 8)
    with pytest.raises(DataError, match="no token rows"):
        pack([], 8)
    with pytest.raises(DataError, match=r"block is 8\.5; it is a whole number of tokens from 1"):
        pack(documents(4), 8.5)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="there are no blocks"):
        collate([])


def test_the_report_says_fill_and_what_padding_would_be() -> None:
    rows = documents(*[8, 2] * 8)
    told = report(rows, pack(rows, 10), 10)
    assert told.fill == 1.0 and told.padded == 0.625
    assert str(told) == (
        "16 documents, 80 tokens in 8 blocks of 10: 100.0% full; padded in batches of 8 they would be 62% text"
    )


def test_a_batch_of_blocks_is_one_row_with_its_boundaries_and_no_mask() -> None:
    blocks = pack(documents(5, 3, 6), 8, seed=None)
    batch = collate(blocks)
    assert batch["input_ids"].shape == batch["labels"].shape == batch["position_ids"].shape == (1, 14)
    assert batch["cu_seq_lens_q"].tolist() == batch["cu_seq_lens_k"].tolist() == [0, 6, 11, 14]
    assert batch["cu_seq_lens_q"].dtype == torch.int32
    assert batch["max_length_q"] == batch["max_length_k"] == 6
    assert batch["use_cache"] is False and "attention_mask" not in batch


def test_rows_of_a_data_set_collate_as_the_blocks_do() -> None:
    blocks = pack(documents(5, 3, 6), 8)
    ours, theirs = collate(blocks), collate(list(as_dataset(blocks)))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]) if isinstance(value, torch.Tensor) else value == theirs[name]


USUAL: dict[str, Any] = {
    "learning_rate": 1e-2, "lr_scheduler_type": "constant", "num_train_epochs": 3, "logging_steps": 1, "report_to": [],
    "save_strategy": "no", "use_cpu": True, "seed": 3, "disable_tqdm": True, "bf16": False, "fp16": False,
    "remove_unused_columns": False,
}  # fmt: skip


def losses(trainer: Any) -> list[float]:
    trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


@pytest.mark.parametrize("attention", ["sdpa", "speechkit"])
def test_trls_trainer_on_packed_rows_learns_as_on_padded_ones(attention: str, tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from speechkit.llm import apply_kernels

    rows = documents(5, 17, 9, 2, 12, 7, vocabulary=VOCABULARY)

    def trained(data: Any, batch: int, collator: Any) -> list[float]:
        model = tiny("llama", vocab_size=VOCABULARY)
        if collator is not None and attention == "speechkit":
            apply_kernels(model)
        config = SFTConfig(
            str(tmp_path), **USUAL, per_device_train_batch_size=batch, packing=False, max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
        )  # fmt: skip
        more = {"data_collator": collator} if collator is not None else {}
        return losses(SFTTrainer(model, config, train_dataset=data, processing_class=tokenizer(), **more))

    padded = Dataset.from_list([{"input_ids": list(row.input_ids), "labels": list(row.labels)} for row in rows])
    blocks = pack(rows, 30)
    assert len(blocks) == 2
    packed = trained(as_dataset(blocks), len(blocks), collate)
    assert packed == pytest.approx(trained(padded, len(rows), None), rel=2e-4) and packed[-1] < packed[0]


def test_transformers_trainer_takes_blocks_as_they_are_and_accumulates_them(tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    rows = documents(5, 17, 9, 2, 12, 7)
    blocks = pack(rows, 30)
    curves = []
    for batch, accumulated in ((2, 1), (1, 2)):
        args = TrainingArguments(
            str(tmp_path), **USUAL, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulated
        )
        curves.append(losses(Trainer(tiny("llama"), args, train_dataset=blocks, data_collator=collate)))
    assert curves[0] == pytest.approx(curves[1], rel=1e-4) and len(curves[0]) == 3
