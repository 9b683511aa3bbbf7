"""Whether a run of pytest is one on a GPU, told by its mark expression (`-m`) alone: before any test is collected."""

from __future__ import annotations

from _pytest.mark.expression import Expression


def asks_for_gpu(expression: str) -> bool:
    """Whether it chooses tests for being marked `gpu`, and not also those without any mark."""
    if not expression:
        return False
    chosen = Expression.compile(expression)

    def chooses(*marks: str) -> bool:
        return chosen.evaluate(lambda name, **_: name in marks)

    return chooses("gpu") and not chooses()
