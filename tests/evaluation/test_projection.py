"""Projections against scikit-learn's PCA; t-SNE repeats itself; what cannot be drawn is told."""

from typing import Literal

import numpy as np
import pytest
from sklearn.decomposition import PCA

from speechkit.errors import DataError, PlanError
from speechkit.evaluation.projection import project


def test_pca_is_scikit_learns_up_to_scale() -> None:
    vectors = np.random.default_rng(0).standard_normal((40, 9)).astype(np.float32) * np.arange(1, 10)
    found = project(vectors)
    pca = PCA(2).fit(vectors)
    wanted = pca.transform(vectors)
    np.testing.assert_allclose(found.points, wanted / np.abs(wanted).max(), atol=1e-4)
    assert found.kept == pytest.approx(pca.explained_variance_ratio_.sum(), abs=1e-4)
    assert np.abs(found.points).max() == pytest.approx(1) and "PCA" in str(found)


def test_tsne_keeps_clusters_and_repeats_itself() -> None:
    rng = np.random.default_rng(0)
    kinds = np.repeat([0, 1], 25)
    vectors = rng.standard_normal((50, 20)) + 20 * kinds[:, None]
    first, again = project(vectors, "tsne"), project(vectors, "tsne")
    np.testing.assert_array_equal(first.points, again.points)
    squares = ((first.points[:, None] - first.points[None]) ** 2).sum(-1) + np.eye(50) * 1e9
    assert (kinds[squares.argmin(1)] == kinds).all() and first.kept is None
    assert len(project(vectors[:4], "tsne").points) == 4


def test_what_cannot_be_projected_is_told() -> None:
    with pytest.raises(PlanError, match="method is 'umap'"):
        project(np.zeros((5, 3)), "umap")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="N of 3 or more"):
        project(np.zeros((2, 3)))
    with pytest.raises(DataError, match="NaN or infinity"):
        project(np.full((5, 3), np.nan))
    with pytest.raises(DataError, match=r"shape \(5, 3, 2\)"):
        project(np.zeros((5, 3, 2)))


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_equal_vectors_lie_on_one_spot(method: Literal["pca", "tsne"]) -> None:
    found = project(np.ones((5, 3)), method)
    assert found.points.shape == (5, 2) and not found.points.any()


@pytest.mark.parametrize("shape", [(3, 2), (4, 1000), (80, 2)])
def test_few_vectors_and_few_columns_can_be_drawn(shape: tuple[int, int]) -> None:
    vectors = np.random.default_rng(0).standard_normal(shape)
    assert all(np.isfinite(project(vectors, method).points).all() for method in ("pca", "tsne"))  # type: ignore[arg-type]
