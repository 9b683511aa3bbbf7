"""What one kernel instead of several operations saves: bytes, counted as plain PyTorch runs, against those needed once.

    print(fusing("rms_norm", 8192, 4096, torch.bfloat16).table)

Nothing is computed: the operations run on tensors without memory (`traffic`), the floors are those of `roofline`. So a
CPU can say what an H200 would have to move. In: a name, sizes, a dtype. Out: `Fusing`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy

from speechkit_kernels import roofline
from speechkit_kernels.figures import Table
from speechkit_kernels.live import plain_add_rms_norm, plain_rms_norm, plain_swiglu
from speechkit_kernels.roofline import CARDS
from speechkit_kernels.traffic import Traffic, traffic

if TYPE_CHECKING:
    from collections.abc import Callable

    from speechkit_kernels.roofline import Work

__all__ = ["PARTS", "Fusing", "fusing"]


def _loss(logits: torch.Tensor, labels: torch.Tensor) -> Any:
    """As transformers computes it, in float32, with the gradient."""
    return torch.autograd.grad(cross_entropy(logits.float(), labels), logits)


# name → plain PyTorch, the work of the kernel, how many (M, W) inputs, how many (W,)
PARTS: dict[str, tuple[Callable[..., Any], Callable[..., Work], int, int]] = {
    "rms_norm": (plain_rms_norm, roofline.rms_norm, 1, 1),
    "add + rms_norm": (plain_add_rms_norm, roofline.add_rms_norm, 2, 1),
    "swiglu": (plain_swiglu, roofline.swiglu, 2, 0),
    "cross_entropy": (_loss, roofline.cross_entropy, 1, 0),
}


@dataclass(frozen=True)
class Fusing:
    """One part of a model, both ways."""

    what: str
    rows: int
    width: int
    dtype: torch.dtype
    plain: Traffic
    fused: Work

    @property
    def ratio(self) -> float:
        """How many times fewer bytes the kernel moves."""
        return self.plain.moved / self.fused.moved

    @property
    def title(self) -> str:
        dtype, plain, fused = str(self.dtype).removeprefix("torch."), self.plain.moved / 1e6, self.fused.moved / 1e6
        return (
            f"{self.what} of ({self.rows:,}, {self.width:,}) {dtype}: {len(self.plain.steps)} operations move "
            f"{plain:,.4g} MB, one kernel {fused:,.4g} MB, {self.ratio:.1f} times less"
        )

    @property
    def table(self) -> Table:
        moved = self.plain.moved / 1e3
        rows = [
            (card.name, f"{card.gb_s:,.0f} GB/s", _us(moved / card.gb_s), _us(self.fused.floor_us(card)))
            for card in CARDS
        ]
        head = ("card", "memory, by its data sheet", "operation by operation, at least", "one kernel, at least")
        return Table(self.title, head, tuple(rows))


def fusing(what: str, rows: int, width: int, dtype: torch.dtype) -> Fusing:
    """M rows of `width`. Raises ValueError for a part that is not in `PARTS`, or sizes below one."""
    if what not in PARTS:
        raise ValueError(f"fusing: nothing is known of {what!r}; give one of {', '.join(PARTS)}")
    if rows < 1 or width < 1:
        raise ValueError(f"fusing: {rows} rows of {width}; give one or more of each")
    plain, work, tables, vectors = PARTS[what]
    inputs = [torch.empty(rows, width, dtype=dtype, device="meta") for _ in range(tables)]
    inputs += [torch.empty(width, dtype=dtype, device="meta") for _ in range(vectors)]
    if what == "cross_entropy":
        inputs = [inputs[0].requires_grad_(), torch.empty(rows, dtype=torch.long, device="meta")]
    return Fusing(what, rows, width, dtype, traffic(plain, *inputs), work(rows, width, dtype.itemsize))


def _us(us: float) -> str:
    return f"{us:,.1f} µs" if us < 1000 else f"{us / 1000:,.2f} ms"
