"""An adapter added into its base for good, measured; and taken out again, to the bit.

In: a peft model. Out: the transformers model within, in place, its weights W + update, added in float32 and rounded
once to the base's dtype; a `MergeReport` of what that did to the logits. A 4- or 8-bit base is written out in 16 bits
first, or, better, loaded anew in 16 bits (`base`). Nothing is left half done: a refusal leaves the model as it was.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from speechkit.errors import ExportError, PlanError
from speechkit.llm.lora_kernels import layers_of
from speechkit.llm.merge_check import (
    NOTHING,
    Agreement,
    MergeReport,
    compare,
    judge,
    logits_of,
    probe_of,
    tolerance_of,
)
from speechkit.llm.merge_weights import cast, dequantise, quantised, unload, updates_of

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping

__all__ = ["MergeReport", "merge", "unmerge"]

KEPT = "_speechkit_merged"


@dataclass
class _Undo:
    """How to go back from a merged model; the steps are taken from the last one on."""

    model: Any  # the peft model
    steps: list[Callable[[], None]]
    whole: bool = True  # whether the weights from before are kept


@dataclass
class _Sums:
    """Squares, added up over layers."""

    layers: int = 0
    delta: float = 0.0
    rounding: float = 0.0
    largest: float = 0.0  # of any layer, ‖update‖ / ‖weight‖


def merge(
    model: Any,
    *,
    check: bool = True,
    base: str | os.PathLike[str] | nn.Module | None = None,
    dtype: torch.dtype | None = None,
    probe: Mapping[str, torch.Tensor] | torch.Tensor | None = None,
    keep: bool = True,
) -> tuple[Any, MergeReport]:
    """The active adapters of a peft model into its base, in place → (the transformers model within, what it did).

    check: compare logits of merged and adapted on `probe` (tokens (B, S), or a mapping with what the model wants
    besides, such as pixel_values; by default 128 tokens that are always the same). base: of a quantised model, the
    folder or name of its base, which is loaded in 16 bits, or that model; without it the quantised one is written out.
    dtype: of the merged model, by default the base's. keep: hold the weights from before on the CPU, for `unmerge`.

    Raises ExportError for an adapter that changes nothing, for weights that are not finite and for a merged model that
    the check refuses, PlanError for what cannot be merged, ModelError for a `base` that is another.
    """
    if not hasattr(model, "peft_config"):
        raise PlanError(f"{type(model).__name__} has no adapter to merge; give the model that add_lora returned")
    if not any(layers_of(model)):
        raise PlanError("it has no adapter within, for it was merged already; give merge what unmerge returns")
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise PlanError(f"dtype is {dtype!r}; it can be torch.float32, torch.bfloat16, torch.float16 or None")
    if base is not None:
        return _onto(model, base, {"check": check, "dtype": dtype, "probe": probe, "keep": keep})
    inner = model.get_base_model()
    undo = _Undo(model, [])
    before = _logits(model, probe) if check else None
    try:
        eight, notes = _made_plain(inner, dtype, undo.steps)
        report = replace(_measured(model, eight), notes=notes)
        _add(model, undo.steps, keep or check)
        unload(model, undo.steps)
        report = _untie(inner, undo, report)
        if before is not None:
            report = _checked(inner, before, report)
    except BaseException:
        _take(undo.steps)
        raise
    undo.whole = keep
    inner.__dict__[KEPT] = undo if keep else _Undo(None, [], whole=False)
    return inner, report


def unmerge(merged: Any) -> Any:
    """The peft model from which `merge` made this one, in place: the adapters as before, and the weights that merging
    changed to the bit as they were; what training did to these since is lost, what it did to others stays.

    Raises PlanError for a model that `merge` did not make, or made with keep=False.
    """
    undo = getattr(merged, "__dict__", {}).get(KEPT)
    if undo is None:
        raise PlanError(f"{type(merged).__name__} was not merged here; unmerge takes the model that merge returned")
    if not undo.whole:
        raise PlanError(
            "it was merged with keep=False, so that the base's weights are gone; load base and adapter again"
        )
    _take(undo.steps)
    del merged.__dict__[KEPT]
    return undo.model


def _made_plain(inner: Any, dtype: torch.dtype | None, steps: list[Callable[[], None]]) -> tuple[bool, tuple[str, ...]]:
    """Weights to which can be added, in `dtype` if given; whether they were in 8 bits, and what to say of it."""
    held = quantised(inner)
    if held:
        dequantise(inner, dtype, steps)
        eight = any(type(one).__name__ == "Linear8bitLt" for one in held.values())
        return eight, ("its quantised base written out",)
    if dtype is not None:
        cast(inner, dtype, steps)
    return False, ()


def _take(steps: list[Callable[[], None]]) -> None:
    while steps:
        steps.pop()()


def _logits(model: Any, probe: Any) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    given = probe_of(model, probe)
    adapted = logits_of(model, given)
    with model.disable_adapter():
        return given, adapted, logits_of(model, given)


def _checked(
    merged: Any, before: tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor], report: MergeReport
) -> MergeReport:
    given, adapted, bare = before
    found: Agreement = compare(adapted, logits_of(merged, given), bare)
    report = replace(report, agreement=found)
    judge(report)
    return report


def _measured(model: Any, eight: bool) -> MergeReport:
    """What the updates are and what rounding does to them, before any weight is written: a refusal leaves no half."""
    inner, sums, dtype = model.get_base_model(), _Sums(), next(model.parameters()).dtype
    for update in updates_of(model):
        weight = getattr(update.owner, update.attribute)
        rounded = update.value.to(weight.dtype)
        if not bool(torch.isfinite(rounded).all()):
            raise ExportError(
                f"merging {update.name} gives weights that are not finite in {str(weight.dtype)[6:]}; nothing was "
                "merged. The adapter diverged, or float16 is too narrow for it: merge with dtype=torch.bfloat16"
            )
        _tally(sums, weight, update.value, rounded)
        dtype = weight.dtype
    whole = _whole_modules(model)
    if not sums.layers and not whole:
        raise PlanError("no adapter is active, so that there is nothing to merge; choose one with set_adapter")
    if sums.largest < NOTHING and not whole:
        raise ExportError(
            "the adapter changes nothing: B is zero in all layers, as before training, so that the merged model would "
            "be the base. Train it, or load its trained weights with load_adapter"
        )
    depth = getattr(inner.config.get_text_config(), "num_hidden_layers", 1)
    lost = (sums.rounding / sums.delta) ** 0.5 if sums.delta else 0.0
    name = str(dtype).removeprefix("torch.")
    return MergeReport(name, sums.layers + whole, sums.largest, lost, None, tolerance_of(dtype, depth, eight=eight))


def _add(model: Any, back: list[Callable[[], None]], keep: bool) -> None:
    """All updates into the weights. Of each weight that is kept one copy goes to the CPU."""
    owners = _owners(model.get_base_model())
    for update in updates_of(model):
        weight = getattr(update.owner, update.attribute)
        back += _put(update.owner, update.attribute, update.value.to(weight.dtype), owners, keep)


def _tally(sums: _Sums, weight: torch.Tensor, value: torch.Tensor, rounded: torch.Tensor) -> None:
    was = weight.detach().float()
    delta = float((value - was).norm())
    sums.layers += 1
    sums.delta += delta**2
    sums.rounding += float((rounded.float() - value).norm()) ** 2
    sums.largest = max(sums.largest, delta / max(float(was.norm()), 1e-30))


def _put(owner: Any, name: str, value: torch.Tensor, owners: dict[int, int], keep: bool) -> list[Callable[[], None]]:
    """Into the weight where it lies; a weight that another layer shares becomes one of its own, and that one stays."""
    old = owner._parameters[name]
    if owners.get(id(old), 1) > 1:
        owner._parameters[name] = nn.Parameter(value, requires_grad=old.requires_grad)
        return [lambda: owner._parameters.__setitem__(name, old)]
    kept = old.detach().to("cpu", copy=True) if keep else None
    with torch.no_grad():
        old.copy_(value)
    if kept is None:
        return []

    def back() -> None:
        with torch.no_grad():
            old.copy_(kept)

    return [back]


def _owners(model: nn.Module) -> dict[int, int]:
    """How many modules hold each weight; tied ones are held twice."""
    found: dict[int, int] = {}
    for module in model.modules():
        for weight in module._parameters.values():
            if weight is not None:
                found[id(weight)] = found.get(id(weight), 0) + 1
    return found


def _whole_modules(model: Any) -> int:
    """Modules that were trained whole and are no longer as they were."""
    from peft.utils.other import ModulesToSaveWrapper

    changed = 0
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            for name in module.active_adapters:
                pairs = zip(module.original_module.parameters(), module.modules_to_save[name].parameters(), strict=True)
                changed += any(not torch.equal(a.float(), b.float()) for a, b in pairs)
    return changed


def _untie(inner: Any, undo: _Undo, report: MergeReport) -> MergeReport:
    """A head and an embedding that are no longer one must be saved as two: the configuration says so."""
    text = inner.config.get_text_config()
    configs = [one for one in {id(inner.config): inner.config, id(text): text}.values() if _ties(one)]
    head, embedding = inner.get_output_embeddings(), inner.get_input_embeddings()
    if not configs or head is None or head.weight is embedding.weight:
        return report

    def back() -> None:
        for config in configs:
            config.tie_word_embeddings = True

    for config in configs:
        config.tie_word_embeddings = False
    undo.steps.append(back)
    return replace(report, notes=(*report.notes, "head and embedding are two weights now (tie_word_embeddings is off)"))


def _ties(config: Any) -> bool:
    return bool(getattr(config, "tie_word_embeddings", False))


def _onto(model: Any, base: Any, more: dict[str, Any]) -> tuple[Any, MergeReport]:
    """The adapter on a base that is loaded anew in 16 bits, merged there; the model that was given stays as it is."""
    from speechkit.llm.adapter_files import load_adapter, save_adapter

    if not isinstance(base, nn.Module):
        base = _loaded(model, base, more["dtype"])
    name = model.active_adapters[0]
    if len(model.active_adapters) > 1:
        raise PlanError(
            f"{len(model.active_adapters)} adapters are active; set one with set_adapter to merge onto a base"
        )
    with TemporaryDirectory() as folder:
        save_adapter(model, Path(folder) / "adapter", name=name)
        adapted = load_adapter(base, Path(folder) / "adapter", name=name)
    merged, report = merge(adapted, **more)
    if report.agreement is not None:
        found = logits_of(merged, probe_of(merged, more["probe"]))
        apart = compare(found, logits_of(model, probe_of(model, more["probe"])), found)
        note = (
            f"base loaded anew; the adapter as it was trained, on the other base, is {apart.relative:.2g} of the "
            f"spread from the merged model, top-1 agrees on {apart.top1:.1%}"
        )
        report = replace(report, notes=(*report.notes, note))
    return merged, report


def _loaded(model: Any, base: str | os.PathLike[str], dtype: torch.dtype | None) -> nn.Module:
    """As load_llm loads it: any name, safetensors alone, no code of a repository, none of its weights missing."""
    from speechkit.llm import registry
    from speechkit.llm.files import find, read_config, read_model
    from speechkit.llm.repairs import grow

    place = find(registry.resolve(base))
    if place.adapter is not None:
        raise PlanError(f"base is {str(base)!r}, an adapter itself; name the model that both were made for")
    config = read_config(place.base)
    name = str(dtype or getattr(config, "dtype", None) or torch.bfloat16).removeprefix("torch.")
    found: Any = read_model(place.base, config, name, str(next(model.parameters()).device))
    rows = model.get_base_model().get_input_embeddings().weight.shape[0]
    if rows > found.get_input_embeddings().weight.shape[0]:
        grow(found, rows)  # as load_llm did for a pad
    made: nn.Module = found.eval()
    return made
