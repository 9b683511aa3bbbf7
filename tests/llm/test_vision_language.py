"""A model that sees, tiny and random, learns rows of images and text by an adapter in the chosen part, and merges."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from tiny_llms import SIZE, config_of

from speechkit.llm.adapter_files import load_adapter, save_adapter
from speechkit.llm.lora import adapter_report, add_lora
from speechkit.llm.lora_options import LoraOptions
from speechkit.llm.lora_targets import names_of
from speechkit.llm.merge import merge, unmerge

IMAGE = 60  # the token in whose places the image's features go
PATCHES = {"llava": 4, "gemma3": 4}  # features of an image


def seeing(kind: str) -> Any:
    """Llava: CLIP's tower, a projector, a Llama; Gemma 3: SigLIP's tower, a projector, a Gemma."""
    import transformers

    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    if kind == "gemma3":
        config = config_of("gemma3")
        config.image_token_id = IMAGE
    else:
        tower = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
                 "image_size": 28, "patch_size": 14, "projection_dim": 16}  # fmt: skip
        config = transformers.LlavaConfig(
            vision_config=transformers.CLIPVisionConfig(**tower), text_config=transformers.LlamaConfig(**SIZE),
            image_token_index=IMAGE, image_seq_length=4, vision_feature_layer=-1,
        )  # fmt: skip
    model = transformers.AutoModelForImageTextToText.from_config(config)
    for weight in model.parameters():  # as drawn, they let little of an image through, and Gemma's projector nothing
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.15)
    return model.eval()


def rows(kind: str) -> dict[str, torch.Tensor]:
    """Four images in two colours; the text before them is the same, the answer names the colour."""
    side = 28
    images = torch.zeros(4, 3, side, side)
    images[::2, 0], images[1::2, 2] = 1.0, 1.0
    images += 0.05 * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    start = torch.tensor([1, *[IMAGE] * PATCHES[kind], 7, 9]).expand(4, -1)
    answers = torch.tensor([[21, 33, 2], [44, 55, 2]]).repeat(2, 1)
    ids = torch.cat([start, answers], dim=1)
    labels = ids.clone()
    labels[:, : start.shape[1]] = -100
    given = {"input_ids": ids, "pixel_values": images, "labels": labels, "attention_mask": torch.ones_like(ids)}
    if kind == "gemma3":
        given["token_type_ids"] = (ids == IMAGE).long()
    return given


def train(model: Any, batch: dict[str, torch.Tensor], steps: int = 40) -> list[float]:
    learns = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(learns, lr=2e-2)
    losses = []
    model.train()
    for _ in range(steps):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def logits(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(**{name: value for name, value in batch.items() if name != "labels"}).logits
    return found


@pytest.mark.parametrize("kind", ["llava", "gemma3"])
@pytest.mark.parametrize("part", ["text", "vision", "both"])
def test_an_adapter_in_the_chosen_part_learns_images_and_text_and_merges(kind: str, part: str, tmp_path: Path) -> None:
    model, batch = seeing(kind), rows(kind)
    text, vision = names_of(model, "text"), names_of(model, "vision")
    bare = {name: weight.detach().clone() for name, weight in model.state_dict().items()}
    adapted = add_lora(model, LoraOptions(rank=8, alpha=16, part=part))
    expected = {"text": text, "vision": vision, "both": text + vision}[part]
    learning = {name for name, weight in adapted.named_parameters() if weight.requires_grad}
    assert {name.removeprefix("base_model.model.").partition(".lora_")[0] for name in learning} == set(expected)
    assert ("layers stay as they are" in str(adapter_report(adapted))) == (part != "both")

    losses = train(adapted, batch)
    assert losses[-1] < 0.85 * losses[0]
    expected_logits = logits(adapted, batch)

    save_adapter(adapted, tmp_path / "adapter")
    torch.testing.assert_close(logits(load_adapter(seeing(kind), tmp_path / "adapter"), batch), expected_logits)

    merged, report = merge(adapted, probe=batch)
    torch.testing.assert_close(logits(merged, batch), expected_logits, atol=1e-4, rtol=1e-4)
    assert report.agreement is not None and report.agreement.tokens == batch["input_ids"].numel()
    assert report.agreement.relative < 1e-4 < report.agreement.effect and report.layers == len(expected)
    merged.save_pretrained(tmp_path / "merged")
    again = type(merged).from_pretrained(tmp_path / "merged")
    assert torch.equal(logits(again, batch), logits(merged, batch))
    unmerge(merged)
    adapted.unload()
    assert all(torch.equal(weight, bare[name]) for name, weight in model.state_dict().items())


def test_adapted_together_text_and_tower_learn_what_is_seen() -> None:
    """The answer hangs on the image alone: without looking at it the loss cannot go below that of a coin."""
    adapted, batch = add_lora(seeing("llava"), LoraOptions(rank=8, alpha=16, part="both")), rows("llava")
    train(adapted, batch, 80)
    first = batch["input_ids"].shape[1] - 3
    answered = logits(adapted, batch)[:, first - 1].argmax(-1)
    assert answered.tolist() == [21, 44, 21, 44]
    blind = logits(adapted, {**batch, "pixel_values": torch.zeros_like(batch["pixel_values"])})[:, first - 1]
    assert len(set(blind.argmax(-1).tolist())) == 1
