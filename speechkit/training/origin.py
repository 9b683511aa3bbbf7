"""What a run was made from, in words and digests: data, speakers, versions. In: examples. Out: plain values."""

from __future__ import annotations

import hashlib
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from speechkit.training.data import Example

__all__ = ["about_speakers", "digest_of", "language_of", "seconds_of", "versions"]

PACKAGES = ("speechkit", "torch", "transformers", "accelerate", "peft", "numpy")


def about_speakers(train: Sequence[Example], dev: Sequence[Example]) -> list[str]:
    """What the speakers of the two sets mean for the figures."""
    speakers, others = ({row.speaker for row in rows if row.speaker} for rows in (train, dev))
    notes = []
    if len(speakers) == 1 and all(row.speaker for row in train):
        notes.append(f"one speaker only ({next(iter(speakers))}): how well others are understood is not measured here")
    if both := speakers & others:
        named = ", ".join(sorted(both)[:4])
        notes.append(f"{len(both)} speakers are in both sets ({named}): the rates say less about new speakers")
    return notes


def language_of(rows: Sequence[Example]) -> str | None:
    """The language of the examples where they agree on one."""
    found = {row.language for row in rows}
    return found.pop() if len(found) == 1 else None


def seconds_of(rows: Sequence[Example]) -> float:
    """Audio in the rows together; those that were not measured count nothing."""
    return sum(row.seconds or 0.0 for row in rows)


def digest_of(*sets: Sequence[Example]) -> str:
    """Changes with the rows, their texts and their lengths."""
    digest = hashlib.sha256()
    for rows in sets:
        for row in rows:
            digest.update(f"{row.name}\t{row.text}\t{row.seconds or 0:.3f}\n".encode())
        digest.update(b"\n")
    return f"{digest.hexdigest()[:12]} ({', '.join(str(len(rows)) for rows in sets)} clips)"


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide a result, where they are installed."""
    found = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
