"""Kernels by their definitions here: the interpreter, which tests/kernels turns on, is slow, and tests them there.

Tests marked `gpu` run them compiled.
"""

from __future__ import annotations

import pytest
from speechkit_kernels import launch


@pytest.fixture(autouse=True)
def _definitions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.get_closest_marker("gpu") is None:
        monkeypatch.setattr(launch, "_triton", lambda: None)
