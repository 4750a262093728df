"""The rendered scenes of `stitchkit demo-data scenes`, against a renderer that knows only what is inside a shape."""

import json
import math
import random

import matplotlib.path
import numpy as np
import pytest
from PIL import Image

from stitchkit.cli import main
from stitchkit.data.scenes import CLASSES, FARTHEST, arrange, render, render_scene, write_scenes
from stitchkit.errors import InputError
from tests.commands import refused

FEW = {"train": 3, "validation": 2, "test": 1}
STAR = [
    (r * math.sin(a * math.pi / 5), r * math.cos(a * math.pi / 5)) for a in range(10) for r in [0.5 if a % 2 else 1]
]


def as_arrays(scene):
    return scene.image.tobytes(), scene.mask.tobytes(), scene.depth.tobytes()


def unit_place(solid, points):
    """Points in the coordinates of the shape, which fills -1 to 1 across and 0 to 1 upwards."""
    x, y, z = (points - np.array(solid.base)).T
    turned = (x + 1j * z) * np.exp(1j * solid.turn)
    return turned.real / solid.scale[0], y / solid.scale[1], turned.imag / solid.scale[2]


def inside(solid, points):
    """Whether points are in a solid; for a flat one, whether they are in front of it or behind it, as -1 or 1."""
    x, y, z = unit_place(solid, points)
    between = (y >= 0) & (y <= 1)
    match solid.shape:
        case "ball":
            return np.hypot(np.hypot(x, z), 2 * y - 1) <= 1
        case "box":
            return between & (abs(x) <= 1) & (abs(z) <= 1)
        case "cylinder":
            return between & (np.hypot(x, z) <= 1)
        case "cone":
            return between & (np.hypot(x, z) <= 1 - y)
        case "pyramid":
            return between & (np.maximum(abs(x), abs(z)) <= 1 - y)
        case "ring":
            return np.where(abs(np.hypot(x, 2 * y - 1) - 0.75) <= 0.25, np.sign(z), 0)
    star = np.array(STAR)
    low, high = star.min(0), star.max(0)
    place = np.stack([x * high[0], low[1] + y * (high[1] - low[1])], axis=1)
    return np.where(matplotlib.path.Path(star).contains_points(place), np.sign(z), 0)


def walked(arrangement, side, steps):
    """Class and depth by small steps along the ray of each pixel, up to the first thing that is entered."""
    rows, columns = np.mgrid[:side, :side].reshape(2, -1)
    right = ((columns + 0.5) / side - 0.5) / arrangement.focal
    up = (arrangement.horizon - (rows + 0.5) / side) / arrangement.focal
    rays = np.stack([right, up, np.ones(side * side)], axis=1)
    mask, depth = np.zeros(side * side, dtype=int), np.full(side * side, FARTHEST)
    before = [None] * 99
    for far in np.linspace(1, FARTHEST, steps, endpoint=False):
        points, free = np.array([0, arrangement.height, 0]) + far * rays, depth == FARTHEST
        met = [(1, points[:, 1] <= 0)]
        solids = [(thing.label, solid) for thing in arrangement.things for solid, _ in thing.solids]
        for number, (label, solid) in enumerate(solids):
            now, last = inside(solid, points), before[number]
            before[number] = now
            if now.dtype == bool:
                met.append((label, now))
            elif last is not None:
                met.append((label, now * last < 0))
        for label, here in met:
            mask[here & free], depth[here & free] = label, far
    return mask.reshape(side, side), depth.reshape(side, side)


def test_a_scene_is_always_the_same_and_no_other_is():
    scene = render_scene("train", 3)
    assert scene.image.shape == (64, 64, 3)
    assert scene.mask.shape == scene.depth.shape == (64, 64)
    assert [part.dtype for part in scene] == [np.uint8, np.uint8, np.float32]
    assert as_arrays(render_scene("train", 3)) == as_arrays(scene)
    others = [render_scene(split, number) for split in FEW for number in range(4)]
    others += [render_scene("train", 3, seed=1)]
    assert len({as_arrays(other)[part] for other in others for part in (0, 1)}) == 2 * len(others)


def test_another_side_is_another_resolution():
    """The middle of a pixel is also that of the middle one of nine smaller ones."""
    small, large = render_scene("test", 1, side=32), render_scene("test", 1, side=96)
    assert np.array_equal(small.mask, large.mask[1::3, 1::3])
    np.testing.assert_allclose(small.depth, large.depth[1::3, 1::3], rtol=1e-6)
    assert np.abs(small.image - large.image.reshape(32, 3, 32, 3, 3).mean((1, 3))).mean() < 8


def test_every_class_occurs_and_depths_are_within_their_limits():
    scenes = [render_scene("validation", number, side=32) for number in range(60)]
    masks, depths = np.stack([scene.mask for scene in scenes]), np.stack([scene.depth for scene in scenes])
    share = [(masks == label).mean() for label in range(len(CLASSES))]
    assert min(share) > 0.004
    assert share[0] + share[1] < 0.9
    assert depths.min() >= 1
    assert np.array_equal(masks == 0, depths == FARTHEST)


