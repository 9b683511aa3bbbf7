"""Which tensor of a GGUF gets which type: llama.cpp's own mixture of its `llama-quantize`, and its fallbacks.

In: the names and shapes of a model's tensors, what the model is, and a kind of file ("Q4_K_M"). Out: a type for each
name. Knows no weights. Source: `llama_tensor_get_type` in llama.cpp's src/llama-quant.cpp.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from speechkit.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["BLOCK", "KINDS", "Kind", "Shape", "kind_of", "tensor_types", "type_bytes"]

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of file."""

    name: str
    number: int  # general.file_type
    base: str  # the type that most tensors get


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("F32", 0, "F32"), Kind("F16", 1, "F16"), Kind("BF16", 32, "BF16"), Kind("Q8_0", 7, "Q8_0"),
        Kind("Q6_K", 18, "Q6_K"), Kind("Q5_K_M", 17, "Q5_K"), Kind("Q5_K_S", 16, "Q5_K"),
        Kind("Q4_K_M", 15, "Q4_K"), Kind("Q4_K_S", 14, "Q4_K"), Kind("Q4_0", 2, "Q4_0"),
    )
}  # fmt: skip
# of a type: weights in a block, bytes of a block
BLOCK: dict[str, tuple[int, int]] = {
    "F32": (1, 4), "F16": (1, 2), "BF16": (1, 2), "Q8_0": (32, 34), "Q4_0": (32, 18), "Q4_1": (32, 20),
    "Q5_0": (32, 22), "Q5_1": (32, 24), "Q4_K": (256, 144), "Q5_K": (256, 176), "Q6_K": (256, 210),
}  # fmt: skip
FALLBACK = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}  # where 256 does not divide the width
WHOLE = ("F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class _Model:
    """What the rules ask of a model."""

    kind: Kind
    layers: int
    experts: int
    values: int  # tensors that make attention's values
    tied: bool  # the embedding is the head too
    large: bool  # the 70B of Llama or Qwen, of which eight heads share one attn_v
    imatrix: bool


def kind_of(name: str) -> Kind:
    """The row of a name, whatever its case. Raises PlanError for another, with the names that there are."""
    found = KINDS.get(str(name).upper().replace("-", "_"))
    if found is None:
        raise PlanError(f"quant is {name!r}; it can be {', '.join(KINDS)} (Q4_K_M is llama.cpp's usual choice)")
    return found


def type_bytes(kind: str, shape: Shape) -> int:
    """Bytes of a tensor of this type; rows are along its last axis."""
    weights, size = BLOCK[kind]
    count = 1
    for axis in shape:
        count *= axis
    return count // weights * size


def tensor_types(
    shapes: Mapping[str, Shape], kind: Kind, *, arch: str, experts: int = 0, imatrix: bool = False
) -> dict[str, str]:
    """The type of every tensor: {"blk.0.attn_v.weight": "Q6_K", …}.

    shapes: GGUF name → shape with rows last, (N, K), experts as (E, N, K). experts: how many a layer has, 0 when dense.
    imatrix: an importance matrix is there, which raises the first ffn_down of a Q4_0 to Q4_1.
    """
    layers = 1 + max((_layer(name) for name in shapes), default=-1)
    model = _Model(
        kind, layers, experts, sum(_category(name) == "v" for name in shapes), "output.weight" not in shapes,
        layers == 80 and (arch == "qwen2" or (arch == "llama" and _grouped(shapes))), imatrix,
    )  # fmt: skip
    order = sorted((name for name in shapes if _category(name) == "v"), key=_layer)
    place = {name: number for number, name in enumerate(order)}
    return {name: _type(name, shape, model, place.get(name, 0)) for name, shape in shapes.items()}


def _grouped(shapes: Mapping[str, Shape]) -> bool:
    """Whether several heads of queries share one of keys, which tells the 70B from the 65B of Llama 1."""
    query, key = shapes.get("blk.0.attn_q.weight", (0,)), shapes.get("blk.0.attn_k.weight", (0,))
    return key[0] < query[0]


def _type(name: str, shape: Shape, model: _Model, place: int) -> str:
    if not _may_be_packed(name, shape):
        return "F32"
    if model.kind.base in WHOLE:
        return model.kind.base
    return _fitted(_wanted(name, shape, model, place), shape[-1])


def _may_be_packed(name: str, shape: Shape) -> bool:
    """Matrices but norms and the router of experts, which is small and decides much."""
    return len(shape) > 1 and name.endswith("weight") and "_norm.weight" not in name and "ffn_gate_inp" not in name


def _fitted(kind: str, width: int) -> str:
    if width % BLOCK[kind][0]:
        kind = FALLBACK.get(kind, "F16")
    return kind if width % BLOCK[kind][0] == 0 else "F16"


def _wanted(name: str, shape: Shape, model: _Model, place: int) -> str:
    """The type by the rules, whether or not the width allows it."""
    base, category = model.kind.base, _category(name)
    if category == "output" or (category == "embedding" and model.tied):
        if shape[-1] % BLOCK[base][0]:
            return "Q8_0"
        return "Q8_0" if base == "Q8_0" else "Q6_K" if shape[-1] % 256 == 0 else "Q8_0"
    if category == "v":
        return _values(model, place)
    if category == "k" and model.experts == 8:
        return "Q8_0"
    if category == "down":
        return _down(model, _layer(name))
    if category == "attention output" and model.experts == 8 and model.kind.name in ("Q4_K_S", "Q4_K_M"):
        return "Q5_K"
    return base


def _values(model: _Model, place: int) -> str:
    found, name = model.kind.base, model.kind.name
    if name in ("Q4_K_M", "Q5_K_M") and _more_bits(place, model.values):
        found = "Q6_K"
    elif name == "Q4_K_S" and place < 4:
        found = "Q5_K"
    if model.large and found == "Q4_K":
        found = "Q5_K"
    return "Q8_0" if model.experts == 8 else found


def _down(model: _Model, layer: int) -> str:
    name, early = model.kind.name, layer < model.layers // 8
    if name in ("Q4_K_M", "Q5_K_M") and _more_bits(layer, model.layers):
        return "Q6_K"
    if name == "Q4_K_S" and early:
        return "Q5_K"
    if name == "Q4_0" and early and model.imatrix:
        return "Q4_1"
    return model.kind.base


def _more_bits(layer: int, layers: int) -> bool:
    """The first and the last eighth, and every third between."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def _category(name: str) -> str:
    if name == "output.weight":
        return "output"
    if name == "token_embd.weight":
        return "embedding"
    if re.search(r"attn_(v|qkv|kv_b)\.weight$", name):
        return "v"
    if name.endswith("attn_k.weight"):
        return "k"
    if name.endswith("attn_output.weight"):
        return "attention output"
    return "down" if "ffn_down" in name else "other"


def _layer(name: str) -> int:
    found = re.match(r"blk\.(\d+)\.", name)
    return int(found[1]) if found else -1
