"""A model's numbers under llama.cpp's keys: sizes, heads, RoPE and its scaling, windows, soft caps, experts.

In: an architecture and its configuration. Out: entries in a GGUF writer, tensors of RoPE's factors, notes on what
llama.cpp does otherwise. Knows no weights and no tokenizer.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from speechkit.errors import ExportError
from speechkit.export.gguf_families import rope_of, window_period
from speechkit.export.gguf_tensors import Planned

if TYPE_CHECKING:
    from pathlib import Path

    from gguf import GGUFWriter

    from speechkit.export.gguf_families import Architecture

__all__ = ["add_general", "add_model", "rope_tensors"]

PERIOD = {"gemma2": 2, "gemma3": 6}  # llama.cpp's own, which need not be written


def add_model(writer: GGUFWriter, row: Architecture, text: Any) -> tuple[str, ...]:
    """Everything but the tokenizer; the notes say what llama.cpp computes otherwise, and when."""
    notes: list[str] = []
    writer.add_context_length(text.max_position_embeddings)
    writer.add_embedding_length(text.hidden_size)
    writer.add_block_count(text.num_hidden_layers)
    writer.add_feed_forward_length(text.intermediate_size)
    writer.add_head_count(text.num_attention_heads)
    writer.add_layer_norm_rms_eps(text.rms_norm_eps)
    writer.add_vocab_size(text.vocab_size)
    if row.arch == "deepseek2":
        _add_latent(writer, text)
    else:
        writer.add_head_count_kv(text.num_key_value_heads)
        writer.add_key_length(_head(text))
        writer.add_value_length(_head(text))
        writer.add_rope_dimension_count(_rotated(text))
    _add_rope(writer, row, text, notes)
    _add_windows(writer, row, text, notes)
    if row.experts:
        _add_experts(writer, row, text)
    return tuple(notes)


def rope_tensors(row: Architecture, text: Any) -> list[Planned]:
    """Factors by which frequencies are divided: Llama 3's, and the long and short ones of Phi-3."""
    rope = rope_of(text)
    kind = rope["rope_type"]
    if kind == "llama3":
        return [_factors("rope_freqs.weight", _llama3(rope, _rotated(text)))]
    if kind in ("longrope", "su"):
        pairs = (("rope_factors_long.weight", "long_factor"), ("rope_factors_short.weight", "short_factor"))
        made = [_factors(name, tuple(rope[key])) for name, key in pairs]
        if any(len(one.values) != _rotated(text) // 2 for one in made):
            raise ExportError(
                f"RoPE's long and short factors must be {_rotated(text) // 2} each, half the rotated size"
            )
        return made
    return []


def _factors(name: str, values: tuple[float, ...]) -> Planned:
    return Planned(name, (len(values),), values=values)


def _head(text: Any) -> int:
    return int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)


def _rotated(text: Any) -> int:
    """Values of a head that RoPE turns."""
    if getattr(text, "qk_rope_head_dim", None):
        return int(text.qk_rope_head_dim)
    share = rope_of(text).get("partial_rotary_factor", getattr(text, "partial_rotary_factor", None)) or 1.0
    return int(_head(text) * share)


def _llama3(rope: dict[str, Any], size: int) -> tuple[float, ...]:
    """Frequencies of long waves divided by `factor`, of short ones left, between them blended (Llama 3.1)."""
    low, high, old = rope["low_freq_factor"], rope["high_freq_factor"], rope["original_max_position_embeddings"]
    found = []
    for place in range(0, size, 2):
        wave = 2 * math.pi * rope["rope_theta"] ** (place / size)
        if wave < old / high:
            found.append(1.0)
        elif wave > old / low:
            found.append(float(rope["factor"]))
        else:
            share = (old / wave - low) / (high - low)
            found.append(1 / ((1 - share) / rope["factor"] + share))
    return tuple(found)


def _add_rope(writer: GGUFWriter, row: Architecture, text: Any, notes: list[str]) -> None:
    from gguf import RopeScalingType

    rope = rope_of(text)
    kind = rope["rope_type"]
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    if row.arch == "gemma3":
        writer.add_rope_freq_base_swa(float(rope_of(text, "sliding_attention")["rope_theta"]))
    if kind == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    elif kind == "yarn":
        _add_yarn(writer, row, text, rope)
    elif kind in ("longrope", "su"):
        _add_longrope(writer, text, rope, notes)
    elif kind == "dynamic":
        notes.append(
            f"RoPE scaling is dynamic, which llama.cpp has not: beyond {text.max_position_embeddings:,} tokens it parts"
        )


