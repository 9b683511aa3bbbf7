"""A classifier on utterance vectors: any label column (emotion, intent, language, speaker) from a few labelled clips.

In: vectors (N, D) and labels. Out: `Classifier`, one matrix and one bias, saved as safetensors with its labels and the
accuracy that cross-validation found. Knows no audio: hand it what `Recognizer.embed(…, pool="mean")` gives. From a
manifest with a column "emotion" it takes two lines:

    store = embed_rows(recognizer, manifest_rows("clips.tsv"), "vectors")
    classifier = Classifier.from_store(store, "emotion", groups="speaker")
"""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from speechkit.asr import arrays
from speechkit.errors import DataError
from speechkit.evaluation.probe import folds_of, labelled, linear

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from speechkit.asr.store import Store

    Floats = NDArray[np.floating]

__all__ = ["Classifier", "Guess", "Report"]


@dataclass(frozen=True, slots=True)
class Guess:
    """The most probable label of a clip, and its probability among the labels known."""

    label: str
    probability: float


@dataclass(frozen=True)
class Report:
    """What cross-validation found: accuracy over all held-out clips, and who was taken for whom."""

    accuracy: float
    chance: float
    clips: int
    folds: int
    grouped: bool
    confusion: tuple[tuple[int, ...], ...]  # rows: true labels, columns: guesses, in the classifier's order

    def __str__(self) -> str:
        sides = "no group on both sides" if self.grouped else "groups unknown"
        return f"accuracy {self.accuracy:.1%} over {self.clips} held-out clips ({sides}), chance {self.chance:.1%}"


@dataclass(frozen=True)
class Classifier:
    """softmax(x @ weight + bias) over `labels`; weight (D, C), bias (C,), float32.

    `source` is what :meth:`from_store` knows of the vectors: model, layer, pool. Embed what is to be guessed like that.
    """

    labels: tuple[str, ...]
    weight: NDArray[np.float32] = field(repr=False)
    bias: NDArray[np.float32] = field(repr=False)
    report: Report
    source: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def fit(
        cls, vectors: Floats, labels: Sequence[Any], groups: Sequence[Any] | None = None, folds: int = 5
    ) -> Classifier:
        """Vectors (N, D), a label for each, and groups (speakers) that cross-validation keeps on one side.

        Raises DataError as :func:`speechkit.evaluation.probe.probe` does.
        """
        flat = np.asarray(vectors, np.float32)
        if flat.ndim != 2:
            raise DataError(f"vectors have shape {flat.shape}; a classifier takes one vector per clip (N, D)")
        names = labelled(flat, labels)
        report = _cross_validated(flat, names, groups, folds)
        fitted = _fitted(flat, names)
        scaler, regression = fitted[0], fitted[-1]
        coefficients, offset = regression.coef_, regression.intercept_
        if len(regression.classes_) == 2:  # scikit-learn keeps one row for two classes
            coefficients, offset = np.vstack([-coefficients, coefficients]) / 2, np.append(-offset, offset) / 2
        weight = (coefficients / scaler.scale_).T  # the scaling becomes part of the matrix
        bias = offset - scaler.mean_ @ weight
        kinds = tuple(str(name) for name in regression.classes_)
        return cls(kinds, weight.astype(np.float32), bias.astype(np.float32), report)

    @classmethod
    def from_store(cls, store: Store, label: str, groups: str | None = None, folds: int = 5) -> Classifier:
        """Fit on the clips of a store (`speechkit.asr.store`) that have something in the column `label`.

        groups: the column of speakers. Raises DataError for a column that the store does not have, and as :meth:`fit`.
        """
        rows, vectors = store.vectors()
        flat = vectors.reshape(len(vectors), -1)
        names = store.column(label)
        sides = store.column(groups) if groups else None
        kept = [place for place, row in enumerate(rows) if names[row] not in (None, "")]
        chosen = rows[kept]
        apart = [sides[row] for row in chosen] if sides else None
        fitted = cls.fit(flat[kept], [names[row] for row in chosen], apart, folds)
        return replace(fitted, source={name: store.config[name] for name in ("model", "layer", "pool")})

    def probabilities(self, vectors: Floats) -> NDArray[np.float64]:
        """(N, D) or (D,) → (N, C), rows that sum to one. Raises DataError for another shape or width, and for NaN."""
        rows = np.atleast_2d(np.asarray(vectors, np.float64))
        if rows.ndim > 2:
            raise DataError(f"vectors have shape {rows.shape}; a classifier takes one vector per clip (N, D)")
        if not np.isfinite(rows).all():
            raise DataError("the vectors hold NaN or infinity; float16 overflows above 65504")
        if rows.shape[1] != len(self.weight):
            raise DataError(f"vectors have {rows.shape[1]} numbers, the classifier was fitted on {len(self.weight)}")
        scores = rows @ self.weight.astype(np.float64) + self.bias
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        return np.asarray(scores / scores.sum(axis=1, keepdims=True))

    def guess(self, vectors: Floats) -> list[Guess]:
        """(N, D) or (D,) → the best label of each, with its probability."""
        found = self.probabilities(vectors)
        return [
            Guess(self.labels[best], float(row[best])) for row, best in zip(found, found.argmax(axis=1), strict=True)
        ]

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write `classifier.safetensors`, with `classifier.json` to read; the inverse of :meth:`load`.

        Raises OutputError.
        """
        versions = {name: version(name) for name in ("speechkit", "scikit-learn")}
        made = {"source": dict(self.source), "versions": versions}
        record = {"labels": self.labels, "report": asdict(self.report)} | made
        return arrays.save(folder, "classifier", {"weight": self.weight, "bias": self.bias}, record)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Classifier:
        """Raises DataError for a folder that holds no classifier."""
        try:
            held, record = arrays.load(folder, "classifier")
            report = record["report"] | {"confusion": tuple(map(tuple, record["report"]["confusion"]))}
            return cls(tuple(record["labels"]), held["weight"], held["bias"], Report(**report), dict(record["source"]))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder} holds no classifier ({error}); Classifier.save writes one") from error


def _fitted(vectors: Floats, labels: NDArray[Any]) -> Any:
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return linear().fit(vectors, labels)


def _cross_validated(vectors: Floats, labels: NDArray[Any], groups: Sequence[Any] | None, folds: int) -> Report:
    kinds = sorted(set(labels.tolist()))
    place = {name: number for number, name in enumerate(kinds)}
    confusion = np.zeros((len(kinds), len(kinds)), int)
    splits = folds_of(labels, groups, folds)
    for train, test in splits:
        guesses = _fitted(vectors[train], labels[train]).predict(vectors[test])
        for true, guess in zip(labels[test].tolist(), guesses.tolist(), strict=True):
            confusion[place[true], place[guess]] += 1
    total = max(int(confusion.sum()), 1)
    chance = float(confusion.sum(axis=1).max()) / total
    rows = tuple(tuple(map(int, row)) for row in confusion)
    return Report(float(np.trace(confusion)) / total, chance, total, len(splits), groups is not None, rows)
