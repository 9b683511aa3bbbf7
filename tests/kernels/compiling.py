"""Kernels through the real compiler for NVIDIA cards that are not here, as their own launchers would launch them.

In: which launches (launches.py) on which cards. Out: a `Compiled` for each kernel that they start. Nothing is computed:
tensors are torch's fake ones, which have shapes and a device and no memory; a card is what the launchers ask of it; and
where a kernel would start, its types, constants and options are noted. So no constant is repeated here by hand.

Runs as a script of its own, because Triton decides on interpreting when it is imported. ptxas comes with Triton.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HERE = Path(__file__).parent
Card = tuple[int, int]
MULTIPROCESSORS: dict[Card, int] = {(7, 5): 40, (8, 0): 108, (8, 9): 58, (9, 0): 132}  # T4, A100, L4, H200
CARDS = list(MULTIPROCESSORS)
SHORT = {
    "float64": "fp64", "float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "float8_e4m3fn": "fp8e4nv",
    "int64": "i64", "int32": "i32", "int8": "i8", "uint8": "u8", "bool": "i1",
}  # fmt: skip
ALL = [
    ("launches", name)
    for name in """rms_norms layer_norms ropes gated_units cross_entropies four_bits four_bit_products low_rank_products
    eight_bit_products attentions attentions_of_documents attentions_in_float32 paged_attentions feature_encoders
    positional_convolutions quantisers decodings k_quants""".split()
]


@dataclass(frozen=True)
class Compiled:
    """What the compiler made of one launch, or why it made nothing."""

    kernel: str  # "module._name"
    card: str  # "sm_90"
    launch: str  # the first of launches.py that starts it so
    constants: dict[str, str]
    types: str  # of the other parameters
    warps: int = 0
    stages: int = 0
    registers: int = 0  # a thread
    spilled: int = 0  # bytes a thread
    shared: int = 0  # bytes
    product: str = ""  # "wgmma", "mma" or none
    error: str = ""
    ttir: str = ""  # where texts were asked for: Triton's own form, in which nothing is lowered yet
    ptx: str = ""

    def __str__(self) -> str:
        found = f"{self.registers} registers, {self.spilled} bytes spilled, {self.shared} bytes shared {self.product}"
        about = ", ".join(f"{name}={value}" for name, value in self.constants.items())
        return f"{self.kernel} {self.card} ({self.launch}; {self.warps} warps, {about}): {self.error or found}"


def named(card: Card) -> str:
    return f"sm_{card[0]}{card[1]}"


def compiled(launches: Sequence[tuple[str, str]], cards: Sequence[Card], *, texts: bool = False) -> list[Compiled]:
    """Every kernel that functions ("module", "name"), modules beside this file, start on each card."""
    paths = [str(HERE.parents[1] / "kernels"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(paths)}
    command, asked = [sys.executable, str(HERE / "compiling.py"), "answer"], json.dumps([launches, cards, texts])
    done = subprocess.run(
        command, input=asked, text=True, env=environment, capture_output=True, timeout=1200, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [Compiled(**found) for found in json.loads(done.stdout.splitlines()[-1])]


class Context(SimpleNamespace):
    """What an autograd Function is given, without autograd, whose engine wants a device that exists."""

    def save_for_backward(self, *tensors: Any) -> None:
        self.saved_tensors = tensors

    def mark_non_differentiable(self, *tensors: Any) -> None: ...

    def set_materialize_grads(self, value: bool) -> None: ...


def through(function: Any, *args: Any) -> Any:
    """In place of `Function.apply`: forward and, if one of the arguments wants a gradient, backward at once."""
    import torch

    context = Context(needs_input_grad=tuple(getattr(x, "requires_grad", False) for x in args))
    with torch.no_grad():
        found = function.forward(context, *args)
        if any(context.needs_input_grad):
            outputs = found if isinstance(found, tuple) else (found,)
            function.backward(context, *(torch.empty_like(y) if y.is_floating_point() else None for y in outputs))
    return found


def types_of(kernel: Any, args: tuple[Any, ...], options: dict[str, Any]) -> tuple[dict[str, str], dict, dict]:
    """The types, constants and divisibilities that Triton compiles for these arguments; constants leave `options`."""
    import torch

    given = dict(zip(kernel.arg_names, args, strict=False))
    given |= {name: options.pop(name) for name in kernel.arg_names if name in options}
    types, constants, divisible = {}, {}, {}
    for at, parameter in enumerate(kernel.params):
        name, value, even = parameter.name, given[parameter.name], False
        if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1):
            types[name], constants[(at,)] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            types[name] = f"*{SHORT[str(value.dtype).removeprefix('torch.')]}"
            even = value.storage_offset() * value.element_size() % 16 == 0
        elif isinstance(value, float):
            types[name] = "fp32"
        else:
            types[name], even = "i32" if -(2**31) <= value < 2**31 else "i64", value % 16 == 0
        if even:
            divisible[(at,)] = [["tt.divisibility", 16]]
    return types, constants, divisible


@contextlib.contextmanager
def noted(card: Card, notes: list[Any]) -> Iterator[None]:
    """Launchers find `card`, and each kernel that they start is a note: itself, types, constants, …, options."""
    import torch
    from speechkit_kernels import launch
    from triton.runtime.jit import JITFunction

    def started(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        notes.append((kernel, *types_of(kernel, args, options), options))

    properties = SimpleNamespace(multi_processor_count=MULTIPROCESSORS[card])
    launch._card = lambda index: (card, named(card))
    JITFunction.run = started
    torch.autograd.Function.apply = classmethod(through)
    torch.cuda.device = lambda device: contextlib.nullcontext()
    torch.cuda.current_device = lambda: 0
    torch.cuda.current_stream = lambda device: SimpleNamespace(cuda_stream=0)
    torch.cuda.get_device_properties = lambda device: properties
    with fakes():
        yield


@cache
def fakes() -> Any:
    """The one mode of this process: tables that the package keeps serve the next launch too."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode()


