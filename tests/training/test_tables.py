"""CSV, TSV and JSON lines in the shapes that spreadsheets, editors and corpora give them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechkit.errors import DataError
from speechkit.training.tables import table_fields

if TYPE_CHECKING:
    from pathlib import Path


def rows(path: Path, text: str = "text") -> list[dict[str, str]]:
    return [row for _, row, _ in table_fields(path).rows(text)]


WANTED = [{"path": "a.wav", "text": "eins, zwei"}, {"path": "b.wav", "text": "drei"}]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        pytest.param("t.csv", b'path,text\na.wav,"eins, zwei"\nb.wav,drei\n', id="plain"),
        pytest.param("t.csv", b'\xef\xbb\xbfpath,text\r\na.wav,"eins, zwei"\r\nb.wav,drei', id="from Windows"),
        pytest.param("t.csv", b"path;text\na.wav;eins, zwei\nb.wav;drei\n", id="semicolons, as Excel in Europe"),
        pytest.param("t.CSV", b'path, text\n\na.wav, "eins, zwei"\n , \nb.wav, drei\n', id="spaces and blank lines"),
        pytest.param("t.csv", b"\n\npath,text\na.wav,eins, zwei\nb.wav,drei\n", id="commas that nobody quoted"),
        pytest.param("t.tsv", b"path\ttext\na.wav\teins, zwei\nb.wav\tdrei\n", id="tabs"),
        pytest.param("t.tsv", "path\ttext\r\na.wav\teins, zwei\r\nb.wav\tdrei".encode("utf-16"), id="Unicode text"),
        pytest.param("t.csv", b"path\ttext\na.wav\teins, zwei\nb.wav\tdrei\n", id="tabs under the wrong name"),
        pytest.param("t.txt", b"path|text\na.wav|eins, zwei\nb.wav|drei\n", id="bars"),
        pytest.param("t.tsv", b"a.wav\teins, zwei\nb.wav\tdrei\n", id="without a head"),
    ],
)
def test_the_same_rows_come_out(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    assert rows(tmp_path / name) == WANTED


def test_rows_behind_a_quotation_mark_that_is_not_closed_are_said_to_be_lost(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('path,text\na.wav,eins\nb.wav,"zwei\nc.wav,drei\nd.wav,vier\n')
    (_, _, fine), (_, row, fault) = table_fields(path).rows("text")
    assert not fine and row["path"] == "b.wav"
    assert fault.startswith("lines 3 to 5 of t.csv are read as one row: a quotation mark is not closed")
    path.write_text('path,text\na.wav,"eins,\nzwei"\nb.wav,drei\n')
    assert [fault for _, _, fault in table_fields(path).rows("text")] == ["", ""], "a text of two lines is one text"


def test_a_quotation_mark_between_tabs_is_a_quotation_mark(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text('path\ttext\na.wav\t"Ja\nb.wav\tnein" sagte er\n')
    assert [row["text"] for row in rows(tmp_path / "t.tsv")] == ['"Ja', 'nein" sagte er']


def test_columns_of_a_table_without_a_head_are_numbered(tmp_path: Path) -> None:
    """LJSpeech's metadata.csv: an id without an ending, the text, the text with numbers spelt out."""
    (tmp_path / "metadata.csv").write_text("LJ001-0001|in 1455|in fourteen fifty-five\n")
    fields = table_fields(tmp_path / "metadata.csv", headless=True)
    assert fields.columns == ("1", "2", "3")
    assert [row["3"] for _, row, _ in fields.rows("3")] == ["in fourteen fifty-five"]


def test_too_many_fields_are_a_fault_where_they_cannot_be_joined(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text,path\neins,a.wav\neins, zwei,b.wav\ndrei\n")
    found = list(table_fields(tmp_path / "t.csv").rows("text"))
    assert [fault for *_, fault in found] == ["", "line 3 of t.csv has 3 fields for 2 columns", ""]
    assert found[2][1] == {"text": "drei"}


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        pytest.param("t.xlsx", b"PK", r"ends in '\.xlsx'; a table of recordings is one of \.csv, \.tsv", id="workbook"),
        pytest.param("t.csv", b"", "is empty", id="empty"),
        pytest.param("t.csv", "path,text\na.wav,café\n".encode("latin-1"), "save it again as UTF-8", id="Latin-1"),
        pytest.param("t.jsonl", b"a.wav hello\n", "holds no JSON object", id="no JSON"),
    ],
)
def test_what_is_no_table_is_named(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        rows(tmp_path / name)


LINES = st.text(alphabet=st.sampled_from('a,;\t|"\r\n{}: ñ\x00'), max_size=40).map(str.encode)


@given(st.sampled_from([".csv", ".tsv", ".jsonl"]), LINES | st.binary(max_size=40))
def test_any_bytes_are_rows_or_an_error_of_ours(tmp_path_factory, suffix: str, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / f"any{suffix}"
    path.write_bytes(data)
    try:
        fields = table_fields(path)
        for line, row, fault in fields.rows(fields.columns[-1]):
            assert line >= 1
            assert fault or suffix == ".jsonl" or set(row) <= set(fields.columns)
    except DataError as error:
        assert str(path) in str(error)
