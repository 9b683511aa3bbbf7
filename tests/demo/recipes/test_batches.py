"""Training batches: composed as planned, repeatable by index, never longer than their budget."""

from pathlib import Path

import numpy as np
import pytest

from speechkit.demo.recipes.batches import Batches, Mix, encode, normalized
from speechkit.demo.recipes.corpus import Store, write_store
from speechkit.demo.recipes.languages import tokens

IDS = {token: number for number, token in enumerate(tokens("en"))}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    rng = np.random.default_rng(0)

    def clips() -> object:
        for number in range(120):
            pool = ("synthetic", "digits", "sentences")[number % 3]
            seconds = {"synthetic": 2.5, "digits": 0.5, "sentences": 9.0}[pool] * rng.uniform(0.7, 1.3)
            samples = 0.1 * rng.standard_normal(int(seconds * 16000)).astype(np.float32)
            yield samples, f"word {'abc'[number % 3]}", f"{pool}-{number % 4}", pool

    return write_store(tmp_path / "store", clips())


def test_a_store_gives_back_what_was_written(store: Store) -> None:
    reopened = Store(store.folder)
    assert len(reopened.clips) == 120
    assert reopened.clips[3].pool == "synthetic"
    samples = reopened.samples(reopened.clips[3])
    assert len(samples) == reopened.clips[3].count and 0.05 < samples.std() < 0.15


def test_a_batch_depends_on_seed_and_index_alone(store: Store) -> None:
    once, again, other = (Batches([store], 10, seed)[7] for seed in (1, 1, 2))
    assert all((once[name] == again[name]).all() for name in once)
    assert once["input_values"].shape != other["input_values"].shape or (once["labels"] != other["labels"]).any()


def test_batches_stay_near_their_budget_and_pad_little(store: Store) -> None:
    mix = Mix(budget_s=24.0)
    for index in range(12):
        batch = Batches([store], 12, 1, mix=mix)[index]
        rows, samples = batch["input_values"].shape
        assert rows * samples / 16000 < 60
        assert batch["attention_mask"].float().mean() > 0.4


def test_labels_are_the_texts_of_what_is_heard(store: Store) -> None:
    batch = Batches([store], 1, 5)[0]
    for row in batch["labels"]:
        ids = [int(token) for token in row if token >= 0]
        assert not ids or ids[:5] == encode("word ", IDS)


def test_flite_has_a_share_of_its_own(tmp_path: Path) -> None:
    def clips() -> object:
        for number in range(200):
            speaker = "flite" if number % 2 else "en-us+f1"
            yield np.full(32000, 0.1, np.float32), "aa" if speaker == "flite" else "bb", speaker, "synthetic"

    store = write_store(tmp_path / "two", clips())
    mix = Mix(shares=(("synthetic", 0.9), ("flite", 0.1)), short_share=0.0, wordless_share=0.0)
    rows = [row.tolist() for index in range(20) for row in Batches([store], 20, 1, mix=mix)[index]["labels"]]
    share = sum(encode("a", IDS)[0] in row for row in rows) / len(rows)
    assert 0.02 < share < 0.25


def test_longer_clips_hold_one_speaker_or_many_in_the_share_asked_for(tmp_path: Path) -> None:
    def clips() -> object:
        for number in range(200):
            yield np.full(16000, 0.1, np.float32), "abcd"[number % 4], f"en+{number % 4}", "synthetic"

    store = write_store(tmp_path / "voices", clips())
    found = {}
    for share in (0.0, 1.0):
        mix = Mix(short_share=0.0, wordless_share=0.0, mixed_share=share)
        rows = [row[row >= 0] for index in range(20) for row in Batches([store], 20, 1, mix=mix)[index]["labels"]]
        voices = [set(row.tolist()) - {encode(" ", IDS)[0]} for row in rows if len(row) > 7]  # four clips and more
        found[share] = np.mean([len(voice) > 1 for voice in voices])
    assert found[0.0] == 0 and found[1.0] > 0.9


def test_single_words_draw_on_recordings_of_people_more_often(store: Store) -> None:
    mix = Mix(short_shares=(("digits", 1.0),), short_share=1.0, wordless_share=0.0)
    batches = [Batches([store], 8, 1, mix=mix)[index] for index in range(8)]
    words = [row[row >= 0].tolist()[-1] for batch in batches for row in batch["labels"]]
    assert set(words) == {encode("b", IDS)[0]}


def test_normalized_input_has_zero_mean_and_unit_variance() -> None:
    x = normalized(np.random.default_rng(0).uniform(0.2, 0.9, 9000).astype(np.float32))
    assert abs(x.mean()) < 1e-4 and x.std() == pytest.approx(1, abs=1e-3)
