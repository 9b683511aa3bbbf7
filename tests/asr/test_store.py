"""A store of embeddings: what goes in comes out, a killed run goes on, broken rows cost themselves, neighbours."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from speechkit import Recognizer, demo, load_asr
from speechkit.asr import store as stores
from speechkit.asr.store import Store, StoreOptions, embed_files, embed_rows
from speechkit.errors import DataError, OutputError, PlanError


def rows(count: int = 10) -> list[dict[str, object]]:
    clips = demo.clips("en")
    return [
        {"audio": str(clips[n % len(clips)].path), "text": clips[n % len(clips)].text, "number": n}
        for n in range(count)
    ]


SMALL = StoreOptions(part_rows=3, batch_rows=2)


def test_what_is_stored_is_what_embed_gives(recognizer: Recognizer, tmp_path: Path) -> None:
    store = embed_rows(recognizer, rows(7), tmp_path, SMALL)
    assert len(store) == 7 and len(store.parts) == 3
    assert store.column("number") == list(range(7)) and store.column("text")[2] == rows()[2]["text"]
    numbers, vectors = store.vectors()
    assert numbers.tolist() == list(range(7))
    for number, row in enumerate(rows(7)):
        alone = recognizer.embed(row["audio"], pool="mean", dtype="float16").vectors
        np.testing.assert_allclose(vectors[number], alone, rtol=2e-3, atol=2e-3)
        np.testing.assert_array_equal(store.clip(number), vectors[number].astype(np.float16))


def test_frames_and_layers_are_stored_clip_by_clip(recognizer: Recognizer, tmp_path: Path) -> None:
    options = StoreOptions(layer=[1, 3], pool=None, dtype="float32", part_rows=2, batch_rows=1)
    store = embed_rows(recognizer, rows(3), tmp_path, options)
    for number, row in enumerate(rows(3)):
        wanted = recognizer.embed(row["audio"], layer=[1, 3]).vectors  # (L, F, D)
        np.testing.assert_array_equal(store.clip(number), wanted.swapaxes(0, 1))
    with pytest.raises(DataError, match="holds frames, not one vector per clip"):
        store.nearest(np.ones(4))


def test_a_run_that_was_killed_goes_on_behind_the_last_whole_part(recognizer: Recognizer, tmp_path: Path) -> None:
    def breaks() -> Iterator[dict[str, object]]:
        yield from rows(5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed_rows(recognizer, breaks(), tmp_path, SMALL)
    assert len(Store.open(tmp_path)) == 3
    (tmp_path / "part-00001.safetensors").write_bytes(b"cut")  # killed between vectors and lines
    taken: list[object] = []

    class Stream:
        """Skips without handing out, as a `datasets` stream does."""

        def __iter__(self) -> Iterator[dict[str, object]]:
            raise AssertionError("read from the start")

        def skip(self, count: int) -> list[dict[str, object]]:
            taken.extend(rows(7)[count:])
            return rows(7)[count:]

    store = embed_rows(recognizer, Stream(), tmp_path, SMALL)  # type: ignore[arg-type]
    assert len(taken) == 4 and store.column("number") == list(range(7))
    whole = embed_rows(recognizer, rows(7), tmp_path / "once", SMALL)
    np.testing.assert_array_equal(store.vectors()[1], whole.vectors()[1])


def test_memory_holds_one_part_of_a_stream_without_end(
    recognizer: Recognizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = [0]

    def endless() -> Iterator[dict[str, object]]:
        while True:
            read[0] += 1
            yield rows(1)[0]

    written: list[int] = []
    plain = stores._write

    def watched(stem: Path, vectors: object, lines: list[dict[str, object]]) -> None:
        written.append(read[0])
        if len(written) == 3:
            raise KeyboardInterrupt
        plain(stem, vectors, lines)  # type: ignore[arg-type]

    monkeypatch.setattr(stores, "_write", watched)
    with pytest.raises(KeyboardInterrupt):
        embed_rows(recognizer, endless(), tmp_path, SMALL)
    assert written == [3, 6, 9]


def test_a_row_that_cannot_be_read_becomes_a_line_with_its_reason(recognizer: Recognizer, tmp_path: Path) -> None:
    broken = [*rows(2), {"audio": str(tmp_path / "none.wav"), "number": 2}, {"number": 3}, *rows(1)]
    store = embed_rows(recognizer, broken, tmp_path / "out", StoreOptions())
    assert store.column("count") == [1, 1, 0, 0, 1]
    assert "none.wav" in store.column("error")[2] and "no column 'audio'" in store.column("error")[3]
    assert store.vectors()[0].tolist() == [0, 1, 4]
    with pytest.raises(DataError, match=r"row 2 has no vector: .*none\.wav"):
        store.clip(2)


def test_the_nearest_clip_is_the_clip_itself(recognizer: Recognizer, tmp_path: Path) -> None:
    store = embed_rows(recognizer, rows(10), tmp_path, SMALL)
    found = store.nearest(store.clip(4), k=3)
    assert found[0].row == 4 and found[0].similarity == pytest.approx(1, abs=1e-3)
    vectors = store.vectors()[1]
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert [n.row for n in found] == np.argsort(-(unit @ unit[4]))[:3].tolist()
    with pytest.raises(DataError, match="has 5 numbers, those of the store 192"):
        store.nearest(np.ones(5))
    with pytest.raises(DataError, match="zero or not finite"):
        store.nearest(np.zeros(192))


def test_a_folder_of_another_layer_is_not_mixed_in(recognizer: Recognizer, tmp_path: Path) -> None:
    embed_rows(recognizer, rows(2), tmp_path, StoreOptions(layer=2))
    with pytest.raises(DataError, match=r"with layer 2 \(asked for: 3\); choose another folder"):
        embed_rows(recognizer, rows(2), tmp_path, StoreOptions(layer=3))
    assert json.loads((tmp_path / "config.json").read_text())["layer"] == 2


def test_what_is_no_store_is_told(tmp_path: Path, recognizer: Recognizer) -> None:
    with pytest.raises(DataError, match="holds no embeddings"):
        Store.open(tmp_path)
    store = embed_rows(recognizer, [], tmp_path / "empty")
    assert len(store) == 0
    with pytest.raises(DataError, match="is empty: no part"):
        store.vectors()
    with pytest.raises(DataError, match="row 0 does not exist: the store has 0 clips"):
        store.clip(0)
    with pytest.raises(DataError, match="has no column 'speaker'; it has audio, text"):
        embed_rows(recognizer, rows(1), tmp_path / "one").column("speaker")


def test_a_stream_of_datasets_is_read_by_our_own_decoder(recognizer: Recognizer, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    sounds = [{"bytes": Path(str(row["audio"])).read_bytes(), "path": f"{n}.flac"} for n, row in enumerate(rows(5))]
    made = datasets.Dataset.from_dict({"audio": sounds, "label": list("abcde")})
    made.cast_column("audio", datasets.Audio()).to_parquet(tmp_path / "made.parquet")
    stream = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "made.parquet"), split="train", streaming=True, cache_dir=str(tmp_path)
    )
    assert stream.features["audio"].decode, "as it comes, it wants datasets' decoder"
    embed_rows(recognizer, stream.take(4), tmp_path / "out", SMALL)
    store = embed_rows(recognizer, stream, tmp_path / "out", SMALL)
    assert store.column("label") == list("abcde") and store.column("audio")[0] == "0.flac"
    for number, row in enumerate(rows(5)):
        alone = recognizer.embed(row["audio"], pool="mean", dtype="float16").vectors
        np.testing.assert_allclose(store.clip(number), alone, rtol=2e-3, atol=2e-3)


GROWING = """
import sys, resource
import numpy as np
from speechkit import load_asr
from speechkit.asr.store import StoreOptions, embed_rows

