"""What of each family of language models the kernels cover. Names of transformers' classes only: knows no torch.

A model type that is not here is left alone: a kernel is put in only where someone has compared it with the original.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PROFILES", "KernelProfile", "profile_of"]


@dataclass(frozen=True)
class KernelProfile:
    """What the modules of one family are called, and how they compute."""

    family: str
    model_types: tuple[str, ...]  # `config.model_type`
    norms: tuple[str, ...]  # classes of RMS norms with `weight` and an epsilon
    offset: float = 0.0  # added to their weights; Gemma keeps them around zero
    mlps: tuple[str, ...] = ()  # classes with gate_proj, up_proj, down_proj, or a gate_up_proj
    experts: tuple[str, ...] = ()  # classes whose products of all experts at once call `_apply_gate` between them
    attentions: tuple[str, ...] = ()  # classes whose forward calls a function of `speechkit.llm.forwards.TURNS`
    uncovered: tuple[str, ...] = ()  # what stays as it is, and why


EXPERTS = "experts: their two products are transformers' choice (experts_implementation), ours is what stands between"
LATENT = "keys and values: made whole from their latents by transformers; values are padded to the width of keys"

PROFILES = (
    KernelProfile(
        "Llama",
        ("llama",),
        ("LlamaRMSNorm",),
        mlps=("LlamaMLP",),
        attentions=("LlamaAttention",),
    ),
    KernelProfile(
        "Mistral",
        ("mistral",),
        ("MistralRMSNorm",),
        mlps=("MistralMLP",),
        attentions=("MistralAttention",),
    ),
    KernelProfile(
        "Qwen 2",
        ("qwen2",),
        ("Qwen2RMSNorm",),
        mlps=("Qwen2MLP",),
        attentions=("Qwen2Attention",),
    ),
    KernelProfile(
        "Qwen 3",
        ("qwen3",),
        ("Qwen3RMSNorm",),
        mlps=("Qwen3MLP",),
        attentions=("Qwen3Attention",),
    ),
    KernelProfile(
        "Gemma 2",
        ("gemma2",),
        ("Gemma2RMSNorm",),
        offset=1.0,
        mlps=("Gemma2MLP",),
        attentions=("Gemma2Attention",),
    ),
    KernelProfile(
        "Gemma 3",
        ("gemma3_text", "gemma3"),
        ("Gemma3RMSNorm",),
        offset=1.0,
        mlps=("Gemma3MLP",),
        attentions=("Gemma3Attention",),
    ),
    KernelProfile(
        "Phi 3",
        ("phi3",),
        ("Phi3RMSNorm",),
        mlps=("Phi3MLP",),
        attentions=("Phi3Attention",),
    ),
    KernelProfile(
        "Mixtral",
        ("mixtral",),
        ("MixtralRMSNorm",),
        experts=("MixtralExperts",),
        attentions=("MixtralAttention",),
        uncovered=(EXPERTS,),
    ),
    KernelProfile(
        "Qwen 2 MoE",
        ("qwen2_moe",),
        ("Qwen2MoeRMSNorm",),
        mlps=("Qwen2MoeMLP",),
        experts=("Qwen2MoeExperts",),
        attentions=("Qwen2MoeAttention",),
        uncovered=(EXPERTS,),
    ),
    KernelProfile(
        "Qwen 3 MoE",
        ("qwen3_moe",),
        ("Qwen3MoeRMSNorm",),
        mlps=("Qwen3MoeMLP",),
        experts=("Qwen3MoeExperts",),
        attentions=("Qwen3MoeAttention",),
        uncovered=(EXPERTS,),
    ),
    KernelProfile(
        "DeepSeek V2",
        ("deepseek_v2",),
        ("DeepseekV2RMSNorm",),
        mlps=("DeepseekV2MLP",),
        experts=("DeepseekV2Experts",),
        attentions=("DeepseekV2Attention",),
        uncovered=(EXPERTS, LATENT),
    ),
    KernelProfile(
        "DeepSeek V3",
        ("deepseek_v3",),
        ("DeepseekV3RMSNorm",),
        mlps=("DeepseekV3MLP",),
        experts=("DeepseekV3Experts",),
        attentions=("DeepseekV3Attention",),
        uncovered=(EXPERTS, LATENT),
    ),
)


def profile_of(model_type: str) -> KernelProfile | None:
    """The profile of a `config.model_type`, None where there is none."""
    return next((profile for profile in PROFILES if model_type in profile.model_types), None)
