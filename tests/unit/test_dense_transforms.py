"""Images and their masks or depth maps change together."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from stitchkit.data.dense.pairs import open_pairs
from stitchkit.data.dense.transforms import evaluation_transform, training_transform
from stitchkit.errors import InputError

PLAIN = {"mean": (0, 0, 0), "std": (1, 1, 1)}
GREY = {"mean": (0.5, 0.25, 0.125), "std": (0.5, 0.25, 0.2)}


def coordinates(height, width):
    """An image whose red is the column and whose green is the row."""
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    return Image.fromarray(np.stack([columns, rows, rows * 0 + 99], 2)), rows, columns


def both(transform, image, seed, *targets):
    """The transformed image, in pixels, and each target, all by the same random numbers."""
    found = []
    for target in targets:
        torch.manual_seed(seed)
        pixels, plan = transform(image, target)
        found.append(plan)
    return pixels * 255, *found


@pytest.mark.parametrize("shape", [(90, 120), (200, 130), (40, 250)])
def test_masks_stay_aligned_to_the_pixel_through_scale_crop_flip_and_padding(shape):
    image, rows, columns = coordinates(*shape)
    transform = training_transform("segmentation", (64, 80), color_jitter=False, **PLAIN)
    slopes, flipped, padded, shifts = [], 0, 0, []
    for seed in range(40):
        pixels, down, right = both(transform, image, seed, rows, columns)
        assert pixels.shape == (3, 64, 80)
        assert (pixels.dtype, down.dtype, down.shape) == (torch.float32, torch.int64, (64, 80))
        outside = down == 255
        assert torch.equal(outside, right == 255)
        assert (pixels[:, outside] == 0).all()
        assert (pixels[2][~outside].round() == 99).all()
        padded += bool(outside.any())
        step = right.diff(dim=1)[0][~outside[0, 1:]].float().mean().item()
        slopes.append(abs(step))
        flipped += step < 0
        # A pixel's centre lies within half a pixel of the source from the nearest one's; colours are rounded.
        inside = ~outside & (right > 3) & (right < shape[1] - 4) & (down > 3) & (down < shape[0] - 4)
        for channel, place in enumerate((right, down)):
            difference = (pixels[channel] - place)[inside]
            assert difference.abs().max() <= 1.01
            shifts.append(difference.mean().item())
    assert abs(np.mean(shifts)) < 0.02  # by rounding down, it would be half a pixel for large factors
    base = min(64 / min(shape), 256 / max(shape))
    assert 1 / max(slopes) >= 0.5 * base * 0.93
    assert 1 / min(slopes) <= 2 * base * 1.07
    assert max(slopes) / min(slopes) > 2.5
    assert 8 < flipped < 32
    assert 0 < padded < 40


def test_without_a_change_of_scale_the_crop_is_exact():
    image, rows, columns = coordinates(64, 100)
    transform = training_transform("segmentation", (64, 80), scale=(1, 1), color_jitter=False, **PLAIN)
    places = set()
    for seed in range(30):
        pixels, down, right = both(transform, image, seed, rows, columns)
        assert torch.equal(pixels[0].round().long(), right)
        assert torch.equal(pixels[1].round().long(), down)
        places.add(int(right.min()))
    assert len(places) > 8


def test_depth_keeps_its_scale_and_its_values():
    image, rows, columns = coordinates(90, 70)
    transform = training_transform("depth", (64, 80), color_jitter=False, **PLAIN)
    metres = (rows + columns / 128 + 0.001).astype(np.float32)
    sides = set()
    for seed in range(10):
        pixels, found = both(transform, image, seed, metres)
        assert found.dtype == torch.float32
        known = found > 0
        assert torch.equal(known, torch.arange(80).expand(64, 80) < 70)
        expected = torch.tensor(metres)[pixels[1].round().long(), pixels[0].round().long()]
        assert torch.equal(found[known], expected[known])
        assert (pixels[:, ~known] == 0).all()
        sides.add(bool(pixels[0, 0, 0] > pixels[0, 0, 1]))
    assert sides == {True, False}


def test_an_image_is_padded_with_the_mean():
    image = Image.new("RGB", (10, 10), (255, 0, 0))
    for task, outside in (("segmentation", 255), ("depth", 0.0)):
        transform = training_transform(task, (20, 30), scale=(1, 1), color_jitter=False, **GREY)
        pixels, plan = transform(image, np.ones((10, 10), np.float32 if task == "depth" else np.uint8))
        inside = plan != outside
        assert int(inside.sum()) == (400 if task == "segmentation" else 100)
        assert inside[: int(inside.sum() ** 0.5), : int(inside.sum() ** 0.5)].all()
        assert (pixels[:, ~inside] == 0).all()
        torch.testing.assert_close(pixels[:, 0, 0], torch.tensor([1.0, -1.0, -0.625]))


def test_crops_of_one_class_are_avoided():
    mask = np.zeros((64, 256), np.uint8)
    mask[:, -40:] = 1
    image = Image.new("RGB", (256, 64))
    transform = training_transform("segmentation", (64, 64), scale=(1, 1), **PLAIN)
    shares = [both(transform, image, seed, mask)[1].float().mean().item() for seed in range(40)]
    # Of all crops, 12 % have both classes in these shares; by ten draws, 73 %.
    assert 20 < sum(0.25 < share < 0.75 for share in shares) < 38


def test_colours_change_only_in_the_image():
    image, rows, _ = coordinates(64, 64)
    for task in ("segmentation", "depth"):
        plain, jittered = (
            training_transform(task, (64, 64), scale=(1, 1), hflip=0, color_jitter=on, **PLAIN) for on in (False, True)
        )
        target = rows.astype(np.float32 if task == "depth" else np.uint8)
        unchanged = 0
        for seed in range(30):
            (before, expected), (after, found) = (both(way, image, seed, target) for way in (plain, jittered))
            assert torch.equal(expected, found)
            assert (after >= 0).all()
            assert (after <= 255).all()
            unchanged += torch.equal(before, after)
        assert 0 <= unchanged < 25
        assert task == "segmentation" or unchanged > 5


@pytest.mark.parametrize("task", ["segmentation", "depth"])
def test_only_the_generator_of_torch_decides(task):
    image, rows, _ = coordinates(90, 120)
    transform = training_transform(task, (32, 48), **GREY)
    states = random.getstate(), np.random.get_state()[1].tolist()
    first, again = (both(transform, image, 3, rows.astype(np.float32 if task == "depth" else np.uint8)) for _ in "ab")
    assert all(map(torch.equal, first, again))
    assert states == (random.getstate(), np.random.get_state()[1].tolist())


def test_evaluation_normalises_at_the_image_s_own_size():
    image, rows, columns = coordinates(30, 50)
    pixels, plan = evaluation_transform("segmentation", **GREY)(image, rows)
    expected = (np.asarray(image).transpose(2, 0, 1) / 255 - np.reshape(GREY["mean"], (3, 1, 1))) / np.reshape(
        GREY["std"], (3, 1, 1)
    )
    np.testing.assert_allclose(pixels.numpy(), expected, atol=1e-6)
    assert torch.equal(plan, torch.tensor(rows, dtype=torch.int64))
    _, metres = evaluation_transform("depth", **GREY)(image, columns / np.float32(7))
    np.testing.assert_array_equal(metres.numpy(), columns / np.float32(7))


def test_batches_of_loader_processes_follow_torch_s_seed(tmp_path):
    for name in "abcd":
        for kind in ("images", "masks"):
            (tmp_path / "train" / kind).mkdir(parents=True, exist_ok=True)
        image, rows, _ = coordinates(40, 50)
        image.save(tmp_path / f"train/images/{name}.png")
        Image.fromarray(rows).save(tmp_path / f"train/masks/{name}.png")
    pairs = open_pairs(tmp_path, "train", "segmentation")
    assert pairs.num_classes == 40
    pairs.transform = training_transform("segmentation", (24, 32), **GREY)

    def epoch():
        torch.manual_seed(5)
        return [tensor for batch in DataLoader(pairs, batch_size=2, shuffle=True, num_workers=2) for tensor in batch]

    first, again = epoch(), epoch()
    assert [tuple(tensor.shape) for tensor in first] == [(2, 3, 24, 32), (2, 24, 32)] * 2
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first[0][0], first[0][1])


@pytest.mark.parametrize("changes", [{"mean": (0.5,)}, {"std": (1, 0, 1)}])
def test_colours_that_make_no_sense(changes):
    with pytest.raises(InputError, match="RGB images need three of each"):
        training_transform("segmentation", (4, 4), **{**GREY, **changes})