def held():  # bytes of the process now
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

levels = []
def rows():
    rng = np.random.default_rng(0)
    for number in range(110):
        if number in (29, 69, 109):
            levels.append(held())
        yield {"audio": rng.uniform(-0.1, 0.1, (8000, 8)).astype(np.float32).repeat(2, axis=0), "number": number}

embed_rows(load_asr("demo/en", device="cpu"), rows(), sys.argv[1], StoreOptions(pool=None, part_rows=8, batch_rows=4))
print(*levels)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the size of the process from /proc")
def test_memory_does_not_grow_with_the_stream(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", GROWING, str(tmp_path)], capture_output=True, text=True, check=True)
    first, middle, last = map(int, done.stdout.split())
    assert len(Store.open(tmp_path)) == 110
    # the rows between two looks hold 20 MB of samples and give 0.7 MB of vectors
    assert middle - first < 8 * 2**20 and last - first < 8 * 2**20, (first, middle, last)


def test_a_part_ends_where_its_vectors_fill_it(
    recognizer: Recognizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "PART_BYTES", 2 * 192 * 2)
    store = embed_rows(recognizer, rows(5), tmp_path, StoreOptions(batch_rows=1))
    assert len(store.parts) == 3 and store.column("number") == list(range(5))


def test_a_part_of_errors_only_leaves_the_others_readable(recognizer: Recognizer, tmp_path: Path) -> None:
    broken = [{"audio": str(tmp_path / "none.wav"), "number": n} for n in range(3)]
    store = embed_rows(recognizer, [*broken, *rows(2)], tmp_path / "out", SMALL)
    assert store.vectors()[0].tolist() == [3, 4] and store.nearest(store.clip(3), k=9)[0].row in (3, 4)
    alone = embed_rows(recognizer, broken, tmp_path / "alone", SMALL)
    with pytest.raises(DataError, match="holds errors only"):
        alone.vectors()


def test_labels_of_several_kinds_become_texts_and_nothing_is_lost(recognizer: Recognizer, tmp_path: Path) -> None:
    labels = [1, 2, 3, "four", None, 6.5, np.int64(7)]
    mixed = [{"audio": row["audio"], "label": label} for row, label in zip(rows(7), labels, strict=True)]
    store = embed_rows(recognizer, mixed, tmp_path, SMALL)
    assert store.column("label") == ["1", "2", "3", "four", None, "6.5", "7"] and store.column("count") == [1] * 7


def test_a_folder_of_audio_is_searched_with_a_new_clip(recognizer: Recognizer, tmp_path: Path) -> None:
    sounds = tmp_path / "sounds"
    sounds.mkdir()
    for clip in demo.clips("en")[:4]:
        shutil.copy(clip.path, sounds)
    options = StoreOptions(layer={2: 1.0, 3: 1.0}, pool="mean+std")
    store = embed_files(recognizer, sounds, tmp_path / "out", options)
    asked = demo.clips("en")[2].path
    found = store.similar(recognizer, asked, k=2)
    assert Path(store.column("audio")[found[0].row]).name == asked.name and found[0].similarity > 0.999
    assert len(found) == 2 and found[1].similarity < found[0].similarity
    shutil.copy(demo.clips("en")[4].path, sounds / "0_comes_first.flac")
    again = embed_files(recognizer, sounds, tmp_path / "out", options)
    assert len(again) == 5 and again.column("audio")[4].endswith("0_comes_first.flac")
    with pytest.raises(PlanError, match="k is 0"):
        store.similar(recognizer, asked, k=0)


def test_a_store_is_not_searched_with_another_model(
    recognizer: Recognizer, folders: dict[str, Path], tmp_path: Path
) -> None:
    store = embed_rows(recognizer, rows(1), tmp_path)
    with pytest.raises(DataError, match="holds vectors of demo/en"):
        store.similar(load_asr(folders["en"], device="cpu"), rows()[0]["audio"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": 9}, "layer 9 does not exist"),
        ({"pool": "median"}, "pool is 'median'"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"part_rows": 0}, "part_rows is 0; it is a whole number, 1 or more"),
        ({"batch_rows": 2.5}, "batch_rows is 2.5"),
    ],
)
def test_options_that_cannot_be_are_told_before_any_work(
    recognizer: Recognizer, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(PlanError, match=message):
        embed_rows(recognizer, rows(1), tmp_path / "out", StoreOptions(**options))  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_what_breaks_in_the_stream_is_not_blamed_on_the_folder(recognizer: Recognizer, tmp_path: Path) -> None:
    def breaks() -> Iterator[dict[str, object]]:
        yield from rows(3)
        raise ConnectionError("the network is gone")

    with pytest.raises(ConnectionError, match="the network is gone"):
        embed_rows(recognizer, breaks(), tmp_path / "out", SMALL)
    assert len(Store.open(tmp_path / "out")) == 3
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        embed_rows(recognizer, rows(1), tmp_path / "file" / "out")


def test_rows_that_hold_no_audio_are_told_at_once(recognizer: Recognizer, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"no column 'audio', it has sound, text: name the one .*StoreOptions\(audio=…\)"
    ):
        embed_rows(recognizer, [{"sound": rows()[0]["audio"], "text": "x"}] * 3, tmp_path / "out")
    store = embed_rows(recognizer, [{"sound": rows()[0]["audio"]}], tmp_path / "out", StoreOptions(audio="sound"))
    assert store.column("count") == [1]
    with pytest.raises(DataError, match=r"a row is 'a\.wav'; give a dict .* or paths to embed_files"):
        embed_rows(recognizer, ["a.wav"], tmp_path / "paths")  # type: ignore[list-item]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a file name is always text")
def test_a_file_name_that_is_no_utf8_is_stored_escaped_and_found_again(recognizer: Recognizer, tmp_path: Path) -> None:
    sounds = tmp_path / "sounds"
    sounds.mkdir()
    odd, broken = (os.fsencode(sounds) + name for name in (b"/caf\xe9.flac", b"/\xff.flac"))
    shutil.copy(demo.clips("en")[0].path, odd)
    Path(os.fsdecode(broken)).write_bytes(b"no audio")
    shutil.copy(demo.clips("en")[1].path, sounds / "plain.flac")
    store = embed_files(recognizer, sounds, tmp_path / "out")
    names = [Path(path).name for path in store.column("audio")]
    assert sorted(names) == ["\\udcff.flac", "caf\\udce9.flac", "plain.flac"]
    counts = dict(zip(names, store.column("count"), strict=True))
    assert counts == {"\\udcff.flac": 0, "caf\\udce9.flac": 1, "plain.flac": 1}
    again = embed_files(recognizer, sounds, tmp_path / "out")
    assert len(again) == 3 and again.parts == store.parts


def test_texts_that_are_no_unicode_are_stored_escaped(recognizer: Recognizer, tmp_path: Path) -> None:
    store = embed_rows(recognizer, [{"audio": rows()[0]["audio"], "half \ud800": "\udfff"}], tmp_path)
    assert store.column("half \\ud800") == ["\\udfff"]


def test_columns_that_the_store_writes_itself_are_refused_by_name(recognizer: Recognizer, tmp_path: Path) -> None:
    clashing = [row | {"error": "none", "duration_s": 2.0} for row in rows(1)]
    with pytest.raises(
        DataError, match=r"a row has the column 'duration_s', 'error'.* writes itself \(first, count,.*rename"
    ):
        embed_rows(recognizer, clashing, tmp_path / "out")
    with pytest.raises(DataError, match="a row has the column 'first'"):
        embed_rows(recognizer, [{"first": rows()[0]["audio"]}], tmp_path / "own", StoreOptions(audio="first"))
    with pytest.raises(DataError, match="a row has the column 'count'"):
        embed_rows(recognizer, [*rows(4), rows()[0] | {"count": 3}], tmp_path / "later", SMALL)
    assert len(Store.open(tmp_path / "later")) == 3, "what was whole before it is kept"


def test_a_damaged_part_is_named(recognizer: Recognizer, tmp_path: Path) -> None:
    store = embed_rows(recognizer, rows(2), tmp_path)
    (tmp_path / "part-00000.safetensors").write_bytes(b"cut")
    with pytest.raises(DataError, match=r"part-00000.safetensors cannot be read: .*delete this part"):
        store.clip(0)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(DataError, match=r"its config\.json is of something else"):
        Store.open(tmp_path)
