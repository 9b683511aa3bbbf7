"""The check of training data against soundfile, torch's CTC loss, and hand-made damage of every kind."""

from __future__ import annotations

import threading
import tracemalloc
from dataclasses import replace
from typing import TYPE_CHECKING

import datasets
import numpy as np
import pytest
import soundfile
import soxr
import torch
from hypothesis import given
from hypothesis import strategies as st

from speechkit import demo
from speechkit.asr.frames import FrameGrid
from speechkit.errors import DataError
from speechkit.training.check import check_examples, frames_needed
from speechkit.training.data import Example, read_examples, stream_examples
from speechkit.training.data_report import KINDS
from speechkit.training.vocabulary import Vocabulary, build_vocabulary
from tests.sounds import encoded
from tests.sounds import voice as low_voice

if TYPE_CHECKING:
    from pathlib import Path


def voice(seconds: float, rate: int = 16000, seed: int = 0) -> np.ndarray:
    """Sound up to half the rate: the common one ends at 3 kHz, which is what the check takes for 8 kHz material."""
    low = low_voice(seconds, rate, seed)
    return low + 0.01 * np.random.default_rng(seed).standard_normal(len(low)).astype(np.float32)


LATIN = build_vocabulary(["the quick brown fox jumps over the lazy dog"], "en")
GOOD = Example(encoded(voice(1.0)), "good morning", "good")


def kinds(*examples: Example, **options: object) -> dict[str, list[str]]:
    """Kind → names of the rows; a good row is added, so that there is always something to keep."""
    report = check_examples([GOOD, *examples], **options)  # type: ignore[arg-type]
    found: dict[str, list[str]] = {}
    for problem in (*report.left_out, *report.warnings):
        found.setdefault(problem.kind, []).append(problem.name)
    return found


def test_kept_rows_carry_the_length_that_soundfile_measures() -> None:
    clips = demo.clips("en")[:3]
    report = check_examples([Example(str(clip.path), clip.text, clip.path.stem) for clip in clips], vocabulary=LATIN)
    assert not report.left_out and not report.warnings
    for example, clip in zip(report.kept, clips, strict=True):
        assert example.seconds == soundfile.info(clip.path).duration
    assert report.seconds == pytest.approx(sum(soundfile.info(clip.path).duration for clip in clips))


