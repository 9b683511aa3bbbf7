"""Pairs of settings that are known not to work together, each with the reason and a way out. In: options, hardware.

Pure functions of both, so that a plan for an H200 can be judged on a laptop; imports no torch. Where the reason is
somebody's bug, the thread is named in which it is told, to look up whether it still holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from speechkit.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from speechkit.device import Hardware
    from speechkit.llm.plan_options import PlanOptions

__all__ = ["Refusal", "refusals", "valid"]

MIN_BF16 = (8, 0)  # compute capability of the first cards with bfloat16 units
GEMMA = ("gemma", "gemma2", "gemma3", "gemma3_text")


@dataclass(frozen=True)
class Refusal:
    """One pair that does not work."""

    pair: str  # the two settings
    reason: str  # why not
    instead: str  # what does work

    def __str__(self) -> str:
        return f"{self.pair}: {self.reason}. Take {self.instead}"


def valid(options: PlanOptions, hardware: Hardware | None = None, model_type: str = "") -> None:
    """Raise PlanError with all the reasons for which this run cannot work; quiet where it can.

    `hardware` is what is there (None: what the options name, or this machine); `model_type` is the configuration's,
    for rules about families.
    """
    if found := refusals(options, hardware, model_type):
        raise PlanError("\n".join(map(str, found)))


def refusals(options: PlanOptions, hardware: Hardware | None = None, model_type: str = "") -> tuple[Refusal, ...]:
    """All known reasons against this run; empty where there is none."""
    from speechkit.llm.plan_options import hardware_for

    there = hardware_for(options, hardware)
    found = [one for rule in _RULES for one in rule(options, there)]
    return (*found, *_family(options, model_type))


def _quantised(o: PlanOptions, _: Hardware) -> Iterator[Refusal]:
    if o.method != "qlora":
        return
    if o.strategy == "zero3":
        yield Refusal(
            "qlora with zero3",
            "ZeRO-3 cuts weights into flat pieces and knows nothing of the scales that stand beside 4-bit ones, so "
            "that each rank loads the whole model or the pieces cannot be put together again (transformers#26412, "
            "peft#1418, bitsandbytes#1249)",
            "zero2 with qlora (each rank holds the base, which is small at 4 bits), or zero3 with lora",
        )
    if o.strategy == "fsdp2" and o.quant == "int8":
        yield Refusal(
            "int8 base with fsdp2", "weights of bytes cannot be parameters that fully_shard cuts", "quant nf4, or zero2"
        )
    elif o.strategy == "fsdp2":
        yield Refusal(
            "qlora with fsdp2",
            "fully_shard makes plain tensors of the pieces, without the scales that belong to 4-bit weights, and of "
            "weights that lie in bytes none at all (accelerate#3874, #3983)",
            "zero2 with qlora (each rank holds the base, which is small at 4 bits), or fsdp2 with lora",
        )
    if o.offload == "parameters":
        yield Refusal(
            "qlora with parameters offloaded",
            "bitsandbytes quantises a weight anew each time it comes to the GPU",
            "offload optimizer, or lora",
        )


def _optimizers(o: PlanOptions, there: Hardware) -> Iterator[Refusal]:
    eight, paged = o.optimizer.endswith("8bit"), o.optimizer.startswith("paged")
    if (eight or paged) and o.offload != "none" and o.strategy in ("zero2", "zero3"):
        yield Refusal(
            f"{o.optimizer} with offload",
            "what is offloaded is updated on the CPU by DeepSpeed's own Adam, which is not bitsandbytes'",
            "optimizer adamw with the offload, or no offload",
        )
    if eight and o.strategy == "fsdp2":
        yield Refusal(
            f"{o.optimizer} with fsdp2",
            "bitsandbytes' kernels take the pieces of sharded parameters (DTensor) for whole tensors and write beyond "
            "their end (bitsandbytes#89, #1633)",
            "optimizer adamw (it is sharded), or zero2",
        )
    if not there.gpus and paged:
        yield Refusal(
            f"{o.optimizer} without an NVIDIA GPU",
            "it pages between a GPU's memory and main memory",
            f"optimizer {o.optimizer.removeprefix('paged_')}, which makes the same updates",
        )


def _precision(o: PlanOptions, there: Hardware) -> Iterator[Refusal]:
    card = there.gpus[0] if there.gpus else None
    if card is not None and o.dtype == "bfloat16" and card.capability < MIN_BF16:
        yield Refusal(
            f"bfloat16 on {card.name}",
            f"a card of compute capability {card.capability[0]}.{card.capability[1]} has no units for it (8.0 and "
            "later have): it would be emulated, many times slower",
            "dtype float16",
        )
    if card is None and o.dtype == "float16":
        yield Refusal("float16 on a CPU", "there is no loss scaling without a GPU", "dtype float32")
    if o.trained_dtype == "float16":
        yield Refusal(
            "trained_dtype float16",
            "gradients in float16 cannot be unscaled, and updates smaller than a thousandth of a weight vanish",
            "trained_dtype float32 (dtype may stay float16)",
        )


def _family(o: PlanOptions, model_type: str) -> Iterator[Refusal]:
    if model_type in GEMMA and o.dtype == "float16":
        yield Refusal(
            "float16 with Gemma",
            "its hidden states grow beyond 65,504, the largest float16, and the loss becomes NaN",
            "dtype bfloat16 on a card that has it (not a T4), or float32",
        )


def _ranks(o: PlanOptions, there: Hardware) -> Iterator[Refusal]:
    if o.strategy == "one" and o.ranks > 1:
        yield Refusal(
            f"strategy one with {o.ranks} ranks",
            "one GPU has one process" if there.gpus else "it is one process",
            "zero2, zero3 or fsdp2, or 1 rank" if there.gpus else "zero2 or zero3, or 1 rank",
        )
    if o.strategy == "fsdp2" and o.ranks == 1:
        yield Refusal("fsdp2 with 1 rank", "there is nobody to share with", "strategy one, or more ranks")
    if o.strategy in ("zero2", "zero3") and o.ranks == 1 and o.offload == "none":
        yield Refusal(f"{o.strategy} with 1 rank", "there is nobody to share with", "strategy one, or an offload")
    each = o.ranks // o.nodes
    if there.gpus and each > len(there.gpus):
        yield Refusal(
            f"{each} ranks on a node with {len(there.gpus)} GPU{'s' * (len(there.gpus) > 1)}",
            "NCCL refuses two processes on one GPU",
            f"{len(there.gpus)} ranks a node",
        )
    if o.sharded and there.mps:
        yield Refusal(f"{o.strategy} on Apple's GPU", "it has no collectives", "strategy one")


def _offloads(o: PlanOptions, there: Hardware) -> Iterator[Refusal]:
    if o.offload != "none" and o.strategy == "one":
        yield Refusal(f"offload {o.offload} with strategy one", "DeepSpeed and FSDP offload", "zero2 with 1 rank")
    if o.offload == "parameters" and o.strategy == "zero2":
        yield Refusal(
            "parameters offloaded with zero2", "ZeRO-2 keeps all weights on every GPU", "zero3, or offload optimizer"
        )
    if o.offload == "optimizer" and o.strategy == "fsdp2":
        yield Refusal(
            "the optimizer alone offloaded with fsdp2",
            "FSDP's offload moves parameters, gradients and optimizer together",
            "offload parameters, or zero2",
        )
    if o.nvme and (o.strategy != "zero3" or o.offload == "none"):
        yield Refusal("nvme without zero3's offload", "only ZeRO-3 writes to a disk", "zero3 with an offload")
    if o.nvme and not there.gpus:
        yield Refusal("nvme on a CPU", "memory that is read by the CPU anyway is not worth a disk", "no nvme")
    if o.checkpointing == "offload" and not there.gpus:
        yield Refusal(
            "checkpointing offload on a CPU", "activations lie in main memory already", "checkpointing layers"
        )


def _adapters(o: PlanOptions, _: Hardware) -> Iterator[Refusal]:
    if o.method == "full" or not o.lora.dora:
        return
    if o.strategy in ("zero3", "fsdp2"):
        yield Refusal(
            f"DoRA with {o.strategy}",
            "it takes the norm of each whole weight, of which a rank has a piece",
            "dora False (rslora is no trouble), or zero2",
        )


_RULES: tuple[Callable[[PlanOptions, Hardware], Iterator[Refusal]], ...] = (
    _ranks, _quantised, _optimizers, _precision, _offloads, _adapters,
)  # fmt: skip
