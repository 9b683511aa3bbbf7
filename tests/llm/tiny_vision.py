"""Random models that see and read, in miniature, of the kinds transformers has. Imported by the tests beside it."""

from __future__ import annotations

from typing import Any

import torch
from tiny_llms import SIZE
from transformers import AutoConfig, AutoModelForImageTextToText

__all__ = ["KINDS", "tiny_vision"]

KINDS = ("llava", "idefics3", "smolvlm", "mllama", "qwen2_vl", "qwen2_5_vl")
SIGHT: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
QWEN_SIGHT: dict[str, Any] = {
    "depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "patch_size": 14, "out_hidden_size": 32,
    "intermediate_size": 24,
}  # fmt: skip
ROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}
LLAMA_SIGHT: dict[str, Any] = {
    "num_global_layers": 1, "attention_heads": 2, "vision_output_dim": 32, "intermediate_layers_indices": [0],
    "supported_aspect_ratios": [[1, 1]],
}  # fmt: skip


def tiny_vision(kind: str, **text: Any) -> Any:
    """A wrapper of this `model_type`; `text` goes into the configuration of its text tower."""
    tower = {**SIZE, **text}
    if kind == "llava":
        given = {"text_config": {"model_type": "llama", **tower},
                 "vision_config": {"model_type": "clip_vision_model", **SIGHT, "projection_dim": 16}}  # fmt: skip
    elif kind in ("idefics3", "smolvlm"):
        given = {"text_config": {"model_type": "llama", **tower}, "vision_config": SIGHT}
    elif kind == "mllama":
        given = {"text_config": {**tower, "cross_attention_layers": [1], "rope_parameters": ROPE},
                 "vision_config": SIGHT | LLAMA_SIGHT}  # fmt: skip
    else:
        rope = {**ROPE, "mrope_section": [1, 1, 2]}
        given = {"text_config": {**tower, "rope_parameters": rope}, "vision_config": QWEN_SIGHT}
    torch.manual_seed(0)
    return AutoModelForImageTextToText.from_config(AutoConfig.for_model(kind, **given)).eval()
