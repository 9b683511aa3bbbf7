"""Examples from every kind of source, against files written by the standard library, soundfile and `datasets`."""

from __future__ import annotations

from multiprocessing import Pipe
from typing import TYPE_CHECKING

import datasets
import numpy as np
import pytest

from speechkit import audio, demo
from speechkit.errors import AudioError, DataError
from speechkit.training.data import Example, read_examples, stream_examples
from tests.sounds import encoded, voice

if TYPE_CHECKING:
    from pathlib import Path

WAV = encoded(voice(0.5))


@pytest.fixture
def hub() -> datasets.Dataset:
    """Two rows as a Hub data set has them: encoded bytes in an Audio column, made without any decoder."""
    rows = {
        "audio": [{"bytes": encoded(voice(0.3, 8000), 8000), "path": None}, {"bytes": WAV, "path": "b.wav"}],
        "sentence": ["eins", "zwei"],
        "client_id": ["s1", "s2"],
        "locale": ["de", None],
    }
    plain = datasets.Dataset.from_dict(rows)
    return plain.cast_column("audio", datasets.Audio(decode=False)).cast_column("audio", datasets.Audio())


def test_samples_are_those_of_audio_load() -> None:
    clip = demo.clips("en")[0]
    samples = Example(str(clip.path), clip.text, "one").samples()
    assert samples.dtype == np.float32
    np.testing.assert_array_equal(samples, audio.load(clip.path))


@pytest.mark.parametrize("source", [WAV, audio.load(WAV), (audio.load(WAV), 16000)], ids=["bytes", "array", "pair"])
def test_audio_may_be_bytes_or_samples(source: object) -> None:
    np.testing.assert_array_equal(Example(source, "hi", "one").samples(), audio.load(WAV))


def test_length_is_the_header_s_until_it_is_measured() -> None:
    assert Example(WAV, "hi", "one").length_s() == 0.5
    assert Example(WAV, "hi", "one", seconds=0.49).length_s() == 0.49


def test_nothing_is_decoded_before_it_is_asked_for(tmp_path: Path) -> None:
    example = Example(str(tmp_path / "gone.wav"), "hi", "gone")
    with pytest.raises(AudioError, match="no such file"):
        example.samples()


def test_an_example_prints_its_name_and_text_and_not_its_bytes() -> None:
    example = Example(WAV, "good morning", "a.wav", "anna", "en", 0.5)
    assert repr(example) == "Example('a.wav', 'good morning', speaker 'anna', en, 0.50 s)"
    assert len(repr(Example(WAV, "word " * 100, "a.wav"))) < 100


def test_a_data_set_s_rows_come_with_their_columns_and_are_decoded_by_us(hub: datasets.Dataset) -> None:
    one, two = read_examples(hub)
    assert (one.text, one.speaker, one.language, one.name) == ("eins", "s1", "de", "row 0")
    assert (two.text, two.speaker, two.language) == ("zwei", "s2", None)
    np.testing.assert_array_equal(one.samples(), audio.load(encoded(voice(0.3, 8000), 8000)))
    np.testing.assert_array_equal(two.samples(), audio.load(WAV))


def test_a_data_set_s_audio_is_fetched_only_when_it_is_read(hub: datasets.Dataset, monkeypatch) -> None:
    fetched = []
    inner = datasets.Dataset.__getitem__

    def noting(self: datasets.Dataset, key: object) -> object:
        if "audio" in self.column_names:
            fetched.append(key)
        return inner(self, key)

    monkeypatch.setattr(datasets.Dataset, "__getitem__", noting)
    examples = read_examples(hub)
    assert fetched == []
    examples[1].samples()
    assert fetched == [1]


def test_a_stream_gives_the_same_rows_as_the_data_set(hub: datasets.Dataset) -> None:
    streamed = list(stream_examples(hub.to_iterable_dataset(), language="de"))
    for row, other in zip(streamed, read_examples(hub, language="de"), strict=True):
        assert (row.text, row.speaker, row.language) == (other.text, other.speaker, other.language)
        np.testing.assert_array_equal(row.samples(), other.samples())
    assert [row.name for row in streamed] == ["row 0", "b.wav"]
    assert [row.language for row in streamed] == ["de", "de"]  # the code is for the row that names none


def test_a_stream_is_read_row_by_row(hub: datasets.Dataset) -> None:
    def endless():
        while True:
            yield {"audio": {"bytes": WAV, "path": None}, "text": "again"}

    rows = stream_examples(datasets.IterableDataset.from_generator(endless))
    assert [next(rows).text for _ in range(3)] == ["again"] * 3


def test_torchcodec_is_not_needed(hub: datasets.Dataset, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchcodec", None)  # importing it now fails
    assert len(read_examples(hub)[0].samples()) == 4800
    assert len(next(stream_examples(hub.to_iterable_dataset())).samples()) == 4800


def test_an_example_of_a_file_travels_to_another_process() -> None:
    example = Example("a.wav", "hi", "a")
    here, there = Pipe()
    here.send(example)
    assert there.recv() == example


def test_named_columns_win_over_the_usual_ones(hub: datasets.Dataset) -> None:
    other = hub.add_column("reading", ["un", "deux"])
    assert [row.text for row in read_examples(other, text="reading", speaker="sentence")] == ["un", "deux"]
    assert [row.speaker for row in read_examples(other, text="reading", speaker="sentence")] == ["eins", "zwei"]


def test_a_column_that_is_not_there_is_an_error_that_lists_those_that_are(hub: datasets.Dataset) -> None:
    with pytest.raises(
        DataError, match=r"no column 'words' for text; its columns are 'audio', 'sentence', 'client_id'"
    ):
        read_examples(hub, text="words")
    bare = hub.remove_columns("sentence")
    with pytest.raises(DataError, match=r"no column looks like text; its columns are 'audio'.*name it, text='…'"):
        read_examples(bare)
    with pytest.raises(DataError, match="no column looks like text"):
        next(stream_examples(bare.to_iterable_dataset()))


def test_splits_and_streams_are_sent_to_the_right_door(hub: datasets.Dataset) -> None:
    with pytest.raises(DataError, match=r"holds 'train', 'test'; give one of them"):
        read_examples(datasets.DatasetDict(train=hub, test=hub))
    with pytest.raises(DataError, match="stream_examples"):
        read_examples(hub.to_iterable_dataset())
    with pytest.raises(DataError, match="int is no source of rows"):
        read_examples(5)


def test_a_language_that_is_neither_column_nor_code_is_refused(hub: datasets.Dataset) -> None:
    with pytest.raises(DataError, match="language is 'my language'"):
        read_examples(hub, language="my language")


def test_a_row_whose_report_lost_its_audio_says_so() -> None:
    with pytest.raises(DataError, match=r"row 3 has no audio: it was in memory"):
        Example(None, "hi", "row 3").samples()
