"""A smaller CTC model cut out of a trained one: fewer layers, fewer channels. In: the model. Out: another of its kind.

Layers are copied, evenly spaced, the first and the last among them (Sanh et al. 2019, DistilBERT, arXiv:1910.01108).
Of the width the channels, attention heads and inner neurons with the largest weights stay (magnitude pruning of
structures, Li et al. 2017, arXiv:1608.08710). The front-end is kept whole, so frames and vocabulary stay the same.
Knows no training: what comes out hears badly until it was distilled.
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from speechkit.asr import masks
from speechkit.errors import PlanError
from speechkit.training.anatomy import Anatomy

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["student_of"]

_LAYER = re.compile(r"(.*encoder\.layers\.)(\d+)(\..*)")
# how a parameter is cut, along its first and second axis: to the channels of the residual stream (D), to the heads (H)
# or inner neurons (N) of its layer, or not at all (-). The first pattern found in its name decides.
_CUTS = (
    (r"feature_extractor\.|feature_projection\.layer_norm\.|linear_1\.bias|lm_head\.bias", ""),
    (r"out_proj\.weight", "DH"),
    (r"[qkv]_proj\.weight", "HD"),
    (r"[qkv]_proj\.bias", "H"),
    (r"intermediate_dense\.weight", "ND"),
    (r"intermediate_dense\.bias", "N"),
    (r"output_dense\.weight", "DN"),
    (r"linear_1\.weight|lm_head\.weight", "-D"),
    (r"", "D"),  # projection, norms, what writes into the stream
)


def student_of(model: Any, layers: int, width: int | None = None) -> Any:
    """A CTC model of `layers` of the teacher's encoder layers, `width` channels wide (default: all), weights copied.

    In evaluation mode, on the CPU, all weights free to learn. With the teacher's layers and width it is a copy. Raises
    PlanError for more than the teacher has, or a width that its heads and positional convolution cannot be cut to.
    """
    parts = Anatomy.of(model)
    depth, full = len(parts.layers), int(parts.model.config.hidden_size)
    if not 1 <= layers <= depth:
        raise PlanError(f"a student of {layers} layers was asked of a teacher with {depth}; 1 to {depth} can be")
    chosen = [round(float(place)) for place in np.linspace(0, depth - 1, layers)] if layers > 1 else [depth - 1]
    if hasattr(parts.layers[0].attention, "rel_attn_embed"):
        chosen[0] = 0  # WavLM keeps the positions of all layers in its first
    config = copy.deepcopy(parts.model.config)
    config.num_hidden_layers = layers
    cut = _Cut.of(parts, width) if width is not None and width != full else None
    if cut is not None:
        config.hidden_size = config.output_hidden_size = len(cut.channels)
        config.num_attention_heads = cut.heads
        config.intermediate_size = len(cut.neurons[0])
    student = type(parts.model)(config).eval()
    if any(isinstance(module, masks.MaskedGroupNorm) for module in parts.features.modules()):
        masks.attach(student)
    _copy(parts, student, chosen, cut)
    return student.to(parts.head.weight.dtype).requires_grad_(True)


@dataclass(frozen=True)
class _Cut:
    """Which channels stay: of the residual stream everywhere, and in each of the teacher's layers."""

    channels: torch.Tensor  # (D',)
    inner: tuple[torch.Tensor, ...]  # (D',) per layer: the rows of the heads that stay
    neurons: tuple[torch.Tensor, ...]  # (N',) per layer
    heads: int

    @classmethod
    def of(cls, parts: Anatomy, width: int) -> _Cut:
        config = parts.model.config
        full, heads = int(config.hidden_size), int(config.num_attention_heads)
        groups = _groups(parts)
        step = int(np.lcm(full // heads, groups))
        if width % step or not 0 < width <= full:
            allowed = ", ".join(str(size) for size in range(step, full + 1, step))
            raise PlanError(
                f"a student {width} wide cannot be cut from a teacher {full} wide with {heads} heads and {groups} "
                f"groups in its positional convolution; possible: {allowed}"
            )
        kept = width * heads // full
        size = int(config.intermediate_size) * width // full
        return cls(
            _strongest(_reading(parts).reshape(groups, -1), width // groups),
            tuple(_strong_heads(layer, heads, kept) for layer in parts.layers),
            tuple(_strongest(_neurons(layer)[None], size) for layer in parts.layers),
            kept,
        )

    def select(self, weight: torch.Tensor, axes: str, layer: int) -> torch.Tensor:
        for axis, what in enumerate(axes):
            if what != "-":
                picked = {"D": (self.channels,), "H": self.inner, "N": self.neurons}[what]
                weight = weight.index_select(axis, picked[0 if what == "D" else layer])
        return weight


def _groups(parts: Anatomy) -> int:
    """Groups of the positional convolution. Raises PlanError for encoders that are built in another way."""
    conv = getattr(getattr(parts.encoder, "pos_conv_embed", None), "conv", None)
    attention = parts.layers[0].attention if hasattr(parts.layers[0], "attention") else None
    names = {name.partition(".")[0] for name, _ in attention.named_parameters()} if attention is not None else set()
    if conv is None or names != {"q_proj", "k_proj", "v_proj", "out_proj"}:
        raise PlanError(
            f"a {type(parts.model).__name__} cannot be made narrower here, only wav2vec2, hubert and unispeech can: "
            "leave width out and ask for fewer layers"
        )
    return int(conv.groups)


def _strongest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """(G, D / G) → numbers of the `count` largest in each group, ascending, (G · count,)."""
    best = scores.topk(count, dim=1).indices.sort(dim=1).values
    return (best + torch.arange(len(scores))[:, None] * scores.shape[1]).flatten()


def _reading(parts: Anatomy) -> torch.Tensor:
    """(D,) squared weights with which all layers and the head read each channel."""
    total = parts.head.weight.detach().float().cpu().square().sum(0)
    for layer in parts.layers:
        for module in (layer.attention.q_proj, layer.attention.k_proj, layer.attention.v_proj):
            total = total + module.weight.detach().float().cpu().square().sum(0)
        total = total + layer.feed_forward.intermediate_dense.weight.detach().float().cpu().square().sum(0)
    return total


def _strong_heads(layer: Any, heads: int, kept: int) -> torch.Tensor:
    """Rows of the `kept` heads that write most, (D',)."""
    attention = layer.attention
    writes = attention.out_proj.weight.detach().float().cpu().square().sum(0).reshape(heads, -1)  # (H, D / H)
    values = attention.v_proj.weight.detach().float().cpu().square().sum(1).reshape(heads, -1)
    best = _strongest((writes.sum(1) * values.sum(1))[None], kept)
    return (best[:, None] * writes.shape[1] + torch.arange(writes.shape[1])).flatten()


def _neurons(layer: Any) -> torch.Tensor:
    """(N,) strength of each inner neuron: what it reads times what it writes."""
    feed = layer.feed_forward
    reads = feed.intermediate_dense.weight.detach().float().cpu().square().sum(1)
    return reads * feed.output_dense.weight.detach().float().cpu().square().sum(0)


def _copy(parts: Anatomy, student: Any, chosen: Sequence[int], cut: _Cut | None) -> None:
    teacher = parts.model.state_dict()
    wanted = {}
    for name in student.state_dict():
        if cut is not None and "pos_conv_embed.conv." in name:
            continue
        layer = _LAYER.fullmatch(name)
        origin = chosen[int(layer[2])] if layer else 0
        source = f"{layer[1]}{origin}{layer[3]}" if layer else name
        weight = teacher[source].detach().cpu()
        wanted[name] = weight if cut is None else cut.select(weight, _axes(source), origin)
    student.load_state_dict(wanted, strict=cut is None)
    if cut is not None:
        _cut_positions(parts, student, cut)


def _axes(name: str) -> str:
    return next(axes for pattern, axes in _CUTS if re.search(pattern, name))


def _cut_positions(parts: Anatomy, student: Any, cut: _Cut) -> None:
    """The grouped convolution: each group keeps as many channels, so inputs are counted within their group."""
    old, new = parts.encoder.pos_conv_embed.conv, Anatomy.of(student).encoder.pos_conv_embed.conv
    weight, size = old.weight.detach().cpu(), old.weight.shape[1]  # (D, D / G, K)
    rows = weight.index_select(0, cut.channels).reshape(old.groups, -1, *weight.shape[1:])  # (G, D' / G, D / G, K)
    inputs = (cut.channels % size).reshape(old.groups, -1)
    picked = [group.index_select(1, chosen) for group, chosen in zip(rows, inputs, strict=True)]
    with torch.no_grad():
        new.weight = torch.cat(picked)  # weight norm splits it into length and direction
        new.bias.copy_(old.bias.detach().cpu().index_select(0, cut.channels))
