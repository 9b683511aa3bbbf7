"""Probes by layer: what is in one layer is found there, and no group stands on both sides of a split."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.model_selection import cross_val_score

from speechkit import Recognizer
from speechkit.asr.rows import manifest_rows
from speechkit.errors import DataError
from speechkit.evaluation.probe import folds_of, linear, probe


def made(seed: int = 0, clips: int = 120) -> tuple[np.ndarray, list[str], list[str]]:
    """Vectors (N, 3, 8): the label stands in layer 1, the speaker in layer 2, nothing in layer 0."""
    rng = np.random.default_rng(seed)
    label, speaker = rng.integers(0, 3, clips), rng.integers(0, 6, clips)
    vectors = rng.standard_normal((clips, 3, 8))
    vectors[np.arange(clips), 1, label] += 4
    vectors[np.arange(clips), 2, speaker] += 6
    return vectors, [f"word{n}" for n in label], [f"voice{n}" for n in speaker]


def test_the_layer_that_holds_the_label_is_found() -> None:
    vectors, labels, speakers = made()
    found = probe(vectors, labels, groups=speakers, label="word", folds=3)
    assert found.best.layer == 1 and found.best.accuracy > 0.9
    assert found.layers[0].accuracy < 0.6
    assert found.chance == pytest.approx(max(map(labels.count, set(labels))) / len(labels))
    assert "word: 3 classes, 120 clips, 3 folds, no group on both sides" in str(found)


def test_without_groups_it_is_plain_cross_validation() -> None:
    vectors, labels, _ = made()
    found = probe(vectors[:, 1], labels)
    names = np.array(labels)
    theirs = cross_val_score(linear(), vectors[:, 1].astype(np.float32), names, cv=folds_of(names, None, 5))
    assert found.layers[0].accuracy == pytest.approx(theirs.mean())
    assert found.layers[0].spread == pytest.approx(theirs.std())


def test_no_group_is_on_both_sides_and_a_class_of_one_group_is_not_asked_for() -> None:
    labels = np.array(["a", "b"] * 30 + ["only"] * 6)
    groups = [f"g{n % 5}" for n in range(60)] + ["g7"] * 6
    for train, test in folds_of(labels, groups, 3):
        assert not {groups[i] for i in train} & {groups[i] for i in test}
        assert set(labels[test]) <= set(labels[train])


@pytest.mark.parametrize(
    ("labels", "groups", "message"),
    [
        (["a"] * 10, None, "all 10 labels are 'a': nothing to tell apart; give clips of two labels or more"),
        (["a", "b"] * 4, None, "give one label per vector"),
        (["a"] * 8 + ["b"] * 2, None, "class 'b' has 2 clips, fewer than 5 folds"),
        (["a", "b"] * 5, ["x", "y"] * 5, "2 groups, fewer than 5 folds"),
        (["a", "b"] * 5, ["x"] * 3, "3 groups and 10 labels"),
    ],
)
def test_what_cannot_be_probed_is_told(labels: list[str], groups: list[str] | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        probe(np.zeros((10, 4)), labels, groups)


def test_vectors_that_overflowed_are_told() -> None:
    vectors = np.zeros((10, 4))
    vectors[3, 1] = np.inf
    with pytest.raises(DataError, match="1 of 10 vectors hold NaN or infinity; float16 overflows"):
        probe(vectors, ["a", "b"] * 5)


def test_chance_and_clips_count_what_was_asked_about() -> None:
    rng = np.random.default_rng(0)
    labels = ["a", "b"] * 30 + ["only"] * 40
    groups = [f"g{n % 5}" for n in range(60)] + ["g7"] * 40
    found = probe(rng.standard_normal((100, 4)), labels, groups, folds=3)
    assert (found.clips, found.classes, found.chance) == (60, 2, 0.5)


def test_scores_carry_the_numbers_of_their_layers() -> None:
    vectors, labels, _ = made()
    found = probe(vectors[:, [2, 1]], labels, layers=[7, 4], folds=3)
    assert [score.layer for score in found.layers] == [7, 4] and found.best.layer == 4
    with pytest.raises(DataError, match="vectors of 3 layers and 2 layer numbers"):
        probe(vectors, labels, layers=[7, 4])
    with pytest.raises(DataError, match="folds is 1"):
        probe(vectors, labels, folds=1)


def test_words_of_strangers_are_read_far_above_chance(recognizer: Recognizer, speech_data: Path) -> None:
    # Arabic command words: neither the language nor the speakers were in the training of the embedded model
    rows = [row for row in manifest_rows(speech_data / "manifest.tsv") if row["group"] == "words_ar_asc"]
    words = list(dict.fromkeys(row["text"] for row in rows))[::8]
    first = {(row["text"], row["speaker"]): row for row in rows if row["text"] in words}
    clips = [row for (_, speaker), row in first.items() if int(speaker[-2:]) <= 14]
    vectors = np.stack([e.vectors for e in recognizer.embed([row["audio"] for row in clips], "all", "mean")])
    found = probe(vectors, [c["text"] for c in clips], [c["speaker"] for c in clips], label="word", folds=4)
    assert found.classes == 5 and found.clips == 60 and found.chance == 0.2
    assert found.best.accuracy > 3 * found.chance and found.best.accuracy > found.layers[0].accuracy, found
