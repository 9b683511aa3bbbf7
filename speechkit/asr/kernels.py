"""The kernels of speech into a wav2vec 2.0 model and out again: norm and GELU of the front-end, positional convolution.

Module by module, of one model, with the model's own weights under their own names: a state dict keeps its keys, padding
stays invisible (the lengths of `asr.masks` are handed on), gradients flow. Where a kernel cannot run its definition
does. In: a `Recognizer` or its model. Knows no audio.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from speechkit.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["SpeechKernels", "apply_kernels", "explain", "undo_kernels"]

_PLACE = "_speechkit_kernels"


@dataclass(frozen=True)
class SpeechKernels:
    """What is in a model."""

    norms: int  # convolutional layers whose norm and GELU are one kernel
    positional: int  # positional convolutions
    left: tuple[str, ...] = field(default=())  # modules that stay as they were, and why

    def __str__(self) -> str:
        lines = [f"kernels in {self.norms} norms of the front-end, {self.positional} positional convolutions"]
        return "\n".join([*lines, *(f"   – {reason}" for reason in self.left)])


def apply_kernels(model: Any) -> SpeechKernels:
    """Put kernels into a recogniser or its model, in place. A second call changes nothing.

    Outputs stay the same but for rounding. Raises ModelError for a model without a wav2vec 2.0 front-end.
    """
    model = _model(model)
    changes: list[tuple[nn.Module, str, nn.Module]] = model.__dict__.setdefault(_PLACE, [])
    for parent, name, module, kind, _ in list(_places(model)):
        if kind is not None:
            changes.append((parent, name, module))
            parent._modules[name] = kind(module)
    return explain(model)


def undo_kernels(model: Any) -> int:
    """Take the kernels out again; how many modules were put back. The weights are those that the kernels had."""
    model = _model(model)
    changes = model.__dict__.pop(_PLACE, [])
    for parent, name, original in reversed(changes):
        ours = parent._modules[name]
        original._modules.update(ours._modules)  # a norm may have been exchanged since, see `asr.masks`
        parent._modules[name] = original.train(ours.training)
    return len(changes)


def explain(model: Any) -> SpeechKernels:
    """What kernels are in a recogniser or its model. Raises ModelError as `apply_kernels` does."""
    model = _model(model)
    found = [ours._modules[name] for ours, name, _ in model.__dict__.get(_PLACE, [])]
    norms = sum(isinstance(module, FusedConvLayer) for module in found)
    left = tuple(reason for *_, kind, reason in _places(model) if kind is None and reason)
    return SpeechKernels(norms, len(found) - norms, left)


class FusedConvLayer(nn.Module):
    """A layer of the front-end: convolution, then norm and GELU in one kernel. x: (B, C, T) → (B, C', F)."""

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.conv, self.layer_norm = original.conv, original.layer_norm
        self.train(original.training)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        from speechkit_kernels.conv_norm_gelu import conv_norm_gelu
        from speechkit_kernels.group_norm_gelu import group_norm_gelu

        norm, conv = self.layer_norm, self.conv
        if isinstance(norm, nn.LayerNorm):
            x = nn.functional.conv1d(x, conv.weight, None, conv.stride)
            return conv_norm_gelu(x, norm.weight, norm.bias, norm.eps, channels=1, conv_bias=conv.bias)
        lengths = getattr(norm, "lengths", None)
        return group_norm_gelu(conv(x), norm.weight, norm.bias, norm.num_groups, lengths, norm.eps)


class FusedPositionalConv(nn.Module):
    """The grouped positional convolution as matrix products, its GELU among them. x: (B, F, D) → (B, F, D)."""

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.conv = original.conv
        self.train(original.training)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        from speechkit_kernels.pos_conv import pos_conv

        return pos_conv(hidden_states, self.conv.weight, self.conv.bias, groups=self.conv.groups)


Place = tuple[nn.Module, str, nn.Module, "type[nn.Module] | None", str]


def _places(model: nn.Module) -> Iterator[Place]:
    """Parent, name, module of all that a kernel may stand for; its class, or None and the reason."""
    base: Any = getattr(model, str(getattr(model, "base_model_prefix", "")), model)
    layers = base.feature_extractor.conv_layers
    for name, layer in layers.named_children():
        norm = getattr(layer, "layer_norm", None)
        if norm is None or isinstance(layer, FusedConvLayer):
            continue
        reason = "" if _is_gelu(layer) else f"layer {name} of the front-end: its activation is no GELU"
        yield layers, name, layer, None if reason else FusedConvLayer, reason
    positional = getattr(base.encoder, "pos_conv_embed", None)
    if positional is None or isinstance(positional, FusedPositionalConv):
        return
    plain = hasattr(positional, "conv") and getattr(positional, "batch_norm", None) is None and _is_gelu(positional)
    reason = "" if plain else "the positional convolution: it is no single grouped convolution with GELU"
    yield base.encoder, "pos_conv_embed", positional, None if reason else FusedPositionalConv, reason


def _is_gelu(module: Any) -> bool:
    return type(getattr(module, "activation", None)).__name__ in ("GELUActivation", "GELU")


def _model(model: Any) -> nn.Module:
    inner: nn.Module = model.model if hasattr(model, "transcribe") else model
    base: Any = getattr(inner, str(getattr(inner, "base_model_prefix", "")), inner)
    if not hasattr(getattr(base, "feature_extractor", None), "conv_layers") or not hasattr(base, "encoder"):
        raise ModelError(f"{type(inner).__name__} has no front-end of wav2vec 2.0, so no kernel here fits it")
    return inner
