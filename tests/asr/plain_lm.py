"""n-gram models as their definitions have them, one dictionary look-up at a time: oracles of the tests."""

from __future__ import annotations

import gzip
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

Gram = tuple[str, ...]
LN10 = np.log(10)


class PlainKatz:
    """The back-off recursion over an ARPA file that is known to be well-formed."""

    def __init__(self, path: Path) -> None:
        text = (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode()
        self.logp: dict[Gram, float] = {}
        self.backoff: dict[Gram, float] = {}
        self.order = 0
        for line in text.split("\n"):
            if line.endswith("-grams:"):
                self.order += 1
            elif "\t" in line:
                fields = line.split("\t")
                gram = tuple(fields[1].split(" "))
                self.logp[gram] = float(fields[0]) * LN10
                self.backoff[gram] = float(fields[2]) * LN10 if len(fields) > 2 else 0.0

    def after(self, history: Gram, unit: str) -> float:
        """Natural log P(unit | history), however long the history."""
        history = history[len(history) - self.order + 1 :] if len(history) >= self.order else history
        if (*history, unit) in self.logp:
            return self.logp[(*history, unit)]
        if not history:
            return self.logp[("<unk>",)]
        if (unit,) not in self.logp:
            return self.after(history, "<unk>")
        return self.backoff.get(history, 0.0) + self.after(history[1:], unit)

    def sentence(self, units: list[str]) -> float:
        known = [unit if (unit,) in self.logp else "<unk>" for unit in units]
        full = ["<s>", *known, "</s>"]
        return sum(self.after(tuple(full[:i]), full[i]) for i in range(1, len(full)))


class PlainKneserNey:
    """Interpolated modified Kneser-Ney, straight from the formula, probabilities made when asked for."""

    def __init__(self, sentences: list[list[str]], order: int) -> None:
        self.order = order
        full = [["<s>", *sentence, "</s>"] for sentence in sentences]
        raw = [Counter(tuple(s[i : i + n]) for s in full for i in range(len(s) - n + 1)) for n in range(1, order + 1)]
        self.counts = [dict(raw[-1])]
        for n in range(order - 1, 0, -1):
            left: dict[Gram, set[str]] = {}
            for gram in raw[n]:
                left.setdefault(gram[1:], set()).add(gram[0])
            self.counts.insert(0, {g: raw[n - 1][g] if g[0] == "<s>" else len(left.get(g, ())) for g in raw[n - 1]})
        self.counts[0].pop(("<s>",))
        self.vocabulary = [*sorted({unit for sentence in full for unit in sentence} - {"<s>"}), "<unk>"]
        self.discounts = [self._discounts(Counter(counts.values())) for counts in self.counts]

    @staticmethod
    def _discounts(t: Counter[int]) -> tuple[float, float, float]:
        if not (t[1] and t[2] and t[3]):
            return (0.5, 1.0, 1.5)
        y = t[1] / (t[1] + 2 * t[2])
        d = (1 - 2 * y * t[2] / t[1], 2 - 3 * y * t[3] / t[2], 3 - 4 * y * t[4] / t[3])
        return d if all(0 <= d[k] <= k + 1 for k in range(3)) else (0.5, 1.0, 1.5)

    def after(self, history: Gram, unit: str) -> float:
        """P(unit | history), a history of fewer than `order` units."""
        n = len(history) + 1
        below = self.after(history[1:], unit) if history else 1 / len(self.vocabulary)
        going_on = {g: c for g, c in self.counts[n - 1].items() if g[:-1] == history}
        if not going_on:
            return below
        taken = {g: self.discounts[n - 1][min(c, 3) - 1] for g, c in going_on.items()}
        gram, total = (*history, unit), sum(going_on.values())
        own = going_on[gram] - taken[gram] if gram in going_on else 0.0
        return own / total + sum(taken.values()) / total * below
