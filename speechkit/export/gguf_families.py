"""Architectures that a GGUF is written for: llama.cpp's name of each, what of its weights changes, what it cannot do.

In: a transformers configuration. Out: a frozen row, or the reason why llama.cpp would compute something else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from speechkit.errors import ExportError

__all__ = ["ARCHITECTURES", "Architecture", "architecture_of", "attention_fold", "gelu", "rope_of", "window_period"]


@dataclass(frozen=True, slots=True)
class Architecture:
    """One model_type of transformers."""

    model_type: str
    arch: str  # llama.cpp's name
    permuted: bool = False  # rows of q and k change from halves to pairs, as llama.cpp's RoPE of this name wants them
    offset: bool = False  # norms are stored as weight - 1
    activation: str = "silu"
    experts: bool = False  # has layers of experts


_ROWS = (
    Architecture("llama", "llama", permuted=True),
    Architecture("mistral", "llama", permuted=True),
    Architecture("mixtral", "llama", permuted=True, experts=True),
    Architecture("qwen2", "qwen2"),
    Architecture("qwen3", "qwen3"),
    Architecture("qwen3_moe", "qwen3moe", experts=True),
    Architecture("gemma", "gemma", offset=True, activation="gelu"),
    Architecture("gemma2", "gemma2", offset=True, activation="gelu"),
    Architecture("gemma3_text", "gemma3", offset=True, activation="gelu"),
    Architecture("gemma3", "gemma3", offset=True, activation="gelu"),
    Architecture("phi3", "phi3"),
    Architecture("deepseek_v2", "deepseek2", experts=True),
    Architecture("deepseek_v3", "deepseek2", experts=True),
)
ARCHITECTURES: dict[str, Architecture] = {row.model_type: row for row in _ROWS}
_PERIOD = {"gemma2": 2, "gemma3": 6}  # llama.cpp's own: every so manieth layer sees all tokens
_MERGED_SCALE = {"gemma2": 46, "gemma3": 62}  # layers of the 27B, whose scale is that of width / heads
_SCALINGS = ("default", "linear", "yarn", "llama3", "longrope", "su", "dynamic")


def architecture_of(config: Any) -> Architecture:
    """The row of a configuration, checked.

    Raises ExportError for an architecture that is not in the table (naming those that are) and for a configuration
    that llama.cpp would compute otherwise.
    """
    kind = str(getattr(config, "model_type", "") or "")
    found = ARCHITECTURES.get(kind)
    if found is None:
        raise ExportError(
            f"a {kind or 'nameless'} model cannot be written as GGUF here; supported: {', '.join(ARCHITECTURES)}. "
            "Of a model with other towers only a supported text tower is written"
        )
    text = config.get_text_config()
    for reason in _reasons(found, text):
        raise ExportError(f"this {kind} model cannot be written as GGUF: {reason}")
    return found


def gelu(name: str) -> bool:
    """Whether an activation is llama.cpp's GELU, which is the one by tanh."""
    return name in ("gelu_pytorch_tanh", "gelu_new", "gelu_fast")


def rope_of(text: Any, kind: str = "full_attention") -> dict[str, Any]:
    """The rotary parameters of the layers of a kind."""
    found = getattr(text, "rope_parameters", None) or {}
    if isinstance(found.get(kind), dict):
        found = found[kind]
    return {"rope_type": "default", "rope_theta": 10000.0, **found}


def window_period(text: Any) -> int:
    """Every how manieth layer sees all tokens, the others a window; 0 where the order is another."""
    kinds = list(getattr(text, "layer_types", None) or [])
    count = len(kinds)
    if "full_attention" not in kinds:
        return max(count + 1, _PERIOD.get(ARCHITECTURES[text.model_type].arch, 0))
    period = kinds.index("full_attention") + 1
    wanted = ["full_attention" if (layer + 1) % period == 0 else "sliding_attention" for layer in range(count)]
    return period if kinds == wanted else 0


