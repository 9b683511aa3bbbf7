"""Token rows of given lengths, for tests of packing. Imported by the tests beside it."""

from __future__ import annotations

import numpy as np

from speechkit.llm.data import IGNORED, Tokens

__all__ = ["documents"]


def documents(*lengths: int, seed: int = 0, vocabulary: int = 67) -> list[Tokens]:
    """Rows with a prompt of a third, which is not learnt."""
    draw, rows = np.random.default_rng(seed), []
    for number, length in enumerate(lengths):
        ids = tuple(draw.integers(7, vocabulary, length).tolist())
        start = max(1, length // 3)
        rows.append(Tokens(ids, (IGNORED,) * min(start, length) + ids[start:], f"line {number + 1}"))
    return rows
