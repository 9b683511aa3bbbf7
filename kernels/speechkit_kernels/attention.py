"""Which attention runs: ours, one of torch's, or the definition. In: q, k, v and what is asked. Out: o, and the reason.

    attention(q, k, v, causal=True)                                     the best that runs here
    print(choose(case_of(q, k, v, Call(Rule(causal=True)))).explain())   every candidate: usable, why not, chosen

`choose` is a pure function of a `Case` and of what this process has, so it can be tested for cards that are not here.
Its order comes from published figures (each reason names them) until kernels/bench/attention.py has been run on a card.
All candidates mean the same: last query beside last key, window |i' - j| < window, packed documents apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import torch

from speechkit_kernels.attention_backends import RUN, Call, Packing, Pages, available
from speechkit_kernels.attention_rule import MULTIPLIED, Rule, check_attention
from speechkit_kernels.launch import OLDEST, Support, hardware_of
from speechkit_kernels.weights import in_autocast

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["CANDIDATES", "Call", "Case", "Choice", "Packing", "Pages", "Rule", "attention", "case_of", "choose"]

CANDIDATES = ("flash", "cudnn", "sdpa_flash", "sdpa_efficient", "varlen", "flex", "paged", "math")
HALF = (torch.float16, torch.bfloat16)
AMPERE, HOPPER = (8, 0), (9, 0)
SHORT = 512  # tokens of the longest document under which blocks of 128 leave little to skip


@dataclass(frozen=True)
class Case:
    """All that the choice depends on."""

    device: str = "cuda"  # torch's device type
    capability: tuple[int, int] | None = None  # of an NVIDIA GPU
    dtype: torch.dtype = torch.bfloat16
    head_dim: int = 128
    queries: int = 2048  # of the longest document, where packed
    keys: int = 2048
    heads: int = 32
    kv_heads: int = 32
    batch: int = 1  # or documents
    mask: str = "causal"  # full, causal, window (causal or not), given
    softcap: bool = False
    training: bool = False
    packed: bool = False
    paged: bool = False  # keys and values in pages, one query a sequence
    interpreted: bool = False  # TRITON_INTERPRET=1

    @property
    def aligned(self) -> bool:
        """Whether torch's causal flag, which sets the first query beside the first key, means what we mean."""
        return self.queries == self.keys or self.mask == "full"

    @property
    def card(self) -> str:
        return f"sm_{self.capability[0]}{self.capability[1]}" if self.capability else self.device


class Verdict(NamedTuple):
    """Of one candidate."""

    name: str
    usable: bool
    reason: str


@dataclass(frozen=True)
class Choice:
    """What runs, why, and what became of the others."""

    name: str
    reason: str
    case: Case
    verdicts: tuple[Verdict, ...]

    def explain(self) -> str:
        """One line for the case, one for each candidate."""
        case = self.case
        kinds = [case.mask, *(word for word in ("softcap", "training", "packed", "paged") if getattr(case, word))]
        dtype = str(case.dtype).removeprefix("torch.")
        lines = [
            f"attention on {case.card}: {dtype}, batch {case.batch}, {case.queries} queries, {case.keys} keys, "
            f"{case.heads} heads over {case.kv_heads} of {case.head_dim}, {', '.join(kinds)}"
        ]
        for name, usable, reason in self.verdicts:
            state = "chosen" if name == self.name else "usable" if usable else "no"
            lines.append(f"  {name:15} {state:7} {self.reason if name == self.name else reason}".rstrip())
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.explain()


def choose(case: Case, have: Mapping[str, Support] | None = None) -> Choice:
    """The first usable candidate in the order of the case. `have`: what this process lacks, and why; None: nothing."""
    verdicts = []
    for name in CANDIDATES:
        lacking = "" if have is None or have.get(name, Support(True, "")).value else have[name].reason
        why = _why_not(name, case) or lacking
        verdicts.append(Verdict(name, not why, why or _note(name, case)))
    usable = {verdict.name for verdict in verdicts if verdict.usable}
    name, reason = next((wish for wish in _order(case) if wish[0] in usable), ("math", "nothing else runs here"))
    return Choice(name, reason, case, tuple(verdicts))


