"""Plan before run: what a training run will need on each GPU or in each process of a CPU, and whether it fits.

In: a model, a configuration, a name or a folder (of which only the configuration is read), and `PlanOptions`. Out: a
`Plan` that prints as a table; `table` compares all strategies. Nothing is allocated: the step is gone through with
fake tensors (`dry_run`), what several ranks share is counted (`memory`), what cannot work is refused (`validity`).
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from speechkit.errors import ModelError, SpeechkitError
from speechkit.llm.memory import Memory, per_rank
from speechkit.llm.plan_options import METHODS, STRATEGIES, PlanOptions, card_of
from speechkit.llm.validity import refusals, valid

if TYPE_CHECKING:
    from collections.abc import Iterator
    from os import PathLike

    from speechkit.device import Gpu, Hardware
    from speechkit.llm.dry_run import Counts, DryRun

__all__ = ["Plan", "PlanOptions", "Table", "plan", "table"]

CONTEXT = 0.8 * 2**30  # CUDA's context and its libraries' working space
LOST = 0.05  # share of a card that is lost between blocks of the allocator
MEASURED = "activations of this rank's batch; tensors alone: {} come on top"


@dataclass(frozen=True)
class Plan:
    """One run. Sizes are bytes per rank, at the worst moment of a step; prints as a table."""

    weights: int  # where the rank computes, and what is gathered of others' shares
    gradients: int
    optimizer: int  # states, and DeepSpeed's float32 copy of the weights
    activations: int  # kept for backward, and alive for a moment
    logits: int  # of the batch, or of a chunk of it
    host: int  # in main memory or on a disk beside it; not in the total
    options: PlanOptions
    counts: Counts  # of the model with its adapters
    card: Gpu | None  # None: a CPU
    usable: int | None  # bytes of the card that tensors can have; None for a CPU
    fits: bool | None  # None for a CPU, whose memory is shared with everything else
    batch_tokens: (
        int | None
    )  # largest power of two that fits, per rank; None where the weights alone do not, or no card
    accumulation: int | None  # batches per update for `global_tokens`, or None where none were asked for
    notes: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """Weights of the model with its adapters."""
        return self.counts.total

    @property
    def trained(self) -> int:
        """Weights that are trained."""
        return sum(self.counts.trained)

    @property
    def total(self) -> int:
        """All in the memory of a rank: its GPU's, or on a CPU the machine's."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits

    def __str__(self) -> str:
        lines = [f"{self.options}", f"{self.parameters:,} weights, {self.trained:,} of them trained"]
        for name in ("weights", "gradients", "optimizer", "activations", "logits", "total"):
            lines.append(f"  {name:<12}{size_text(getattr(self, name)):>12}")
        if self.host:
            where = "offloaded: the same memory on a CPU" if self.card is None else "in main memory or on a disk"
            lines.append(f"  {'elsewhere':<12}{size_text(self.host):>12}  {where}")
        return "\n".join([*lines, *_verdict(self), *(f"  – {note}" for note in self.notes)])

    __repr__ = __str__


