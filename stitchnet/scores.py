"""Scores of how well fragments fit: one's output compared with another's usual input, each computed once."""

from __future__ import annotations

from functools import partial

from stitchkit.model.similarity import alignment, common_size, hsic, measure_by_name, sample
from stitchnet.activations import Activation

_SYMMETRIC = ("cka", "unbiased_cka")


class Scores:
    """Scores of pairs of activations, identified by their content.

    Args:
        measure: `cka`, `unbiased_cka`, `r2` or `fit`.
        rows_per_channel: Compare only a sample of the rows, 10 per channel as published; by default all.
        seed: Seed of the sample.

    Raises:
        InputError: If there is no such measure.
    """

    def __init__(self, measure: str = "cka", *, rows_per_channel: int | None = None, seed: int = 0):
        self._name, self._rows_per_channel, self._seed = measure, rows_per_channel, seed
        self._measure = partial(measure_by_name(measure), rows_per_channel=rows_per_channel, seed=seed)
        # By content, not by object: networks may share fragments (twins, or the beginnings of one network), and a
        # search recomputes dropped outputs.
        self._known: dict[tuple[bytes, bytes], float] = {}
        self._own: dict[tuple[object, ...], float] = {}

    def __call__(self, x: Activation, y: Activation) -> float:
        """The score of joining an output `x` to an input `y`."""
        key = self._key(x.key, y.key)
        if key not in self._known:
            self._known[key] = self._cka(x, y) if self._name == "cka" else self._measure(x.value, y.value)
        return self._known[key]

    def remember(self, x: bytes, y: bytes, score: float) -> None:
        """Add a score that was computed earlier, of an output and an input by their keys, unless it is known."""
        self._known.setdefault(self._key(x, y), score)

    def _key(self, x: bytes, y: bytes) -> tuple[bytes, bytes]:
        return (y, x) if self._name in _SYMMETRIC and y < x else (x, y)

    def _cka(self, x: Activation, y: Activation) -> float:
        """`linear_cka`, but each side's own HSIC, two thirds of the work, is computed only once per size."""
        size = None if x.size is None or y.size is None else common_size(x.value, y.value)
        if size is not None and self._rows_per_channel is not None:
            whole = x.value, y.value  # `sample` resizes only the rows that it draws
        else:
            whole = x.at(size, keep=True), y.at(size)  # x is compared with all fragments, y only now
        parts = sample(*whole, self._rows_per_channel, self._seed)
        own = []
        for activation, part in zip((x, y), parts, strict=True):
            # The draw follows from the seed and the shape, so equal shapes mean equal rows.
            key = (activation.key, size, tuple(part.shape))
            if key not in self._own:
                self._own[key] = hsic(part, part)
            own.append(self._own[key])
        return alignment(hsic(*parts), *own)
