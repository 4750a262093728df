"""Classifiers on the outputs of a composed network."""

from __future__ import annotations

import numpy as np

from stitchkit.engine.epoch_state import NotFinite
from stitchkit.errors import InputError, unknown

KINDS = ("knn", "linear")
_NEIGHBOURS = 5


class Classifier:
    """A classifier of a kind as in `Net.fit`, fitted to outputs `[N, D]` and labels `[N]`.

    Attributes:
        classes: The labels in the order of the scores.

    Source: StitchNet, section 4: five nearest neighbours.
    """

    def __init__(self, kind: str, outputs: np.ndarray, labels: np.ndarray):
        if kind not in KINDS:
            raise unknown("classifier", kind, KINDS)
        check_finite(outputs)
        if kind == "linear" and len(np.unique(labels)) < 2:
            raise InputError("a linear classifier needs images of at least two classes; add some, or use 'knn'")
        # scikit-learn takes over a second to import, and every command imports this package.
        from sklearn.linear_model import LogisticRegression
        from sklearn.neighbors import KNeighborsClassifier
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        nearest = KNeighborsClassifier(min(_NEIGHBOURS, len(outputs)))
        # Logits of different networks differ in scale, and the penalty of logistic regression depends on it.
        linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        self._model = nearest if kind == "knn" else linear
        self._model.fit(outputs, labels)
        self.kind, self.outputs, self.labels = kind, outputs, labels
        self.classes = np.asarray(self._model.classes_)

    def scores(self, outputs: np.ndarray) -> np.ndarray:
        """Scores of the classes `[N, classes]` for outputs `[N, D]`; each row sums to 1."""
        check_finite(outputs)
        return np.asarray(self._model.predict_proba(outputs))


def check_finite(outputs: np.ndarray) -> None:
    """Refuse outputs that are not finite."""
    if not np.isfinite(outputs).all():
        raise NotFinite("the network's outputs for these images are not finite; use another network")