@dataclass(frozen=True)
class Table:
    """Plans of all methods and strategies; a refusal stands where one cannot work. Prints as a table."""

    plans: tuple[Plan, ...]
    refused: tuple[tuple[str, str], ...]  # method and strategy, and the reason

    def __str__(self) -> str:
        names = ("weights", "gradients", "optimizer", "activations", "logits", "total")
        head = f"{'method':<8}{'strategy':<10}" + "".join(f"{name:>13}" for name in names) + "  fits"
        lines = [head]
        for one in self.plans:
            cells = "".join(f"{size_text(getattr(one, name)):>13}" for name in names)
            strategy = one.options.strategy + (f" × {one.options.ranks}" if one.options.ranks > 1 else "")
            fits = "" if one.fits is None else "  yes" if one.fits else "  no"
            lines.append(f"{one.options.method:<8}{strategy:<10}{cells}{fits}")
        return "\n".join([*lines, *(f"{name}: {reason}" for name, reason in self.refused)])

    __repr__ = __str__


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without the remarks of packages that are imported on the way; bitsandbytes looks for a kernel on the Hub."""
    from speechkit.llm.quiet import quiet

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with quiet():
            yield
    finally:
        logging.disable(before)


@_silent()
def plan(model: Any, options: PlanOptions | None = None, *, hardware: Hardware | None = None) -> Plan:
    """Memory of each rank, without allocating any.

    model: a transformers model or configuration, the name of one on the Hub, or a folder; only its configuration is
    looked at. hardware: what is there; None: what the options name, or this machine.

    Raises PlanError with the reason for a pair of settings that does not work, ModelError for a model that cannot be
    found or that transformers has no class for.
    """
    return _plan(_config(model), options or PlanOptions(), hardware, suggest=True)


def _plan(config: Any, options: PlanOptions, hardware: Hardware | None, suggest: bool) -> Plan:
    valid(options, hardware, getattr(config, "model_type", ""))
    counts, dry, memory = _found(config, options, hardware)
    card = card_of(options, hardware)
    usable = None if card is None else int(card.memory_gib * 2**30 * (1 - LOST) - CONTEXT)
    tokens = _fitting(config, options, hardware, usable) if usable is not None and suggest else None
    return Plan(
        weights=memory.weights, gradients=memory.gradients, optimizer=memory.optimizer,
        activations=memory.activations, logits=memory.logits, host=memory.host, options=options,
        counts=counts, card=card, usable=usable,
        fits=None if usable is None else memory.total <= usable, batch_tokens=tokens,
        accumulation=_accumulation(options), notes=_notes(options, dry, card),
    )  # fmt: skip


@_silent()
def table(model: Any, options: PlanOptions | None = None, *, ranks: int = 8, hardware: Hardware | None = None) -> Table:
    """Every method under every strategy, as far as they work; `ranks` is for those that need several."""
    options = options or PlanOptions()
    config = _config(model)
    plans, refused = [], []
    for method in METHODS:
        for strategy in STRATEGIES:
            one = options.replace(
                method=method, strategy=strategy, ranks=1 if strategy == "one" else ranks,
                nodes=1 if strategy == "one" else options.nodes,
            )  # fmt: skip
            reasons = refusals(one, hardware, getattr(config, "model_type", ""))
            if reasons:
                refused.append((f"{method}, {strategy}", "; ".join(found.reason for found in reasons)))
            else:
                plans.append(_plan(config, one, hardware, suggest=False))
    return Table(tuple(plans), tuple(refused))


def size_text(size: int) -> str:
    """Bytes as GiB, small ones as MiB or KiB: `1.25 GiB`."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB")):
        if size >= unit:
            return f"{size / unit:,.2f} {name}"
    return f"{size / 2**10:,.1f} KiB" if size else "0"


def _config(model: Any) -> Any:
    config = getattr(model, "config", None) or model
    if hasattr(config, "model_type"):
        return config
    return _named(str(model))


def _named(name: str | PathLike[str]) -> Any:
    """The configuration of a name or a folder; the registry knows more names than the Hub."""
    from transformers import AutoConfig

    from speechkit.llm import registry

    found: Any = getattr(registry, "resolve", None)
    location = found(name).location if found is not None else name
    try:
        return AutoConfig.from_pretrained(location)
    except (OSError, ValueError) as error:
        raise ModelError(f"{name!r} has no configuration that can be read: {error}") from error


def _found(config: Any, options: PlanOptions, hardware: Hardware | None) -> tuple[Counts, DryRun, Memory]:
    """Counts and a dry run, remembered: what several ranks share changes neither."""
    kind: Any = type(config)
    text = json.dumps(config.to_dict(), sort_keys=True, default=str)
    plain = PlanOptions(card="cpu")
    what = plain.replace(method=options.method, lora=options.lora, trained_dtype=options.trained_dtype)
    same = options.replace(
        ranks=1, nodes=1, accumulation=1, global_tokens=None, offload="none", nvme="", optimizer="adamw",
        quant="nf4", fill=1.0, max_len=None if options.packing else options.max_len,
        strategy=options.strategy if options.strategy in ("zero2", "zero3") else "one",
    )  # fmt: skip
    counts, dry = _counts(kind, text, what), _dry(kind, text, same, hardware)
    return counts, dry, per_rank(counts, dry, options)


