"""Whether a merged model says what the adapted one said. In: two sets of logits. Out: a `MergeReport`, or a refusal.

Nothing absolute is asked for, since logits have no scale of their own: the difference is held against the spread of
the logits, within what the dtype's rounding of weights makes of it in the depth of the model, and against what the
adapter changes at all: a merged model as far from the adapted one as the bare base is has lost the adapter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from speechkit.errors import ExportError, PlanError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Agreement", "MergeReport", "compare", "judge", "logits_of", "probe_of", "tolerance_of"]

ROWS, LENGTH = 4, 32  # of the default probe
LEAST = 1e-4  # relative, in float32: sums in another order, through all layers
STEPS = {torch.float32: 2.0**-23, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}  # between neighbours near 1
ROOM = 4  # times the rounding of one product, grown by the root of the depth
EIGHT = 1 / 127
NOTHING = 1e-6  # of a weight's norm, below which an update is none
SWALLOWED = 0.9  # share of the updates that rounding may not take: less than half a step leaves a weight as it was


@dataclass(frozen=True)
class Agreement:
    """Of two models on the same tokens. `relative` and `effect` are shares of the spread of the first one's logits."""

    tokens: int  # positions compared
    max_difference: float  # largest of any logit
    relative: float  # root of the mean square difference
    top1: float  # share of positions whose likeliest token is the same
    kl: float  # nats, mean over positions, of the second from the first
    effect: float  # the bare base's `relative` from the first: what the adapter does


@dataclass(frozen=True, repr=False)
class MergeReport:
    """What merging did, measured. Prints as one line."""

    dtype: str  # of the merged weights
    layers: int  # whose weights changed
    delta_norm: float  # the largest ‖update‖ / ‖weight‖ of any layer
    rounding: float  # ‖what rounding to dtype took or added‖ / ‖update‖, over all layers
    agreement: Agreement | None  # merged against adapted on the probe; None: not checked
    tolerance: float  # allowed for `agreement.relative`
    notes: tuple[str, ...] = ()  # what else changed: ties undone, a base dequantised or loaded anew

    @property
    def max_logit_difference(self) -> float | None:
        return self.agreement.max_difference if self.agreement else None

    @property
    def top1_agreement(self) -> float | None:
        return self.agreement.top1 if self.agreement else None

    def __str__(self) -> str:
        head = (
            f"merged {self.layers} weights in {self.dtype}, updates up to {self.delta_norm:.2%} of them, of which "
            f"rounding changed {self.rounding:.2%}"
        )
        found = self.agreement
        if found is None:
            middle = "not checked against the adapter"
        else:
            middle = (
                f"logits differ by at most {found.max_difference:.3g} ({found.relative:.2g} of their spread, "
                f"{self.tolerance:.2g} allowed; the adapter moves them by {found.effect:.2g}), top-1 agrees on "
                f"{found.top1:.1%} of {found.tokens} tokens, KL {found.kl:.2g}"
            )
        return "; ".join([f"{head}: {middle}", *self.notes])

    __repr__ = __str__


def tolerance_of(dtype: torch.dtype, depth: int, *, eight: bool = False) -> float:
    """What rounding the weights to `dtype` may do to the logits of a model of `depth` layers, as share of their spread.

    A weight is rounded by up to half a step of its size, independently of its neighbours; what that does to a product
    is of the same share of it, and adds up over the layers as the root of their number. Activations are rounded to the
    same steps on both sides. eight: the adapted model rounded its activations to 8 bits, the merged one does not.
    """
    step = max(STEPS.get(dtype, STEPS[torch.bfloat16]), EIGHT if eight else 0.0)
    return max(LEAST, ROOM * step * math.sqrt(max(depth, 1)))


def probe_of(model: Any, probe: Mapping[str, torch.Tensor] | torch.Tensor | None) -> dict[str, torch.Tensor]:
    """What is given, or tokens that are always the same ones, from all over the vocabulary; on the model's device."""
    device = next(model.parameters()).device
    if probe is None:
        config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
        count = ROWS * LENGTH
        probe = (torch.arange(count) * 7919 + 11).remainder(config.vocab_size).view(ROWS, LENGTH)
    given = {"input_ids": probe} if isinstance(probe, torch.Tensor) else dict(probe)
    ids = given.get("input_ids")
    if ids is not None and (ids.dim() != 2 or ids.is_floating_point() or not ids.numel()):
        raise PlanError(
            f"probe is {str(ids.dtype)[6:]} of shape {tuple(ids.shape)}; it is tokens (B, S), whole numbers"
        )
    return {name: value.to(device) for name, value in given.items() if name != "labels"}


def logits_of(model: Any, probe: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """(M, V) float32 on the CPU, of the positions that are not padding; the model's mode is as before."""
    trained = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            logits = model(**probe, use_cache=False).logits.float().cpu()
    finally:
        for module, mode in trained.items():
            module.training = mode
    mask = probe.get("attention_mask")
    flat: torch.Tensor = logits.flatten(0, -2)
    return flat if mask is None else flat[mask.flatten().bool().cpu()]


def compare(adapted: torch.Tensor, merged: torch.Tensor, bare: torch.Tensor) -> Agreement:
    """(M, V) logits each."""
    centred = adapted - adapted.mean(dim=-1, keepdim=True)
    spread = _rms(centred) or 1.0
    log_p, log_q = adapted.log_softmax(-1), merged.log_softmax(-1)
    return Agreement(
        tokens=adapted.shape[0],
        max_difference=float((merged - adapted).abs().max()),
        relative=_rms(merged - adapted) / spread,
        top1=float((merged.argmax(-1) == adapted.argmax(-1)).double().mean()),
        kl=float((log_p.exp() * (log_p - log_q)).sum(-1).mean().clamp(min=0)),
        effect=_rms(adapted - bare) / spread,
    )


def judge(report: MergeReport) -> None:
    """Raises ExportError for a merged model that is not the adapted one."""
    found = report.agreement
    if found is None:
        return
    if not math.isfinite(found.relative):
        raise ExportError("the merged model's logits are not finite, so that nothing was merged; the adapter is broken")
    advice = "" if report.dtype == "float32" else ", or merge in float32 (dtype=torch.float32)"
    if report.rounding >= SWALLOWED or found.relative >= found.effect > 0:
        raise ExportError(
            f"merging in {report.dtype} loses the adapter: rounding takes {report.rounding:.0%} of the updates, the "
            f"merged model is {found.relative:.2g} from the adapted one (of the logits' spread), the bare base "
            f"{found.effect:.2g}. Nothing was merged; train longer{advice}"
        )
    if found.relative > report.tolerance:
        raise ExportError(
            f"the merged model is not the adapted one: logits differ by {found.relative:.2g} of their spread (at most "
            f"{found.max_difference:.3g}), {report.tolerance:.2g} is allowed in {report.dtype}; top-1 agrees on "
            f"{found.top1:.1%} of {found.tokens} tokens. Nothing was merged{advice}; check=False merges all the same"
        )


def _rms(x: torch.Tensor) -> float:
    return float(x.double().square().mean().sqrt())
