"""Rendered scenes for dense prediction: the class and the depth of every pixel are exact."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL.Image import Image, fromarray

from stitchkit.data.demo import manifest_of, refuse_other, write_new_folder
from stitchkit.data.solids import Paint, Solid, random_paint
from stitchkit.errors import InputError

SCENES = "scenes.json"
"""The file that says what was rendered."""
FARTHEST = 10.0
"""Of the wall, in metres; nothing is nearer than 1 m."""
_WIDTHS = {
    **{"ball": (1.0, 1.0), "box": (0.6, 1.2), "cylinder": (0.5, 0.9), "cone": (0.7, 1.1), "pyramid": (0.8, 1.3)},
    **{"ring": (1.0, 1.0), "star": (1.0, 1.0), "tree": (0.5, 0.8)},
}
"""The width of each kind of object, as a share of its height."""
CLASSES = ("background", "ground", *_WIDTHS)
"""Their places are the values of masks."""
_COLOURS = (
    *((70, 90, 140), (150, 125, 90), (220, 60, 60), (240, 160, 40), (250, 230, 70)),
    *((130, 210, 80), (60, 190, 180), (80, 130, 250), (200, 110, 240), (20, 110, 50)),
)
"""What viewers show for the values of masks."""
_SIDES = range(32, 257)
_FINE = 3  # rays along each side of a pixel: colours are their mean, class and depth those of the middle one
_AMBIENT = 0.45  # the light in a shadow


class Scene(NamedTuple):
    """An RGB image `[H, W, 3]`, and at the middle of each pixel `[H, W]` the class and the depth: 1 to 10 metres."""

    image: np.ndarray
    mask: np.ndarray
    depth: np.ndarray


class Thing(NamedTuple):
    """An object on the ground."""

    label: int
    solids: tuple[tuple[Solid, Paint], ...]


class Arrangement(NamedTuple):
    """The contents of a scene and its camera at `(0, height, 0)`, looking along z.

    The focal length is in sides of the image, the horizon from the upper side (0) to the lower one (1), and the light
    a vector of length 1. The wall is behind everything.
    """

    things: tuple[Thing, ...]
    height: float
    focal: float
    horizon: float
    light: np.ndarray
    ground: Paint
    wall: Paint


def render_scene(split: str, number: int, *, side: int = 64, seed: int = 0) -> Scene:
    """Render one scene, which depends only on split (`train`, `validation` or `test`), number and seed.

    Shapes, sizes, positions, patterns, colours, light and noise are random; no class has its own pattern or colour.
    """
    chance = random.Random(f"{seed} {split} {number}")
    scene = render(arrange(chance), side)
    # The sum of two bytes, so that small deviations are more frequent than large ones.
    noise = np.frombuffer(chance.randbytes(2 * scene.image.size), dtype=np.uint8).reshape(2, *scene.image.shape)
    deviation = (noise.sum(0, dtype=np.float64) / 255 - 1) * chance.uniform(3, 14)
    return scene._replace(image=np.asarray((scene.image + deviation).round().clip(0, 255), dtype=np.uint8))


def arrange(chance: random.Random) -> Arrangement:
    """Put objects on the ground by chance."""
    height, focal, horizon = chance.uniform(1.4, 2.2), chance.uniform(0.9, 1.2), chance.uniform(0.2, 0.4)
    towards, above = chance.uniform(0.1, 0.9) * math.pi, chance.uniform(0.6, 1.2)
    light = (math.cos(towards) * math.cos(above), math.sin(above), -math.sin(towards) * math.cos(above))
    seen_from = height * focal / (1 - horizon)  # the nearest ground
    things: list[Thing] = []
    discs: list[tuple[float, float, float]] = []  # the places and radii of the objects
    wanted = chance.randint(3, 8)
    while len(things) < wanted:
        label, tall = chance.randrange(2, len(CLASSES)), chance.uniform(1, 1.8)
        half = tall * chance.uniform(*_WIDTHS[CLASSES[label]]) / 2
        reach = half * math.sqrt(2)
        nearest = max(seen_from, 1) + reach
        z = nearest * ((FARTHEST - reach) / nearest) ** chance.random()  # on a logarithmic scale, as sizes look
        x = chance.uniform(-0.5, 0.5) * z / focal
        if all(math.hypot(x - there[0], z - there[1]) > reach + there[2] for there in discs):
            discs.append((x, z, reach))
            things.append(_thing(label, (x, 0.0, z), (half, tall), chance))
    ground, wall = (random_paint(chance, size=size, contrast=0.4) for size in (1.5, 5.0))
    return Arrangement(tuple(things), height, focal, horizon, np.array(light), ground, wall)


def render(arrangement: Arrangement, side: int) -> Scene:
    """Render an arrangement, without noise."""
    places = (np.arange(side * _FINE) + 0.5) / (side * _FINE)
    across, up = (places - 0.5) / arrangement.focal, (arrangement.horizon - places) / arrangement.focal
    rays = np.stack([*np.meshgrid(across, up), np.ones((len(places),) * 2)])  # z is 1, so lengths are depths
    eye = np.array([[0], [arrangement.height], [0]])
    depth, label, colour = _surroundings(arrangement, rays, eye)
    for thing in arrangement.things:
        for solid, paint in thing.solids:
            window = _window(arrangement, solid, len(places))
            seen = rays[:, window[0], window[1]].reshape(3, -1)
            far, normals = solid.meet(eye, seen)
            nearer = (far < depth[window].ravel()).nonzero()[0]
            points = eye + far[nearer] * seen[:, nearer]
            lit = _AMBIENT + (1 - _AMBIENT) * np.maximum(arrangement.light @ normals[:, nearer], 0)
            rows, columns = np.unravel_index(nearer, depth[window].shape)
            at = rows + window[0].start, columns + window[1].start
            depth[at], label[at] = far[nearer], thing.label
            colour[:, at[0], at[1]] = paint.at(points - np.array(solid.base)[:, None]) * lit
    pixels = colour.reshape(3, side, _FINE, side, _FINE).mean((2, 4)).transpose(1, 2, 0)
    middle = slice(_FINE // 2, None, _FINE)
    image = np.asarray((255 * pixels).round().clip(0, 255), dtype=np.uint8)
    return Scene(image, label[middle, middle], depth[middle, middle].astype(np.float32))


def write_scenes(folder: Path, counts: Mapping[str, int], side: int = 64, seed: int = 0) -> str:
    """Write scenes as `SPLIT/images`, `SPLIT/masks` and `SPLIT/depths`, unless they exist; return a summary.

    Masks are palette images of the classes in `classes.txt`. Depths are 16-bit images in millimetres. `scenes.json`
    records the settings.
    """
    if side not in _SIDES:
        raise InputError(f"--img-size is {side}; it must be {_SIDES[0]} to {_SIDES[-1]}")
    manifest = manifest_of({"img_size": side, "seed": seed, "counts": dict(counts)})
    refuse_other(folder, SCENES, manifest)

    def images() -> Iterator[tuple[str, Image]]:
        for split, count in counts.items():
            for number in range(count):
                scene = render_scene(split, number, side=side, seed=seed)
                for kind, image in _as_images(scene).items():
                    yield f"{split}/{kind}/{number:04d}.png", image

    content = f"{', '.join(f'{count} {split}' for split, count in counts.items())} scenes of {len(CLASSES)} classes"
    texts = {"classes.txt": "".join(f"{name}\n" for name in CLASSES), SCENES: manifest}
    return write_new_folder(folder, images(), content, texts)


def _as_images(scene: Scene) -> dict[str, Image]:
    mask = fromarray(scene.mask)
    mask.putpalette([value for colour in _COLOURS for value in colour])
    millimetres = np.asarray((scene.depth * 1000).round(), dtype=np.uint16)
    return {"images": fromarray(scene.image), "masks": mask, "depths": fromarray(millimetres)}


def _thing(label: int, base: tuple[float, float, float], size: tuple[float, float], chance: random.Random) -> Thing:
    """An object of a class at a place, half as wide and as high as `size` says."""
    (half, tall), name = size, CLASSES[label]
    turn = chance.uniform(-0.8, 0.8)  # flat shapes are never seen from their sides
    paint = random_paint(chance, size=tall)
    if name != "tree":
        return Thing(label, ((Solid(name, base, (half, tall, half), turn), paint),))
    trunk, bare = half * chance.uniform(0.15, 0.3), tall * chance.uniform(0.25, 0.4)
    above = (base[0], base[1] + bare, base[2])
    crown = Solid("ball", above, (half, tall - bare, half), turn)
    # It ends within the crown, whose lowest point alone would stand on it.
    stem = Solid("cylinder", base, (trunk, bare + 0.3 * (tall - bare), trunk), turn)
    return Thing(label, ((stem, random_paint(chance, size=tall)), (crown, paint)))


def _surroundings(
    arrangement: Arrangement, rays: np.ndarray, eye: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    with np.errstate(divide="ignore"):
        down = np.where(rays[1] < 0, -arrangement.height / rays[1], np.inf)
    depth = np.minimum(down, FARTHEST)
    on_ground = down < FARTHEST
    colour = np.empty(rays.shape)
    colour[:, ~on_ground] = arrangement.wall.at(FARTHEST * rays[:, ~on_ground])
    points = eye + depth[on_ground] * rays[:, on_ground]
    light = arrangement.light[:, None]
    lit = np.full(points.shape[1], _AMBIENT + (1 - _AMBIENT) * light[1, 0])
    for solid, _ in (part for thing in arrangement.things for part in thing.solids):
        x, _, z = solid.base
        reach = math.hypot(*solid.scale) + (solid.base[1] + solid.scale[1]) / math.tan(math.asin(light[1, 0]))
        near = ((points[0] - x) ** 2 + (points[2] - z) ** 2 < reach**2).nonzero()[0]
        far, _ = solid.meet(points[:, near], light)
        lit[near[np.isfinite(far)]] = _AMBIENT
    colour[:, on_ground] = arrangement.ground.at(points) * lit
    return depth, on_ground.astype(np.uint8), colour


def _window(arrangement: Arrangement, solid: Solid, size: int) -> tuple[slice, slice]:
    x, y, z = solid.corners()
    columns = (0.5 + arrangement.focal * x / z) * size
    rows = (arrangement.horizon - arrangement.focal * (y - arrangement.height) / z) * size
    top, left = (max(0, math.floor(ends.min())) for ends in (rows, columns))
    bottom, right = (max(0, math.ceil(ends.max())) for ends in (rows, columns))
    return slice(top, bottom), slice(left, right)
