"""Kernels in the text tower of a model that sees: values, loss and gradients stay, with an image in the row."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from tiny_vision import tiny_vision

from speechkit.llm import KINDS, apply_kernels, explain, undo_kernels

SIGHT = 66  # the token that stands for a piece of the image


def row(kind: str) -> dict[str, Any]:
    """An image of four pieces (idefics joins them to one) and some text, with labels on the text."""
    torch.manual_seed(1)
    pieces = 4 if kind == "llava" else 1
    ids = torch.tensor([[1, *[SIGHT] * pieces, 9, 12, 30, 41, 8, 2]])
    pixels = torch.randn(1, 3, 28, 28) if kind == "llava" else torch.randn(1, 1, 3, 28, 28)
    labels = ids.masked_fill(ids == SIGHT, -100)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels, "labels": labels}


def seeing(kind: str) -> Any:
    model = tiny_vision(kind)
    model.config.image_token_id = SIGHT
    model.model.image_token_id = SIGHT
    return model


def learned(model: Any, given: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(**given).loss
    loss.backward()
    return loss.detach(), {name: w.grad.clone() for name, w in model.named_parameters() if w.grad is not None}


@pytest.mark.parametrize("kind", ["llava", "idefics3", "smolvlm"])
@pytest.mark.parametrize("training", [False, True], ids=["in evaluation", "in training"])
def test_loss_and_gradients_of_a_row_with_an_image_stay(kind: str, training: bool) -> None:
    model, given = seeing(kind).train(training), row(kind)
    loss, gradients = learned(model, given)
    assert any("vision" in name for name in gradients), "the image counts"
    found = apply_kernels(model)
    assert set(found.counts) == set(KINDS) and found.family == "Llama"
    again, now = learned(model, given)
    torch.testing.assert_close(again, loss, rtol=1e-5, atol=1e-6)
    assert now.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(now[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    assert undo_kernels(model) == sum(found.counts.values()) and not explain(model).counts
    torch.testing.assert_close(learned(model, given)[0], loss)


def test_the_tower_for_images_is_left_alone() -> None:
    model = seeing("llava")
    before = {name: type(module) for name, module in model.named_modules() if "vision" in name}
    attention = model.config.vision_config._attn_implementation
    apply_kernels(model)
    assert {name: type(module) for name, module in model.named_modules() if "vision" in name} == before
    assert model.config.vision_config._attn_implementation == attention
    assert model.config.get_text_config()._attn_implementation == "speechkit"