def compile_note(note: tuple[Any, ...], card: Card, launch: str, texts: bool = False) -> Compiled:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, types, constants, divisible, options = note
    name = f"{kernel.fn.__module__.removeprefix('speechkit_kernels.')}.{kernel.fn.__name__}"
    told = {kernel.arg_names[at]: str(value) for (at,), value in constants.items()}
    rest = ", ".join(dict.fromkeys(kind for kind in types.values() if kind != "constexpr"))
    about: dict[str, Any] = {"kernel": name, "card": named(card), "launch": launch, "constants": told}
    source = ASTSource(kernel, signature=types, constexprs=constants, attrs=divisible)
    try:
        code = triton.compile(source, target=GPUTarget("cuda", card[0] * 10 + card[1], 32), options=options)
    except Exception as error:  # each is reported, whatever the compiler raises
        return Compiled(**about, types=rest, error=f"{type(error).__name__}: {error}")
    ptx = code.asm["ptx"]
    return Compiled(
        **about, types=rest, warps=code.metadata.num_warps, stages=code.metadata.num_stages,
        shared=code.metadata.shared, **usage(code.asm["cubin"]),
        product="wgmma" if "wgmma.mma_async" in ptx else "mma" if "mma.sync" in ptx else "",
        **({"ttir": str(code.asm["ttir"]), "ptx": ptx} if texts else {}),
    )  # fmt: skip


def usage(cubin: bytes) -> dict[str, int]:
    """Registers and spilled bytes of a thread. A kernel of ours has nothing on its stack but what was spilled."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        tool = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        text = subprocess.run(tool, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
    assert found, text
    registers, stack, local = map(int, found.groups())
    return {"registers": registers, "spilled": stack + local}


def found_on(launches: Sequence[tuple[str, str]], cards: Sequence[Card], texts: bool = False) -> Iterator[Compiled]:
    """Each difference in types, constants, divisibility or options once a card."""
    different: dict[str, tuple[Any, Card, str]] = {}
    for card in cards:
        for module, name in launches:
            notes: list[Any] = []
            with noted(card, notes):
                getattr(importlib.import_module(module), name)(card)
            for kernel, *rest in notes:
                key = f"{card} {kernel.fn.__module__} {kernel.fn.__name__} {rest}"
                different.setdefault(key, ((kernel, *rest), card, name))
    for one in different.values():
        yield compile_note(*one, texts)


def main() -> None:
    if sys.argv[1:] == ["answer"]:
        launches, cards, texts = json.load(sys.stdin)
        print(json.dumps([asdict(one) for one in found_on(launches, [tuple(card) for card in cards], texts)]))
    else:
        for one in found_on(ALL, CARDS):
            print(one, flush=True)


if __name__ == "__main__":
    main()
