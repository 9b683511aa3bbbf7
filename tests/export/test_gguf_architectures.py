"""Every architecture, random and tiny, in float32: llama.cpp computes what transformers does."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("xllamacpp")
sys.path.insert(0, str(Path(__file__).parent))
from gguf import GGUFReader
from tiny_exports import byte_level, difference, folder_of, saved, tiny

from speechkit.errors import ExportError
from speechkit.export.gguf import export_gguf

YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
LONG = {
    "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 512,
    "short_factor": [1.0 + 0.1 * n for n in range(8)], "long_factor": [2.0 + n for n in range(8)],
}  # fmt: skip
GLOBAL = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("llama", {}),
    "Llama with one weight for embedding and head": ("llama", {"tie_word_embeddings": True}),
    "Llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "Llama 3's RoPE": ("llama", {"rope_parameters": LLAMA3}),
    "Llama with linear RoPE": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
    "Llama with YaRN": ("llama", {"rope_parameters": YARN}),
    "YaRN with numbers of its own": (
        "qwen2",
        {"rope_parameters": {**YARN, "attention_factor": 1.3, "beta_fast": 16.0}},
    ),
    "Mistral": ("mistral", {"sliding_window": None}),
    "Qwen 2": ("qwen2", {}),
    "Qwen 3": ("qwen3", {"head_dim": 32}),
    "Gemma": ("gemma", {}),
    "Gemma 2 with its own scale": ("gemma2", {}),
    "Gemma 3 with its own scale": ("gemma3_text", {}),
    "Gemma 3 with a factor for its global layers": ("gemma3_text", {"rope_parameters": GLOBAL}),
    "Gemma 3 with a global layer in two": ("gemma3_text", {"layer_types": ["sliding_attention", "full_attention"] * 3}),
    "Phi-3": ("phi3", {"pad_token_id": 0}),
    "Phi-3 with long RoPE, short text": (
        "phi3",
        {"rope_parameters": LONG, "original_max_position_embeddings": 512, "max_position_embeddings": 1024},
    ),
    "Phi-3 with long RoPE, long text": (
        "phi3",
        {"rope_parameters": {**LONG, "original_max_position_embeddings": 16}, "original_max_position_embeddings": 16},
    ),
    "Phi-4-mini's partial RoPE": ("phi3", {"partial_rotary_factor": 0.75}),
    "Mixtral": ("mixtral", {}),
    "Qwen 3 with experts": ("qwen3_moe", {}),
    "DeepSeek V2": ("deepseek_v2", {}),
    "DeepSeek V2 with YaRN": ("deepseek_v2", {"rope_parameters": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707}}),
    "DeepSeek V3, whose experts are in groups": ("deepseek_v3", {}),
    "DeepSeek V2 without compressed queries": ("deepseek_v2", {"q_lora_rank": None}),
}


@pytest.mark.parametrize("case", CASES)
def test_log_probabilities_are_those_of_transformers(case: str, tmp_path: Path) -> None:
    kind, more = CASES[case]
    folder = folder_of(tmp_path / "model", kind, **more)
    report = export_gguf(folder, tmp_path / "model.gguf", "F32", prove=False)
    # of long RoPE's two sets transformers takes one by the length of the text
    lengths = (30,) if "long text" in case else (1, 6, 30)
    assert difference(folder, report.files[0], lengths) < 2e-3


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "an architecture of another kind": ("gpt2", {}, r"a gpt2 model cannot .*supported: llama, mistral.*deepseek_v2"),
    "another activation": ("llama", {"hidden_act": "gelu"}, "activates with silu, the configuration says gelu"),
    "YaRN between other bounds": ("llama", {"rope_parameters": {**YARN, "beta_slow": 2.0}}, "reads neither"),
    "YaRN that is not rounded": ("llama", {"rope_parameters": {**YARN, "truncate": False}}, "not rounded"),
    "DeepSeek's YaRN with one scale": ("deepseek_v2", {"rope_parameters": YARN}, "mscale is not mscale_all_dim"),
    "groups of experts": (
        "deepseek_v2", {"topk_method": "group_limited_greedy", "n_group": 2}, "best expert of a group",
    ),
    "layers without experts": ("qwen3_moe", {"mlp_only_layers": [0]}, "some of its layers have no experts"),
    "shares that do not add up": ("qwen3_moe", {"norm_topk_prob": False}, "not normalised"),
    "biases": ("qwen3", {"attention_bias": True}, "qwen3 has none"),
    "a soft cap switched off": ("gemma2", {"final_logit_softcapping": None}, "always caps"),
    "soft caps": ("gemma3_text", {"final_logit_softcapping": 30.0}, "gemma3 has none"),
    "another order of layers": (
        "gemma2", {"layer_types": ["full_attention", "sliding_attention"]}, "layers alternate as",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_llama_cpp_would_compute_otherwise_is_refused(case: str, tmp_path: Path) -> None:
    kind, more, message = REFUSED[case]
    folder = folder_of(tmp_path / "model", kind, **more)
    with pytest.raises(ExportError, match=message):
        export_gguf(folder, tmp_path / "model.gguf", "F32", prove=False)
    assert not list(tmp_path.glob("*.gguf*"))


def test_windows_that_llama_cpp_does_not_know_are_told(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "model", "mistral", sliding_window=16)
    report = export_gguf(folder, tmp_path / "model.gguf", "F32", prove=False)
    assert any("sees the last 16 tokens alone; llama.cpp's llama sees all" in note for note in report.notes)


def test_experts_that_are_one_tensor_are_told_apart(tmp_path: Path) -> None:
    """As transformers holds them in memory; its files have them one by one."""
    from safetensors.torch import load_file, save_file

    folder = folder_of(tmp_path / "model", "mixtral")
    one = export_gguf(folder, tmp_path / "one.gguf", "F32", prove=False).files[0]
    file = folder / "model.safetensors"
    kept = {name: value for name, value in load_file(file).items() if ".experts." not in name}
    held = tiny("mixtral", 512).state_dict()
    save_file(kept | {name: held[name] for name in held if ".experts." in name}, file)
    two = export_gguf(folder, tmp_path / "two.gguf", "F32", prove=False).files[0]
    stacked = {tensor.name: tensor.data for tensor in GGUFReader(one).tensors if "_exps" in tensor.name}
    again = {tensor.name: tensor.data for tensor in GGUFReader(two).tensors if "_exps" in tensor.name}
    assert len(stacked) == 6 and stacked.keys() == again.keys()
    assert all((stacked[name] == again[name]).all() for name in stacked)


def test_of_a_model_with_other_towers_the_text_tower_is_written(tmp_path: Path) -> None:
    from transformers import AutoConfig, Gemma3ForConditionalGeneration

    sight = {
        "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
        "patch_size": 14,
    }  # fmt: skip
    text = tiny("gemma3_text", 512)
    config = AutoConfig.for_model(
        "gemma3", text_config=text.config.to_dict(), vision_config=sight, mm_tokens_per_image=4
    )
    model = Gemma3ForConditionalGeneration(config).float().eval()
    model.model.language_model.load_state_dict(text.model.state_dict())
    folder = saved(tmp_path / "model", model, byte_level(ignore_merges=True))
    report = export_gguf(folder, tmp_path / "model.gguf", "F32", prove=False)
    assert any("tensors of other towers left out" in note for note in report.notes)
    assert difference(folder, report.files[0], model=model) < 2e-3
