"""Kernels by their definitions here: the interpreter, which tests/kernels turns on, is slow, and tests them there."""

from __future__ import annotations

import pytest
from speechkit_kernels import launch


@pytest.fixture(autouse=True)
def _definitions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_triton", lambda: None)
