"""Measures a few kernels on the machine that runs this, in seconds. In: a device. Out: `Live`, its own card and points.

On a GPU each kernel and the same in plain PyTorch take turns. On a CPU kernels are only interpreted, which says nothing
of speed, so plain PyTorch is measured alone: how far it stays under what the machine's memory allows. Nothing is timed
before it agrees with its definition. Bench scripts (kernels/bench) measure more shapes and more peers.
"""

from __future__ import annotations

import platform
import statistics
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from speechkit_kernels import roofline
from speechkit_kernels.figures import Table
from speechkit_kernels.launch import hardware_of
from speechkit_kernels.roofline import Card, Work
from speechkit_kernels.timing import copy_bandwidth, interleaved

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["KERNEL", "PLAIN", "Live", "Timed", "measure_here", "plain_add_rms_norm", "plain_rms_norm", "plain_swiglu"]

KERNEL, PLAIN = "kernel", "plain PyTorch"
SIZES = {"cuda": (4096, 4096, 14336, 32_000), "cpu": (2048, 2048, 4096, 8192)}  # M, H, I, V
ROUNDS = {"cuda": 30, "cpu": 7}
ALLOWED = 2e-2  # of the 2-norm; the rounding of bfloat16 is 2e-3


@dataclass(frozen=True)
class Timed:
    """One call."""

    what: str
    provider: str
    shape: str
    work: Work
    ms: float  # median

    @property
    def tflop_s(self) -> float:
        return self.work.operations / self.ms / 1e9

    @property
    def gb_s(self) -> float:
        """Of the bytes that must be moved, not of those that were."""
        return self.work.moved / self.ms / 1e6


@dataclass(frozen=True, repr=False)
class Live:
    """What was measured here and now; its repr is a table."""

    card: Card  # of measured rates: a copy's, and a matrix product's
    date: str
    dtype: str
    timed: tuple[Timed, ...]

    @property
    def works(self) -> dict[str, Work]:
        """By name, for a roofline."""
        return {one.what: one.work for one in self.timed}

    @property
    def rates(self) -> dict[str, dict[str, float]]:
        """Provider → name → 10**12 operations a second."""
        providers = dict.fromkeys(one.provider for one in self.timed)
        return {name: {one.what: one.tflop_s for one in self.timed if one.provider == name} for name in providers}

    @property
    def table(self) -> Table:
        card, head = self.card, ("call", "shape", "by", "floor, ms", "median, ms", "of a copy's rate")
        rows = [
            (one.what, one.shape, one.provider, f"{one.work.floor_us(card) / 1000:.3f}", f"{one.ms:.3f}",
             f"{one.gb_s / card.gb_s:.0%}")
            for one in self.timed
        ]  # fmt: skip
        title = f"{card.name}, {self.dtype}, {self.date[:16].replace('T', ' ')} UTC: a copy moves {card.gb_s:,.0f} GB/s"
        return Table(title, head, tuple(rows))

    def __repr__(self) -> str:
        return repr(self.table)

    def _repr_html_(self) -> str:
        return self.table._repr_html_()


def plain_rms_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """As models in plain PyTorch compute it, one operation after the other."""
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def plain_add_rms_norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> Any:
    s = x + residual
    return plain_rms_norm(s, weight), s


def plain_swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return functional.silu(gate) * up


def measure_here(device: str | torch.device) -> Live:
    """Rates of the device and medians of a few calls. Raises ValueError for a device that is no GPU and no CPU."""
    kind = torch.device(device).type
    if kind not in SIZES:
        raise ValueError(f"measure_here: no way to time {kind!r}; give 'cuda' or 'cpu'")
    dtype = _dtype(kind)
    card, timed = _card(kind, dtype), []
    for what, shape, work, calls in _calls(kind, dtype):
        _check(what, calls)
        taken = interleaved(calls, ROUNDS[kind], warm=2, device=kind)
        timed += [Timed(what, name, shape, work, statistics.median(values)) for name, values in taken.items()]
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Live(card, now, str(dtype).removeprefix("torch."), tuple(timed))


