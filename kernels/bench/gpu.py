"""Times kernels beside their peers on a CUDA GPU. In: closures. Out: a table, and kernels/bench/results/<name>.json.

    bench = Bench("rms_norm")                          # without a GPU: one line, and the script ends with 0
    bench.measure("rms_norm", {"M": 8192, "H": 4096}, passes({"ours": rms_norm, "torch": plain}, inputs, dy)["forward"],
                  check=lambda: ..., moved=2 * 8192 * 4096 * 2)
    bench.write()

The first provider is ours; the others are divided by it. Providers take turns (`speechkit_kernels.timing`); figures are
medians with the 20 % and 80 % quantiles. Nothing is measured before `check` has passed, and a check that fails ends the
script without a result. A peer that cannot run is reported with the reason. The results are part of the package
`speechkit_kernels` (a link there leads here), so that notebook 08 shows them wherever it is installed. Needs torch and
triton alone. As a script it does nothing.
"""

from __future__ import annotations

import gc
import importlib
import importlib.metadata
import json
import statistics
import sys
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from speechkit_kernels.agreement import errors
from speechkit_kernels.timing import copy_bandwidth, interleaved, spread

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "triton", "transformers", "liger_kernel", "bitsandbytes", "peft", "torchaudio", "flash_attn")


@dataclass(frozen=True)
class Figure:
    """What one provider took."""

    median_ms: float
    low_ms: float  # 20 % quantile
    high_ms: float  # 80 % quantile
    rounds: int
    peak_mb: float  # most memory above what was there before the call, outputs included, in 2**20 bytes
    ratio: float = 1.0  # its median / our median: above 1, ours is faster
    ratio_low: float = 1.0  # quantiles of the same quotient, round by round
    ratio_high: float = 1.0
    gb_s: float | None = None
    share_of_copy: float | None = None
    tflop_s: float | None = None


@dataclass
class Measured:
    """One row of the table: a shape, with a figure for each provider."""

    title: str
    shape: dict[str, Any]
    moved: int  # bytes that the call must move at least
    flops: int
    providers: dict[str, Figure] = field(default_factory=dict)
    not_run: dict[str, str] = field(default_factory=dict)  # provider → reason


class Bench:
    """Measurements of one script, written together."""

    def __init__(self, name: str) -> None:
        require_gpu(name)
        self.name, self.rows = name, list[Measured]()
        self.copy_gb_s = copy_bandwidth()
        self.date = datetime.now(UTC).isoformat(timespec="seconds")
        print(f"{name} on {torch.cuda.get_device_name()}, copying {self.copy_gb_s:,.0f} GB/s")

    def measure(
        self, title: str, shape: Mapping[str, Any], providers: Mapping[str, Callable[[], Any]], *,
        check: Callable[[], None], moved: int = 0, flops: int = 0, before: Callable[[], Any] | None = None,
    ) -> Measured:  # fmt: skip
        """Check, then time; `check` raises AssertionError where ours is wrong. A peer that raises is left out.

        before: run ahead of each call and not timed, such as what puts back an input that calls overwrite.
        """
        try:
            check()
        except AssertionError as wrong:
            sys.exit(
                f"{self.name}: {title} {dict(shape)} is wrong, so nothing is measured and nothing written: {wrong}"
            )
        row = Measured(title, dict(shape), moved, flops)
        peaks = self._peaks(row, providers, before)
        times = interleaved({label: providers[label] for label in peaks}, before=before)
        ours = times[next(iter(providers))]
        for label, taken in times.items():
            row.providers[label] = self._figure(taken, ours, peaks[label], moved, flops)
        self.rows.append(row)
        print(table(row), flush=True)
        return row

    def write(self) -> Path:
        """The rows, with the card, the versions and the date, as kernels/bench/results/<name>.json."""
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{self.name}.json"
        found = {"name": self.name, "date": self.date, **environment(), "copy_gb_s": round(self.copy_gb_s, 1)}
        found["rows"] = [asdict(row) for row in self.rows]
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"written: {path.name}")
        return path

    def _peaks(
        self, row: Measured, providers: Mapping[str, Callable[[], Any]], before: Callable[[], Any] | None
    ) -> dict[str, float]:
        """Peak memory of those that run; the first call, which may compile, is not the one that is measured."""
        peaks: dict[str, float] = {}
        for label, call in providers.items():
            try:
                _ready(before)
                call()
                _ready(before)
                peaks[label] = peak_bytes(call) / 2**20
            except Exception as error:  # a peer may fail in any way, and that is a result; ours may not
                if not peaks:
                    raise
                row.not_run[label] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        return peaks

    def _figure(self, taken: list[float], ours: list[float], peak_mb: float, moved: int, flops: int) -> Figure:
        median, low, high = spread(taken)
        _, ratio_low, ratio_high = spread([a / b for a, b in zip(taken, ours, strict=True)])
        rate = moved / median / 1e6 if moved else None
        return Figure(
            median, low, high, len(taken), round(peak_mb, 2), median / statistics.median(ours), ratio_low, ratio_high,
            rate, rate / self.copy_gb_s if rate else None, flops / median / 1e9 if flops else None,
        )  # fmt: skip