def _why_not(name: str, case: Case) -> str:
    """Why the candidate cannot do the case at all; empty if it can."""
    if name == "math":
        return ""
    if (name == "paged") != case.paged:
        return "keys and values are not in pages" if name == "paged" else "keys and values lie in pages"
    if name in ("flash", "paged", "flex"):
        return _why_not_triton(name, case)
    if case.softcap:
        return "has no soft cap"
    if name == "sdpa_flash" and case.device == "cpu":
        return _why_not_masked(case)
    if case.device != "cuda" or case.capability is None:
        return f"does not run on {case.card}"
    if case.dtype not in MULTIPLIED:
        return f"needs float32 or half precision, this is {str(case.dtype).removeprefix('torch.')}"
    if name == "sdpa_efficient":
        if case.dtype == torch.bfloat16 and case.capability < AMPERE:
            return f"{case.card} has no bfloat16"
        return (
            f"needs heads of a multiple of 8, these have {case.head_dim}"
            if case.head_dim % 8
            else _why_not_masked(case)
        )
    if case.capability < AMPERE:
        return f"needs sm_80, this is {case.card}"
    if case.dtype not in HALF:
        return f"needs float16 or bfloat16, this is {str(case.dtype).removeprefix('torch.')}"
    widest = 128 if name == "cudnn" else 256
    if case.head_dim > widest or case.head_dim % 8:
        return f"needs heads of a multiple of 8 up to {widest}, these have {case.head_dim}"
    if case.mask == "given":
        return "takes no mask of one's own"
    if name == "varlen":
        return ""
    if name == "sdpa_flash" and case.training and case.head_dim > 192 and case.capability not in (AMPERE, HOPPER):
        return f"its backward for heads above 192 does not fit {case.card}"
    if case.mask == "window":
        return "has no window"
    return "" if case.aligned else "its causal flag sets the first query beside the first key"


def _why_not_triton(name: str, case: Case) -> str:
    """Of ours and FlexAttention."""
    if name == "paged" and case.training:
        return "has no backward"
    if case.mask == "given":
        return "takes no mask of one's own"
    if case.dtype not in MULTIPLIED:
        return f"needs float32 or half precision, this is {str(case.dtype).removeprefix('torch.')}"
    if name != "flex" and case.head_dim > 256:
        return f"heads of at most 256 values, these have {case.head_dim}"
    if case.device == "cpu" and name == "flex":
        return "on a CPU it has no backward" if case.training else ""
    if case.device == "cpu":
        return "" if case.interpreted else "on a CPU only under Triton's interpreter"
    if case.device != "cuda" or case.capability is None:
        return f"does not run on {case.card}"
    if name == "paged" and case.heads == case.kv_heads and case.capability >= OLDEST and case.dtype != torch.bfloat16:
        return ""  # no matrix product inside
    if name == "flex" and case.head_dim < 16:
        return f"heads of at least 16 values, these have {case.head_dim}"
    return "" if case.capability >= AMPERE else f"a matrix product in Triton uses no tensor cores on {case.card}"


def _why_not_masked(case: Case) -> str:
    """Of what takes a mask as a table: a row of it with nothing seen gives NaN in some versions."""
    blind = case.mask in ("causal", "window") and case.queries > case.keys
    return "some queries stand before the first key" if blind else ""


def _note(name: str, case: Case) -> str:
    """What a usable candidate costs in this case."""
    if name == "math":
        return "writes the whole table of scores"
    if name == "flex" and case.device == "cpu":
        return "not compiled on a CPU: writes the whole table of scores"
    if name in ("cudnn", "sdpa_flash", "sdpa_efficient"):
        if case.packed:
            return "one call a document"
        if case.mask == "window" or not case.aligned:
            return "the mask as a table"
    return ""


def _order(case: Case) -> list[tuple[str, str]]:
    """Candidates from best to worst with the reason for each."""
    rest = [(name, "the first of what else runs here")
            for name in ("varlen", "flash", "sdpa_flash", "sdpa_efficient", "cudnn", "flex")]  # fmt: skip
    last = [("math", "nothing else runs here")]
    if case.paged:
        return [("paged", "reads each page once, where it lies"), *last]
    if case.device == "cpu":
        return [("sdpa_flash", "torch's fused attention for CPUs"), ("math", "torch's fused attention cannot do it")]
    if case.device != "cuda" or case.capability is None:
        return last
    if case.capability < AMPERE:
        slow = f"the only fused one on {case.card}: no tensor cores in Triton's products, flash needs sm_80"
        return [("sdpa_efficient", slow), *last]
    return [*_wishes(case), *rest, *last]


def _wishes(case: Case) -> list[tuple[str, str]]:
    """For sm_80 and later."""
    tensor_memory = case.capability is not None and case.capability[0] in (9, 10)
    if case.softcap:
        return [("flash", "the soft cap inside, by one exponential"), ("flex", "the soft cap as a compiled score rule")]
    if case.mask == "given":
        return [("sdpa_efficient", "takes a mask as a table")]
    if case.dtype not in HALF:
        return [("sdpa_efficient", "flash and cuDNN need half precision")]
    if case.packed or case.mask == "window":
        varlen = ("varlen", "documents by their lengths, 1.8 to 2x FA2 under 700 tokens on A100 (vllm-omni issue 4418)")
        if tensor_memory and case.queries >= SHORT:
            return [("flex", "skips blocks: 561-581 against cuDNN's 431 TFLOP/s (pytorch issue 138493)"), varlen]
        return [varlen if case.packed else ("varlen", "skips what is outside of the window"), ("flash", "skips too")]
    if case.queries == 1:
        return [("sdpa_flash", "cuts the keys of one query into parts")]
    if not case.aligned:
        return [
            ("varlen", "sets the last query beside the last key"),
            ("flash", "sets the last query beside the last key"),
        ]
    return _dense(case)