def _dtype(kind: str) -> torch.dtype:
    if kind == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16


def _card(kind: str, dtype: torch.dtype) -> Card:
    """The device by its own measure: a copy, and a square product."""
    size, side = (2**29, 8192) if kind == "cuda" else (2**26, 1024)
    a = torch.randn(side, side, device=kind, dtype=dtype)
    product = statistics.median(interleaved({"product": lambda: a @ a}, ROUNDS[kind], device=kind)["product"])
    name = hardware_of(torch.device(kind)).name or f"this CPU ({platform.machine()}, {torch.get_num_threads()} threads)"
    copied = copy_bandwidth(size, device=kind, rounds=ROUNDS[kind])
    return Card(name, copied, 2 * side**3 / product / 1e9, None, "measured here")


def _calls(kind: str, dtype: torch.dtype) -> Iterator[tuple[str, str, Work, dict[str, Callable[[], Any]]]]:
    """Name, shape, work and providers of each."""
    (m, h, i, _), size = SIZES[kind], dtype.itemsize

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=kind, dtype=dtype)

    from speechkit_kernels.glu import swiglu
    from speechkit_kernels.rms_norm import rms_norm

    x, residual, weight = random(m, h), random(m, h), random(h)
    gate, up = random(m, i), random(m, i)
    yield (
        "rms_norm", f"M {m}, H {h}", roofline.rms_norm(m, h, size),
        _both(kind, lambda: rms_norm(x, weight), lambda: plain_rms_norm(x, weight)),
    )  # fmt: skip
    yield (
        "add + rms_norm", f"M {m}, H {h}", roofline.add_rms_norm(m, h, size),
        _both(kind, lambda: rms_norm(x, weight, residual=residual), lambda: plain_add_rms_norm(x, residual, weight)),
    )  # fmt: skip
    yield (
        "swiglu", f"M {m}, I {i}", roofline.swiglu(m, i, size),
        _both(kind, lambda: swiglu(gate, up), lambda: plain_swiglu(gate, up)),
    )  # fmt: skip
    yield from _loss(kind, dtype)


def _loss(kind: str, dtype: torch.dtype) -> Iterator[tuple[str, str, Work, dict[str, Callable[[], Any]]]]:
    """Loss and gradient; the kernel would overwrite its logits, so both write the gradient apart."""
    from speechkit_kernels.cross_entropy import cross_entropy

    m, _, _, v = SIZES[kind]
    logits = torch.randn((m, v), device=kind, dtype=dtype).requires_grad_()
    labels = torch.randint(0, v, (m,), device=kind)
    yield (
        "cross_entropy", f"M {m}, V {v}", roofline.cross_entropy(m, v, dtype.itemsize),
        _both(
            kind,
            lambda: torch.autograd.grad(cross_entropy(logits, labels), logits),
            lambda: torch.autograd.grad(functional.cross_entropy(logits.float(), labels), logits),
        ),
    )  # fmt: skip


def _both(kind: str, kernel: Callable[[], Any], plain: Callable[[], Any]) -> dict[str, Callable[[], Any]]:
    return {PLAIN: plain} if kind == "cpu" else {KERNEL: kernel, PLAIN: plain}


def _check(what: str, calls: dict[str, Callable[[], Any]]) -> None:
    """Raise AssertionError unless the kernel agrees with plain PyTorch."""
    if KERNEL not in calls:
        return
    pairs = [found if isinstance(found, tuple) else (found,) for found in (calls[KERNEL](), calls[PLAIN]())]
    for ours, theirs in zip(*pairs, strict=True):
        off = ((ours.float() - theirs.float()).norm() / theirs.float().norm()).item()
        assert off <= ALLOWED, f"{what} is off by {off:.1e} of its norm, so it is not timed"
