"""Kernels are tested twice: interpreted on CPU tensors, which is the default, and compiled on a GPU.

    pytest tests/kernels                                        no GPU: interpreted
    PYTHONPATH=kernels python -m pytest -m gpu tests/kernels    a machine with an NVIDIA GPU, from the repository's root

Triton decides once a process whether it interprets, so a run does one or the other (tests/conftest.py): it compiles
where the mark expression chooses tests for being marked `gpu`. A test that takes `device` runs on "cpu" and, marked
`gpu`, on "cuda". The second command needs torch, triton and pytest alone: a test that needs more (transformers,
bitsandbytes, …) is skipped there with its reason. Memory comes poisoned.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from collections.abc import Callable

sys.path.insert(0, str(Path(__file__).parent))

UNNAMED = getattr(pytest, "HIDDEN_PARAM", "cpu")  # the default run's ids name no device; pytest before 8.4 does
INTERPRETED = "kernels are interpreted in this process; `pytest -m gpu tests/kernels` compiles them"
COMPILED = "kernels are compiled in this process; without `-m gpu` they are interpreted, on CPU tensors"
NO_GPU = "no CUDA GPU here: `-m gpu` is for a machine that has one"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _poisoned_memory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.empty` gives NaN: an element that a kernel forgets to write, or reads too early, cannot go unseen."""
    if request.node.get_closest_marker("gpu") and request.node.path.name == "test_attention.py":
        return  # torch.compile, which FlexAttention needs on a GPU, takes torch's functions for what they are called

    def poisoned(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def made(*args: Any, **kwargs: Any) -> torch.Tensor:
            tensor = make(*args, **kwargs)
            return tensor.fill_(float("nan") if tensor.is_floating_point() else 77)

        return made

    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, poisoned(getattr(torch, name)))


@pytest.fixture(params=[pytest.param("cpu", id=UNNAMED), pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """ "cpu" where kernels are interpreted; "cuda", marked `gpu`, where they are compiled."""
    from triton import knobs

    if request.param == "cpu":
        if not knobs.runtime.interpret:
            pytest.skip(COMPILED)
        return "cpu"
    if not torch.cuda.is_available():
        pytest.fail(NO_GPU, pytrace=False)
    if knobs.runtime.interpret:
        pytest.fail(INTERPRETED, pytrace=False)
    # what is compared with must not be the rougher of the two: convolutions would round float32 to ten bits
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    return "cuda"
