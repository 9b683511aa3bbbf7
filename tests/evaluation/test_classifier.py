"""A classifier against scikit-learn's own predictions; saved and loaded; its report counts unheard groups only."""

from pathlib import Path

import numpy as np
import pytest

from speechkit import Recognizer, audio, demo
from speechkit.asr.rows import manifest_rows
from speechkit.asr.store import StoreOptions, embed_rows
from speechkit.errors import DataError
from speechkit.evaluation.classifier import Classifier
from speechkit.evaluation.probe import linear


def made(classes: int, clips: int = 150) -> tuple[np.ndarray, list[str], list[int]]:
    rng = np.random.default_rng(classes)
    label = rng.integers(0, classes, clips)
    vectors = rng.standard_normal((clips, 12)).astype(np.float32) * 3 + 5
    vectors[np.arange(clips), label] += 6
    return vectors, [f"c{n}" for n in label], rng.integers(0, 8, clips).tolist()


@pytest.mark.parametrize("classes", [2, 4])
def test_probabilities_are_those_of_scikit_learn(classes: int) -> None:
    vectors, labels, groups = made(classes)
    found = Classifier.fit(vectors, labels, groups)
    theirs = linear().fit(vectors, labels)
    assert found.labels == tuple(theirs.classes_)
    np.testing.assert_allclose(found.probabilities(vectors), theirs.predict_proba(vectors), atol=1e-3)
    guesses = found.guess(vectors)
    assert [g.label for g in guesses] == theirs.predict(vectors).tolist()
    assert all(
        g.probability == pytest.approx(p.max(), abs=1e-3)
        for g, p in zip(guesses, theirs.predict_proba(vectors), strict=True)
    )


def test_the_report_counts_every_held_out_clip_once() -> None:
    vectors, labels, groups = made(3)
    report = Classifier.fit(vectors, labels, groups).report
    assert report.clips == len(labels) == sum(map(sum, report.confusion))
    assert report.accuracy == pytest.approx(sum(report.confusion[i][i] for i in range(3)) / report.clips)
    assert report.grouped and report.accuracy > report.chance
    assert "no group on both sides" in str(report)


def test_save_and_load_are_inverse(tmp_path: Path) -> None:
    vectors, labels, _ = made(3)
    found = Classifier.fit(vectors, labels)
    again = Classifier.load(found.save(tmp_path / "c"))
    np.testing.assert_array_equal(again.probabilities(vectors), found.probabilities(vectors))
    assert again.report == found.report and again.labels == found.labels
    with pytest.raises(DataError, match="holds no classifier"):
        Classifier.load(tmp_path)


def test_vectors_of_another_width_are_refused() -> None:
    found = Classifier.fit(*made(2)[:2])
    with pytest.raises(DataError, match="vectors have 5 numbers, the classifier was fitted on 12"):
        found.guess(np.zeros(5))
    with pytest.raises(DataError, match=r"shape \(2, 3, 12\); a classifier takes one vector per clip"):
        found.guess(np.zeros((2, 3, 12)))
    with pytest.raises(DataError, match="NaN or infinity"):
        found.guess(np.full(12, np.nan))
    with pytest.raises(DataError, match="one vector per clip"):
        Classifier.fit(np.zeros((4, 2, 3)), ["a", "b", "a", "b"])


def test_a_label_column_of_a_manifest_takes_two_lines(recognizer: Recognizer, tmp_path: Path) -> None:
    lines = ["path\temotion\tspeaker"]
    for clip in demo.clips("en")[:6]:  # no one here is sad: a clip played half as fast stands in for it
        samples = audio.load(clip.path)[:16000]
        for emotion, sound in (("calm", samples), ("sad", np.repeat(samples, 2)), ("", samples)):
            audio.write(tmp_path / f"{len(lines)}.wav", sound)
            lines.append(f"{len(lines)}.wav\t{emotion}\t{clip.path.stem}")
    (tmp_path / "clips.tsv").write_text("\n".join([*lines, "none.wav\tsad\tnobody"]) + "\n", encoding="utf-8")
    store = embed_rows(recognizer, manifest_rows(tmp_path / "clips.tsv"), tmp_path / "store", StoreOptions(layer=1))
    found = Classifier.from_store(store, "emotion", groups="speaker", folds=3)
    assert found.labels == ("calm", "sad") and found.report.clips == 12 and found.report.grouped
    assert found.report.accuracy > 0.8 and found.report.chance == 0.5
    asked = recognizer.embed(np.repeat(audio.load(demo.clips("en")[7].path)[:16000], 2), layer=1, pool="mean")
    assert found.guess(asked.vectors)[0].label == "sad"
    again = Classifier.load(found.save(tmp_path / "classifier"))
    assert again.source == found.source == {"model": recognizer.identity, "layer": 1, "pool": "mean"}
    with pytest.raises(DataError, match="has no column 'mood'; it has path, emotion, speaker, audio"):
        Classifier.from_store(store, "mood")


def test_damaged_weights_are_told(tmp_path: Path) -> None:
    vectors, labels, _ = made(2)
    folder = Classifier.fit(vectors, labels).save(tmp_path)
    (folder / "classifier.safetensors").write_bytes(b"cut")
    with pytest.raises(DataError, match="holds no classifier"):
        Classifier.load(folder)
