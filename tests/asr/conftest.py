"""The published shapes, built once. `asr_shapes` beside this file is no module to importlib mode."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Short name of a published model → a folder of its shape with random weights. Do not write into them."""
    from asr_shapes import SHAPES, build

    root = tmp_path_factory.mktemp("published_shapes")
    return {name: build(root / name, shape) for name, shape in SHAPES.items()}
