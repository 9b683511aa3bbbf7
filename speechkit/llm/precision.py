"""In which floating-point numbers a language model computes. In: device, wish, family. Out: a choice with its reason.

Not speech's rule (`device.choose_dtype`): here weights are trained as well, and bfloat16 has float32's range, so that
neither activations nor gradients overflow; float16 is for GPUs without bfloat16 units.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from speechkit.device import DTYPES, Choice, Gpu, Hardware, detect
from speechkit.errors import PlanError

if TYPE_CHECKING:
    from speechkit.llm.families import Family

__all__ = ["choose_llm_dtype", "choose_llm_precision", "gpu_of"]


def choose_llm_dtype(
    device: str, dtype: str = "auto", family: Family | None = None, hardware: Hardware | None = None
) -> Choice[str]:
    """Precision on `device` (a name from `device.choose_device`): float32 on a CPU, bfloat16 from sm_80, else float16.

    A family whose states leave float16's range gets float32 where there is no bfloat16.

    Raises PlanError: the name is unknown, the device cannot compute in it, or the family overflows in it.
    """
    if dtype not in ("auto", *DTYPES):
        raise PlanError(f'dtype is {dtype!r}; it can be "auto", {", ".join(repr(name) for name in DTYPES)}')
    overflows = family.float16 if family else ""
    name = family.name if family else ""
    gpu = gpu_of(device, hardware)
    if dtype == "bfloat16" and gpu is not None and gpu.capability < (8, 0):
        use = '"float32"' if overflows else '"float16"'
        raise PlanError(f'dtype is "bfloat16", but {described(gpu)} has none; use {use}')
    if dtype == "float16" and overflows:
        use = '"float32"' if gpu is not None and gpu.capability < (8, 0) else '"bfloat16" or "float32"'
        raise PlanError(f'dtype is "float16", but of {name} {overflows}; use {use}')
    if dtype != "auto":
        return Choice(dtype, "asked for")
    if gpu is None:
        return Choice("float32", f"half precision is not faster on {device.partition(':')[0]}")
    if gpu.capability >= (8, 0):
        return Choice("bfloat16", f"{described(gpu)} computes in it, with float32's range")
    if gpu.capability < (7, 0):
        return Choice("float32", f"{described(gpu)} has no float16 tensor cores")
    if overflows:
        return Choice("float32", f"{described(gpu)} has no bfloat16, and in float16 {overflows} ({name})")
    return Choice("float16", f"{described(gpu)} has no bfloat16")


def choose_llm_precision(
    device: str, precision: str = "auto", family: Family | None = None, hardware: Hardware | None = None
) -> Choice[str]:
    """Of the multiplications of training, whose weights are float32: speech's rule, but for families that overflow.

    Raises PlanError: the name is unknown, the device cannot train in it, or the family overflows in it.
    """
    from speechkit.training.precision import choose_precision

    found = choose_precision(device, precision, hardware)
    if found.value != "float16" or family is None or not family.float16:
        return found
    if precision == "float16":
        raise PlanError(f'precision is "float16", but of {family.name} {family.float16}; use "auto" or "float32"')
    return choose_llm_dtype(device, "auto", family, hardware)


def gpu_of(device: str, hardware: Hardware | None = None) -> Gpu | None:
    """The CUDA device of this name; None for a CPU or Apple's GPU."""
    kind, _, number = device.partition(":")
    if kind != "cuda":
        return None
    return (hardware or detect()).gpus[int(number or 0)]


def described(gpu: Gpu) -> str:
    return f"{gpu.name} (sm_{gpu.capability[0]}{gpu.capability[1]})"
