"""Acoustic units: torchaudio's MFCCs and hand-made sounds as judges; a miniature learns to name them."""

import numpy as np
import pytest
import torch

from speechkit import audio, demo
from speechkit.asr.frames import FrameGrid
from speechkit.errors import DataError
from speechkit.training.masked_units import MaskedUnits, cepstra, fit_units

GRID = FrameGrid()


def sound(seconds: float, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(int(seconds * 16000)).astype(np.float32))


def test_there_is_one_row_for_every_frame_of_the_model_with_mean_0_and_variance_1() -> None:
    samples = torch.stack([sound(1.3), sound(1.3, 1)])
    frames = GRID.frames(samples.shape[1])
    found = cepstra(samples, frames, GRID)
    assert found.shape == (2, frames, 39)
    torch.testing.assert_close(found.mean(dim=1), torch.zeros(2, 39), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.std(dim=1, correction=0), torch.ones(2, 39), atol=2e-2, rtol=0)


def test_cepstra_follow_torchaudios_mfccs() -> None:
    torchaudio = pytest.importorskip("torchaudio")
    samples = torch.from_numpy(audio.load(demo.clips("en")[0].path))[None]
    frames = GRID.frames(samples.shape[1])
    ours = cepstra(samples, frames, GRID)[0, :, 1:13]
    settings = {
        "n_fft": 512,
        "win_length": 400,
        "hop_length": 320,
        "n_mels": 40,
        "f_min": 60.0,
        "f_max": 7600.0,
        "center": False,
    }
    theirs = torchaudio.transforms.MFCC(16000, 13, log_mels=True, melkwargs=settings)(samples)[0].T[:, 1:]
    theirs = theirs[:frames]
    theirs = (theirs - theirs.mean(dim=0)) / theirs.std(dim=0)
    for one, other in zip(ours[: len(theirs)].T, theirs.T, strict=True):
        assert np.corrcoef(one.numpy(), other.numpy())[0, 1] > 0.8


def test_a_louder_recording_has_the_same_units() -> None:
    samples = torch.from_numpy(audio.load(demo.clips("en")[1].path))[None]
    frames = GRID.frames(samples.shape[1])
    units = MaskedUnits(fit_units([samples[0].numpy()], GRID, 12), 8, GRID)
    same = units.targets(samples, frames) == units.targets(samples * 5, frames)
    assert same.float().mean() > 0.97


def test_two_vowels_get_different_units() -> None:
    time = torch.arange(16000) / 16000
    low, high = (sum(torch.sin(2 * torch.pi * f * time) for f in tones) for tones in ((300, 600), (2500, 3500)))
    samples = torch.cat([low, high])[None]
    frames = GRID.frames(samples.shape[1])
    units = MaskedUnits(fit_units([samples[0].numpy()], GRID, 4), 8, GRID).targets(samples, frames)[0]
    assert not set(units[5 : frames // 2 - 5].tolist()) & set(units[frames // 2 + 5 : -5].tolist())


def test_the_loss_is_the_cross_entropy_of_masked_frames_and_half_of_that_of_the_others() -> None:
    samples = sound(1.0)[None]
    frames = GRID.frames(samples.shape[1])
    units = MaskedUnits(fit_units([samples[0].numpy()], GRID, 5), 8, GRID, seen=0.5)
    context, mask = torch.randn(1, frames, 8), torch.zeros(1, frames, dtype=torch.bool)
    mask[:, 10:20] = True
    targets = units.targets(samples, frames)[0]
    logits = units.reader(context)[0]
    parts = [torch.nn.functional.cross_entropy(logits[rows], targets[rows]) for rows in (mask[0], ~mask[0])]
    torch.testing.assert_close(units(context, samples, mask).loss, parts[0] + 0.5 * parts[1])


def test_too_little_sound_for_the_units_is_refused_with_both_numbers() -> None:
    with pytest.raises(DataError, match="49 frames of sound cannot be parted into 100 units"):
        fit_units([sound(1.0).numpy()], GRID, 100)
