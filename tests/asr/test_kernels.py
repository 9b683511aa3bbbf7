"""Published shapes with kernels by their definitions: the log-probabilities of transformers, padding unseen, undone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from speechkit_kernels import launch

from speechkit import demo, load_asr
from speechkit.asr.kernels import apply_kernels, explain, undo_kernels
from speechkit.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

    from speechkit.asr.model import Recognizer


@pytest.fixture(autouse=True)
def _definitions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter that tests/kernels turns on is slow, and tests the kernels there."""
    monkeypatch.setattr(launch, "_triton", lambda: None)


def sounds() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(0, 0.1, size).astype(np.float32) for size in (16_000, 5_000, 9_700)]


def farthest(one: list[np.ndarray], other: list[np.ndarray]) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", ["demo/en", "tiny layer norm"])
def test_outputs_batches_and_names_stay_and_undoing_is_exact(name: str, tiny_ctc: Path) -> None:
    asr: Recognizer = load_asr(name if name == "demo/en" else tiny_ctc, device="cpu")
    names, before = list(asr.model.state_dict()), asr.log_probs(sounds())
    applied = apply_kernels(asr)
    assert applied.norms == (1 if name == "demo/en" else 7) and applied.positional == 1 and not applied.left
    assert apply_kernels(asr) == applied, "twice is once"
    assert list(asr.model.state_dict()) == names
    together = asr.log_probs(sounds())
    assert farthest(together, before) < 1e-4
    assert farthest(together, [asr.log_probs(clip) for clip in sounds()]) < 1e-4, "batched equals single"
    assert undo_kernels(asr) == applied.norms + 1
    assert farthest(asr.log_probs(sounds()), before) == 0 and explain(asr).norms == 0


def test_gradients_are_those_of_transformers(tiny_ctc: Path) -> None:
    model = load_asr(tiny_ctc, device="cpu").model.eval().requires_grad_(True)
    found = []
    for kernels in (False, True):
        if kernels:
            apply_kernels(model)
        model.zero_grad()
        logits = model(torch.from_numpy(sounds()[0])[None]).logits
        (logits * torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
        named = model.named_parameters()
        found.append({name: weight.grad.clone() for name, weight in named if weight.grad is not None})
    assert found[0].keys() == found[1].keys() and len(found[0]) > 20
    for name, gradient in found[0].items():
        assert (found[1][name] - gradient).abs().max() <= 1e-4 * gradient.abs().max() + 1e-5, name


def test_texts_of_the_embedded_clips_stay(tmp_path: Path) -> None:
    asr, clips = load_asr("demo/en", device="cpu"), [clip.path for clip in demo.clips("en")]
    before = [told.text for told in asr.transcribe(clips)]
    print(apply_kernels(asr))
    assert [told.text for told in asr.transcribe(clips)] == before
    assert asr.self_check().ok


def test_what_has_no_front_end_is_refused() -> None:
    with pytest.raises(ModelError, match=r"Linear has no front-end of wav2vec 2\.0"):
        apply_kernels(torch.nn.Linear(2, 2))
