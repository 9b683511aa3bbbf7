"""A model's tensors under llama.cpp's names, with how each is put together from what is stored.

In: an architecture, its configuration and the stored tensors. Out: a plan, tensor by tensor, of which rows of which
stored tensor go where and what is done to them: q and k in llama.cpp's order of RoPE, Gemma's norms, experts stacked.
`pieces` then yields float32 rows, never more than a part of a tensor at once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from speechkit.errors import ExportError, ModelError
from speechkit.export.gguf_families import attention_fold

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import numpy as np
    import torch

    from speechkit.export.gguf_families import Architecture
    from speechkit.export.gguf_weights import Stored, Weights

__all__ = ["Part", "Planned", "changed", "name_map", "permuted", "pieces", "plain_name", "plan_tensors"]

CHUNK = 1 << 24  # values that are converted at once: 64 MiB as float32
SKIPPED = ("rotary_emb.inv_freq", ".masked_bias", ".attn.bias")
TOWERS = ("vision_tower.", "multi_modal_projector.", "visual.", "vision_model.", "audio_tower.")
MIXTRAL = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
_EXPERT = re.compile(r"(.*\.(?:mlp|block_sparse_moe)\.experts)\.(\d+)\.(\w+)\.weight$")
_FUSED = re.compile(r"(.*\.(?:mlp|block_sparse_moe)\.experts)\.(gate_up_proj|down_proj)$")


@dataclass(frozen=True, slots=True)
class Part:
    """Rows start to stop of a stored tensor; `unit` rows must be seen together by `change`, which takes and gives
    float32 of the same number of values."""

    source: str
    start: int
    stop: int
    unit: int = 1
    change: Callable[[torch.Tensor], torch.Tensor] | None = None


@dataclass(frozen=True)
class Planned:
    """A tensor of the file: its parts one after the other; `values` where it comes from no file."""

    name: str
    shape: tuple[int, ...]  # rows last
    parts: tuple[Part, ...] = ()
    values: tuple[float, ...] = ()


@dataclass
class _Layout:
    """What is known of a model while its plan is made."""

    row: Architecture
    text: Any
    names: Callable[[str], str | None]
    stored: Mapping[str, Stored]
    planned: dict[str, Planned] = field(default_factory=dict)
    experts: dict[str, dict[int, Stored]] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tied: bool = False  # the embedding is the head


def own_head(weights: Weights, text: Any) -> bool:
    """Whether the head is a tensor of its own: not tied, or stored with other values, which transformers then keeps."""
    import torch

    names = {plain_name(name): name for name in weights.tensors}
    if not getattr(text, "tie_word_embeddings", False):
        return True
    if not {"lm_head.weight", "model.embed_tokens.weight"} <= set(names):
        return False
    head, embedding = (weights.tensors[names[name]] for name in ("lm_head.weight", "model.embed_tokens.weight"))
    if (head.shape, head.dtype) != (embedding.shape, embedding.dtype):
        return True
    step = max(1, CHUNK // head.width)
    for start in range(0, head.rows, step):
        stop = min(head.rows, start + step)
        if not torch.equal(weights.rows(head.name, start, stop), weights.rows(embedding.name, start, stop)):
            return True
    return False


def plan_tensors(
    row: Architecture, text: Any, stored: Mapping[str, Stored], head: bool
) -> tuple[dict[str, Planned], tuple[str, ...]]:
    """GGUF name → plan, and notes on what was left out. head: it has one of its own (`own_head`).

    Raises ExportError for tensors that llama.cpp has no name for (all named), ModelError for a model that lacks some.
    """
    layout = _Layout(row, text, name_map(row.arch, text.num_hidden_layers), stored, tied=not head)
    if head and getattr(text, "tie_word_embeddings", False):
        layout.notes.append("config.json ties the head to the embedding and the weights have a head of its own: kept")
    towers = [name for name in stored if name.removeprefix("model.").startswith(TOWERS)]
    if towers:
        layout.notes.append(f"{len(towers)} tensors of other towers left out ({towers[0]}, …): the text tower alone")
    for name, tensor in stored.items():
        if name in towers or any(part in name for part in SKIPPED) or _beyond(name, text.num_hidden_layers):
            continue
        _plan(layout, name, tensor)
    for name, found in layout.experts.items():
        _stack(layout, name, found)
    if layout.unknown:
        some = ", ".join(layout.unknown[:6]) + (" …" if len(layout.unknown) > 6 else "")
        raise ExportError(
            f"{len(layout.unknown)} tensors have no name in llama.cpp's {row.arch} and would be lost: {some}. Remove "
            "them from the model if it does not need them"
        )
    _check_complete(layout)
    return layout.planned, tuple(layout.notes)


def pieces(planned: Planned, weights: Weights) -> Iterator[tuple[int, np.ndarray]]:
    """(number of the part, rows (n, K) float32), in order.

    Raises ExportError for NaN or infinite values, naming the tensor.
    """
    import numpy as np
    import torch

    if planned.values:
        yield 0, np.asarray(planned.values, dtype=np.float32)[None]
        return
    for number, part in enumerate(planned.parts):
        width = weights.tensors[part.source].width
        step = max(1, CHUNK // (width * part.unit)) * part.unit
        for start in range(part.start, part.stop, step):
            rows = weights.rows(part.source, start, min(part.stop, start + step)).to(torch.float32)
            low, high = torch.aminmax(rows)
            if not bool(torch.isfinite(low) & torch.isfinite(high)):
                raise ExportError(
                    f"{part.source} holds values that are not finite (NaN or infinity): training diverged, or it was "
                    "saved in too narrow a type. Nothing was exported"
                )
            if part.change is not None:
                rows = part.change(rows)
            yield number, rows.reshape(-1, planned.shape[-1]).numpy()


def name_map(arch: str, layers: int) -> Callable[[str], str | None]:
    """transformers' name of a tensor → llama.cpp's, None where it has none. Source: the gguf package's tensor map."""
    import gguf

    numbers = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    table = gguf.get_tensor_name_map(numbers[arch], layers)

    def named(name: str) -> str | None:
        plain = plain_name(name).replace("e_score_correction_bias", "e_score_correction.bias")
        return table.get_name(plain, try_suffixes=(".weight", ".bias"))

    return named