def test_every_kind_of_bad_row_is_left_out_and_none_stops_the_check(tmp_path: Path) -> None:
    whole = encoded(voice(1.0, seed=1), kind="FLAC")
    (tmp_path / "notes.wav").write_text("these are no samples")
    bad = {
        "malformed row": [Example(None, "hi", "broken line", fault="line 3 is not JSON")],
        "empty text": [replace(GOOD, text="", name="none"), replace(GOOD, text=" … ", name="dots")],
        "unreadable": [
            Example(str(tmp_path / "gone.wav"), "hi", "missing"),
            Example(str(tmp_path / "notes.wav"), "hi", "no audio"),
            Example(whole[: len(whole) // 2], "hi", "cut off"),
            Example(np.full(16000, np.nan, np.float32), "hi", "NaN"),
            Example(b"", "hi", "no bytes"),
        ],
        "too short": [Example(voice(0.05), "hi", "a click"), Example(voice(0.02), "hi", "no frame")],
        "too long": [Example(voice(31.0), "hi", "a speech")],
        "unexpected script": [Example(voice(1.1), "доброе утро", "Russian")],
        "label longer than frames": [Example(voice(0.3), "good morning everyone", "talks fast")],
        "duplicate": [replace(GOOD, name="again"), replace(GOOD, text="Good morning!", name="again, punctuated")],
    }
    rows = [row for rows in bad.values() for row in rows]
    assert kinds(*rows, vocabulary=LATIN) == {kind: [row.name for row in rows] for kind, rows in bad.items()}
    assert tuple(bad) == tuple(sorted(bad, key=KINDS.index))


def test_a_row_of_a_data_set_that_raises_costs_only_itself() -> None:
    class Source:
        def read(self, *_: object) -> bytes:
            raise KeyError("shard 7 is lost")

    (problem,) = check_examples([GOOD, Example(Source(), "hi", "lost")]).left_out
    assert (problem.kind, problem.row) == ("unreadable", 1)
    assert problem.detail == "KeyError: 'shard 7 is lost'"


@given(st.lists(st.integers(1, 3), min_size=1, max_size=6), st.integers(1, 12))
def test_labels_fit_their_frames_exactly_where_torch_s_ctc_loss_is_finite(labels: list[int], frames: int) -> None:
    loss = torch.nn.functional.ctc_loss(
        torch.zeros(frames, 1, 4).log_softmax(-1), torch.tensor([labels]), [frames], [len(labels)]
    )
    assert bool(torch.isfinite(loss)) == (frames_needed(labels) <= frames)


@pytest.mark.parametrize("grid", [FrameGrid(), FrameGrid(160, 400)], ids=["20 ms", "10 ms"])
def test_the_frames_are_those_of_the_model_s_grid(grid: FrameGrid) -> None:
    needed = frames_needed(LATIN.encode("good"))
    assert needed == 5  # four letters, and a blank between the two o
    fits, lacks = (Example(voice(2)[:count], "good", str(count)) for count in (grid.samples(5), grid.samples(5) - 1))
    assert kinds(fits, lacks, vocabulary=LATIN, grid=grid, min_s=0.0) == {"label longer than frames": [lacks.name]}


def test_limits_are_included() -> None:
    rows = [Example(voice(2)[:count], "hi", str(count)) for count in (7999, 8000, 16000, 16001)]
    found = kinds(*rows, min_s=0.5, max_s=1.0)
    assert found == {"too short": ["7999"], "too long": ["16001"]}


def test_sound_is_compared_as_it_is_heard_not_as_it_is_packed() -> None:
    samples = np.round(voice(1.0, seed=2) * 2**15) / 2**15
    wav, flac = (Example(encoded(samples, kind=kind), "hi", kind) for kind in ("WAV", "FLAC"))
    assert kinds(wav, flac) == {"duplicate": ["FLAC"]}
    assert kinds(wav, replace(flac, text="bye")) == {"same audio, another text": ["FLAC"]}


def test_a_sound_to_judge_by_that_is_trained_on_is_a_remark_that_names_both(tmp_path: Path) -> None:
    samples = np.round(voice(1.0, seed=2) * 2**15) / 2**15
    trained = check_examples([GOOD, Example(encoded(samples, kind="WAV"), "hi", "learnt")])
    trained.save(tmp_path / "data.json")
    rows = [Example(encoded(samples, kind="FLAC"), "hi", "judged"), Example(voice(1.0, seed=9), "ho", "new")]
    for report in (trained, type(trained).load(tmp_path / "data.json")):
        (problem,) = check_examples(rows, trained_on=report).warnings
        assert (problem.kind, problem.name) == ("in the training data too", "judged")
        assert "the same sound as learnt" in problem.detail
    assert not check_examples(rows).warnings


def test_speech_that_was_upsampled_from_8_khz_is_kept_with_a_remark() -> None:
    wide = [clip.path for clip in demo.clips("en")[:4]]
    narrow = []
    for path in wide:
        samples, rate = soundfile.read(path, dtype="float32")
        narrow.append(encoded(soxr.resample(soxr.resample(samples, rate, 8000), 8000, 16000)))
    rows = [Example(str(path), "wide", f"wide {n}") for n, path in enumerate(wide)]
    rows += [Example(data, "narrow", f"narrow {n}") for n, data in enumerate(narrow)]
    assert kinds(*rows) == {"wrong rate": [f"narrow {n}" for n in range(4)]}


def test_a_rate_other_than_the_row_claims_is_a_remark_and_the_file_s_counts() -> None:
    low = encoded(voice(1.0, 8000, seed=3), 8000)
    report = check_examples([
        Example(low, "hi", "as it says", rate=8000),
        Example(low, "ho", "not as it says", rate=16000),
        Example((voice(1.0, 22050, seed=4), 22050), "ha", "fine", rate=22050),
    ])  # fmt: skip
    first, second = report.of_kind("wrong rate")
    assert "recorded at 8000 Hz: nothing above 4 kHz" in first.detail
    assert "the row says 16000 Hz, the file is 8000 Hz" in second.detail
    assert [example.seconds for example in report.kept] == pytest.approx([1.0] * 3, abs=1e-3)


def test_characters_that_the_vocabulary_lacks_and_silence_are_remarks() -> None:
    report = check_examples(
        [replace(GOOD, text="good façade ñ"), Example(np.zeros(16000), "quiet", "mute")], vocabulary=LATIN
    )
    assert [(problem.kind, problem.name) for problem in report.warnings] == [
        ("characters not in the vocabulary", "good"), ("silent", "mute"),
    ]  # fmt: skip
    assert report.warnings[0].detail == "ç ñ"


def test_a_text_of_digits_alone_is_left_out_where_the_vocabulary_has_none() -> None:
    (problem,) = check_examples([GOOD, Example(voice(1.0, seed=5), "112", "call")], vocabulary=LATIN).left_out
    assert (problem.kind, problem.detail) == ("unexpected script", "3 of 3 characters are not in the vocabulary: 1 2")


def test_memory_does_not_grow_with_the_length_of_a_recording(tmp_path: Path) -> None:
    """Ten minutes are 38 MB as samples."""
    soundfile.write(tmp_path / "long.flac", np.tile(voice(60.0), 10), 16000)
    example = Example(str(tmp_path / "long.flac"), "a long story", "long")
    tracemalloc.start()
    try:
        report = check_examples([example], max_s=3600.0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert report.seconds == 600
    assert peak < 25e6


def test_rows_of_a_data_set_are_checked_in_their_place(tmp_path: Path) -> None:
    sounds = [{"bytes": encoded(voice(0.5 + n / 10, seed=n)), "path": None} for n in range(8)]
    sounds[3] = {"bytes": b"broken", "path": None}
    rows = {"audio": sounds, "text": [f"row number {n}" for n in range(8)]}
    dataset = datasets.Dataset.from_dict(rows).cast_column("audio", datasets.Audio(decode=False))
    for examples in (read_examples(dataset), stream_examples(dataset.to_iterable_dataset())):
        report = check_examples(examples)
        assert [example.seconds for example in report.kept] == pytest.approx([0.5, 0.6, 0.7, 0.9, 1.0, 1.1, 1.2])
        assert [(problem.kind, problem.row) for problem in report.left_out] == [("unreadable", 3)]


def test_no_usable_row_is_an_error_that_says_why_with_counts() -> None:
    rows = [Example(voice(1.0, seed=n), "привет мир", f"clip {n}") for n in range(3)]
    with pytest.raises(DataError, match="none of the 4 rows can be trained on") as raised:
        check_examples([*rows, Example(b"", "hi", "void")], vocabulary=LATIN)
    message = str(raised.value)
    assert (
        "3 unexpected script (such as row 0 (clip 0): 'привет мир' is Cyrillic 100.0 %, the vocabulary Latin" in message
    )
    assert "1 unreadable (such as row 3 (void): bytes (0) is empty (0 bytes)" in message


def test_no_row_at_all_and_limits_that_exclude_each_other_are_errors() -> None:
    with pytest.raises(DataError, match="has no rows"):
        check_examples([])
    with pytest.raises(DataError, match="min_s is 5 and max_s 1"):
        check_examples([GOOD], min_s=5, max_s=1)


def test_rows_keep_their_order_and_progress_counts_them() -> None:
    rows = [Example(voice(0.2 + (n % 3), seed=n), "hi", str(n)) for n in range(30)]
    done: list[int] = []
    report = check_examples(rows, progress=done.append)
    assert [example.name for example in report.kept] == [str(n) for n in range(30)]
    assert done == list(range(1, 31))


def test_a_stream_is_read_a_few_rows_ahead_and_no_further() -> None:
    asked, most = 0, 0

    def stream():
        nonlocal asked
        for n in range(200):
            asked += 1
            yield Example(voice(0.1, seed=n), "a", str(n))

    def progress(done: int) -> None:
        nonlocal most
        most = max(most, asked - done)

    check_examples(stream(), progress=progress, min_s=0.0)
    assert most <= 33  # four rows for each of at most eight threads


def test_no_thread_is_left_behind_when_the_caller_stops() -> None:
    def stop(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check_examples([GOOD] * 50, progress=stop)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("check")]


def test_real_recordings_at_16_khz_are_not_taken_for_narrow_ones(speech_data: Path) -> None:
    """Soft single words are the hard case: the whole set of Speech Commands words, and digits that were 8 kHz."""
    rows = read_examples(speech_data / "manifest.tsv")
    words = [row for row in rows if row.name.startswith("words_en_speechcommands")]
    digits = [replace(row, rate=None) for row in rows if row.name.startswith("digits_en_fsdd")][:40]
    report = check_examples(words + digits, min_s=0.05)
    wrong = {problem.name for problem in report.of_kind("wrong rate")}
    assert wrong == {row.name for row in report.kept} - {row.name for row in words}


def test_the_vocabulary_of_a_published_shape_spells_the_labels() -> None:
    """An upper-case model is no other script for lower-case texts."""
    upper = Vocabulary(("<pad>", "<unk>", "|", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ'"), 0, 1, 2)
    assert kinds(vocabulary=upper) == {}
