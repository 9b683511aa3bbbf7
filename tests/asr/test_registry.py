"""Names → sources, and what an unknown name is answered."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from speechkit.asr.registry import KNOWN, known_names, resolve
from speechkit.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(("name", "repo"), KNOWN.items())
def test_a_language_code_is_its_published_model(name: str, repo: str) -> None:
    source = resolve(name)
    assert (source.kind, source.location, source.language) == ("hub", repo, name)
    assert resolve(repo).language == name, "the id spelt out knows its language too"


def test_a_folder_is_itself_and_wins_over_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner" / "model").mkdir(parents=True)
    assert resolve("owner/model").kind == "hub"
    monkeypatch.chdir(tmp_path)
    assert resolve("owner/model").kind == "folder"
    assert resolve(tmp_path).location == str(tmp_path)


@pytest.mark.parametrize("name", ["xx", "", "EN", "demo/xx", "demo", "a/b/c", "owner/with space"])
def test_an_unknown_name_is_answered_with_the_known_ones(name: str) -> None:
    with pytest.raises(ModelError) as caught:
        resolve(name)
    assert all(known in str(caught.value) for known in known_names())
    assert repr(name) in str(caught.value)


def test_what_is_no_name_at_all_is_refused_with_its_type() -> None:
    with pytest.raises(ModelError, match="named by a string or a path, not by NoneType; known names: demo/en"):
        resolve(None)  # type: ignore[arg-type]


def test_a_folder_that_is_not_there_is_not_taken_for_a_hub_id(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=re.escape(f"model folder {tmp_path / 'gone'} does not exist")):
        resolve(tmp_path / "gone")
    with pytest.raises(ModelError, match=r"model folder \./gone does not exist"):
        resolve("./gone")


def test_a_file_is_answered_with_the_folder_it_needs(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ModelError, match="is a file; give the folder"):
        resolve(tmp_path / "model.safetensors")
