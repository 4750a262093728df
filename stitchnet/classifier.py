"""Classifiers on the outputs of a composed network."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from stitchkit.errors import InputError, unknown

KINDS = ("knn", "linear")
_NEIGHBOURS = 5


class NotFiniteError(InputError):
    """A network has outputs that are not finite."""


class _Model(Protocol):
    """A classifier of scikit-learn."""

    classes_: np.ndarray

    def fit(self, outputs: np.ndarray, labels: np.ndarray) -> object: ...

    def predict_proba(self, outputs: np.ndarray) -> np.ndarray: ...


class Classifier:
    """A classifier fitted to outputs.

    Args:
        kind: `knn`: nearest neighbours, as published; `linear`: logistic regression on standardised outputs.
        outputs: `[N, D]`.
        labels: Whole numbers `[N]`.

    Raises:
        InputError: If there is no such kind.
        NotFiniteError: If the outputs are not finite.

    Source: StitchNet, section 4: five nearest neighbours.
    """

    def __init__(self, kind: str, outputs: np.ndarray, labels: np.ndarray):
        if kind not in KINDS:
            raise unknown("classifier", kind, KINDS)
        _check_finite(outputs)
        if kind == "linear" and len(np.unique(labels)) < 2:
            raise InputError("a linear classifier needs images of at least two classes; add some, or use 'knn'")
        self.kind, self.outputs, self.labels = kind, outputs, labels
        self._model = _create(kind, len(outputs))
        self._model.fit(outputs, labels)

    @property
    def classes(self) -> np.ndarray:
        """The labels in the order of the scores."""
        return np.asarray(self._model.classes_)

    def scores(self, outputs: np.ndarray) -> np.ndarray:
        """Scores of the classes `[N, classes]`, in which each row sums to 1.

        Args:
            outputs: `[N, D]`.

        Raises:
            NotFiniteError: If the outputs are not finite.
        """
        _check_finite(outputs)
        return np.asarray(self._model.predict_proba(outputs))


def _check_finite(outputs: np.ndarray) -> None:
    if not np.isfinite(outputs).all():
        raise NotFiniteError("the network's outputs for these images are not finite; use another network")


def _create(kind: str, count: int) -> _Model:
    # scikit-learn takes over a second to import, and every command imports this package.
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    nearest: _Model = KNeighborsClassifier(min(_NEIGHBOURS, count))
    # Logits of different networks differ in scale, and the penalty of logistic regression depends on it.
    linear: _Model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return nearest if kind == "knn" else linear
