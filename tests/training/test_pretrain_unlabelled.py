"""Sound without text → windows → batches."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

sys.path.insert(0, str(Path(__file__).parent))
from pretrain_models import tones

from speechkit.asr.frames import FrameGrid
from speechkit.errors import DataError
from speechkit.training.unlabelled import BatchPlan, PlannedBatches, Windows

PLAN = BatchPlan(steps=40, budget_s=4.0, mask_start=0.065, mask_frames=10, negatives=10, seed=1)


def ragged(count: int = 12) -> list[np.ndarray]:
    lengths = np.random.default_rng(0).uniform(0.4, 3.0, count)
    return [tones(1, float(seconds), seed)[0] for seed, seconds in enumerate(lengths)]


def test_windows_hold_the_sound_that_was_given(tmp_path: Path) -> None:
    clips = ragged()
    windows = Windows.open_or_write(tmp_path, clips, 0.3, 5.0)
    for index, clip in enumerate(clips):
        assert np.abs(windows.samples(index) - clip).max() < 1e-4  # two steps of 16 bits
    assert windows.seconds == pytest.approx(sum(map(len, clips)) / 16_000)


def test_files_folders_pairs_rows_and_examples_are_all_sound(tmp_path: Path) -> None:
    folder = tmp_path / "in" / "deep"
    folder.mkdir(parents=True)
    soundfile.write(folder / "a.flac", tones(1)[0], 16_000)
    (folder / "notes.txt").write_text("not sound")
    given = [
        tmp_path / "in",
        str(folder / "a.flac"),
        tones(1)[0],
        (tones(1)[0], 8_000),
        {"audio": {"array": tones(1)[0], "sampling_rate": 16_000}, "text": "is not looked at"},
        SimpleNamespace(audio=folder / "a.flac", name="row 7"),
    ]
    windows = Windows.open_or_write(tmp_path / "out", given, 0.3, 5.0)
    assert len(windows) == 6
    assert windows.places[3, 1] == pytest.approx(2 * 16_000, abs=2), "8 kHz was taken for 16"
    assert not windows.skipped


def test_long_sound_is_cut_and_what_cannot_be_used_is_listed(tmp_path: Path) -> None:
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"no sound at all")
    given = [tones(1, 7.2)[0], tones(1, 0.1)[0], np.zeros(16_000, np.float32), broken]
    windows = Windows.open_or_write(tmp_path / "out", given, 0.3, 3.0)
    assert [round(count / 16_000, 1) for _, count in windows.places] == [3.0, 3.0, 1.2]
    assert [row.name for row in windows.skipped] == ["item 2", "item 3", str(broken)]
    assert "longer than 0.3 s and not silent" in windows.skipped[0].reason


@pytest.mark.parametrize("given", [[], [np.zeros(48_000, np.float32)], ["/nowhere/at/all.wav"]])
def test_no_usable_sound_is_an_error_with_the_reason(given: list[object], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no usable audio to pretrain on"):
        Windows.open_or_write(tmp_path / "out", given, 0.3, 3.0)
    assert not (tmp_path / "out" / "windows.npy").exists()


def test_a_folder_without_audio_says_what_it_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no audio files in .*\.flac"):
        Windows.open_or_write(tmp_path / "out", tmp_path, 0.3, 3.0)


def test_every_epoch_hears_every_window_once_in_another_order(tmp_path: Path) -> None:
    windows = Windows.open_or_write(tmp_path, ragged(), 0.3, 5.0)
    batches = PlannedBatches(windows, PLAN, FrameGrid())
    heard, epochs, step = Counter[int](), [], 0
    while len(epochs) < 3:
        indices = batches.batch(step)
        heard.update(int(i) for i in indices)
        step += 1
        if sum(heard.values()) == len(windows):
            assert set(heard.values()) == {1}
            epochs.append(step)
            heard.clear()
    orders = [
        [tuple(batches.batch(i)) for i in range(first, last)] for first, last in zip([0, *epochs], epochs, strict=False)
    ]
    assert orders[0] != orders[1] != orders[2]


def test_batches_keep_to_their_budget_and_to_one_length(tmp_path: Path) -> None:
    windows = Windows.open_or_write(tmp_path, ragged(40), 0.3, 5.0)
    batches = PlannedBatches(windows, PLAN, FrameGrid())
    for step in range(40):
        lengths = windows.places[batches.batch(step), 1]
        rows = batches[step]["input_values"]
        assert rows.numel() <= PLAN.budget_s * 16_000
        assert rows.shape[1] == lengths.min() >= 0.85 * lengths.max()
        assert batches[step]["mask"].shape == (len(rows), FrameGrid().frames(rows.shape[1]))


def test_a_batch_depends_on_seed_and_step_alone(tmp_path: Path) -> None:
    windows = Windows.open_or_write(tmp_path, ragged(), 0.3, 5.0)
    first, again = (PlannedBatches(Windows(tmp_path), PLAN, FrameGrid()) for _ in range(2))
    for step in range(20):  # one in order, the other straight to the last
        first[step]
    for name, value in first[20].items():
        assert (again[20][name] == value).all(), name
    other = PlannedBatches(windows, BatchPlan(40, 4.0, 0.065, 10, 10, seed=2), FrameGrid())
    assert any(tuple(first.batch(i)) != tuple(other.batch(i)) for i in range(10))