def _dense(case: Case) -> list[tuple[str, str]]:
    """Full or causal over as many keys as queries, in half precision."""
    figures = {
        (8, 0): "cuDNN reaches 0.82x of it on A100 (transformers PR 48163)",
        (8, 6): "cuDNN reaches 0.93x of it on A10G (transformers PR 48163)",
        (8, 9): "cuDNN reaches 1.00x of it on L40S (transformers PR 48163)",
        (12, 0): "cuDNN reaches 0.88x of it on RTX PRO 6000 (transformers PR 48163)",
    }
    assert case.capability is not None
    if case.capability in figures:
        return [("sdpa_flash", figures[case.capability]), ("flash", "torch's own does not take these heads")]
    if case.capability[0] not in (9, 10):
        return [("sdpa_flash", f"no figure for {case.card}: as on most")]
    if case.mask == "full" and case.head_dim <= 64 and case.keys < 1024:
        return [("sdpa_flash", "ahead of cuDNN on short full tables of small heads (sglang PR 30090)")]
    of = "on H100" if case.capability == HOPPER else f"on H100, no figure for {case.card}"
    next_best = ("sdpa_flash", "after cuDNN, which cannot run this")
    return [("cudnn", f"1.7-2.3x the default for training shapes {of} (transformers PR 48163)"), next_best]


def case_of(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: Call) -> Case:
    """The case of a call; q, k, v as `attention` takes them."""
    hardware, rule, packing = hardware_of(q.device), call.rule, call.packing
    if call.pages is not None:
        queries, keys, batch = 1, call.pages.block_table.shape[1] * k.shape[1], q.shape[0]
    elif packing is not None:
        queries, keys, batch = packing.longest, packing.longest, len(packing.lengths)
    else:
        queries, keys, batch = q.shape[1], k.shape[1], q.shape[0]
    mask = "causal" if rule.causal and queries > 1 else "full"  # one query sees all keys before it
    if rule.window is not None and rule.window < max(queries, keys):
        mask = "window"
    if call.mask is not None:
        mask = "given"
    return Case(
        q.device.type, hardware.capability, q.dtype, q.shape[-1], queries, keys, q.shape[-2], k.shape[-2], batch, mask,
        rule.softcap is not None, torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)),
        packing is not None, call.pages is not None, hardware.interpreted,
    )  # fmt: skip


@lru_cache(maxsize=4096)
def _chosen(case: Case, device: torch.device) -> Choice:
    return choose(case, available(device))


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool = False,
    window: int | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    packing: Packing | torch.Tensor | None = None,
    pages: Pages | None = None,
    mask: torch.Tensor | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """Attention by the best of the candidates, or by `backend`.

    q: (B, S, H, D); k, v: (B, N, Hk, D). packing: q (S, H, D), k, v (S, Hk, D), one `Packing` for all layers of a batch
    (or cu_seqlens, which is read back from the device at each call). pages: q (B, H, D), k, v (pages, page, Hk, D).
    causal, window, softcap, scale: as flash_attention. mask: bool, broadcast to (B, H, S, N), True where seen. → as q.
    Raises ValueError for what does not fit, and for a `backend` that cannot do it, with what speaks against each.
    """
    if isinstance(packing, torch.Tensor):
        packing = Packing.of(packing)
    call = Call(Rule(causal, window, softcap, scale), packing, pages, mask)
    if pages is None:
        q, k, v = in_autocast(q), in_autocast(k), in_autocast(v)
        check_attention("attention", q, k, v, packing is not None, call.rule)
    if packing is not None and (q.shape[0], k.shape[0]) != (packing.tokens, packing.tokens):
        raise ValueError(f"attention: {q.shape[0]} queries and {k.shape[0]} keys, packing has {packing.tokens} tokens")
    if packing is not None and packing.cu_seqlens.device != q.device:
        raise ValueError(
            f"attention: packing is on {packing.cu_seqlens.device}, q on {q.device}; put them on one device"
        )
    if mask is not None and (packing is not None or pages is not None):
        raise ValueError("attention: a mask beside packing or pages; give one of them")
    choice = _chosen(case_of(q, k, v, call), q.device)
    name = choice.name if backend is None else backend
    if backend is not None:
        usable = [verdict.name for verdict in choice.verdicts if verdict.usable]
        if backend not in usable:
            raise ValueError(
                f"attention: backend {backend!r} cannot do this; give one of {', '.join(usable)}\n{choice}"
            )
    if not q.numel():
        name = "math"
    return RUN[name](q, k, v, call)
