"""Tiny models under the attention "speechkit": packed equals separate, padded equals eager, generation is the same."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.data import DataCollatorWithFlattening

sys.path.insert(0, str(Path(__file__).parent))

from tiny_llms import tiny

from speechkit.llm import apply_kernels
from speechkit.llm import attention as ours

KINDS = ["llama", "qwen3", "gemma2", "gemma3_text", "phi3"]
DOCUMENTS = [[5, 9, 13], [7, 11, 8, 21, 34, 55, 17, 6], [3], [44, 32, 10, 61, 12]]


def model_of(kind: str, attention: str) -> Any:
    model = tiny(kind)
    model.set_attn_implementation(ours.register() if attention == ours.NAME else attention)
    return model


@pytest.mark.parametrize("told", ["position_ids", "cu_seq_lens"])
@pytest.mark.parametrize("kind", KINDS)
def test_packed_documents_equal_each_alone_in_values_and_gradients(kind: str, told: str) -> None:
    model, plain = model_of(kind, ours.NAME), model_of(kind, "eager")
    collate = DataCollatorWithFlattening(return_flash_attn_kwargs=told == "cu_seq_lens", return_position_ids=True)
    batch = collate([{"input_ids": ids} for ids in DOCUMENTS])
    batch.pop("labels")
    packed = model(**batch).logits[0]
    alone = torch.cat([plain(input_ids=torch.tensor([ids])).logits[0] for ids in DOCUMENTS])
    torch.testing.assert_close(packed, alone, atol=3e-5, rtol=1e-4)
    direction = torch.randn(packed.shape, generator=torch.Generator().manual_seed(1))
    (packed * direction).sum().backward()
    (alone * direction).sum().backward()
    for (name, mine), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert (mine.grad - theirs.grad).abs().max() <= 1e-4 + 1e-3 * theirs.grad.abs().max(), name


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_without_padding_leaves_packed_documents_apart(kind: str) -> None:
    """Also in layers with a window, whose mask transformers writes out."""
    model = model_of(kind, ours.NAME)
    ids = torch.tensor([[token for one in DOCUMENTS for token in one]])
    positions = torch.cat([torch.arange(len(one)) for one in DOCUMENTS])[None]
    found = model(input_ids=ids, position_ids=positions, attention_mask=torch.ones_like(ids)).logits
    torch.testing.assert_close(found, model(input_ids=ids, position_ids=positions).logits)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_padded_batch_equals_eager_where_there_is_text(kind: str, side: str) -> None:
    longest = max(map(len, DOCUMENTS))
    rows, masks = [], []
    for ids in DOCUMENTS:
        pad = [0] * (longest - len(ids))
        rows.append(pad + ids if side == "left" else ids + pad)
        masks.append([int(bool(token)) for token in rows[-1]])
    ids, mask = torch.tensor(rows), torch.tensor(masks)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    found, expected = (
        model_of(kind, name)(input_ids=ids, attention_mask=mask, position_ids=positions).logits[mask.bool()]
        for name in (ours.NAME, "eager")
    )
    torch.testing.assert_close(found, expected, atol=3e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_generation_with_a_cache_gives_the_tokens_of_eager(kind: str) -> None:
    ids = torch.tensor([[3, 9, 27, 4, 8, 15]])
    found, expected = (
        model_of(kind, name).generate(ids, max_new_tokens=9, do_sample=False) for name in (ours.NAME, "eager")
    )
    assert torch.equal(found, expected)


def test_documents_of_a_packed_row_are_found_once_a_batch_and_anew_when_they_change() -> None:
    model, found = model_of("llama", ours.NAME), []
    make = ours.Packing.of
    ids = torch.arange(3, 11)[None]
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ours.Packing, "of", lambda *args: found.append(1) or make(*args))
        model(input_ids=ids, position_ids=positions)
        assert len(found) == 1, "two layers"
        positions.copy_(torch.tensor([[0, 1, 2, 3, 0, 1, 0, 1]]))
        model(input_ids=ids, position_ids=positions)
        assert len(found) == 2


def test_packed_documents_under_torch_compile_equal_each_alone_batch_after_batch() -> None:
    torch._dynamo.reset()
    plain = model_of("llama", "eager")
    compiled = torch.compile(model_of("llama", ours.NAME), backend="eager")
    for documents in (DOCUMENTS, [[7, 11, 8], [5, 9, 13, 44, 32, 10, 61, 12, 3], [21, 34, 55, 17, 6]], DOCUMENTS[:1]):
        ids = torch.tensor([[token for one in documents for token in one]])
        positions = torch.cat([torch.arange(len(one)) for one in documents])[None]
        alone = torch.cat([plain(input_ids=torch.tensor([one])).logits[0] for one in documents])
        packed = compiled(input_ids=ids, position_ids=positions).logits[0]
        torch.testing.assert_close(packed, alone, atol=3e-5, rtol=1e-4)


def test_dropout_is_refused() -> None:
    model = model_of("llama", ours.NAME).train()
    model.model.layers[0].self_attn.attention_dropout = 0.1
    with pytest.raises(ValueError, match="has no dropout: set attention_dropout to 0"):
        model(input_ids=torch.tensor([[3, 4, 5]]))


def test_inference_mode_whose_tensors_have_no_version_gives_the_same_logits() -> None:
    model, ids = tiny("llama"), torch.arange(3, 12)[None]
    wanted = model(ids).logits.detach()
    apply_kernels(model)
    with torch.inference_mode():
        found = [model(row).logits.clone() for row in (ids.clone(), ids.clone())]
    for one in found:
        torch.testing.assert_close(one.clone(), wanted, atol=1e-5, rtol=1e-5)
