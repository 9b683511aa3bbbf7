"""Which number format the multiplications of a training step use. In: device and wish. Out: a choice and its reason.

Weights and their updates stay float32 in every case (mixed precision: Micikevicius et al. 2018, arXiv:1710.03740), and
so does CTC, whose sums of products over hundreds of frames leave the range of float16.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from speechkit.device import DTYPES, Choice, detect
from speechkit.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Collection

    from speechkit.device import Hardware

__all__ = ["choose_precision", "cpu_features"]

CPU_BF16 = ("amx_bf16", "avx512_bf16")  # instructions that multiply bfloat16 in hardware


def choose_precision(
    device: str, precision: str = "auto", hardware: Hardware | None = None, features: Collection[str] | None = None
) -> Choice[str]:
    """`"auto"`, `"float32"`, `"bfloat16"` or `"float16"` on `device` (a name from `choose_device`) → what to use.

    `hardware` and `features` (names as `cpu_features` gives them) default to this machine's.

    Raises:
        PlanError: the name is unknown, or the device cannot train in it.
    """
    if precision not in ("auto", *DTYPES):
        allowed = ", ".join(repr(name) for name in ("auto", *DTYPES))
        raise PlanError(f"precision is {precision!r}; it can be {allowed}")
    kind, _, number = device.partition(":")
    if precision == "float32":
        return Choice("float32", "asked for")
    if kind == "cuda":
        gpu = (hardware or detect()).gpus[int(number or 0)]
        return _on_gpu(gpu.name, gpu.capability, precision)
    if precision == "float16":
        raise PlanError(f'precision is "float16", which {kind} cannot train in; use "auto", "bfloat16" or "float32"')
    if precision == "bfloat16":
        return Choice("bfloat16", "asked for")
    if kind != "cpu":
        return Choice("float32", f"mixed precision brings nothing on {kind}")
    have = cpu_features() if features is None else features
    fast = next((name for name in CPU_BF16 if name in have), None)
    # bfloat16 in a short run of a small model costs more words than it saves time: notebook 04 missed its gain with it
    units = f'{fast} would be faster with precision="bfloat16", but coarser' if fast else "no bfloat16 units"
    return Choice("float32", f"exact on a CPU ({units})")


def cpu_features() -> frozenset[str]:
    """Names of the instruction sets of this CPU that torch knows of; empty where it cannot tell."""
    import torch

    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return frozenset(name for name, present in known.items() if present is True)


def _on_gpu(name: str, capability: tuple[int, int], precision: str) -> Choice[str]:
    shown = f"{name} (capability {capability[0]}.{capability[1]})"
    if precision == "bfloat16" and capability < (8, 0):
        raise PlanError(f'precision is "bfloat16", but {shown} has none; use "float16" or "auto"')
    if precision != "auto":
        return Choice(precision, "asked for")
    if capability >= (8, 0):
        return Choice("bfloat16", f"{name} has bfloat16 tensor cores, and its range needs no loss scaling")
    if capability >= (7, 0):
        return Choice("float16", f"{name} has float16 tensor cores and no bfloat16; the loss is scaled")
    return Choice("float32", f"{shown} has no tensor cores for half precision")
