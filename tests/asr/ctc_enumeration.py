"""Every frame path there is: the oracle of the beam search for a handful of tokens and frames."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from speechkit.asr.decode import Alphabet

HAN = "[\u4e00-\u9fff]"


class Said(NamedTuple):
    """Natural logs: all paths that say a token sequence, and the best one of them."""

    total: float
    best: float


def collapse(path: tuple[int, ...], blank: int) -> tuple[int, ...]:
    return tuple(token for token, _ in itertools.groupby(path) if token != blank)


def enumerate_ctc(log_probs: np.ndarray, blank: int) -> dict[tuple[int, ...], Said]:
    """(F, V) natural log → what each possible token sequence comes to; V ** F paths are looked at."""
    said: dict[tuple[int, ...], Said] = {}
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        score = float(sum(log_probs[t, token] for t, token in enumerate(path)))
        if score > -np.inf:
            tokens = collapse(path, blank)
            before = said.get(tokens, Said(-np.inf, -np.inf))
            said[tokens] = Said(float(np.logaddexp(before.total, score)), max(before.best, score))
    return said


def written(tokens: tuple[int, ...], alphabet: Alphabet) -> str:
    """The text of tokens of small Latin letters and ideographs: spaces between words, none between ideographs."""
    text = "".join(" " if token == alphabet.delimiter else alphabet.symbols[token] for token in tokens)
    return re.sub(f"(?<={HAN}) (?={HAN})", "", " ".join(re.findall(f"[a-z]+|{HAN}", text)))


def by_text(totals: Mapping[tuple[int, ...], float], alphabet: Alphabet) -> dict[str, float]:
    """Natural logs of token sequences → of their texts, best first: the sum over all sequences that write a text."""
    sums: dict[str, float] = {}
    for tokens, total in totals.items():
        text = written(tokens, alphabet)
        sums[text] = float(np.logaddexp(sums.get(text, -np.inf), total))
    return dict(sorted(sums.items(), key=lambda item: -item[1]))
