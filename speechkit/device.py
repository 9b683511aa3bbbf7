"""Where and how to compute. In: a wish (`"auto"` or a name) and what the machine has. Out: a choice and its reason.

The rules are pure functions of :class:`Hardware`, so the choice for a T4 or an H200 can be checked on a laptop. Only
:func:`detect` looks at the machine, and only it imports torch.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from speechkit.errors import PlanError

__all__ = [
    "DTYPES",
    "Choice",
    "Gpu",
    "Hardware",
    "choose_device",
    "choose_dtype",
    "choose_threads",
    "cpu_cores",
    "detect",
]

DTYPES = ("float32", "float16", "bfloat16")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Choice(Generic[T]):
    """A value and why it was chosen."""

    value: T
    reason: str

    def __str__(self) -> str:
        return f"{self.value} ({self.reason})"


@dataclass(frozen=True, slots=True)
class Gpu:
    """One CUDA device."""

    name: str
    capability: tuple[int, int]  # compute capability: T4 (7, 5), A100 (8, 0), H200 (9, 0)
    memory_gib: float


@dataclass(frozen=True, slots=True)
class Hardware:
    """What this process may use."""

    cores: int
    gpus: tuple[Gpu, ...] = ()
    mps: bool = False  # Apple's GPU
    note: str = ""  # why a GPU that may be there cannot be used

    def __str__(self) -> str:
        """`2 × Tesla T4, 15 GiB`, `2 CPU cores`: for a record of what a run was made on."""
        if self.gpus:
            alike = f"{len(self.gpus)} × " if len(self.gpus) > 1 else ""
            return f"{alike}{self.gpus[0].name}, {self.gpus[0].memory_gib:.0f} GiB"
        return "Apple GPU" if self.mps else f"{self.cores} CPU core{'s' * (self.cores != 1)}"


def detect() -> Hardware:
    """Look at this machine. Imports torch (about two seconds the first time)."""
    import torch

    if not torch.cuda.is_available():
        build = "this torch is built without CUDA" if torch.version.cuda is None else "torch finds no CUDA device"
        return Hardware(cpu_cores(), mps=torch.backends.mps.is_available(), note=build)
    gpus = []
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        gpus.append(Gpu(facts.name, (facts.major, facts.minor), facts.total_memory / 2**30))
    return Hardware(cpu_cores(), tuple(gpus))


def choose_device(device: str = "auto", hardware: Hardware | None = None) -> Choice[str]:
    """`"auto"`, `"cpu"`, `"cuda"`, `"cuda:1"` or `"mps"` → a torch device name.

    Raises:
        PlanError: the name is unknown, or the device is not there.
    """
    if device == "cpu":
        return Choice("cpu", "asked for")
    kind, _, number = device.partition(":")
    if kind not in ("auto", "cuda", "mps") or (number and (kind != "cuda" or not number.isdecimal())):
        raise PlanError(f'device is {device!r}; it can be "auto", "cpu", "cuda", "cuda:1" (any number) or "mps"')
    have = hardware or detect()
    if kind == "auto":
        return _best_device(have)
    if kind == "mps":
        if not have.mps:
            raise PlanError('device is "mps", but torch finds no Apple GPU here; use device="auto" or "cpu"')
        return Choice("mps", "asked for")
    if int(number or 0) >= len(have.gpus):
        found = ", ".join(f"cuda:{i} {gpu.name}" for i, gpu in enumerate(have.gpus)) or have.note or "no CUDA device"
        raise PlanError(f'device is {device!r}, but the machine has: {found}; use device="auto" or "cpu"')
    return Choice(device, "asked for")


def choose_dtype(device: str, dtype: str = "auto", hardware: Hardware | None = None) -> Choice[str]:
    """Precision of a speech model's weights on `device` (a name from :func:`choose_device`).

    `"auto"` is float32 on a CPU, where half precision is slower, and float16 on a GPU with tensor cores for it
    (capability 7.0 and later). Not bfloat16: inference needs the three extra bits of float16's mantissa more than
    the range, and a T4 has no bfloat16 units.

    Raises:
        PlanError: the name is unknown, or the device cannot compute in it.
    """
    if dtype not in ("auto", *DTYPES):
        raise PlanError(f'dtype is {dtype!r}; it can be "auto", {", ".join(repr(name) for name in DTYPES)}')
    kind, _, number = device.partition(":")
    if kind != "cuda":
        if dtype != "auto":
            return Choice(dtype, "asked for")
        return Choice("float32", f"half precision is not faster on {kind}")
    gpu = (hardware or detect()).gpus[int(number or 0)]
    major, minor = gpu.capability
    if dtype == "bfloat16" and major < 8:
        raise PlanError(f'dtype is "bfloat16", but {gpu.name} (capability {major}.{minor}) has none; use "float16"')
    if dtype != "auto":
        return Choice(dtype, "asked for")
    if major >= 7:
        return Choice("float16", f"{gpu.name} has float16 tensor cores")
    return Choice("float32", f"{gpu.name} (capability {major}.{minor}) has no float16 tensor cores")


def choose_threads(threads: int | str = "auto", hardware: Hardware | None = None) -> Choice[int]:
    """Threads for CPU work: a positive number, or `"auto"` for one per core that this process may use."""
    cores = hardware.cores if hardware else cpu_cores()
    if threads == "auto":
        return Choice(cores, f"{cores} core{'s' * (cores != 1)} may be used by this process")
    if not isinstance(threads, int) or threads < 1:
        raise PlanError(f'threads is {threads!r}; it can be "auto" or a whole number from 1')
    return Choice(threads, "asked for")


def cpu_cores(cgroup: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Cores this process may use: its affinity, cut by a container's quota (`docker --cpus=2` on a large machine)."""
    affinity = getattr(os, "sched_getaffinity", None)  # absent on macOS and Windows
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    try:
        quota, period = cgroup.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


def _best_device(have: Hardware) -> Choice[str]:
    if have.gpus:
        gpu = have.gpus[0]
        return Choice("cuda", f"{gpu.name}, {gpu.memory_gib:.0f} GiB")
    if have.mps:
        return Choice("mps", "Apple GPU")
    return Choice("cpu", have.note or "no GPU")