def _add_yarn(writer: GGUFWriter, row: Architecture, text: Any, rope: dict[str, Any]) -> None:
    from gguf import RopeScalingType

    factor = float(rope["factor"])
    writer.add_rope_scaling_type(RopeScalingType.YARN)
    writer.add_rope_scaling_factor(factor)
    writer.add_rope_scaling_orig_ctx_len(
        int(rope.get("original_max_position_embeddings") or text.max_position_embeddings)
    )
    fast, slow = float(rope.get("beta_fast") or 32), float(rope.get("beta_slow") or 1)
    if _bounds(rope, text, fast, slow) != _bounds(rope, text, 32, 1):
        raise ExportError(
            f"YaRN's beta_fast and beta_slow are {fast:g} and {slow:g}; llama.cpp's {row.arch} reads neither, and "
            "would scale other frequencies (it takes 32 and 1)"
        )
    writer.add_rope_scaling_yarn_beta_fast(fast)
    writer.add_rope_scaling_yarn_beta_slow(slow)
    if row.arch == "deepseek2":
        # llama.cpp expects a tenth of mscale_all_dim under this key, of this architecture alone
        writer.add_rope_scaling_yarn_log_mul(0.1 * float(rope.get("mscale_all_dim") or 0))
    else:
        # llama.cpp multiplies by 1 + 0.1 ln(factor) itself
        writer.add_rope_scaling_attn_factors(_attention_factor(rope) / _mscale(factor, 1.0))


def _bounds(rope: dict[str, Any], text: Any, fast: float, slow: float) -> tuple[int, int]:
    """Between which pairs of values frequencies are blended."""
    size, base = _rotated(text), float(rope["rope_theta"])
    old = int(rope.get("original_max_position_embeddings") or text.max_position_embeddings)
    low, high = (size * math.log(old / (beta * 2 * math.pi)) / (2 * math.log(base)) for beta in (fast, slow))
    return max(math.floor(low), 0), min(math.ceil(high), size - 1)


def _attention_factor(rope: dict[str, Any]) -> float:
    """What YaRN multiplies sines and cosines by (Peng et al. 2023, section 3.4; DeepSeek's two parts of it)."""
    if rope.get("attention_factor"):
        return float(rope["attention_factor"])
    factor, parts = float(rope["factor"]), (rope.get("mscale"), rope.get("mscale_all_dim"))
    if parts[0] and parts[1]:
        return _mscale(factor, float(parts[0])) / _mscale(factor, float(parts[1]))
    return _mscale(factor, 1.0)


def _mscale(factor: float, share: float) -> float:
    return 0.1 * share * math.log(factor) + 1.0 if factor > 1 else 1.0


def _add_longrope(writer: GGUFWriter, text: Any, rope: dict[str, Any], notes: list[str]) -> None:
    from gguf import RopeScalingType

    old = int(rope.get("original_max_position_embeddings") or text.original_max_position_embeddings)
    scale = text.max_position_embeddings / old
    factor = rope.get("attention_factor") or (math.sqrt(1 + math.log(scale) / math.log(old)) if scale > 1 else 1.0)
    writer.add_rope_scaling_type(RopeScalingType.LONGROPE)
    writer.add_rope_scaling_orig_ctx_len(old)
    writer.add_rope_scaling_attn_factors(float(factor))
    notes.append(
        f"long RoPE: llama.cpp takes the long factors when its context is made for more than {old:,} tokens, "
        "transformers when the text is that long"
    )


