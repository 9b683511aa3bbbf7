"""The errors a user can meet. Each message says what was given, what is allowed, and what to do next.

Every class also inherits the built-in that a caller would expect (`ValueError`, `ImportError`, …), so code that
already catches those keeps working.
"""

from __future__ import annotations

__all__ = [
    "AudioError",
    "DataError",
    "ExportError",
    "MissingExtra",
    "ModelError",
    "OutputError",
    "PlanError",
    "SpeechkitError",
]


class SpeechkitError(Exception):
    """Base of every error that speechkit raises on purpose."""


class AudioError(SpeechkitError, ValueError):
    """The audio cannot be read, or cannot be used: missing, empty, truncated, not audio, NaN samples."""


class ModelError(SpeechkitError, ValueError):
    """The model cannot be found, fetched or used: unknown name, no weights, wrong architecture, vocabulary ≠ head."""


class DataError(SpeechkitError, ValueError):
    """A dataset, manifest or transcript is not what the function needs."""


class OutputError(SpeechkitError, OSError):
    """A result cannot be written: folder not writable, file in the way."""


class PlanError(SpeechkitError, ValueError):
    """The combination asked for cannot work (memory, precision, devices); the message names one that can."""


class ExportError(SpeechkitError, RuntimeError):
    """An exported file failed to write or failed its comparison with the source."""


class MissingExtra(SpeechkitError, ImportError):
    """An optional package is not installed; the message holds the one command that installs it."""
