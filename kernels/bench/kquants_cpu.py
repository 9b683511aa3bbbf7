"""GGUF's block types on a CPU: our compiled search beside llama.cpp's C and gguf's NumPy, in million weights a second.

    python kernels/bench/kquants_cpu.py                    all types, one thread and all, some minutes
    python kernels/bench/kquants_cpu.py --kinds Q4_K --rows 256 --rounds 3

The aims: a core at least 1.5 times as fast as `ggml_quantize_chunk` on it for the K-quants, 3 times gguf's Q8_0. All
take turns on the same weights, N(0, 0.02²), and the figure is the median of the quotients of neighbouring turns: a
machine that slows down slows all. One thread is timed by what the process computed, more by the clock on the wall;
llama.cpp's C then works on a share of the rows in each thread, as llama-quantize has it. Every type is first compared
block by block. Figures go to results/kquants_cpu.json.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
import os
import platform
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from speechkit.export.kquants import BLOCK, BYTES, dequantize, engine, quantize

if TYPE_CHECKING:
    from collections.abc import Callable

RESULTS = Path(__file__).parent / "results"
NUMBERS = {"Q4_0": 2, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14}  # ggml's
IN_GGUF = ("Q4_0", "Q5_0", "Q5_1", "Q8_0")  # the gguf package quantises these, without importance
WIDTH = 4096


def llama_cpp() -> Callable[..., np.ndarray] | None:
    """`ggml_quantize_chunk` of xllamacpp's library, which releases the GIL; None where it is not installed."""
    found = importlib.util.find_spec("xllamacpp")
    if found is None or not found.submodule_search_locations:
        return None
    path = next(Path(next(iter(found.submodule_search_locations))).glob("xllamacpp*.so"))
    function = ctypes.CDLL(str(path)).ggml_quantize_chunk
    whole, pointer = ctypes.c_int64, ctypes.c_void_p
    function.argtypes = [ctypes.c_int, pointer, pointer, whole, whole, whole, pointer]
    function.restype = ctypes.c_size_t

    def quantised(x: np.ndarray, kind: str, importance: np.ndarray | None, threads: int) -> np.ndarray:
        out = np.empty((len(x), x.shape[1] // BLOCK[kind] * BYTES[kind]), np.uint8)
        given = None if importance is None else importance.ctypes.data

        def share(rows: np.ndarray) -> None:
            first, count = int(rows[0]), len(rows)
            function(NUMBERS[kind], x[first:].ctypes.data, out[first:].ctypes.data, 0, count, x.shape[1], given)

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(share, np.array_split(np.arange(len(x)), threads)))
        return out

    return quantised


def turns(calls: dict[str, Callable[[], Any]], rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of each, round by round, after one round that does not count."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            start = clock()
            call()
            if number:
                taken[name].append(clock() - start)
    return taken


def measure(kind: str, x: np.ndarray, importance: np.ndarray | None, threads: int, rounds: int) -> dict[str, Any]:
    """A row: how fast each is, ours over theirs, and how many blocks are the same."""
    import gguf

    number, theirs = gguf.GGMLQuantizationType[kind], llama_cpp()
    packed = quantize(x, kind, importance)
    calls: dict[str, Callable[[], Any]] = {"ours": lambda: quantize(x, kind, importance, threads=threads)}
    equal = None
    if theirs is not None:
        calls["llama.cpp"] = lambda: theirs(x, kind, importance, threads)
        equal = (theirs(x, kind, importance, 1).reshape(-1, BYTES[kind]) == packed.reshape(-1, BYTES[kind])).all(1)
    if kind in IN_GGUF and threads == 1 and importance is None:
        calls["gguf"] = lambda: gguf.quants.quantize(x, number)
    clock = time.process_time if threads == 1 else time.perf_counter
    readers: dict[str, Callable[[], Any]] = {
        "ours": lambda: dequantize(packed, kind, threads=threads),
        "gguf": lambda: gguf.quants.dequantize(packed, number),
    }
    taken, reading = turns(calls, rounds, clock), turns(readers, rounds, clock)
    return {
        "kind": kind, "importance": importance is not None, "threads": threads,
        "million_weights_per_s": rates(x, taken), "ratio": ratios(taken),
        "reading_million_weights_per_s": rates(x, reading), "reading_ratio": ratios(reading),
        "equal_blocks": None if equal is None else float(equal.mean()),
    }  # fmt: skip


def rates(x: np.ndarray, taken: dict[str, list[float]]) -> dict[str, float]:
    return {name: round(x.size / statistics.median(values) / 1e6, 1) for name, values in taken.items()}


def ratios(taken: dict[str, list[float]]) -> dict[str, float]:
    """How many times as fast ours is, the median over the rounds."""
    ours = taken["ours"]
    return {
        name: round(statistics.median(theirs / mine for theirs, mine in zip(values, ours, strict=True)), 2)
        for name, values in taken.items()
        if name != "ours"
    }


def show(row: dict[str, Any]) -> None:
    kind = row["kind"] + (" with importance" if row["importance"] else "")
    fast = ", ".join(f"{name} {rate:,.0f}" for name, rate in row["million_weights_per_s"].items())
    times = ", ".join(f"{ratio:.2f}x {name}" for name, ratio in row["ratio"].items())
    same = "" if row["equal_blocks"] is None else f"; {row['equal_blocks']:.2%} of blocks equal"
    read = row["reading_million_weights_per_s"]["ours"]
    print(
        f"{kind}, {row['threads']} threads: {fast} million weights/s: {times}{same}; "
        f"read at {read:,.0f}, {row['reading_ratio']['gguf']:.2f}x gguf"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=NUMBERS, default=list(NUMBERS))
    parser.add_argument("--rows", type=int, default=1024, help=f"of {WIDTH} weights")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dry", action="store_true", help="write no file")
    given = parser.parse_args()
    draw = np.random.default_rng(0)
    x = (draw.standard_normal((given.rows, WIDTH)) * 0.02).astype(np.float32)
    importance = draw.random(WIDTH).astype(np.float32) ** 4
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    print(f"{x.size:,} weights by {engine()[0]}, {cores} cores")
    rows = []
    for kind in given.kinds:
        for weights in (None, importance)[: 1 if kind == "Q8_0" else 2]:
            for threads in sorted({1, cores}):
                rows.append(measure(kind, x, weights, threads, given.rounds))
                show(rows[-1])
    if given.dry:
        return
    found = {
        "name": "kquants_cpu", "date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": platform.machine(),
        "engine": engine()[0], "cores": cores, "shape": x.shape, "rows": rows,
    }  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "kquants_cpu.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
