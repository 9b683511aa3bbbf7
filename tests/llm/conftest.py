"""Kernels by their definitions here: the interpreter, which tests/kernels turns on, is slow, and tests them there."""

from __future__ import annotations

import pytest
import triton


@pytest.fixture(autouse=True)
def _definitions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
