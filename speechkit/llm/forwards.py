"""What modules of a transformers model do once a kernel is in: one function a kind, each gives a subclass its methods.

Rotary positions are not turned in place, though the kernel can: a hook on a projection may still read what it gave,
and what would be saved is one copy of one layer's queries and keys. Knows no family: names come from the profile.
"""

from __future__ import annotations

import inspect
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["activation_of", "experts", "gated_unit", "norm", "rotary"]


def norm(base: type, offset: float) -> dict[str, Any]:
    """RMS norm with `weight` and an epsilon; `offset` is added to the weight."""

    def forward(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
        """hidden_states: (…, H)."""
        from speechkit_kernels.rms_norm import rms_norm

        eps = getattr(self, "variance_epsilon", None) or self.eps
        if not offset and self.weight.dtype != hidden_states.dtype:  # as in transformers, the wider of both comes out
            hidden_states = hidden_states.to(torch.promote_types(self.weight.dtype, hidden_states.dtype))
        normed: torch.Tensor = rms_norm(hidden_states, self.weight, eps, offset=offset)
        return normed

    return {"forward": forward}


def gated_unit(base: type, activation: str) -> dict[str, Any]:
    """Activation and product by one kernel; the projections are the model's own, with what adapters made of them."""

    def forward(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
        """hidden_states: (…, H)."""
        if hasattr(self, "gate_up_proj"):
            gate, up = self.gate_up_proj(hidden_states).chunk(2, dim=-1)
        else:
            gate, up = self.gate_proj(hidden_states), self.up_proj(hidden_states)
        out: torch.Tensor = self.down_proj(_gated(gate, up, activation))
        return out

    return {"forward": forward}


def experts(base: type, activation: str) -> dict[str, Any]:
    """transformers' door in its products of all experts at once (grouped_mm, batched_mm): what stands between them."""

    def _apply_gate(self: Any, gate_up_out: torch.Tensor) -> torch.Tensor:
        """gate_up_out: (M, 2 I) → (M, I)."""
        gate, up = gate_up_out.chunk(2, dim=-1)
        return _gated(gate, up, activation)

    return {"_apply_gate": _apply_gate}


def rotary(base: type) -> dict[str, Any]:
    """The forward of `base`, word for word, in which the names of transformers' rotary functions mean the kernel."""
    forward = inspect.unwrap(base.forward)  # type: ignore[attr-defined]
    names = {**forward.__globals__, **{name: turn for name, turn in TURNS.items() if name in forward.__globals__}}
    same = FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__)
    same.__kwdefaults__ = forward.__kwdefaults__
    return {"forward": same}


def activation_of(unit: Any) -> str | None:
    """ "silu", or the `approximate` of a GELU; None for an activation that no kernel has."""
    name = type(getattr(unit, "act_fn", None) or getattr(unit, "activation_fn", None)).__name__
    if name in ("SiLUActivation", "SiLU"):
        return "silu"
    if name in ("GELUTanh", "PytorchGELUTanh", "NewGELUActivation"):
        return "tanh"
    return "none" if name == "GELUActivation" else None


def _gated(gate: torch.Tensor, up: torch.Tensor, activation: str) -> torch.Tensor:
    from speechkit_kernels.glu import geglu, swiglu

    unit: torch.Tensor = swiglu(gate, up) if activation == "silu" else geglu(gate, up, activation)
    return unit


Turned = tuple[torch.Tensor, torch.Tensor]


def _halves(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int = 1) -> Turned:
    """`apply_rotary_pos_emb` of transformers: q, k (B, H, S, D), or (B, S, H, D) with unsqueeze_dim 2."""
    from speechkit_kernels.rope import rope

    if unsqueeze_dim == 2:
        q, k = rope(q.transpose(1, 2), k.transpose(1, 2), cos, sin)
        return q.transpose(1, 2), k.transpose(1, 2)
    turned: Turned = rope(q, k, cos, sin)
    return turned


def _pairs(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> Turned:
    """`apply_rotary_pos_emb_interleave` of DeepSeek V3 but for the order of columns, in which q and k agree.

    transformers reads pairs and writes halves, here they are written where they stood: q kᵀ, all that is made of them,
    is the same sum in another order.
    """
    from speechkit_kernels.rope import rope

    half = cos.shape[-1] // 2
    turned: Turned = rope(q, k, cos[..., :half], sin[..., :half], rotary_dim=2 * half, interleaved=True)
    return turned


def _complex(xq: torch.Tensor, xk: torch.Tensor, freqs_cis: torch.Tensor) -> Turned:
    """`apply_rotary_emb` of DeepSeek V2: freqs_cis (B, S, R/2) complex."""
    from speechkit_kernels.rope import rope

    cos, sin = freqs_cis.real, freqs_cis.imag
    turned: Turned = rope(xq, xk, cos, sin, rotary_dim=2 * cos.shape[-1], interleaved=True)
    return turned


TURNS: dict[str, Callable[..., Turned]] = {
    "apply_rotary_pos_emb": _halves,
    "apply_rotary_pos_emb_interleave": _pairs,
    "apply_rotary_emb": _complex,
}
