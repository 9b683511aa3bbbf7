"""What PyTorch moves when it runs a function operation by operation. In: a function, tensors. Out: bytes of each step.

    traffic(lambda x: x.float().square().mean(-1), torch.empty(8192, 4096, dtype=torch.bfloat16, device="meta"))

Each operation reads its inputs and writes its outputs, once: that is what a GPU's memory sees of it, caches apart. On
`device="meta"` nothing is computed and nothing allocated, so a model of any size can be asked. Views move nothing.
`peak` is the most that the tensors made on the way held at one time. Knows no kernel: a Triton kernel is no operation.
"""

from __future__ import annotations

import weakref
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Step", "Traffic", "traffic"]

NOTHING = {"empty", "empty_like", "empty_strided", "new_empty"}  # allocate alone
FRESH = {"zero_", "fill_", "zeros_like", "ones_like", "full_like"}  # write without reading what was there


@dataclass(frozen=True)
class Step:
    """One operation."""

    name: str  # as torch calls it
    read: int  # bytes
    written: int


@dataclass(frozen=True)
class Traffic:
    """What a function moved."""

    steps: tuple[Step, ...]
    peak: int  # bytes of tensors made on the way, at the fullest moment; inputs not counted

    @property
    def moved(self) -> int:
        return sum(step.read + step.written for step in self.steps)

    def __str__(self) -> str:
        count = Counter(step.name for step in self.steps)
        names = ", ".join(name if n == 1 else f"{n} {name}" for name, n in count.items())
        return f"{len(self.steps)} operations ({names}) move {self.moved / 1e6:,.1f} MB"


def traffic(function: Callable[..., Any], *inputs: Any) -> Traffic:
    """Run `function` on `inputs` and count; what a backward pass inside it moves is counted too."""
    with _Counting() as counting:
        result = function(*inputs)
    del result
    return Traffic(tuple(counting.steps), counting.alive.peak)


@dataclass
class _Alive:
    """Storages that were made and are not gone."""

    peak: int = 0
    now: int = 0
    held: dict[int, Any] = field(default_factory=dict)  # a weak reference to each, by its address

    def known(self, inputs: Any) -> None:
        """Storages that were there before, of a function's inputs or of what it closes over."""
        for x in _tensors(inputs):
            self.held.setdefault(x.untyped_storage()._cdata, None)

    def add(self, x: torch.Tensor) -> None:
        storage = x.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.held:
            return

        def gone(_: Any) -> None:
            self.held.pop(key, None)
            self.now -= size

        self.held[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


class _Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.alive = _Alive()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.alive.known((args, kwargs))
        result = func(*args, **(kwargs or {}))
        made = _tensors(result)
        for x in made:
            self.alive.add(x)
        name = func.overloadpacket.__name__
        if made and name not in NOTHING and not _is_view(func):
            looked_at = [] if name in FRESH else _tensors((args[1:] if name == "copy_" else args, kwargs))
            self.steps.append(Step(name.strip("_"), sum(map(_bytes, looked_at)), sum(map(_bytes, made))))
        return result


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, torch.Tensor)]


def _bytes(x: torch.Tensor) -> int:
    """Of the elements that lie apart: an expanded dimension is one element."""
    count = 1
    for size, stride in zip(x.shape, x.stride(), strict=True):
        count *= size if stride or size == 0 else 1
    return count * x.element_size()


def _is_view(func: Any) -> bool:
    """Whether the result only looks at its input anew; `detach` and friends too."""
    returns = func._schema.returns
    aliases = [one.alias_info for one in returns if one.alias_info is not None]
    return bool(aliases) and not any(one.is_write for one in aliases)
