"""Folders and tables as people leave them: which file and which text each row means."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from speechkit.errors import AudioError, DataError
from speechkit.training.data import read_examples
from tests.sounds import encoded, voice

WAV = encoded(voice(0.2))


def put(path: Path, data: bytes | str = WAV) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def pairs(source: Path, **names: str) -> list[tuple[str, str]]:
    """Text and audio file, seen from the source's folder, of every row."""
    folder = source if source.is_dir() else source.parent
    rows = read_examples(source, **names)
    return [(row.text, Path(row.audio).relative_to(folder).as_posix() if row.audio else row.fault) for row in rows]


def test_a_folder_pairs_every_recording_with_the_text_of_its_name(tmp_path: Path) -> None:
    put(tmp_path / "b.WAV")
    put(tmp_path / "b.txt", "\ufeffzwei\r\n  drei\r\n")
    put(tmp_path / "anna" / "a.flac")
    put(tmp_path / "anna" / "a.LAB", "eins")
    put(tmp_path / ".hidden" / "c.wav")
    put(tmp_path / "README.txt", "about these recordings")
    assert pairs(tmp_path) == [("eins", "anna/a.flac"), ("zwei drei", "b.WAV")]
    assert [row.speaker for row in read_examples(tmp_path, speaker="folder")] == ["anna", tmp_path.name]
    assert [row.language for row in read_examples(tmp_path, language="de-AT")] == ["de-AT", "de-AT"]


def test_a_recording_without_text_and_a_text_without_recording_are_rows_too(tmp_path: Path) -> None:
    put(tmp_path / "a.wav")
    put(tmp_path / "b.txt", "lost")
    put(tmp_path / "c.wav")
    put(tmp_path / "c.txt", b"caf\xe9")
    rows = read_examples(tmp_path)
    assert [(row.name, row.text) for row in rows] == [("a.wav", ""), ("b.wav", "lost"), ("c.wav", "")]
    assert "c.txt cannot be read as UTF-8" in rows[2].fault


def test_librispeech_s_one_text_file_per_chapter_is_read_with_its_speakers(tmp_path: Path) -> None:
    for name in ("84-121123-0000", "84-121123-0001", "84-121123-0002"):
        put(tmp_path / "84" / "121123" / f"{name}.flac")
    put(tmp_path / "84" / "121123" / "84-121123.trans.txt", "84-121123-0000 GO ON\n84-121123-0001 WHAT IS IT\n")
    rows = read_examples(tmp_path)
    assert [(row.text, row.speaker) for row in rows] == [("GO ON", "84"), ("WHAT IS IT", "84"), ("", "")]


def test_a_common_voice_folder_is_read_by_its_table_of_valid_clips(tmp_path: Path) -> None:
    """Column names and quoting as in the published archives: tab-separated, quotation marks mean themselves."""
    put(tmp_path / "clips" / "common_voice_pl_1.mp3")
    put(tmp_path / "clips" / "common_voice_pl_2.mp3")
    head = "client_id\tpath\tsentence_id\tsentence\tup_votes\tdown_votes\tage\tgender\taccents\tlocale\tsegment\n"
    rows = 'abc\tcommon_voice_pl_1.mp3\t1\t"Tak", powiedział.\t2\t0\t\t\t\tpl\t\n'
    rows += "def\tcommon_voice_pl_2\t2\tNie\t2\t0\t\t\t\tpl\t\n"
    put(tmp_path / "validated.tsv", head + rows)
    put(tmp_path / "train.tsv", head)
    assert pairs(tmp_path) == [
        ('"Tak", powiedział.', "clips/common_voice_pl_1.mp3"),
        ("Nie", "clips/common_voice_pl_2.mp3"),  # early releases left the ending out
    ]
    assert [(row.speaker, row.language) for row in read_examples(tmp_path)] == [("abc", "pl"), ("def", "pl")]
    (tmp_path / "validated.tsv").unlink()
    assert pairs(tmp_path) == []


def test_a_folder_with_metadata_csv_is_read_by_it(tmp_path: Path) -> None:
    put(tmp_path / "data" / "a.wav")
    put(tmp_path / "metadata.csv", "file_name,transcription\ndata/a.wav,hello\n")
    assert pairs(tmp_path) == [("hello", "data/a.wav")]


@pytest.mark.parametrize(
    "written",
    [
        pytest.param("a.wav", id="as it is"),
        pytest.param("A.WAV", id="in capitals"),
        pytest.param("a", id="without its ending"),
        pytest.param("./a.wav", id="from here"),
        pytest.param("D:\\corpus\\clips\\a.wav", id="a path of another machine, Windows"),
        pytest.param("/home/someone/corpus/clips/a.wav", id="a path of another machine"),
        pytest.param("clips\\a.wav", id="with Windows separators"),
    ],
)
def test_a_file_is_found_however_the_table_writes_it(tmp_path: Path, written: str) -> None:
    put(tmp_path / "clips" / "a.wav")
    put(tmp_path / "rows.tsv", f"path\ttext\n{written}\thi\n")
    assert pairs(tmp_path / "rows.tsv") == [("hi", "clips/a.wav")]


def test_a_folder_of_recordings_without_texts_names_the_tables_it_holds(tmp_path: Path) -> None:
    """Common Voice unpacked: the language's folder was meant."""
    put(tmp_path / "pl" / "clips" / "a.mp3")
    with pytest.raises(
        DataError, match=r"holds 1 recordings and no text file beside any of them \(a.wav, a.txt or a.lab\)$"
    ):
        read_examples(tmp_path)
    put(tmp_path / "pl" / "validated.tsv", "path\tsentence\na.mp3\ttak\n")
    with pytest.raises(DataError, match=r"it holds the tables pl/validated.tsv: give the path of one"):
        read_examples(tmp_path)
    assert [row.text for row in read_examples(tmp_path / "pl")] == ["tak"]


