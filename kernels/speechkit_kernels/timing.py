"""Times calls that take turns, on a GPU or on a CPU. In: closures. Out: milliseconds, round by round.

Providers take turns inside each round, so that whatever happens to the machine happens to all of them. On a GPU the
card is kept busy before each call until the CPU has queued it, and its cache is overwritten: what is timed is the
kernels. On a CPU it is the clock on the wall. Needs torch alone.
"""

from __future__ import annotations

import statistics
import time
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["LEAST_ROUNDS", "copy_bandwidth", "interleaved", "spread"]

ROUNDS = 60
LEAST_ROUNDS = 12
SECONDS = 10.0  # of a measurement: slow calls get fewer rounds, LEAST_ROUNDS at least
WARM = 5
BUSY_CYCLES = 1_000_000  # about half a millisecond in which the CPU queues the call


def interleaved(
    providers: Mapping[str, Callable[[], Any]], rounds: int | None = None, before: Callable[[], Any] | None = None,
    *, warm: int = WARM, device: str = "cuda",
) -> dict[str, list[float]]:  # fmt: skip
    """Milliseconds of each provider, round by round; the order rotates. Without `rounds`, by `SECONDS`.

    before: run ahead of each call and not timed. warm: rounds that do not count, which compile.
    """
    calls, timed = list(providers.items()), _on_gpu if device == "cuda" else _on_cpu
    for _ in range(max(1, warm)):
        first = {name: timed(call, before) for name, call in calls}
    if rounds is None:
        rounds = int(max(LEAST_ROUNDS, min(ROUNDS, SECONDS * 1000 / max(1e-3, sum(first.values())))))
    taken: dict[str, list[float]] = {name: [] for name, _ in calls}
    for turn in range(rounds):
        for at in range(len(calls)):
            name, call = calls[(turn + at) % len(calls)]
            taken[name].append(timed(call, before))
    return taken


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, 20 % and 80 % quantile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    fifths = statistics.quantiles(values, n=5, method="inclusive")
    return statistics.median(values), fifths[0], fifths[3]


def copy_bandwidth(size: int = 2**30, *, device: str = "cuda", rounds: int = 30) -> float:
    """GB/s of a copy on the device, read plus written: what a kernel that does nothing but move would reach."""
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    taken = interleaved({"copy": lambda: target.copy_(source)}, rounds, device=device)["copy"]
    return 2 * size / statistics.median(taken) / 1e6


def _on_gpu(call: Callable[[], Any], before: Callable[[], Any] | None) -> float:
    if before:
        before()
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda._sleep(BUSY_CYCLES)
    _flush().zero_()
    start.record()
    result = call()
    stop.record()
    torch.cuda.synchronize()
    del result
    return start.elapsed_time(stop)


def _on_cpu(call: Callable[[], Any], before: Callable[[], Any] | None) -> float:
    if before:
        before()
    began = time.perf_counter()
    result = call()
    taken = (time.perf_counter() - began) * 1000
    del result
    return taken


@lru_cache
def _flush() -> torch.Tensor:
    """Four times the card's cache: after it is written nothing of the inputs is left there."""
    return torch.empty(4 * torch.cuda.get_device_properties().L2_cache_size, dtype=torch.uint8, device="cuda")
