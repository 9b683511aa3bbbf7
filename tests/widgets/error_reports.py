"""Reports for the tests of the error board, built from the dataclasses, and from real texts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from speechkit import audio
from speechkit.evaluation.errors import Edit, ErrorReport, Scored
from speechkit.types import Word

if TYPE_CHECKING:
    from pathlib import Path

S, D, I, E = "substitute", "delete", "insert", "equal"  # noqa: E741 (as in every table of edits)


def scored(name: str, *edits: tuple[str, str, str], timed: bool = False, **more) -> Scored:
    """An utterance from its columns; timed: every heard word lasts 0.4 s, one every half second from 0.2 s on."""
    columns, words = [], []
    for kind, said, heard in edits:
        columns.append(Edit(kind, said, heard, len(words) if timed and heard else None))
        if heard:
            at = 0.2 + 0.5 * len(words)
            words.append(Word(heard, at, at + 0.4, 0.9))
    said, heard = (" ".join(filter(None, side)) for side in list(zip(*edits, strict=True))[1:]) if edits else ("", "")
    return Scored(name, said, heard, tuple(columns), tuple(words) if timed else (), **more)


def clinic(folder: Path) -> ErrorReport:
    """Four utterances: one with every kind of error, sound and times; one in Arabic; one right; one of nothing."""
    time_s = np.arange(4 * 16000) / 16000
    path = audio.write(folder / "clip-10.wav", (0.3 * np.sin(2 * np.pi * 330 * time_s)).astype(np.float32))
    right = scored(
        "clip-9.wav", (E, "please", "please"), (E, "wait", "wait"), speaker="anna", confidence=0.9, seconds=2.0
    )
    columns = [(E, "bring", "bring"), (D, "the", ""), (S, "fourteen", "forty"), (I, "", "red"), (E, "pens", "pens")]
    wrong = scored(
        "clip-10.wav", *columns, timed=True, speaker="bo", confidence=0.5, seconds=4.0, audio=path, language="en"
    )
    columns = [(E, "افتح", "افتح"), (S, "الباب", "باب")]
    arabic = scored("arabic.wav", *columns, speaker="bo", confidence=0.7, seconds=1.5, language="ar")
    return ErrorReport((right, wrong, arabic, scored("<b>.wav", seconds=1.0)), name="demo")
