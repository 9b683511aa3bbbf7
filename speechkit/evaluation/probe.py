"""What do hidden layers know? Vectors of labelled clips → per layer, how well a linear classifier reads the label.

In: vectors (N, L, D) and labels; groups (speakers) that must not stand on both sides of a split. Out: `Probe`. A linear
classifier, because a strong one would learn what the layer has not laid open (Alain & Bengio 2016, arXiv:1610.01644).
Knows no audio and no model; scikit-learn does the fitting.
"""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from speechkit.errors import DataError
from speechkit.extras import require

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.floating]
    Split = tuple[NDArray[np.int64], NDArray[np.int64]]

__all__ = ["LayerScore", "Probe", "folds_of", "labelled", "linear", "probe"]

STRENGTH = 1.0  # scikit-learn's C: the inverse of the penalty on the weights
STEPS = 500


@dataclass(frozen=True, slots=True)
class LayerScore:
    """How well one layer's vectors give the label: mean accuracy over the folds, and its standard deviation."""

    layer: int
    accuracy: float
    spread: float


@dataclass(frozen=True)
class Probe:
    """Accuracy by layer. `chance` is what naming the commonest class would score on the clips that were asked about."""

    label: str
    layers: tuple[LayerScore, ...]
    chance: float
    classes: int
    clips: int  # asked about: without those of a class that only one group has
    folds: int
    grouped: bool  # whether no group (speaker) stood on both sides

    @property
    def best(self) -> LayerScore:
        """The layer with the highest accuracy; of equal ones the lowest."""
        return max(self.layers, key=lambda score: (score.accuracy, -score.layer))

    def __str__(self) -> str:
        how = f"{self.folds} folds, {'no group on both sides' if self.grouped else 'groups unknown'}"
        head = f"{self.label}: {self.classes} classes, {self.clips} clips, {how}; chance {self.chance:.1%}"
        rows = [f"{s.layer:>5}  {s.accuracy:7.1%}  ± {s.spread:.1%}" for s in self.layers]
        return "\n".join([head, "layer  accuracy", *rows])


def probe(
    vectors: Floats,
    labels: Sequence[Any],
    groups: Sequence[Any] | None = None,
    *,
    label: str = "label",
    folds: int = 5,
    layers: Sequence[int] | None = None,
) -> Probe:
    """Cross-validated accuracy of a logistic regression on each layer.

    vectors: (N, L, D), as `embed(…, layer="all", pool="mean")` gives for one clip, stacked, or (N, D) for one layer;
    `layers` are their numbers when not 0, 1, …. groups: what must not stand on both sides of a split: the speakers when
    words or languages are asked for, the words or recordings when speakers are; None splits clip by clip. Each column
    is scaled to unit variance on the training side of a fold.

    Raises DataError: sizes that differ, fewer than two classes, a class or a number of groups too small for the folds.
    """
    stack = np.asarray(vectors, np.float32)
    stack = stack[:, None] if stack.ndim == 2 else stack
    names = labelled(stack, labels)
    numbers = range(stack.shape[1]) if layers is None else layers
    if len(numbers) != stack.shape[1]:
        raise DataError(f"vectors of {stack.shape[1]} layers and {len(numbers)} layer numbers; give one for each")
    splits = folds_of(names, groups, folds)
    scores = []
    for column, layer in enumerate(numbers):
        found = [_accuracy(stack[:, column], names, split) for split in splits]
        scores.append(LayerScore(int(layer), float(np.mean(found)), float(np.std(found))))
    asked = Counter(names[np.concatenate([test for _, test in splits])].tolist())
    chance = max(asked.values()) / asked.total()
    return Probe(label, tuple(scores), chance, len(asked), asked.total(), len(splits), groups is not None)


def labelled(vectors: Floats, labels: Sequence[Any]) -> NDArray[Any]:
    """Labels as an array beside their vectors (N, …). Raises DataError where they do not fit or do not differ."""
    if vectors.ndim not in (2, 3) or len(vectors) != len(labels):
        raise DataError(f"vectors of shape {vectors.shape} and {len(labels)} labels; give one label per vector (N, D)")
    if not np.isfinite(vectors).all():
        bad = int((~np.isfinite(vectors).reshape(len(vectors), -1).all(axis=1)).sum())
        raise DataError(f"{bad} of {len(vectors)} vectors hold NaN or infinity; float16 overflows above 65504")
    names = np.array([str(name) for name in labels])
    if len(set(names.tolist())) < 2:
        told = f"all {len(names)} labels are {str(names[0])!r}" if len(names) else "there are no clips"
        raise DataError(f"{told}: nothing to tell apart; give clips of two labels or more")
    return names


def folds_of(labels: NDArray[Any], groups: Sequence[Any] | None, folds: int) -> list[Split]:
    """(training rows, test rows) of each fold, classes evenly spread, and no group on both sides.

    Raises DataError for fewer groups, or clips of a class, than folds.
    """
    selection = require("sklearn.model_selection", extra="train", purpose="a probe")
    if folds < 2:
        raise DataError(f"folds is {folds}; cross-validation wants 2 or more")
    if groups is None:
        name, least = min(Counter(labels.tolist()).items(), key=lambda item: item[1])
        if least < folds:
            raise DataError(f"class {name!r} has {least} clips, fewer than {folds} folds; leave it out or lower folds")
        splitter = selection.StratifiedKFold(folds, shuffle=True, random_state=0)
        return list(splitter.split(labels, labels))
    names = [str(group) for group in groups]
    if len(names) != len(labels):
        raise DataError(f"{len(names)} groups and {len(labels)} labels; give one group per clip")
    if len(set(names)) < folds:
        raise DataError(f"{len(set(names))} groups, fewer than {folds} folds: lower folds, or give groups=None")
    splitter = selection.StratifiedGroupKFold(folds, shuffle=True, random_state=0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class")  # in groups, some folds have none of it
        found = list(splitter.split(labels, labels, names))
    splits = []
    for train, test in found:
        known = set(labels[train].tolist())
        # a class that only one group has cannot be learnt without it
        seen = np.array([row for row in test if labels[row] in known])
        if len(seen) and len(known) > 1:
            splits.append((train, seen))
    if not splits:
        raise DataError("every class stands in one group only: what is learnt on other groups cannot name it")
    return splits


def linear() -> Any:
    """A scaler and a logistic regression, as one scikit-learn pipeline."""
    model = require("sklearn.linear_model", extra="train", purpose="a probe")
    scaling = require("sklearn.preprocessing", extra="train", purpose="a probe")
    pipeline = require("sklearn.pipeline", extra="train", purpose="a probe")
    return pipeline.make_pipeline(scaling.StandardScaler(), model.LogisticRegression(C=STRENGTH, max_iter=STEPS))


def _accuracy(vectors: Floats, labels: NDArray[Any], split: Split) -> float:
    from sklearn.exceptions import ConvergenceWarning

    train, test = split
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 500 steps are enough to rank layers
        fitted = linear().fit(vectors[train], labels[train])
    return float((fitted.predict(vectors[test]) == labels[test]).mean())