def _add_windows(writer: GGUFWriter, row: Architecture, text: Any, notes: list[str]) -> None:
    window = getattr(text, "sliding_window", None)
    kinds = list(getattr(text, "layer_types", None) or [])
    if getattr(text, "use_sliding_window", True) is False or (kinds and "sliding_attention" not in kinds):
        window = None
    if row.arch in PERIOD:
        writer.add_sliding_window(int(window or text.max_position_embeddings))
        period = window_period(text)
        if period != PERIOD[row.arch]:
            writer.add_sliding_window_pattern(period)
    elif row.arch == "phi3":
        writer.add_sliding_window(0)  # llama.cpp uses none for Phi-3, whatever is written
    if window and row.arch not in PERIOD and window < text.max_position_embeddings:
        notes.append(f"it sees the last {window:,} tokens alone; llama.cpp's {row.arch} sees all, and differs beyond")
    if row.arch == "gemma2":
        writer.add_attn_logit_softcapping(float(text.attn_logit_softcapping))
        writer.add_final_logit_softcapping(float(text.final_logit_softcapping))


def _add_experts(writer: GGUFWriter, row: Architecture, text: Any) -> None:
    names = ("n_routed_experts", "num_local_experts", "num_experts")
    count = next(int(n) for name in names if (n := getattr(text, name, None)))
    writer.add_expert_count(count)
    writer.add_expert_used_count(text.num_experts_per_tok)
    if getattr(text, "moe_intermediate_size", None):
        writer.add_expert_feed_forward_length(text.moe_intermediate_size)
    if row.arch == "deepseek2":
        from gguf import ExpertGatingFuncType

        third = row.model_type == "deepseek_v3"
        writer.add_leading_dense_block_count(text.first_k_dense_replace)
        writer.add_expert_shared_count(text.n_shared_experts)
        writer.add_expert_weights_scale(float(text.routed_scaling_factor))
        # transformers' DeepSeek V2 does not normalise, whatever norm_topk_prob says
        writer.add_expert_weights_norm(third and bool(text.norm_topk_prob))
        writer.add_expert_gating_func(ExpertGatingFuncType.SIGMOID if third else ExpertGatingFuncType.SOFTMAX)
        if third:
            writer.add_expert_group_count(text.n_group)
            writer.add_expert_group_used_count(text.topk_group)


def _add_latent(writer: GGUFWriter, text: Any) -> None:
    """DeepSeek's latent attention as one head of keys and values, which llama.cpp makes of it."""
    writer.add_head_count_kv(1)
    writer.add_q_lora_rank(text.q_lora_rank or 0)
    writer.add_kv_lora_rank(text.kv_lora_rank)
    writer.add_key_length(text.kv_lora_rank + text.qk_rope_head_dim)
    writer.add_value_length(text.kv_lora_rank)
    writer.add_key_length_mla(text.qk_nope_head_dim + text.qk_rope_head_dim)
    writer.add_value_length_mla(text.v_head_dim)
    writer.add_rope_dimension_count(text.qk_rope_head_dim)


def add_general(writer: GGUFWriter, folder: Path, name: str, number: int) -> None:
    """What a list of models shows: name, licence and base where the model's card says them, the kind of file."""
    from gguf import GGML_QUANT_VERSION, GGUFType

    writer.add_type(GGUFType.MODEL)
    writer.add_name(name)
    writer.add_file_type(number)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    card = _card(folder)
    if isinstance(card.get("license"), str):
        writer.add_license(card["license"])
    bases = card.get("base_model")
    bases = [bases] if isinstance(bases, str) else bases if isinstance(bases, list) else []
    if bases:
        writer.add_base_model_count(len(bases))
        for place, base in enumerate(map(str, bases)):
            writer.add_base_model_name(place, re.split(r"[/\\]", base.rstrip("/\\"))[-1])
            if re.fullmatch(r"[\w.-]+/[\w.-]+", base):  # peft writes a local path where the base was one
                writer.add_base_model_repo_url(place, f"https://huggingface.co/{base}")
    languages = card.get("language")
    languages = [languages] if isinstance(languages, str) else languages if isinstance(languages, list) else []
    if languages:
        writer.add_languages([str(one) for one in languages])


def _card(folder: Path) -> dict[str, Any]:
    """The head of the folder's README.md, {} where there is none."""
    from huggingface_hub import metadata_load
    from yaml import YAMLError  # type: ignore[import-untyped]

    file = folder / "README.md"
    try:
        return metadata_load(file) or {} if file.is_file() else {}
    except (OSError, ValueError, YAMLError):
        return {}  # a card is for people: what cannot be read of it is left out