@functools.lru_cache(maxsize=64)
def _counts(kind: Any, config: str, options: PlanOptions) -> Counts:
    from speechkit.llm.dry_run import counts_of

    with _no_such_model(kind):
        return counts_of(kind.from_dict(json.loads(config)), options)


@functools.lru_cache(maxsize=64)
def _dry(kind: Any, config: str, options: PlanOptions, hardware: Hardware | None) -> DryRun:
    from speechkit.llm.dry_run import dry_run

    with _no_such_model(kind):
        return dry_run(kind.from_dict(json.loads(config)), options, hardware)


@contextlib.contextmanager
def _no_such_model(kind: Any) -> Iterator[None]:
    try:
        yield
    except SpeechkitError:
        raise
    except (ValueError, KeyError, AttributeError) as error:
        raise ModelError(f"no model can be planned from this configuration ({kind.__name__}): {error}") from error


def _fitting(config: Any, options: PlanOptions, hardware: Hardware | None, usable: int) -> int | None:
    """The largest power of two of tokens that fits; activations grow in proportion, found from two sizes."""
    low, high = options.max_len or 256, 4 * (options.max_len or 256)
    totals = []
    for tokens in (low, high):
        one = options.replace(batch_tokens=tokens, max_len=min(options.max_len or tokens, tokens))
        totals.append(_found(config, one, hardware)[2].total)
    slope = max(totals[1] - totals[0], 1) / (high - low)
    most = low + (usable - totals[0]) / slope
    if most < low and totals[0] > usable:
        return None
    return int(1 << (int(max(most, 1)).bit_length() - 1))


def _accumulation(options: PlanOptions) -> int | None:
    """Batches per rank and update for the tokens that were asked for; useful ones, where rows are padded."""
    if options.global_tokens is None:
        return None
    useful = options.batch_tokens * (1.0 if options.packing else options.fill)
    return max(1, round(options.global_tokens / (useful * options.ranks)))


def _notes(options: PlanOptions, dry: DryRun, card: Gpu | None) -> tuple[str, ...]:
    notes = []
    if options.kernels and card is not None and not dry.compiled:
        notes.append(f"kernels do not run compiled on {card.name}: counted by their definitions")
    if options.kernels and options.strategy == "zero3":
        notes.append(
            "the head is in pieces under ZeRO-3: transformers' own loss, with all logits; trl's, in chunks, takes less"
        )
    if options.optimizer.startswith("paged"):
        notes.append("the optimizer pages out when the GPU is full, and is not part of the total")
    rest = "the interpreter and its libraries" if card is None else "CUDA's context and gaps"
    return (*notes, MEASURED.format(rest))


def _verdict(found: Plan) -> list[str]:
    """What the table ends with: whether it fits, and what would."""
    lines = []
    if found.card is not None and found.usable is not None:
        word = "fits" if found.fits else "does not fit"
        lines.append(
            f"  {word} {found.card.name}: {size_text(found.usable)} of {found.card.memory_gib:g} GiB are for tensors"
        )
        if found.batch_tokens is None:
            lines.append("  not even a small batch fits: shard (zero3, fsdp2), quantise (qlora) or offload")
        else:
            lines.append(f"  up to {found.batch_tokens:,} tokens a batch would fit")
    if found.accumulation is not None:
        seen = found.options.batch_tokens * found.options.ranks * found.accumulation
        useful = int(seen * (1.0 if found.options.packing else found.options.fill))
        lines.append(f"  accumulation {found.accumulation}: {useful:,} useful tokens an update")
    return lines
