"""k_quant in weights a second: on a GPU beside plain PyTorch there; on a CPU beside llama.cpp's C, one thread each.

The aims: at least a thousand million weights a second for Q4_K on an H200-class GPU. The CPU's figures (process time)
go to results/k_quant_cpu.json, the GPU's to results/k_quant.json. `--cpu` leaves the GPU out.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import platform
import statistics
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from gpu import RESULTS, Bench
from speechkit_kernels.k_quant import k_quant
from speechkit_kernels.reference.k_quant import BYTES
from speechkit_kernels.reference.k_quant import k_quant as definition

if TYPE_CHECKING:
    from collections.abc import Callable

NUMBERS = {"Q4_K": 12, "Q5_K": 13, "Q6_K": 14, "Q8_0": 8}  # ggml's
SHAPE = (4096, 14336)
ON_CPU = (256, 4096)
ROUNDS = 7


def llama_cpp() -> Callable[[torch.Tensor, str], torch.Tensor] | None:
    """`ggml_quantize_chunk` of xllamacpp's library, or None."""
    found = importlib.util.find_spec("xllamacpp")
    if found is None or not found.submodule_search_locations:
        return None
    path = next(Path(found.submodule_search_locations[0]).glob("xllamacpp*.so"))
    function = ctypes.CDLL(str(path)).ggml_quantize_chunk
    whole, pointer = ctypes.c_int64, ctypes.c_void_p
    function.argtypes, function.restype = (
        [ctypes.c_int, pointer, pointer, whole, whole, whole, pointer],
        ctypes.c_size_t,
    )

    def quantised(x: torch.Tensor, kind: str) -> torch.Tensor:
        weights, size = BYTES[kind]
        out = torch.zeros(len(x), x.shape[1] // weights * size, dtype=torch.uint8)
        function(NUMBERS[kind], x.data_ptr(), out.data_ptr(), 0, *x.shape, None)
        return out

    return quantised


def equal_blocks(a: torch.Tensor, b: torch.Tensor, kind: str) -> float:
    size = BYTES[kind][1]
    return (a.cpu().view(-1, size) == b.cpu().view(-1, size)).all(dim=1).double().mean().item()


def on_cpu() -> None:
    """Ours and C in turns, medians of process time; equal blocks beside them."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x, theirs = torch.randn(ON_CPU) * 0.02, llama_cpp()
    rows = []
    for kind in NUMBERS:
        calls = {"ours": lambda k=kind: definition(x, k)}
        if theirs is not None:
            calls["llama.cpp"] = lambda k=kind: theirs(x, k)
        taken: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(ROUNDS):
            for name, call in calls.items():
                start = time.process_time()
                call()
                taken[name].append(time.process_time() - start)
        rates = {name: round(x.numel() / statistics.median(values) / 1e6, 2) for name, values in taken.items()}
        equal = None if theirs is None else equal_blocks(definition(x, kind), theirs(x, kind), kind)
        rows.append({"kind": kind, "million_weights_per_s": rates, "equal_blocks": equal})
        print(f"{kind}: {rates} million weights/s, equal blocks {equal}")
    found = {
        "name": "k_quant_cpu",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "shape": ON_CPU,
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "k_quant_cpu.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def on_gpu() -> None:
    bench = Bench("k_quant")
    torch.manual_seed(0)
    x = (torch.randn(SHAPE, device="cuda") * 0.02).bfloat16()
    for kind in NUMBERS:
        weights, size = BYTES[kind]

        def check(kind: str = kind) -> None:
            part = x[:64]
            equal = equal_blocks(k_quant(part, kind), definition(part.float().cpu(), kind), kind)
            assert equal >= 0.999, f"{equal:.2%} of blocks are the definition's"

        calls = {"ours": lambda k=kind: k_quant(x, k), "torch": lambda k=kind: definition(x, k)}
        row = bench.measure(
            f"k_quant {kind}", {"N": SHAPE[0], "K": SHAPE[1]}, calls, check=check,
            moved=x.nbytes + x.numel() // weights * size,
        )  # fmt: skip
        for name, one in row.providers.items():
            print(f"  {name:16} {x.numel() / one.median_ms / 1e6:8.2f} thousand million weights/s")
    bench.write()


if __name__ == "__main__":
    on_cpu()
    if "--cpu" not in sys.argv:
        on_gpu()
