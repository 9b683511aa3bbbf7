"""Rows with audio: files below a folder, manifests of three kinds, and what is wrong in one."""

import json
from pathlib import Path

import pytest

from speechkit import demo
from speechkit.asr.rows import file_rows, manifest_rows, undecoded
from speechkit.errors import DataError


def test_a_folder_gives_all_audio_below_it_and_nothing_else(tmp_path: Path) -> None:
    for name in ("b.wav", "a.flac", "deep/c.mp3", "notes.txt", ".hidden.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [Path(row["audio"]).relative_to(tmp_path).as_posix() for row in file_rows(tmp_path)]
    assert sorted(found) == ["a.flac", "b.wav", "deep/c.mp3"]
    assert file_rows([tmp_path / "none.wav"], "sound") == [{"sound": str(tmp_path / "none.wav")}]
    with pytest.raises(DataError, match="no input"):
        file_rows([])


@pytest.mark.parametrize("kind", ["tsv", "csv", "jsonl"])
def test_a_manifest_gives_its_rows_with_the_file_as_audio(tmp_path: Path, kind: str) -> None:
    rows = [{"path": "a.wav", "text": 'she said "no"'}, {"path": "sub/b.wav", "text": ""}]
    if kind == "jsonl":
        text = "\n".join(map(json.dumps, rows)) + "\n\n"
    elif kind == "tsv":
        text = "path\ttext\n" + "".join(f"{r['path']}\t{r['text']}\n" for r in rows)
    else:
        text = 'path,text\na.wav,"she said ""no"""\nsub/b.wav,\n'
    manifest = tmp_path / f"m.{kind}"
    manifest.write_text(text, encoding="utf-8")
    assert list(manifest_rows(manifest)) == [row | {"audio": str(tmp_path / row["path"])} for row in rows]


def test_the_manifest_of_the_embedded_clips_is_read() -> None:
    found = list(manifest_rows(Path(demo.__file__).parent / "clips" / "manifest.tsv"))
    assert [Path(row["audio"]) for row in found] == [clip.path for clip in demo.clips()]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.xlsx", "", r"ends in '\.xlsx'; a manifest is one of \.tsv, \.csv, \.jsonl"),
        ("m.tsv", "file\ttext\na.wav\thello\n", "row 1 of .*m.tsv names no file in 'path'; it has file, text"),
        ("m.csv", "path,text\na.wav,x\n,y\n", "row 2 of .* names no file in 'path'"),
        ("m.tsv", "path\ttext\na.wav\thello\tthere\n", "row 1 of .* has more fields than its first line has names"),
        ("m.jsonl", '{"path": 3}\n', "row 1 of .* names no file in 'path'"),
        ("m.jsonl", '{"path": "a.wav"}\n{"path": \n', "line 2 of .*m.jsonl is not JSON"),
        ("m.jsonl", '["a.wav"]\n', "line 1 of .* is a list; give one JSON object per clip"),
        ("m.tsv", b"path\n\xff\xfe\n", "m.tsv cannot be read"),
    ],
)
def test_what_is_wrong_in_a_manifest_is_told(tmp_path: Path, name: str, text: str | bytes, message: str) -> None:
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=message):
        list(manifest_rows(tmp_path / name))


def test_a_manifest_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        list(manifest_rows(tmp_path / "none.tsv"))


def test_rows_that_are_no_dataset_pass_unchanged() -> None:
    rows = [{"audio": "a.wav"}]
    assert undecoded(rows, "audio") is rows
