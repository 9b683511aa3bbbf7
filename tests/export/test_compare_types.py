"""Several types of one model side by side: sizes, errors and verdicts, as a table and as a picture."""

from __future__ import annotations

import math
from pathlib import Path

import gguf
import numpy as np
import pytest

from speechkit.errors import DataError, OutputError, PlanError
from speechkit.export.compare_types import TypeRow, Types, compare_types, relative_rmse


@pytest.fixture(scope="module")
def types(tmp_path_factory: pytest.TempPathFactory) -> Types:
    place = tmp_path_factory.mktemp("types")
    return compare_types("demo/chat", place, ["F16", "Q4_K_M"], prompts=["what is 3 plus 4?", "hello"], name="chat")


def test_each_type_is_a_file_with_its_size_error_and_verdict(types: Types) -> None:
    fine, coarse = types.rows
    assert (fine.path.name, coarse.path.name) == ("chat-F16.gguf", "chat-Q4_K_M.gguf")
    assert {path.name for path in fine.path.parent.glob("*.gguf")} == {"chat-F16.gguf", "chat-Q4_K_M.gguf"}
    assert fine.path.stat().st_size == fine.bytes > 2 * coarse.bytes
    assert fine.rmse < 1e-3 < coarse.rmse < 0.1 and fine.kl < coarse.kl and fine.verdict == "passed"


def test_the_table_has_a_line_for_each_and_json_no_path(types: Types) -> None:
    lines = str(types).splitlines()
    assert len(lines) == 3 and lines[1].startswith("F16") and lines[2].startswith("Q4_K_M")
    assert types.as_dict()["rows"][0]["path"] == "chat-F16.gguf"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_picture_names_every_type(types: Types, theme: str) -> None:
    figure = types.plot(theme)
    said = [text.get_text() for text in figure.axes[0].texts]
    assert [text.split(",")[0] for text in said] == ["F16", "Q4_K_M"]


def test_without_a_comparison_there_is_a_table_but_no_picture() -> None:
    row = TypeRow("F16", Path("a.gguf"), 10, 16.0, 0.0, math.nan, math.nan, "unproved")
    types = Types("a", (row,))
    assert "unproved" in str(types)
    with pytest.raises(DataError, match="no file was compared"):
        types.plot()


def test_no_type_and_an_unknown_one_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="at least one type"):
        compare_types("demo/chat", tmp_path / "a", [])
    with pytest.raises(PlanError, match="Q3_K"):
        compare_types("demo/chat", tmp_path / "a", ["F16", "Q3_K"])
    with pytest.raises(PlanError, match="quants is 'Q8_0'; give a list"):
        compare_types("demo/chat", tmp_path / "a", "Q8_0")
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be made"):
        compare_types("demo/chat", tmp_path / "file", ["F16"])


def _file(path: Path, *values: np.ndarray) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    for number, value in enumerate(values):
        writer.add_tensor(f"t{number}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_error_is_the_matrices_relative_to_their_size(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(4, 32)).astype(np.float32)
    exact = _file(tmp_path / "exact.gguf", x, np.ones(32, np.float32))
    other = _file(tmp_path / "other.gguf", 1.1 * x, np.zeros(32, np.float32))  # a norm off is no matter of types
    assert relative_rmse(other, exact) == pytest.approx(0.1, rel=1e-5)
    with pytest.raises(DataError, match="do not hold the same tensors"):
        relative_rmse(_file(tmp_path / "less.gguf", x), exact)
