"""The prefix beam search as textbooks have it: dictionaries, logarithms, one prefix and one token at a time.

The oracle of `test_beam` and the yardstick of `kernels/bench/beam.py`. Written for being read, after the pseudo-code of
Hannun et al. 2014 (arXiv:1408.2873); no batch, no blank skip, nothing shared with the package.
"""

from __future__ import annotations

import math

INFINITE = math.inf


def log_add(a: float, b: float) -> float:
    """log(exp(a) + exp(b))."""
    if a < b:
        a, b = b, a
    return a if b == -INFINITE else a + math.log1p(math.exp(b - a))


def plain_beam(
    log_probs: list[list[float]], blank: int, beam: int, token_threshold: float = 0.0
) -> list[tuple[tuple[int, ...], float]]:
    """(F, V) natural log, as lists → the `beam` best (tokens, log-probability), best first.

    Tokens less probable than `token_threshold` in a frame are left out of it, the blank and the best one excepted.
    """
    floor = math.log(token_threshold) if token_threshold > 0 else -INFINITE
    beams: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, -INFINITE)}
    for row in log_probs:
        best = max(row)
        tokens = [t for t, p in enumerate(row) if t != blank and p > -INFINITE and (p >= floor or p == best)]
        grown: dict[tuple[int, ...], tuple[float, float]] = {}
        for prefix, (ends_blank, ends_label) in beams.items():
            total = log_add(ends_blank, ends_label)
            old_blank, old_label = grown.get(prefix, (-INFINITE, -INFINITE))
            grown[prefix] = (log_add(old_blank, total + row[blank]), old_label)
            for token in tokens:
                p = row[token]
                if prefix and token == prefix[-1]:
                    old_blank, old_label = grown[prefix]
                    grown[prefix] = (old_blank, log_add(old_label, ends_label + p))
                    gain = ends_blank + p
                else:
                    gain = total + p
                longer = (*prefix, token)
                old_blank, old_label = grown.get(longer, (-INFINITE, -INFINITE))
                grown[longer] = (old_blank, log_add(old_label, gain))
        ranked = sorted(grown.items(), key=lambda item: log_add(*item[1]), reverse=True)
        beams = dict(ranked[:beam])
    return [(prefix, log_add(*ends)) for prefix, ends in beams.items()]
