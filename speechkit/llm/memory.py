"""Bytes per rank of a training run, from counts and a dry run; pure.

In: `Counts`, `DryRun`, `PlanOptions`. Out: `Memory`.

What each strategy keeps on a GPU, with P weights, T of them trained, n ranks and e bytes an element of the run's dtype:

    one      weights P e, T at their own size; gradients T; optimizer two states of T
    zero2    weights P e (DeepSpeed has them all in the run's dtype); gradients T e / n, and as much again in float32
             when the weights change; a float32 copy and two states of T / n
    zero3    the same with P e / n, and what is gathered: up to LIVE elements; small ones stay whole
    fsdp2    P / n each at its own size; gathered: two blocks of the stack, embedding and head, in the run's dtype

The gradients of one block at a time are whole before they are divided, and DeepSpeed collects them in buckets.
Activations are those of one rank, whatever the strategy: it has batches of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from speechkit.llm.dry_run import Counts, DryRun, Moment
    from speechkit.llm.plan_options import PlanOptions

__all__ = ["Memory", "bucket_elements", "live_elements", "per_rank", "persistent_elements"]

SIZE = {"float32": 4, "bfloat16": 2, "float16": 2, "uint8": 1}
STATE_BLOCK = 256  # elements that share a scale in an 8-bit optimizer
STATE_LEAST = 4096  # elements below which it keeps float32


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank at its worst moment; they add up to `total`."""

    weights: int  # those that lie on the GPU, and what is gathered of the others
    gradients: int
    optimizer: int  # its states, with the float32 copy of weights that DeepSpeed keeps
    activations: int  # what is kept for backward and what is alive for a moment
    logits: int  # of the batch, or of a chunk of it
    host: int = field(default=0)  # in main memory or on a disk, not part of the total

    @property
    def total(self) -> int:
        """On the GPU."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits


def per_rank(counts: Counts, dry: DryRun, options: PlanOptions) -> Memory:
    """The memory of the worst moment: in forward, in backward, or when weights change."""
    weights, weights_out = _weights(counts, options)
    optimizer, optimizer_out = _optimizer(counts, options)
    moments = [(_gradients(moment, counts, options), moment) for moment in dry.moments]
    worst, at = max(moments, key=lambda one: one[0] + one[1].activations + one[1].logits)
    host = weights_out + optimizer_out
    memory = Memory(weights, worst, optimizer, at.activations, at.logits, host)
    change = Memory(weights, _gradients_at_change(counts, options), optimizer, 0, 0, host)
    return max(memory, change, key=lambda one: one.total)


def bucket_elements(counts: Counts) -> int:
    """Elements that DeepSpeed collects before it divides gradients: H², as transformers resolves "auto"."""
    return max(counts.hidden**2, 1)


def live_elements(counts: Counts) -> int:
    """Elements that ZeRO-3 may have gathered at once: two blocks of the stack, embedding and head."""
    return 2 * counts.largest_block + counts.outside


def persistent_elements(counts: Counts) -> int:
    """Elements up to which a weight stays whole on every rank under ZeRO-3: norms and biases."""
    return 10 * counts.hidden


def _quantised(counts: Counts, options: PlanOptions) -> int:
    """NF4 with its scales quantised again, a byte each for 64 weights; int8 with a float32 scale a row."""
    if options.quant == "int8":
        return counts.quantised + 4 * counts.outputs
    blocks = -(-counts.quantised // 64)
    return -(-counts.quantised // 2) + blocks + 4 * -(-blocks // STATE_BLOCK)


def _weights(counts: Counts, options: PlanOptions) -> tuple[int, int]:
    """On the GPU, and elsewhere."""
    size, own, trained = SIZE[options.dtype], SIZE[options.trained_dtype], sum(counts.trained)
    packed = _quantised(counts, options) if options.method == "qlora" else 0
    ranks = options.ranks
    if options.strategy == "one":
        return counts.frozen * size + trained * own + packed, 0
    if options.strategy == "zero2":
        return (counts.frozen + trained) * size + packed, 0
    if options.strategy == "zero3":
        share = (counts.frozen + trained) * size // ranks
        gathered = min(live_elements(counts), counts.frozen + trained) * size * (ranks > 1 or _moved(options))
        return (gathered, share) if _moved(options) else (share + gathered, 0)
    share = (counts.frozen * size + trained * own + packed) // ranks
    gathered = (2 * counts.largest_block + counts.outside) * size
    if options.method == "qlora":  # of a block, what is packed is gathered packed
        ratio = packed / max(counts.quantised * size, 1)
        gathered = int(2 * counts.largest_block * size * ratio) + counts.outside * size
    return (gathered, share) if _moved(options) else (share + gathered, 0)


def _moved(options: PlanOptions) -> bool:
    return options.offload == "parameters"


def _states(count: int, options: PlanOptions) -> int:
    """Bytes of Adam's two moments of one weight."""
    if "8bit" not in options.optimizer or count < STATE_LEAST:
        return 2 * count * SIZE[options.trained_dtype if options.strategy in ("one", "fsdp2") else "float32"]
    return 2 * (count + 4 * -(-count // STATE_BLOCK))


def _optimizer(counts: Counts, options: PlanOptions) -> tuple[int, int]:
    """On the GPU, and elsewhere: offloaded, or paged out when the GPU is full."""
    states = sum(_states(count, options) for count in counts.trained)
    if options.strategy in ("zero2", "zero3"):
        states += 4 * sum(counts.trained)  # the float32 copy that is updated
    share = states // options.ranks if options.sharded else states
    elsewhere = options.offload != "none" or options.optimizer.startswith("paged")
    return (0, share) if elsewhere else (share, 0)


def _gradients(moment: Moment, counts: Counts, options: PlanOptions) -> int:
    """At a moment of one step: what there is so far, or all where batches are added up."""
    trained = sum(counts.trained)
    own = SIZE[options.trained_dtype]
    so_far = trained if options.accumulation > 1 else moment.gradients // own
    if options.strategy == "one":
        return so_far * own
    block = min(trained, max(counts.trained, default=0) + _trained_of_block(counts))
    if options.strategy == "fsdp2":
        share = 0 if _moved(options) else so_far * own // options.ranks
        return share + (block * SIZE[options.dtype] if moment.gradients else 0)
    size = SIZE[options.dtype]
    share = 0 if options.offload != "none" else so_far * size // options.ranks
    return share + min(bucket_elements(counts), trained) * size * (1 if moment.gradients else 0)


def _trained_of_block(counts: Counts) -> int:
    return sum(counts.trained) // max(counts.layers, 1)


def _gradients_at_change(counts: Counts, options: PlanOptions) -> int:
    """When the optimizer has all gradients: DeepSpeed makes them float32 beside what they were."""
    trained = sum(counts.trained)
    if options.strategy == "one":
        return trained * SIZE[options.trained_dtype]
    if options.offload != "none":
        return 0
    if options.strategy == "fsdp2":
        return trained * SIZE[options.trained_dtype] // options.ranks
    extra = 0 if options.dtype == "float32" else 4
    return trained * (SIZE[options.dtype] + extra) // options.ranks
