"""A function's source as a cell's output: highlighted by the notebook itself, in its theme; as text anywhere else."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from textwrap import dedent
from typing import Any

__all__ = ["Source", "source_of"]

FENCE = "~~~~"  # tildes: a docstring may hold backticks


@dataclass(frozen=True, repr=False)
class Source:
    """Some Python."""

    code: str

    def _repr_markdown_(self) -> str:
        return f"{FENCE}python\n{self.code}\n{FENCE}"

    def __repr__(self) -> str:
        return self.code


def source_of(thing: Any) -> Source:
    """Of a function, a class or a Triton kernel, as it was written. Raises TypeError for what has no source."""
    return Source(dedent(inspect.getsource(getattr(thing, "fn", thing))).rstrip())
