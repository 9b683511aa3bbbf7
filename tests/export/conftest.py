"""Kernels by their definitions here: the interpreter is on in this process, is slow, and tests/kernels tests them."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _definitions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    from speechkit_kernels import launch  # only now: it imports Triton, for which tests/conftest.py decides first

    if request.node.get_closest_marker("gpu") is None:
        monkeypatch.setattr(launch, "_triton", lambda: None)
