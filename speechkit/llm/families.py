"""The table of families: one row for each, everything that differs between them and is not in a configuration.

What a configuration says (heads, windows, caps) is read off it by `registry.features_of`. Knows no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from speechkit.llm.profiles import profile_of

if TYPE_CHECKING:
    from speechkit.llm.profiles import KernelProfile

__all__ = ["ENCODER", "FAMILIES", "TEXT", "VISION", "Family"]

TEXT, VISION, ENCODER = "text", "vision and text", "encoder"

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
GATED = ("gate_proj", "up_proj", "down_proj")
LATENT = ("q_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")
BERT = ("query", "key", "value", "dense")
EXPERTS = (
    "experts: their weights are parameters of three dimensions, no modules; peft reaches them by "
    "target_parameters=['experts.gate_up_proj', 'experts.down_proj'] (memory for each expert)"
)
OVERFLOW = "its hidden states leave the range of float16 (65,504) and become infinite"


@dataclass(frozen=True)
class Family:
    """One family of models. `profile` names what kernels there are for it."""

    name: str
    model_types: tuple[str, ...]  # `config.model_type`, of the text tower or of the whole; () where only names tell
    patterns: tuple[str, ...]  # regular expressions for the last part of a name in lower case
    lora_targets: tuple[str, ...]  # ends of module names; those that a model has are adapted
    stop_tokens: tuple[str, ...]  # what ends an answer, where the vocabulary has it
    gguf_architecture: str | None  # as gguf calls it; None: llama.cpp has none, or what it is made of decides
    kind: str = TEXT
    vocabulary_from: int = 0  # rows of one model_type are told apart by their smallest vocabulary
    template: str = ""  # what its chat template looks like: how a turn opens
    float16: str = ""  # why not to compute in float16; empty where it may
    qk_norm: bool = False  # queries and keys are normalised; configurations do not say
    experts: str = ""  # what LoRA leaves out of a model with experts
    long: bool = True  # positions can be stretched by YaRN
    wraps: bool = False  # its base or its text tower is of another family, which decides kernels and the rest

    @property
    def profile(self) -> KernelProfile | None:
        """What the kernels cover; None: the model runs as transformers made it."""
        return next((found for kind in self.model_types if (found := profile_of(kind)) is not None), None)

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(self.model_types) or 'by name'})"


FAMILIES = (
    Family(
        "DeepSeek R1 distilled", (), (r"r1.*distill", r"^deepseek-r1-(qwen|llama)"), (*ATTENTION, *GATED),
        ("<｜end▁of▁sentence｜>",), None, template="<｜User｜>", wraps=True,
    ),
    Family(
        "Llama 3", ("llama",), (r"llama-?3", r"meta-llama-3"), (*ATTENTION, *GATED),
        ("<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"), "llama", vocabulary_from=128_000,
        template="<|start_header_id|>",
    ),
    Family(
        "Llama 2 and its likes", ("llama",), (r"llama", r"vicuna", r"smollm2?-", r"^yi-"), (*ATTENTION, *GATED),
        ("</s>", "<|im_end|>"), "llama", template="[INST]",
    ),
    Family(
        "Mixtral", ("mixtral",), (r"mixtral",), (*ATTENTION,), ("</s>",), "llama", template="[INST]", experts=EXPERTS,
    ),
    Family("Mistral", ("mistral",), (r"mistral", r"zephyr"), (*ATTENTION, *GATED), ("</s>",), "llama",
           template="[INST]"),
    Family(
        "Qwen 3 MoE", ("qwen3_moe",), (r"qwen-?3.*-a\d+b",), (*ATTENTION, *GATED), ("<|im_end|>", "<|endoftext|>"),
        "qwen3moe", template="<|im_start|>", qk_norm=True, experts=EXPERTS,
    ),
    Family(
        "Qwen 3", ("qwen3",), (r"qwen-?3",), (*ATTENTION, *GATED), ("<|im_end|>", "<|endoftext|>"), "qwen3",
        template="<|im_start|>", qk_norm=True,
    ),
    Family(
        "Qwen 2 MoE", ("qwen2_moe",), (r"qwen(1\.5|2).*(moe|a\d+(\.\d+)?b)",), (*ATTENTION, *GATED),
        ("<|im_end|>", "<|endoftext|>"), "qwen2moe", template="<|im_start|>", experts=EXPERTS,
    ),
    Family(
        "Qwen 2 and 2.5 VL", ("qwen2_vl", "qwen2_vl_text", "qwen2_5_vl", "qwen2_5_vl_text"), (r"qwen-?2(\.5)?-vl",),
        (*ATTENTION, *GATED), ("<|im_end|>", "<|endoftext|>"), "qwen2vl", kind=VISION, template="<|im_start|>",
        long=False,
    ),
    Family(
        "Qwen 2 and 2.5", ("qwen2",), (r"qwen-?2", r"qwq"), (*ATTENTION, *GATED), ("<|im_end|>", "<|endoftext|>"),
        "qwen2", template="<|im_start|>",
    ),
    Family(
        "Gemma 3", ("gemma3_text", "gemma3"), (r"gemma-?3(?!n)", r"medgemma"), (*ATTENTION, *GATED),
        ("<end_of_turn>", "<eos>"), "gemma3", template="<start_of_turn>", float16=OVERFLOW, qk_norm=True,
    ),
    Family(
        "Gemma 2", ("gemma2",), (r"gemma-?2",), (*ATTENTION, *GATED), ("<end_of_turn>", "<eos>"), "gemma2",
        template="<start_of_turn>", float16=OVERFLOW,
    ),
    Family(
        "DeepSeek V3 and R1", ("deepseek_v3",), (r"deepseek-(v3|r1)",), (*LATENT, *GATED), ("<｜end▁of▁sentence｜>",),
        "deepseek2", template="<｜User｜>", experts=EXPERTS,
    ),
    Family(
        "DeepSeek V2", ("deepseek_v2",), (r"deepseek-(coder-)?v2",), (*LATENT, *GATED), ("<｜end▁of▁sentence｜>",),
        "deepseek2", template="User:", experts=EXPERTS,
    ),
    Family(
        "Phi 3 and 4", ("phi3",), (r"phi-?(3|4)(?!.*(moe|multimodal|vision))",),
        ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
        ("<|end|>", "<|im_end|>", "<|endoftext|>"), "phi3", template="<|user|>",
    ),
    Family(
        "Llama 3.2 Vision", ("mllama", "mllama_text_model"), (r"llama-?3.*vision",), (*ATTENTION, *GATED),
        ("<|eot_id|>", "<|end_of_text|>"), None, kind=VISION, template="<|start_header_id|>",
    ),
    Family("Llava", ("llava", "llava_next"), (r"llava",), (*ATTENTION, *GATED), ("</s>",), "llama", kind=VISION,
           wraps=True),
    Family(
        "Idefics 3 and SmolVLM", ("idefics3", "smolvlm"), (r"idefics3", r"smolvlm"), (*ATTENTION, *GATED),
        ("<end_of_utterance>", "</s>"), "llama", kind=VISION, template="<|im_start|>", wraps=True,
    ),
    Family("RoBERTa and XLM-R", ("roberta", "xlm-roberta"), (r"roberta", r"multilingual-e5-[bl]", r"bge-m3"), BERT, (),
           "bert", ENCODER, long=False),
    Family("BERT", ("bert",), (r"^bert", r"minilm-l\d", r"^(bge|e5|gte)-", r"e5-small"), BERT, (), "bert", ENCODER,
           long=False),
    Family("MPNet", ("mpnet",), (r"mpnet",), ("q", "k", "v", "o"), (), None, ENCODER, long=False),
    Family("ModernBERT", ("modernbert",), (r"modernbert",), ("Wqkv", "Wo", "Wi"), (), "modern-bert", ENCODER,
           long=False),
)  # fmt: skip
