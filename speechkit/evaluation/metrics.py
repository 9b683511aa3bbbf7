"""References and hypotheses (texts) → error rates. Edit distances by jiwer, normalisation by `speechkit.text`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from speechkit import text
from speechkit.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["wer"]


def wer(references: str | Sequence[str], hypotheses: str | Sequence[str], language: str | None = None) -> float:
    """Word error rate over all pairs together: (substitutions + deletions + insertions) / words in the references.

    Both sides are first normalised (lower case, no punctuation). 0.0 is perfect; more than 1.0 is possible. Where the
    references hold no word at all, 0.0 if the hypotheses hold none either.

    Raises DataError when the two lists differ in length or are empty, or when words were heard where the references
    have none: a rate over nothing is not a number.
    """
    wanted = [references] if isinstance(references, str) else list(references)
    heard = [hypotheses] if isinstance(hypotheses, str) else list(hypotheses)
    if len(wanted) != len(heard) or not wanted:
        raise DataError(
            f"{len(wanted)} references and {len(heard)} hypotheses; give one hypothesis per reference, at least one"
        )
    wanted = [text.normalize(line, language) for line in wanted]
    heard = [text.normalize(line, language) for line in heard]
    if not any(wanted):
        if any(heard):
            raise DataError("the references hold no word after normalisation, so a word error rate is not defined")
        return 0.0

    import jiwer  # here, not above: a listing or a help text must not pay for it

    return float(jiwer.process_words(wanted, heard).wer)
