"""k-means units: fitted on frames, nearest by brute force, saved and loaded, too few frames, another model."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from speechkit import Recognizer, demo, load_asr
from speechkit.asr import arrays, kmeans
from speechkit.asr.kmeans import KMeansUnits
from speechkit.asr.units import purity
from speechkit.errors import DataError, PlanError

CLIPS = demo.clips("en")


@pytest.fixture(scope="module")
def fitted(recognizer: Recognizer) -> KMeansUnits:
    return KMeansUnits.fit(recognizer, (clip.path for clip in CLIPS), clusters=40)


def test_each_frame_gets_the_nearest_centroid(recognizer: Recognizer, fitted: KMeansUnits) -> None:
    found = fitted.units(recognizer, CLIPS[0].path)
    vectors = recognizer.embed(CLIPS[0].path, layer=fitted.layer).vectors.astype(np.float64)
    distances = ((vectors[:, None] - fitted.centroids[None]) ** 2).sum(-1)
    best = distances.argmin(1)
    near = distances[np.arange(len(best)), found.ids[:, 0]] - distances.min(1)
    assert (found.ids[:, 0] == best).mean() > 0.99 and near.max() < 1e-2
    assert found.sizes == (40,) and fitted.layer == 4


def test_units_of_a_trained_layer_know_the_characters(recognizer: Recognizer, fitted: KMeansUnits) -> None:
    units = fitted.units(recognizer, [clip.path for clip in CLIPS])
    texts = recognizer.transcribe([clip.path for clip in CLIPS])
    rng = np.random.default_rng(0)
    shuffled = [type(u)(rng.permutation(u.ids), u.sizes, u.grid, u.duration_s, u.model) for u in units]
    assert purity(units, texts).information > 2 * purity(shuffled, texts).information


def test_save_and_load_are_inverse(recognizer: Recognizer, fitted: KMeansUnits, tmp_path: Path) -> None:
    again = KMeansUnits.load(fitted.save(tmp_path / "units"))
    np.testing.assert_array_equal(again.centroids, fitted.centroids)
    assert repr(again) == repr(fitted), "layer, model, frames and seed too"
    assert json.loads((tmp_path / "units" / "units.json").read_text())["versions"]["speechkit"]
    assert str(again.units(recognizer, CLIPS[1].path)) == str(fitted.units(recognizer, CLIPS[1].path))
    with pytest.raises(DataError, match="holds no k-means units"):
        KMeansUnits.load(tmp_path)
    arrays.save(tmp_path, "units", {"centroids": fitted.centroids}, {"layer": 4, "model": "x"})
    with pytest.raises(DataError, match=r"holds no k-means units \('frames'\)"):
        KMeansUnits.load(tmp_path)


def test_fewer_frames_than_clusters_is_an_error(recognizer: Recognizer) -> None:
    few = recognizer.grid.frames(16000)
    with pytest.raises(DataError, match=f"{few} frames for 100 clusters: give more audio, or ask for fewer"):
        KMeansUnits.fit(recognizer, [np.random.default_rng(0).standard_normal(16000).astype(np.float32)], 100)
    with pytest.raises(DataError, match="0 frames"):
        KMeansUnits.fit(recognizer, [], 2)
    with pytest.raises(PlanError, match="clusters is 1"):
        KMeansUnits.fit(recognizer, [CLIPS[0].path], 1)
    with pytest.raises(PlanError, match="layer 9 does not exist"):
        KMeansUnits.fit(recognizer, [], 4, layer=9)
    with pytest.raises(PlanError, match="units are made of one layer, 0 to 6"):
        KMeansUnits.fit(recognizer, [], 4, layer=[1, 2])  # type: ignore[arg-type]
    with pytest.raises(PlanError, match=r"clips is a str; give a list of clips"):
        KMeansUnits.fit(recognizer, str(CLIPS[0].path), 4)


@pytest.mark.parametrize(
    "clips",
    [np.zeros(16000, np.float32), np.zeros((2, 16000)), torch.zeros(16000), {"array": [0.0]}, io.BytesIO(b"RIFF")],
    ids=["array", "two channels", "tensor", "row", "file"],
)
def test_one_clip_where_clips_are_wanted_is_refused_before_any_is_read(recognizer: Recognizer, clips: object) -> None:
    with pytest.raises(PlanError, match=r"^clips is an? \w+; give a list of clips"):
        KMeansUnits.fit(recognizer, clips, 4)  # type: ignore[arg-type]


def test_an_array_of_paths_is_an_iterable_of_clips(recognizer: Recognizer) -> None:
    found = KMeansUnits.fit(recognizer, np.array([str(CLIPS[0].path), str(CLIPS[1].path)]), 4)
    assert found.frames == sum(len(recognizer.embed(clip.path).vectors) for clip in CLIPS[:2])


def test_units_of_another_model_are_refused(fitted: KMeansUnits, folders: dict[str, Path]) -> None:
    with pytest.raises(PlanError, match="these units were fitted on demo/en"):
        fitted.units(load_asr(folders["en"], device="cpu"), CLIPS[0].path)


def test_the_same_weights_in_another_folder_are_the_same_model(
    recognizer: Recognizer, fitted: KMeansUnits, tmp_path: Path
) -> None:
    moved = load_asr(shutil.copytree(demo.model_path("en"), tmp_path / "moved"), device="cpu")
    assert moved.identity != recognizer.identity
    assert str(fitted.units(moved, CLIPS[0].path)) == str(fitted.units(recognizer, CLIPS[0].path))


def test_the_sample_is_bounded_and_uniform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmeans, "SAMPLE_BYTES", 1000 * 4)
    sample = kmeans._Sample(0)
    for start in range(0, 50_000, 500):
        sample.add(np.arange(start, start + 500, dtype=np.float32)[:, None])
    kept = sample.vectors()[:, 0]
    assert sample.seen == 50_000 and len(kept) == len(set(kept.tolist())) == 1000
    # each tenth of the frames gives about 100 of the 1000: 5 standard deviations of 9.5
    assert np.abs(np.histogram(kept, 10, (0, 50_000))[0] - 100).max() < 48


def test_a_short_sample_is_every_frame() -> None:
    sample = kmeans._Sample(0)
    frames = np.random.default_rng(0).standard_normal((30, 4)).astype(np.float32)
    sample.add(frames[:10])
    sample.add(frames[10:])
    np.testing.assert_array_equal(sample.vectors(), frames)
