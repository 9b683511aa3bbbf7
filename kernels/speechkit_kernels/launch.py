"""Where a kernel can run, and what happens where it cannot. In: tensors or what is known of them. Out: decisions.

Every decision is a value with its reason, made by a pure function of what the hardware is, so that it can be tested for
hardware that is not there. Knows no kernel. Triton is imported late: where it is absent the definitions serve.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import lru_cache, wraps
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "Hardware",
    "Support",
    "block_of",
    "each_of",
    "hardware_of",
    "on_its_device",
    "programs",
    "rows_of",
    "stages_of",
    "support",
    "use_kernel",
]

Given = ParamSpec("Given")
Result = TypeVar("Result")

OLDEST = (7, 5)  # T4: not supported by Triton any more, elementwise kernels compile
MATMUL = (8, 0)  # below, every tl.dot is lowered to FMA (triton PR 5066)
FP8 = (8, 9)
WIDEST = 65_536  # elements of a row that one program holds


class Support(NamedTuple):
    """Whether, and why (not)."""

    value: bool
    reason: str


@dataclass(frozen=True)
class Hardware:
    """What decides whether a kernel can run."""

    kind: str  # torch's device type
    capability: tuple[int, int] | None = None  # of an NVIDIA GPU
    name: str = ""
    interpreted: bool = False  # TRITON_INTERPRET=1: kernels run on CPU tensors, in NumPy
    triton: bool = True  # whether it can be imported

    def __str__(self) -> str:
        if self.capability is None:
            return self.name or self.kind
        return f"{self.name or self.kind} (sm_{self.capability[0]}{self.capability[1]})"


def hardware_of(device: torch.device) -> Hardware:
    """What `device` is, as this process finds it."""
    there, interpreted = _triton_here()
    if device.type != "cuda" or torch.version.cuda is None:
        return Hardware(device.type, None, "", interpreted, there)
    index = device.index if device.index is not None else torch.cuda.current_device()
    capability, name = _card(index)
    return Hardware("cuda", capability, name, interpreted, there)


def support(hardware: Hardware, dtype: torch.dtype, *, matmul: bool = False) -> Support:
    """Whether a kernel on values of `dtype` can run there; `matmul` for kernels with a `tl.dot` inside."""
    if not hardware.triton:
        return Support(False, "triton is not installed")
    if hardware.interpreted:
        return Support(hardware.kind == "cpu", "Triton's interpreter runs kernels on CPU tensors")
    if hardware.kind == "cpu":
        return Support(False, "on a CPU the definition is the fast path")
    if hardware.capability is None:
        return Support(False, f"no kernel was written for {hardware}")
    if hardware.capability < OLDEST:
        return Support(False, f"{hardware} is older than sm_75")
    if dtype == torch.bfloat16 and hardware.capability < MATMUL:
        return Support(False, f"{hardware} has no bfloat16")
    if matmul and hardware.capability < MATMUL:
        return Support(False, f"a matrix product in Triton uses no tensor cores on {hardware}")
    return Support(True, f"compiled for {hardware}")


def use_kernel(name: str, x: torch.Tensor, *, matmul: bool = False, width: int = 0) -> bool:
    """Whether kernel `name` runs on `x`; on a GPU that it cannot use one warning says why the definition does.

    width: elements of a row that one program must hold.
    """
    hardware = hardware_of(x.device)
    found = support(hardware, x.dtype, matmul=matmul)
    if found.value and width > WIDEST:
        found = Support(False, f"a row of {width:,} elements is more than the {WIDEST:,} that one program holds")
    if not found.value and (hardware.kind != "cpu" or hardware.interpreted):
        _warn_once(name, found.reason)
    return found.value


def on_its_device(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """A public function whose kernels are launched on the first GPU among its arguments, also where another is current.

    A backward pass needs no such care: autograd runs it with the device of the forward pass current.
    """

    @wraps(function)
    def called(*args: Given.args, **options: Given.kwargs) -> Result:
        for given in chain(args, options.values()):
            device = getattr(given, "device", None)
            if isinstance(device, torch.device) and device.type == "cuda":
                with torch.cuda.device(device):
                    return function(*args, **options)
        return function(*args, **options)

    return called


def rows_of(x: torch.Tensor) -> torch.Tensor:
    """(…, H) → (M, H) whose rows lie one element beside the next; a view where that is possible."""
    flat = x.reshape(-1, x.shape[-1])
    return flat if flat.stride(-1) == 1 or flat.shape[-1] == 1 else flat.contiguous()


def block_of(width: int) -> int:
    """The power of two that holds `width` elements; Triton's blocks have no other sizes."""
    return 1 << max(0, width - 1).bit_length()


def warps_of(block: int) -> int:
    """Warps for one row of `block` elements: 8 to 16 elements a thread keeps loads wide and registers few."""
    return min(16, max(1, block // 512))


def each_of(block: int) -> int:
    """Programs of one row at a time that a multiprocessor is given: 16 warps, within what partial sums may cost."""
    return min(8, max(2, 16 // warps_of(block)))


def stages_of(width: int, *rows: torch.Tensor) -> int:
    """Rows of `width` elements that a loop has in flight, +1: while one is summed up the next ones are on their way.

    At most 64 KiB of shared memory, so that two programs fit; copied without registers only in pieces of 16 bytes.
    """
    size = width * sum(x.itemsize for x in rows)
    if any(width * x.itemsize % 16 or x.stride(0) * x.itemsize % 16 for x in rows):
        return 1
    return max(1, min(3, 1 + 65_536 // max(size, 1)))


def programs(device: torch.device, rows: int, each: int = 4) -> int:
    """Programs that share `rows` between them, `each` to a multiprocessor, so that partial sums stay few."""
    if device.type != "cuda":
        return max(1, min(rows, 3))
    return max(1, min(rows, each * torch.cuda.get_device_properties(device).multi_processor_count))


def check_same(name: str, tensors: dict[str, torch.Tensor], floating: bool = True) -> None:
    """Raise ValueError unless all are on one device and, if asked, in a floating-point dtype."""
    first, one = next(iter(tensors.items()))
    for label, tensor in tensors.items():
        if tensor.device != one.device:
            raise ValueError(f"{name}: {label} is on {tensor.device}, {first} on {one.device}; put them on one device")
        if floating and (not tensor.is_floating_point() or tensor.itemsize < 2):
            raise ValueError(f"{name}: {label} is {tensor.dtype}; give float32, float16 or bfloat16")


def check_shape(name: str, label: str, tensor: torch.Tensor, wanted: Sequence[int]) -> None:
    """Raise ValueError for another shape."""
    if tuple(tensor.shape) != tuple(wanted):
        raise ValueError(f"{name}: {label} has shape {tuple(tensor.shape)}; wanted {tuple(wanted)}")


@lru_cache
def _triton() -> Any:
    try:
        import triton
    except ImportError:
        return None
    return triton


@torch.compiler.assume_constant_result  # torch.compile cannot follow how Triton reads its settings
def _triton_here() -> tuple[bool, bool]:
    """Whether it can be imported, and whether it interprets its kernels."""
    found = _triton()
    return found is not None, found is not None and bool(found.knobs.runtime.interpret)


@lru_cache
def _card(index: int) -> tuple[tuple[int, int], str]:
    return torch.cuda.get_device_capability(index), torch.cuda.get_device_name(index)


@lru_cache
def _warn_once(name: str, reason: str) -> None:
    warnings.warn(f"{name} runs by its definition in plain PyTorch: {reason}", RuntimeWarning, stacklevel=4)
