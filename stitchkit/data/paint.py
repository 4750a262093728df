"""The patterns of rendered scenes."""

from __future__ import annotations

import math
import random
from typing import NamedTuple

import numpy as np


class Paint(NamedTuple):
    """A pattern that fills space, so that it lies on any surface; its axes `[3, 3]` are in periods per metre."""

    pattern: str
    colours: tuple[tuple[float, ...], tuple[float, ...]]
    axes: np.ndarray
    phase: np.ndarray

    def at(self, points: np.ndarray) -> np.ndarray:
        """The colours at points `[3, N]`: `[3, N]`."""
        first, second = (np.array(colour)[:, None] for colour in self.colours)
        if self.pattern == "plain":
            return np.broadcast_to(first, points.shape)
        periods = self.axes @ points + self.phase[:, None]
        match self.pattern:
            case "gradient":
                share = 0.5 - 0.5 * np.cos(math.pi * periods[0])
            case "stripes":
                share = np.floor(periods[0] * 2) % 2
            case "checks":
                share = np.floor(periods * 2).sum(0) % 2
            case _:
                bent = periods + 0.6 * np.sin(4.3 * periods[[1, 2, 0]])
                share = (np.sin(math.tau * bent).sum(0) / 2.4).clip(-1, 1) / 2 + 0.5
        mixed: np.ndarray = first + (second - first) * share
        return mixed


def random_paint(chance: random.Random, *, size: float, contrast: float = 0.8) -> Paint:
    """A random pattern for an object of a size in metres, with colours that differ by at most `contrast`, 0 to 1."""
    pattern = chance.choice(("plain", "gradient", "stripes", "checks", "clouds"))
    first, drawn = ([chance.uniform(0.08, 0.95) for _ in range(3)] for _ in range(2))
    second = [start + contrast * (end - start) for start, end in zip(first, drawn, strict=True)]
    along, aside = np.array([[chance.gauss(0, 1) for _ in range(3)] for _ in range(2)])
    across = np.cross(along, aside)
    turns = np.stack([axis / np.linalg.norm(axis) for axis in (along, across, np.cross(along, across))])
    periods = chance.uniform(0.6, 1.2) if pattern in ("gradient", "clouds") else chance.uniform(1, 2.5)
    phase = np.array([chance.random() for _ in range(3)])
    return Paint(pattern, (tuple(first), tuple(second)), turns * periods / size, phase)