def attention_fold(text: Any, arch: str) -> float:
    """Factor for the queries, because llama.cpp scales Gemma's scores by the size of a head and knows no
    `query_pre_attn_scalar`."""
    scalar = getattr(text, "query_pre_attn_scalar", None)
    if arch not in _MERGED_SCALE or scalar is None:
        return 1.0
    size = text.head_dim
    if text.num_hidden_layers == _MERGED_SCALE[arch]:
        size = text.hidden_size // text.num_attention_heads
    return float((size / scalar) ** 0.5)


def _reasons(row: Architecture, text: Any) -> list[str]:
    """Why llama.cpp would compute something else."""
    name = str(getattr(text, "hidden_activation", None) or getattr(text, "hidden_act", None) or "silu")
    right = gelu(name) if row.activation == "gelu" else name in ("silu", "swish")
    found = [] if right else [f"llama.cpp's {row.arch} activates with {row.activation}, the configuration says {name}"]
    kinds = {rope_of(text)["rope_type"], rope_of(text, "sliding_attention")["rope_type"]}
    if wrong := sorted(str(kind) for kind in kinds if kind not in _SCALINGS):
        found.append(f"RoPE scaling {wrong[0]!r} is none that llama.cpp knows ({', '.join(_SCALINGS)})")
    if getattr(text, "rope_interleave", True) is False:
        found.append("RoPE turns halves (rope_interleave is False), and llama.cpp's deepseek2 turns pairs")
    if row.arch == "deepseek2" and rope_of(text)["rope_type"] == "yarn" and not _balanced(rope_of(text)):
        found.append(
            "YaRN scales its sines and cosines (mscale is not mscale_all_dim), and llama.cpp's deepseek2 does not"
        )
    if row.arch not in ("llama", "qwen2") and any(
        getattr(text, name, False) for name in ("attention_bias", "mlp_bias")
    ):
        found.append(f"it has biases, and llama.cpp's {row.arch} has none")
    if rope_of(text).get("truncate") is False:
        found.append("YaRN's bounds are not rounded (truncate is False), and llama.cpp's are")
    if row.arch in _PERIOD:
        found += _gemma(row, text)
    if row.arch == "qwen3moe" and not text.norm_topk_prob:
        found.append("the shares of its experts are not normalised (norm_topk_prob is False), and llama.cpp's are")
    if row.arch == "qwen3moe" and (text.mlp_only_layers or text.decoder_sparse_step != 1):
        found.append("some of its layers have no experts, and llama.cpp's qwen3moe has them in all")
    if row.model_type == "deepseek_v2" and text.topk_method != "greedy" and (text.n_group or 1) > 1:
        found.append(
            f"experts are chosen by {text.topk_method}, with the best expert of a group as its score; llama.cpp takes "
            "the sum of the best two (as DeepSeek V3)"
        )
    return found


def _balanced(rope: dict[str, Any]) -> bool:
    """Whether YaRN leaves sines and cosines as they are, so that the scores alone are scaled."""
    if rope.get("attention_factor"):
        return bool(rope["attention_factor"] == 1)
    return bool(rope.get("mscale_all_dim")) and rope.get("mscale") == rope.get("mscale_all_dim")


def _gemma(row: Architecture, text: Any) -> list[str]:
    found = []
    if not window_period(text):
        found.append(f"its layers alternate as {text.layer_types}, which llama.cpp cannot be told")
    caps = (getattr(text, "attn_logit_softcapping", None), getattr(text, "final_logit_softcapping", None))
    if row.arch == "gemma2" and None in caps:
        found.append("a soft cap is switched off, and llama.cpp's gemma2 always caps")
    if row.arch == "gemma3" and any(caps):
        found.append("it has soft caps, and llama.cpp's gemma3 has none")
    if getattr(text, "use_bidirectional_attention", None):
        found.append("it attends in both directions")
    if rope_of(text, "sliding_attention")["rope_type"] != "default" and row.arch == "gemma3":
        found.append("RoPE of its sliding layers is scaled, and llama.cpp's is not")
    return found