def permuted(rows: torch.Tensor, size: int) -> torch.Tensor:
    """Each head's rows from halves (transformers) to pairs (llama.cpp); size: rows of a head."""
    shape = rows.shape
    return rows.reshape(-1, 2, size // 2, *shape[1:]).transpose(1, 2).reshape(shape)


def plain_name(name: str) -> str:
    """Without what wrappers with other towers put before it."""
    for prefix in ("model.language_model.", "language_model.model."):
        if name.startswith(prefix):
            return "model." + name.removeprefix(prefix)
    return name.removeprefix("language_model.")


def _plan(layout: _Layout, name: str, tensor: Stored) -> None:
    plain, text = plain_name(name), layout.text
    if plain == "lm_head.weight" and layout.tied:
        return  # the embedding, once more
    if found := _EXPERT.match(plain):
        where = f"{found[1]}.{MIXTRAL.get(found[3], found[3])}".replace("block_sparse_moe", "mlp")
        layout.experts.setdefault(where, {})[int(found[2])] = tensor
        return
    if found := _FUSED.match(plain):
        _plan_fused(layout, found[1].replace("block_sparse_moe", "mlp"), found[2], tensor)
        return
    if plain.endswith("kv_b_proj.weight") and layout.row.arch == "deepseek2":
        _plan_latent(layout, plain, tensor)
        return
    target = layout.names(plain)
    if target is None:
        layout.unknown.append(name)
        return
    part = changed(layout.row, text, layout.stored, plain, Part(name, 0, tensor.rows))
    layout.planned[target] = Planned(target, tensor.shape, (part,))


def changed(row: Architecture, text: Any, stored: Mapping[str, Stored], plain: str, part: Part) -> Part:
    """The part with what the architecture does to the rows of such a tensor."""
    query, key = ".self_attn.q_proj." in plain, ".self_attn.k_proj." in plain
    if row.permuted and (query or key):
        size = int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
        if plain.endswith(".bias"):  # one row that holds all heads
            return replace(part, change=lambda rows: permuted(rows.reshape(-1, 1), size).reshape(rows.shape))
        return replace(part, unit=size, change=lambda rows: permuted(rows, size))
    fold = attention_fold(text, row.arch)
    if row.offset and plain.endswith("norm.weight"):
        factor = fold if plain.endswith("q_norm.weight") else 1.0
        return replace(part, change=lambda rows: (rows + 1) * factor)
    if query and fold != 1 and not any(name.endswith("q_norm.weight") for name in stored):
        return replace(part, change=lambda rows: rows * fold)
    return part


def _plan_fused(layout: _Layout, stem: str, kind: str, tensor: Stored) -> None:
    """Experts that are one tensor already: (E, rows, K), gate and up one after the other."""
    count, rows, width = tensor.shape
    halves = {"down_proj": (0, rows)}
    if kind == "gate_up_proj":
        halves = {"gate_proj": (0, rows // 2), "up_proj": (rows // 2, rows)}
    for name, (start, stop) in halves.items():
        target = layout.names(f"{stem}.{name}")
        if target is None:
            layout.unknown.append(tensor.name)
            return
        parts = tuple(Part(tensor.name, one * rows + start, one * rows + stop) for one in range(count))
        layout.planned[target + ".weight"] = Planned(target + ".weight", (count, stop - start, width), parts)


def _stack(layout: _Layout, stem: str, found: dict[int, Stored]) -> None:
    target = layout.names(stem)
    if target is None:
        layout.unknown += [tensor.name for tensor in found.values()]
        return
    lacking = sorted(set(range(max(found) + 1)) - set(found))
    if lacking or len({tensor.shape for tensor in found.values()}) != 1:
        raise ModelError(f"{stem}: experts {lacking or 'of several shapes'}; the model's weights are incomplete")
    parts = tuple(Part(found[one].name, 0, found[one].rows) for one in sorted(found))
    name = target + ".weight"
    layout.planned[name] = Planned(name, (len(found), *found[0].shape), parts)


def _plan_latent(layout: _Layout, plain: str, tensor: Stored) -> None:
    """DeepSeek's kv_b: of each head the rows of its keys, transposed, and those of its values, as two tensors."""
    text = layout.text
    keys, values, heads = text.qk_nope_head_dim, text.v_head_dim, text.num_attention_heads
    first = [head * (keys + values) for head in range(heads)]
    stem = plain.removesuffix("kv_b_proj.weight")
    for name, shape, parts in (
        (
            "k_b_proj",
            (heads, tensor.width, keys),
            [Part(tensor.name, at, at + keys, keys, lambda x: x.T) for at in first],
        ),
        ("v_b_proj", (heads, values, tensor.width), [Part(tensor.name, at + keys, at + keys + values) for at in first]),
    ):
        target = layout.names(f"{stem}{name}.weight")
        assert target is not None
        layout.planned[target] = Planned(target, shape, tuple(parts))


def _beyond(name: str, layers: int) -> bool:
    """A layer after the last: heads that predict several tokens, which a GGUF has no use for."""
    found = re.search(r"\.layers\.(\d+)\.", name)
    return found is not None and int(found[1]) >= layers


def _check_complete(layout: _Layout) -> None:
    text = layout.text
    wanted = ["token_embd.weight", "output_norm.weight"]
    wanted += [] if layout.tied else ["output.weight"]
    for layer in range(text.num_hidden_layers):
        wanted += [f"blk.{layer}.{name}.weight" for name in ("attn_norm", "attn_output", "ffn_norm")]
    lacking = [name for name in wanted if name not in layout.planned]
    if lacking:
        raise ModelError(
            f"the model lacks {len(lacking)} of its tensors, among them {lacking[0]} (llama.cpp's name): config.json "
            "and the weights belong to different models"
        )
    for name, shape in _sizes(layout.row, text).items():
        if name in layout.planned and layout.planned[name].shape != shape:
            raise ModelError(
                f"{name} (llama.cpp's name) is {layout.planned[name].shape} and config.json makes it {shape}: a field "
                "is missing there (transformers then takes its own), or the two belong to different models"
            )


def _sizes(row: Architecture, text: Any) -> dict[str, tuple[int, ...]]:
    """Shapes that follow from the numbers that the file will name."""
    width = text.hidden_size
    found: dict[str, tuple[int, ...]] = {"token_embd.weight": (text.vocab_size, width)}
    if row.arch == "deepseek2":
        return found
    size = int(getattr(text, "head_dim", None) or width // text.num_attention_heads)
    queries, keys = size * text.num_attention_heads, size * text.num_key_value_heads
    return {
        **found,
        "blk.0.attn_q.weight": (queries, width),
        "blk.0.attn_k.weight": (keys, width),
        "blk.0.attn_qkv.weight": (queries + 2 * keys, width),
        "blk.0.ffn_down.weight": (width, text.intermediate_size),
    }