def require_gpu(name: str) -> None:
    """End the script with one line and 0 where there is no CUDA GPU."""
    if not torch.cuda.is_available():
        print(f"{name}: not run: no CUDA GPU here")
        sys.exit(0)


def passes(
    functions: Mapping[str, Callable[..., Any]], inputs: Sequence[torch.Tensor], direction: Any
) -> dict[str, dict[str, Callable[[], Any]]]:
    """ "forward", "backward" and "full" → provider → closure. `direction` is the gradient of the output, or of each."""
    wanted = [x for x in inputs if x.requires_grad]

    def backward(outputs: Any, keep: bool) -> Any:
        return torch.autograd.grad(outputs, wanted, direction, retain_graph=keep)

    def kept(function: Callable[..., Any]) -> Callable[[], Any]:
        made: list[Any] = []  # the forward pass whose backward is timed, run at the first call

        def call() -> Any:
            if not made:
                made.append(function(*inputs))
            return backward(made[0], keep=True)

        return call

    return {
        "forward": {name: (lambda f=f: f(*inputs)) for name, f in functions.items()},
        "backward": {name: kept(f) for name, f in functions.items()},
        "full": {name: (lambda f=f: backward(f(*inputs), keep=False)) for name, f in functions.items()},
    }


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` under torch.compile, for fixed shapes."""
    from torch._functorch import config

    config.donated_buffer = False  # or its backward could run only once, and here it is repeated
    torch._dynamo.reset()  # what an earlier row compiled would count against the limit of recompilations
    return torch.compile(function, dynamic=False)


def peer(module: str, name: str) -> Any:
    """`name` of an optional package's module, or None where it is not installed."""
    try:
        return getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None


def agree(
    function: Callable[..., Any], definition: Callable[..., Any], inputs: Sequence[torch.Tensor], direction: Any,
    tolerance: float = 1e-2,
) -> None:  # fmt: skip
    """Raise AssertionError unless values and gradients are those of `definition` in float32, in the relative 2-norm.

    `direction` as in `passes`. The tolerance is for bfloat16, whose rounding is 2e-3 in this norm.
    """
    for what, error in errors(function, definition, inputs, direction).items():
        assert error <= tolerance, f"{what} is off by {error:.1e} of its norm, allowed {tolerance:.0e}"


def peak_bytes(call: Callable[[], Any]) -> int:
    """Most memory that `call` held above what was there before it, its result included."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = call()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated()
    del result
    return max(0, peak - before)


def environment() -> dict[str, Any]:
    """Card and versions, as they go into a result."""
    versions = {"python": sys.version.split()[0], "cuda": str(torch.version.cuda)}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "gpu": torch.cuda.get_device_name(),
        "capability": list(torch.cuda.get_device_capability()),
        "versions": versions,
    }


def table(row: Measured) -> str:
    """The row, one line a provider."""
    shape = " ".join(f"{name}={value}" for name, value in row.shape.items())
    lines = [f"{row.title}  {shape}"]
    for label, one in row.providers.items():
        rate = f"{one.gb_s:7,.0f} GB/s ({one.share_of_copy:.0%} of copy)" if one.gb_s and one.share_of_copy else ""
        rate += f"{one.tflop_s:7.1f} TFLOP/s" if one.tflop_s else ""
        times = f"{one.median_ms:9.4f} ms [{one.low_ms:.4f}, {one.high_ms:.4f}]"
        ratio = f"{one.ratio:6.2f}x [{one.ratio_low:.2f}, {one.ratio_high:.2f}]"
        lines.append(f"  {label:16} {times}  {ratio}  {one.peak_mb:9,.1f} MiB  {rate}")
    return "\n".join(lines + [f"  {label:16} not run: {why}" for label, why in row.not_run.items()])


def _ready(before: Callable[[], Any] | None) -> None:
    if before:
        before()
