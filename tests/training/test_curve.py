"""A curve is written, read back after a crash, and knows its best point."""

from __future__ import annotations

from pathlib import Path

import pytest

from speechkit.errors import DataError
from speechkit.training.curve import Curve, Point

POINTS = (
    Point(0, 1.0, wer=0.5, cer=0.2),
    Point(10, 5.0, loss=2.5, learning_rate=1e-3, grad_norm=1.5, audio_s=30.0),
    Point(20, 10.0, loss=1.5, wer=0.3, cer=0.1),
    Point(30, 15.0, wer=0.3, cer=0.05),
)


def test_a_curve_comes_back_as_it_was_written(tmp_path: Path) -> None:
    curve = Curve(POINTS, 60, "run ü")
    curve.save(tmp_path / "curve.jsonl")
    loaded = Curve.load(tmp_path / "curve.jsonl")
    assert loaded == curve and loaded.name == "run ü"


def test_a_curve_that_cannot_be_written_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "curve.jsonl"
    Curve((Point(1, 0.5, loss=2.0),), 9).save(path)
    before = path.read_text()

    def full(self: Path, text: str, **_: object) -> int:
        self.open("w").write(text[:5])
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        Curve((Point(1, 0.5, loss=2.0), Point(2, 0.9, loss=1.0)), 9).save(path)
    assert path.read_text() == before


def test_a_last_line_cut_short_is_left_out_and_a_broken_one_before_it_is_named(tmp_path: Path) -> None:
    file = tmp_path / "curve.jsonl"
    Curve(POINTS, 60).save(file)
    whole = file.read_text()
    file.write_text(whole[:-20])
    assert Curve.load(file).points == POINTS[:-1]
    lines = whole.splitlines()
    lines[2] = lines[2][:-4]
    file.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match="line 3: no point"):
        Curve.load(file)


@pytest.mark.parametrize("text", ["", "{}\n", "no json\n", "[1]\n"])
def test_a_file_without_the_plan_is_no_curve(tmp_path: Path, text: str) -> None:
    file = tmp_path / "curve.jsonl"
    file.write_text(text)
    with pytest.raises(DataError, match="its first line should name steps and name"):
        Curve.load(file)


def test_the_best_point_is_the_earliest_of_those_with_the_lowest_rate() -> None:
    assert Curve(POINTS).best == POINTS[2]
    assert Curve(POINTS[1:2]).best is None and Curve().last is None


def test_time_left_follows_the_mean_pace_and_is_unknown_without_a_plan() -> None:
    assert Curve(POINTS, 60).time_left_s == pytest.approx(15.0)
    assert Curve(POINTS, 20).time_left_s == 0.0
    assert Curve(POINTS).time_left_s is None and Curve(POINTS[:1], 60).time_left_s is None
