"""Random models of every family, in miniature. Imported by the tests beside it."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

SIZE: dict[str, Any] = {
    "vocab_size": 67, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
MORE: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2, "mlp_only_layers": [0]},
    "qwen2_moe": {
        "moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2, "mlp_only_layers": [0],
        "shared_expert_intermediate_size": 24,
    },
    "mixtral": {"num_local_experts": 4},
    "gemma2": {"query_pre_attn_scalar": 8, "sliding_window": 4},
    "gemma3_text": {"query_pre_attn_scalar": 8, "sliding_window": 4},
    "deepseek_v3": {
        "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
        "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "moe_intermediate_size": 16,
        "first_k_dense_replace": 1, "num_key_value_heads": 4, "head_dim": 8,
    },
    "deepseek_v2": {
        "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
        "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "moe_intermediate_size": 16,
        "first_k_dense_replace": 1, "num_key_value_heads": 4, "head_dim": 8,
    },
}  # fmt: skip


def config_of(kind: str, **more: Any) -> Any:
    if kind == "gemma3":  # with a tower for images
        sight = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
                 "image_size": 28, "patch_size": 14}  # fmt: skip
        text = {**SIZE, **MORE["gemma3_text"], **more}
        return AutoConfig.for_model(kind, text_config=text, vision_config=sight, mm_tokens_per_image=4)
    return AutoConfig.for_model(kind, **{**SIZE, **MORE.get(kind, {}), **more})


def tiny(kind: str, **more: Any) -> Any:
    """A model of this `model_type` for causal language; `more` goes into its configuration."""
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    model = AutoModelForCausalLM.from_config(config_of(kind, **more))
    for name, weight in model.named_parameters():  # norms begin as ones or zeros, which would hide an offset
        if "norm" in name:
            torch.nn.init.normal_(weight, std=0.3)
    return model.eval()


def loss_and_gradients(model: Any) -> tuple[torch.Tensor | None, torch.Tensor, dict[str, torch.Tensor]]:
    """Logits, loss and the gradients of all weights, for two fixed rows."""
    ids = (torch.arange(2 * 11).reshape(2, 11) % 60 + 3).to(model.device)
    out = model(input_ids=ids, labels=ids)
    model.zero_grad()
    out.loss.backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    return None if out.logits is None else out.logits.detach(), out.loss.detach(), gradients
