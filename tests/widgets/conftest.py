"""One short recording with four words: two sure, one middling, one doubtful."""

from __future__ import annotations

import numpy as np
import pytest

from speechkit.types import Transcript, Word


@pytest.fixture
def transcript() -> Transcript:
    words = (
        Word("bring", 0.10, 0.30, 0.97),
        Word("the", 0.40, 0.50, 0.85),
        Word("room", 0.60, 0.80, 0.71),
        Word("fourteen", 1.00, 1.40, 0.38),
    )
    return Transcript("bring the room fourteen", words, "en", 1.5, 0.7275, "demo/en")


@pytest.fixture
def samples() -> np.ndarray:
    """1.5 s at 16 kHz: a rising tone, half scale."""
    time_s = np.arange(24000) / 16000
    return (0.5 * time_s / 1.5 * np.sin(2 * np.pi * 440 * time_s)).astype(np.float32)
