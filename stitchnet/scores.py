"""How well fragments fit: scores of what one gives against what another is used to, each computed once."""

from __future__ import annotations

from stitchkit.model.similarity import alignment, common_size, hsic, measure_by_name, sample
from stitchnet.activations import Activation

_SYMMETRIC = ("cka", "unbiased_cka")


class Scores:
    """Scores of pairs of activations, known by their content.

    Args:
        measure: `cka`, `unbiased_cka`, `r2` or `fit`.
        rows_per_channel: Compare a sample of the rows only, 10 as published; by default all.
        seed: Of the sample.

    Raises:
        InputError: If there is no such measure.
    """

    def __init__(self, measure: str = "cka", *, rows_per_channel: int | None = None, seed: int = 0):
        self._measure = measure_by_name(measure)
        self._name = measure
        self._rows_per_channel = rows_per_channel
        self._seed = seed
        self._known: dict[tuple[bytes, bytes], float] = {}
        self._own: dict[tuple[object, ...], float] = {}

    @property
    def num_computed(self) -> int:
        """How many scores were computed."""
        return len(self._known)

    def __call__(self, x: Activation, y: Activation) -> float:
        """The score of joining an output `x` to an input `y`."""
        key = (x.key, y.key)
        if self._name in _SYMMETRIC:
            key = min(key, key[::-1])
        if key not in self._known:
            self._known[key] = self._cka(x, y) if self._name == "cka" else self._compute(x, y)
        return self._known[key]

    def _compute(self, x: Activation, y: Activation) -> float:
        return self._measure(x.value, y.value, rows_per_channel=self._rows_per_channel, seed=self._seed)

    def _cka(self, x: Activation, y: Activation) -> float:
        """The same as `linear_cka`, but what concerns one side alone is computed once."""
        size = None if x.size is None or y.size is None else common_size(x.value, y.value)
        if size is not None and self._rows_per_channel is not None:
            whole = x.value, y.value  # of which the rows that are drawn alone are resized
        else:
            whole = x.at(size, keep=True), y.at(size)
        parts = sample(*whole, self._rows_per_channel, self._seed)
        own = []
        for activation, part in zip((x, y), parts, strict=True):
            key = (activation.key, size, tuple(part.shape))
            if key not in self._own:
                self._own[key] = hsic(part, part)
            own.append(self._own[key])
        return alignment(hsic(*parts), *own)
