"""transformers' attention through `speechkit_kernels.attention`, by its own doors, under the name "speechkit".

`register()` once, then `model.set_attn_implementation("speechkit")`. What a layer may see is told by transformers'
mask: none where all keys are real and in order; a table where a batch is padded. A packed batch, documents one behind
the other in one row, needs no table: where they begin is read from `cu_seq_lens_q` or from `position_ids`, which begin
anew with each document; once a batch, not once a layer. Knows no model.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch
from speechkit_kernels.attention import attention
from speechkit_kernels.attention_backends import Packing

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["NAME", "register"]

NAME = "speechkit"
KNOWN = {  # causal, within a window, within documents: what `_attend` does itself
    "causal_mask_function", "sliding_window_overlay", "and_masks", "packed_sequence_mask_function",
    "remap_positions_for_packed_sequence",
}  # fmt: skip


def register() -> str:
    """Make the name known to transformers; a second call changes nothing. Returns it."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, _mask)
    return NAME


def _mask(*, mask_function: Any, attention_mask: torch.Tensor | None = None, **rest: Any) -> torch.Tensor | None:
    """None, or (B, 1, S, N) bool. Rows without padding get none: `_attend` knows order, window and documents."""
    from transformers.masking_utils import sdpa_mask

    whole = rest.get("q_length") == rest.get("kv_length") and not rest.get("use_vmap")
    # a mask without padding says nothing: as a table it would hide from `_attend` where documents begin
    if whole and _names(mask_function) <= KNOWN and not _pads(attention_mask):
        return None
    return sdpa_mask(mask_function=mask_function, attention_mask=attention_mask, **rest)


def _pads(mask: torch.Tensor | None) -> bool:
    """Whether a mask (B, N) hides anything; an export is to hold for any."""
    return mask is not None and (torch.compiler.is_exporting() or _hides(mask))


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _hides(mask: torch.Tensor) -> bool:
    """Asked between two graphs: it stands in the data."""
    from transformers.utils.import_utils import is_tracing

    return bool(is_tracing(mask)) or mask.dim() != 2 or not bool(mask.all())


def _names(function: Callable[..., Any]) -> set[str]:
    """The functions that a mask of transformers is made of: they are closures over one another."""
    found = {function.__code__.co_qualname.partition(".")[0]}
    for cell in function.__closure__ or ():
        held = cell.cell_contents
        for one in held if isinstance(held, tuple) else (held,):
            if hasattr(one, "__code__"):
                found |= _names(one)
    return found


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **rest: Any,
) -> tuple[torch.Tensor, None]:
    """query (B, H, S, D), key (B, Hk, N, D), value (B, Hk, N, E) → (B, S, H, E)."""
    width = value.shape[-1]
    if width < key.shape[-1]:  # DeepSeek's: kernels want both of one width, and zeros stay zeros
        value = torch.nn.functional.pad(value, (0, key.shape[-1] - width))
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    window, softcap = rest.get("sliding_window"), rest.get("softcap")
    causal = rest.get("is_causal")
    causal = bool(getattr(module, "is_causal", True) if causal is None else causal)
    given: dict[str, Any] = {"scale": rest.get("scaling"), "softcap": softcap}
    packing = _packing(q, k, rest) if attention_mask is None else None
    if rest.get("dropout"):
        raise ValueError("attention under the name speechkit has no dropout: set attention_dropout to 0")
    if packing is not None:
        out = attention(q[0], k[0], v[0], causal=causal, window=window, packing=packing, **given)[None]
    elif attention_mask is not None:
        seen = attention_mask if attention_mask.dtype == torch.bool else attention_mask >= 0
        out = attention(q, k, v, mask=seen, **given)
    else:
        out = attention(q, k, v, causal=causal, window=window, **given)
    return out[..., :width].contiguous(), None


_LAST: list[Any] = [lambda: None, 0, None]  # the position_ids of the last packed batch, their version, its packing


def _packing(q: torch.Tensor, k: torch.Tensor, rest: dict[str, Any]) -> Packing | None:
    """Where the documents of one row lie, None where there is one alone or several rows."""
    positions, ends = rest.get("position_ids"), rest.get("cu_seq_lens_q")
    source = ends if ends is not None else positions
    if source is None or q.shape[0] != 1 or q.shape[1] != k.shape[1] or (ends is None and source.dim() != 2):
        return None
    return _documents(source, ends is not None)


# where documents begin stands in the data: torch.compile calls this between two graphs, in each layer of a lone row
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _documents(source: torch.Tensor, told: bool) -> Packing | None:
    """From `cu_seq_lens_q` where `told`, otherwise from position_ids (1, S)."""
    version = -1 if source.is_inference() else source._version  # under inference_mode tensors have none
    if version >= 0 and _LAST[0]() is source and _LAST[1] == version:
        return _LAST[2]
    ends: torch.Tensor | None = source
    if not told:
        starts = (source[0] == 0).nonzero().flatten().to(torch.int32)
        ends = torch.cat([starts, starts.new_tensor([source.shape[1]])]) if len(starts) and not starts[0] else None
    packing = Packing.of(ends.to(torch.int32)) if ends is not None and len(ends) > 2 else None
    _LAST[:] = [weakref.ref(source), version, packing]
    return packing
