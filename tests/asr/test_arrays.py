"""Arrays and their record: a round trip, a kill at any step, a full disk, damaged files."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from speechkit.asr.arrays import load, save
from speechkit.errors import DataError, OutputError

OLD = ({"a": np.zeros((2, 3), np.float32)}, {"made": "before", "é": [1, 2]})
NEW = ({"a": np.ones((4, 3), np.float32).T, "b": np.arange(5)}, {"made": "after"})


def same(found: tuple[dict, dict], wanted: tuple[dict, dict]) -> bool:
    return (
        found[1] == wanted[1]
        and found[0].keys() == wanted[0].keys()
        and all(np.array_equal(found[0][name], wanted[0][name]) for name in wanted[0])
    )


@pytest.mark.parametrize("made", [OLD, NEW], ids=["one", "two, one transposed"])
def test_save_and_load_are_inverse(tmp_path: Path, made: tuple[dict, dict]) -> None:
    assert same(load(save(tmp_path / "new" / "folder", "x", *made), "x"), made)
    assert json.loads((tmp_path / "new" / "folder" / "x.json").read_text(encoding="utf-8")) == made[1]
    assert load_file(tmp_path / "new" / "folder" / "x.safetensors").keys() == made[0].keys(), "readable by anyone"


@pytest.mark.parametrize("step", range(6))
def test_a_kill_at_any_step_leaves_one_whole_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Each file is written in two halves and renamed: six places to be killed at."""
    save(tmp_path, "x", *OLD)
    reached: list[str] = []
    rename = Path.replace

    def at(name: str) -> None:
        if len(reached) == step:
            raise KeyboardInterrupt
        reached.append(name)

    def halves(path: Path, data: bytes) -> None:
        with path.open("wb") as file:
            at("before")
            file.write(data[: len(data) // 2])
            file.flush()
            at("half")
            file.write(data[len(data) // 2 :])

    def renamed(path: Path, target: Path) -> None:
        at("rename")
        rename(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", halves)
        patched.setattr(Path, "replace", renamed)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, "x", *NEW)
    assert same(load(tmp_path, "x"), OLD if step < 3 else NEW)
    save(tmp_path, "x", *NEW)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.json", "x.safetensors"], "nothing is left behind"


def test_where_nothing_can_be_written_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="out cannot be written: "):
        save(tmp_path / "file" / "out", "x", *OLD)
    save(tmp_path, "x", *OLD)
    (tmp_path / "x.json.partial").mkdir()
    with pytest.raises(OutputError, match="cannot be written: "):
        save(tmp_path, "x", *NEW)


def test_what_is_missing_or_damaged_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x\.safetensors cannot be read"):
        load(tmp_path, "x")
    (tmp_path / "x.safetensors").write_bytes(b"cut")
    with pytest.raises(DataError, match=r"x\.safetensors cannot be read"):
        load(tmp_path, "x")
    save_file({"a": np.zeros(3)}, tmp_path / "x.safetensors")
    with pytest.raises(DataError, match=r"x\.safetensors has no record of how it was made"):
        load(tmp_path, "x")
