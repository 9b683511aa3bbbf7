"""A recogniser and examples → an `ErrorReport`: the step between training and evaluation. In: what each of them has.

Sounds are read by the recogniser, texts are scored as `evaluation.errors` does. Knows no training and no widget.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from speechkit.errors import DataError
from speechkit.evaluation.errors import ErrorReport, ScoreOptions, score

if TYPE_CHECKING:
    from collections.abc import Sequence

    from speechkit.asr.model import Recognizer
    from speechkit.training.data import Example

__all__ = ["evaluate"]


def evaluate(recognizer: Recognizer, examples: Sequence[Example], name: str = "") -> ErrorReport:
    """Transcribe every example and score it against its text; `name` is that of the system in comparisons.

    The report knows names, speakers and times of words, and the files of examples that have one: all that
    `compare`, `ErrorReport.by` and the error board ask for. Noise is not estimated.

    Raises DataError where there is no example, AudioError for one that cannot be read (`check_examples` finds them
    beforehand, and names every reason).
    """
    rows = list(examples)
    if not rows:
        raise DataError(
            "there are no examples to evaluate on; give at least one, some sixty for a rate that tells much"
        )
    sources = [row.source() for row in rows]
    heard = recognizer.transcribe(sources)
    languages = [row.language or told.language for row, told in zip(rows, heard, strict=True)]
    return score(
        [row.text for row in rows],
        heard,
        names=[row.name for row in rows],
        transcripts=heard,
        speakers=[row.speaker for row in rows],
        audio=sources,
        language=languages,
        options=ScoreOptions(name or recognizer.name, estimate_snr=False),
    )
