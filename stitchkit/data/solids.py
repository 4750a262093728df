"""Solids that rays meet at an exact depth, and the patterns on them: what rendered scenes are made of."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Meeting = tuple[np.ndarray, np.ndarray]
"""Where rays meet a surface: how far along them, `[N]`, infinite if they miss it, and its normals there, `[3, N]`."""

_Shape = Callable[[np.ndarray, np.ndarray], Meeting]


class Solid(NamedTuple):
    """A shape of unit size, which fills -1 to 1 across and 0 to 1 upwards, at its place in a scene.

    x leads to the right, y upwards and z away from the camera, in metres. The base is the middle of the lower side; the
    scale half the width, the height and half the depth; the turn about the vertical in radians.
    """

    shape: str
    base: tuple[float, float, float]
    scale: tuple[float, float, float]
    turn: float

    def meet(self, origins: np.ndarray, rays: np.ndarray) -> Meeting:
        """Where rays from origins `[3, N]` or `[3, 1]` first meet the solid, in lengths of the rays."""
        scale, turned = np.array(self.scale)[:, None], self._axes()
        starts = turned @ (origins - np.array(self.base)[:, None]) / scale
        with np.errstate(divide="ignore", invalid="ignore"):  # rays along a surface
            far, normals = SHAPES[self.shape](starts, turned @ rays / scale)
        world = turned.T @ (normals / scale)
        return far, world / np.maximum(np.linalg.norm(world, axis=0), 1e-12)

    def corners(self) -> np.ndarray:
        """The corners of the box around it, `[3, 8]`."""
        unit = np.array([(x, y, z) for x in (-1, 1) for y in (0, 1) for z in (-1, 1)], dtype=float).T
        corners: np.ndarray = self._axes().T @ (unit * np.array(self.scale)[:, None]) + np.array(self.base)[:, None]
        return corners

    def _axes(self) -> np.ndarray:
        cosine, sine = math.cos(self.turn), math.sin(self.turn)
        return np.array([[cosine, 0, -sine], [0, 1, 0], [sine, 0, cosine]])


def _round(weights: tuple[float, float, float], middle: float, size: float) -> _Shape:
    """The quadric where `weights` times the squares of (x, y - middle, z) add up to `size`."""
    weight, shift = np.array(weights)[:, None], np.array([[0], [middle], [0]])

    def meet(starts: np.ndarray, rays: np.ndarray) -> Meeting:
        offset = starts - shift
        square, mixed = (weight * rays * rays).sum(0), (weight * rays * offset).sum(0)
        root = np.sqrt(mixed * mixed - square * ((weight * offset * offset).sum(0) - size))  # NaN: missed
        both = np.stack([(-mixed - root) / square, (-mixed + root) / square])
        height = starts[1] + both * rays[1]
        far = np.where((both > 0) & (height >= 0) & (height <= 1), both, np.inf).min(0)
        points = offset + np.where(np.isfinite(far), far, 0) * rays
        return far, weight * points

    return meet


def _flat(inside: Callable[[np.ndarray, np.ndarray], np.ndarray], axis: int, level: float) -> _Shape:
    """The part of the plane at `level` of an axis that `inside` takes, by the two other coordinates."""
    first, second = (other for other in range(3) if other != axis)

    def meet(starts: np.ndarray, rays: np.ndarray) -> Meeting:
        far = (level - starts[axis]) / rays[axis]
        met = (far > 0) & inside(starts[first] + far * rays[first], starts[second] + far * rays[second])
        normals = np.zeros((3, len(far)))
        normals[axis] = -np.sign(rays[axis])
        return np.where(met, far, np.inf), normals

    return meet


def _convex(*sides: tuple[float, float, float, float]) -> _Shape:
    """What lies below all planes `(a, b, c, d)`: ax + by + cz <= d."""
    planes = np.array(sides)
    normals, limits = planes[:, :3], planes[:, 3:]

    def meet(starts: np.ndarray, rays: np.ndarray) -> Meeting:
        slope = normals @ rays
        far = (limits - normals @ starts) / slope
        entering = np.where(slope < 0, far, -np.inf)
        enter, leave = entering.max(0), np.where(slope < 0, np.inf, far).min(0)
        return np.where((enter > 0) & (enter < leave), enter, np.inf), normals[entering.argmax(0)].T

    return meet


def _in_disc(x: np.ndarray, z: np.ndarray) -> np.ndarray:
    met: np.ndarray = np.hypot(x, z) <= 1
    return met


def _in_ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    distance = np.hypot(x, 2 * y - 1)
    met: np.ndarray = (distance <= 1) & (distance >= 0.5)
    return met


def _in_star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Whether points lie in a star with five points that stands on two of them."""
    fifth, hollow = math.tau / 5, 0.5
    # From the middle of its circle, of radius 1.
    across, up = x * math.sin(fifth), y * (1 + math.cos(fifth / 2)) - math.cos(fifth / 2)
    angle = np.arctan2(across, up) % fifth
    folded, distance = np.minimum(angle, fifth - angle), np.hypot(across, up)
    # Below the edge from (1, 0) to the hollow between two points.
    right, rise = hollow * math.cos(fifth / 2) - 1, hollow * math.sin(fifth / 2)
    met: np.ndarray = right * distance * np.sin(folded) - rise * (distance * np.cos(folded) - 1) >= 0
    return met


def _cylinder(starts: np.ndarray, rays: np.ndarray) -> Meeting:
    (mantle, outwards), (lid, upwards) = _MANTLE(starts, rays), _LID(starts, rays)
    return np.minimum(mantle, lid), np.where(mantle <= lid, outwards, upwards)


_MANTLE, _LID = _round((1, 0, 1), 0, 1), _flat(_in_disc, axis=1, level=1)

# The undersides of round solids are open: nothing looks at them from below.
SHAPES: dict[str, _Shape] = {
    "ball": _round((1, 4, 1), 0.5, 1),
    "box": _convex((1, 0, 0, 1), (-1, 0, 0, 1), (0, 0, 1, 1), (0, 0, -1, 1), (0, 1, 0, 1), (0, -1, 0, 0)),
    "cylinder": _cylinder,
    "cone": _round((1, -1, 1), 1, 0),
    "pyramid": _convex((1, 1, 0, 1), (-1, 1, 0, 1), (0, 1, 1, 1), (0, 1, -1, 1), (0, -1, 0, 0)),
    "ring": _flat(_in_ring, axis=2, level=0),
    "star": _flat(_in_star, axis=2, level=0),
}
"""Where rays meet each unit shape."""


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