def test_an_absolute_path_that_exists_is_taken_as_it_is(tmp_path: Path) -> None:
    there = put(tmp_path / "elsewhere" / "a.wav")
    put(tmp_path / "table" / "a.wav", encoded(voice(0.3)))
    put(tmp_path / "table" / "rows.csv", f"path,text\n{there},hi\n")
    assert read_examples(tmp_path / "table" / "rows.csv")[0].audio == str(there)


def test_a_file_that_is_not_there_keeps_its_name_for_the_check(tmp_path: Path) -> None:
    put(tmp_path / "rows.csv", "path,text\nsub/gone.wav,hi\nhttps://example.org/a.wav,ho\n")
    first, second = read_examples(tmp_path / "rows.csv")
    assert (first.audio, first.name) == (str(tmp_path / "sub" / "gone.wav"), "sub/gone.wav")
    assert second.audio == "https://example.org/a.wav"


@pytest.mark.parametrize("name", ["/", ".", "..", "C:", "\\\\", "~", "word " * 200, "a\x00b"], ids=repr)
def test_a_name_that_is_no_file_name_is_a_row_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    put(tmp_path / "rows.jsonl", json.dumps({"path": name, "text": "hi"}))
    (row,) = read_examples(tmp_path / "rows.jsonl")
    with pytest.raises(AudioError):
        row.samples()


def test_a_relative_name_never_loses_its_folder(tmp_path: Path) -> None:
    """`b/a.wav` must not be taken for another `a.wav` that happens to lie beside the table."""
    put(tmp_path / "a.wav")
    put(tmp_path / "rows.csv", "path,text\nb/a.wav,hi\n")
    assert pairs(tmp_path / "rows.csv") == [("hi", "b/a.wav")]


def test_what_the_standard_library_writes_is_read_back(tmp_path: Path) -> None:
    texts = ["plain", "with, commas, in it", 'and "quoted" words', "two\nlines", " żółć "]
    with (tmp_path / "rows.csv").open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, ["id", "sentence", "wav"])
        writer.writeheader()
        writer.writerows({"id": n, "sentence": text, "wav": f"{n}.wav"} for n, text in enumerate(texts))
    assert pairs(tmp_path / "rows.csv") == [(text.strip(), f"{n}.wav") for n, text in enumerate(texts)]


def test_json_lines_with_unreadable_ones_among_them(tmp_path: Path) -> None:
    rows = [
        json.dumps({"audio_filepath": "a.wav", "text": "ok", "duration": 1.0, "sampling_rate": 16000}),
        "",
        '{"audio_filepath": "b.wav", "text": ',
        json.dumps({"text": "no audio"}),
        json.dumps({"audio_filepath": "c.wav", "text": None}),
        json.dumps({"audio_filepath": "d.wav", "text": 7}),
        json.dumps({"audio_filepath": "long.wav", "text": "a stretch", "offset": 12.5}),
        json.dumps(["e.wav"]),
    ]
    put(tmp_path / "rows.jsonl", "\ufeff" + "\r\n".join(rows))
    found = read_examples(tmp_path / "rows.jsonl")
    assert [(row.text, bool(row.fault)) for row in found] == [
        ("ok", False), ("", True), ("no audio", True), ("", False), ("7", False), ("a stretch", True), ("", True),
    ]  # fmt: skip
    assert found[0].rate == 16000
    assert "line 3 of rows.jsonl is not JSON" in found[1].fault
    assert "names no audio file" in found[2].fault
    assert "offset" in found[5].fault


def test_a_nested_audio_column_is_looked_into(tmp_path: Path) -> None:
    put(tmp_path / "a.wav")
    put(tmp_path / "rows.jsonl", '{"audio": {"path": "a.wav", "bytes": null}, "sentence": "hi"}\n')
    assert pairs(tmp_path / "rows.jsonl") == [("hi", "a.wav")]


def test_columns_are_recognised_in_any_spelling(tmp_path: Path) -> None:
    put(tmp_path / "rows.csv", "Speaker ID,Audio-Path,Transcript,Sample Rate\ns1,a.wav,hi,8000\n")
    (row,) = read_examples(tmp_path / "rows.csv")
    assert (row.speaker, row.text, row.rate, row.name) == ("s1", "hi", 8000, "a.wav")


def test_errors_name_the_columns_there_are(tmp_path: Path) -> None:
    put(tmp_path / "rows.csv", "where,what\na.b,hi\n")
    with pytest.raises(
        DataError, match=r"no column looks like audio; its columns are 'where', 'what': name it, audio="
    ):
        read_examples(tmp_path / "rows.csv")
    with pytest.raises(DataError, match=r"no column 'wer' for speaker; its columns are 'where', 'what'"):
        read_examples(tmp_path / "rows.csv", audio="where", text="what", speaker="wer")


def test_errors_for_what_is_no_source(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no"):
        read_examples(tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds no audio"):
        read_examples(tmp_path)
    put(tmp_path / "a.wav")
    with pytest.raises(DataError, match="only 'folder'"):
        read_examples(tmp_path, speaker="client_id")
    with pytest.raises(DataError, match=r"ends in '\.wav'; a table of recordings is one of"):
        read_examples(tmp_path / "a.wav")