def test_class_and_depth_are_those_of_the_first_thing_on_the_ray():
    seen, step = set(), (FARTHEST - 1) / 900
    for number in range(4):
        arrangement = arrange(random.Random(f"walked {number}"))
        assert 3 <= len(arrangement.things) <= 8
        scene = render(arrangement, 32)
        mask, depth = walked(arrangement, 32, 900)
        away = depth - scene.depth
        # A walk enters a thing up to a step too late, and may step over an edge.
        same = (mask == scene.mask) & (away > -1e-3) & (away < step + 1e-3)
        assert (~same).sum() <= 6
        seen |= {*np.unique(scene.mask[same])}
    assert seen == {*range(len(CLASSES))}


def test_the_nearer_of_two_things_hides_the_other():
    hidden = 0
    for number in range(6):
        arrangement = arrange(random.Random(number))
        whole = render(arrangement, 48)
        alone = [render(arrangement._replace(things=(thing,)), 48) for thing in arrangement.things]
        depths, masks = np.stack([one.depth for one in alone]), np.stack([one.mask for one in alone])
        nearest = depths.argmin(0)[None]
        assert np.array_equal(whole.depth, depths.min(0))
        assert np.array_equal(whole.mask, np.take_along_axis(masks, nearest, axis=0)[0])
        hidden += ((masks > 1).sum(0) > 1).sum()
    assert hidden > 100


def test_files_hold_what_was_rendered(tmp_path):
    folder = tmp_path / "scenes"
    said = write_scenes(folder, FEW, side=40, seed=5)
    assert said == f"3 train, 2 validation, 1 test scenes of 10 classes are in {folder}"
    assert sorted(path.name for path in folder.iterdir()) == [
        "classes.txt",
        "scenes.json",
        "test",
        "train",
        "validation",
    ]
    assert tuple((folder / "classes.txt").read_text().splitlines()) == CLASSES
    assert json.loads((folder / "scenes.json").read_text()) == {"img_size": 40, "seed": 5, "counts": FEW}
    for split, count in FEW.items():
        for kind in ("images", "masks", "depths"):
            assert len([*(folder / split / kind).iterdir()]) == count
        scene = render_scene(split, count - 1, side=40, seed=5)
        image, mask, depth = (
            Image.open(folder / split / kind / f"{count - 1:04d}.png") for kind in ("images", "masks", "depths")
        )
        assert (image.mode, mask.mode, depth.mode) == ("RGB", "P", "I;16")
        assert np.array_equal(np.asarray(image), scene.image)
        assert np.array_equal(np.asarray(mask), scene.mask)
        assert np.abs(np.asarray(depth) / 1000 - scene.depth).max() < 0.000501
        shown = {tuple(colour) for colour in np.asarray(mask.convert("RGB")).reshape(-1, 3)}
        assert len(shown) == len(np.unique(scene.mask))  # each class has its own colour


def test_the_folder_of_other_data_stays(tmp_path):
    folder = tmp_path / "scenes"
    write_scenes(folder, FEW, side=32)
    assert write_scenes(folder, FEW, side=32) == f"{folder} already exists; nothing was written"
    with pytest.raises(InputError, match=r"has other images, as scenes\.json in it says; choose a new folder"):
        write_scenes(folder, FEW, side=32, seed=1)
    (folder / "scenes.json").unlink()
    with pytest.raises(InputError, match=r"is another data set, without scenes\.json"):
        write_scenes(folder, FEW, side=32)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").touch()
    with pytest.raises(InputError, match="is not empty; choose a new folder"):
        write_scenes(tmp_path / "mine", FEW)


def test_the_command_writes_and_says_what_is_wrong(tmp_path, capsys):
    folder, few = tmp_path / "scenes", ["--train", "2", "--validation", "1", "--test", "1"]
    for flags, message in (
        (["--img-size", "31"], "--img-size is 31; it must be 32 to 256"),
        (["--img-size", "257"], "--img-size is 257; it must be 32 to 256"),
        (["--train", "0"], "it must be at least 1"),
        (["--seed", "-1"], "it must be at least 0"),
    ):
        assert message in refused(capsys, "demo-data", "scenes", folder, *flags)
    assert not folder.exists()
    assert main(["demo-data", "scenes", str(folder), "--img-size", "32", "--seed", "3", *few]) == 0
    assert capsys.readouterr().out == f"2 train, 1 validation, 1 test scenes of 10 classes are in {folder}\n"
    mask = np.asarray(Image.open(folder / "train/masks/0001.png"))
    assert np.array_equal(mask, render_scene("train", 1, side=32, seed=3).mask)


def test_the_help_of_the_command(capsys):
    with pytest.raises(SystemExit):
        main(["demo-data", "scenes", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    for words in ("number of training scenes (800)", "number of validation scenes (200)", "random seed (0)"):
        assert words in said
