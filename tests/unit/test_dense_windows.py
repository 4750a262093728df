"""Windows: what is cut is put together again, and what cannot be judged is refused."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch

import stitchkit
from stitchkit.distributed import World
from stitchkit.engine.recovery import advising_evaluation
from stitchkit.errors import InputError, NotFinite
from stitchkit.model.onepass import OnePass
from stitchkit.settings.dense_recipe import DenseRecipe
from stitchkit.tasks.windows import Windows
from stitchkit.training.judging import JudgedMaps
from tests.support import pico_config

SIZE, CPU = (8, 12), World(0, 1, torch.device("cpu"))


def judged(recipe, networks, run, pairs, *, module=None, sides=SIZE, portion=4, num_classes=2):
    """What networks, by their names in messages, give for images and targets."""
    maps = JudgedMaps(
        _Loader(pairs, portion), recipe, num_classes, sides, World(0, 1, torch.device("cpu")), nullcontext
    )
    return maps.evaluate(maps.networks(module or torch.nn.Identity(), networks, run), "")


class _Loader(list):
    """One batch."""

    def __init__(self, pairs, batch_size):
        super().__init__([pairs])
        self.batch_size = batch_size

    def batches(self, *_):
        return self


@pytest.mark.parametrize(("height", "width"), [(8, 12), (21, 33), (5, 40), (30, 7), (1, 1)])
@pytest.mark.parametrize("stride", [1, 5, 8])
@pytest.mark.parametrize("task", ["segmentation", "depth"])
def test_outputs_are_means_over_the_windows_that_see_a_pixel(height, width, stride, task):
    """Each window adds its number, so that the mean at a pixel tells which have seen it."""
    image = torch.arange(height * width, dtype=torch.float32).view(1, height, width)
    windows = Windows.of_task(DenseRecipe(task=task, window_stride=stride), SIZE)
    cut = windows.cut([image])
    (places,), ((rows, columns),) = cut.places, cut.sides
    assert (rows, columns) == (height, width) if task == "depth" else (rows >= SIZE[0] and columns >= SIZE[1])
    total, count = np.zeros((2, max(rows, SIZE[0]), max(columns, SIZE[1])))
    for number, (top, left) in enumerate(places):
        for y in range(top, top + SIZE[0]):
            for x in range(left, left + SIZE[1]):
                total[y, x] += number
                count[y, x] += 1
    assert count.min() >= 1, "no gaps"
    outputs = torch.arange(len(places), dtype=torch.float32)[:, None, None, None].expand(-1, 1, 2, 3)
    (found,) = cut.merged(outputs, [torch.zeros(rows, columns)])
    np.testing.assert_allclose(found[0], (total / count)[:rows, :columns], rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_images_of_low_precision_are_resized_in_float32(dtype):
    """torch has no antialiasing in other types on a CPU."""
    image = torch.rand(3, 20, 31).to(dtype)
    windows = Windows.of_task(DenseRecipe(task="segmentation"), SIZE)
    found, wanted = windows.cut([image]).windows, windows.cut([image.float()]).windows
    assert found.dtype == dtype
    assert torch.equal(found, wanted.to(dtype))


def test_a_stride_that_leaves_gaps_is_refused():
    with pytest.raises(InputError, match=r"--window-stride 9 would leave gaps between windows of 8 x 12 .* at most 8"):
        Windows.of_task(DenseRecipe(task="depth", window_stride=9), SIZE)


@pytest.mark.parametrize("task", ["segmentation", "depth"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_outputs_that_are_not_finite_are_no_figures(task, value):
    """The class of NaN would be 0, which is often right."""
    recipe = DenseRecipe(task=task)
    batch = [(torch.zeros(3, *SIZE), torch.ones(SIZE, dtype=torch.int64 if task == "segmentation" else torch.float32))]

    def run(portions):
        yield 5, torch.full((sum(map(len, portions)), 2 if task == "segmentation" else 1, *SIZE), value)

    with pytest.raises(NotFinite, match=r"^the outputs of anchor 'a' are not finite$"):
        judged(recipe, {5: "anchor 'a'"}, run, batch)
    advised = pytest.raises(InputError, match="'a' are not finite; the weights may have diverged, so evaluate")
    with advised, advising_evaluation():
        judged(recipe, {5: "anchor 'a'"}, run, batch)


@pytest.mark.parametrize(
    ("task", "value", "words"),
    [
        ("segmentation", 255, "no pixel of 2 images has a known class, one other than 255; check the masks"),
        (
            "depth",
            2.0,
            "no pixel of 2 images has a depth from 0.001 to 0.5 m; check the unit of the depth maps, .* and ",
        ),
    ],
)
def test_images_without_any_known_pixel_are_refused(task, value, words):
    """Their figures would be 0, or without errors. A few among others do not count."""
    kind = torch.int64 if task == "segmentation" else torch.float32
    unknown, known = (torch.full(SIZE, each, dtype=kind) for each in (value, 0.25 if task == "depth" else 1))

    def run(portions):
        yield 5, torch.ones(sum(map(len, portions)), 2 if task == "segmentation" else 1, *SIZE)

    def figures(*targets):
        batch = [(torch.zeros(3, *SIZE), target) for target in targets]
        return judged(DenseRecipe(task=task, max_depth=0.5), {5: "a"}, run, batch).figures(5)

    assert figures(unknown, known)["images"] == 1
    with pytest.raises(InputError, match=words):
        figures(unknown, unknown)


@pytest.mark.parametrize("task", ["segmentation", "depth"])
def test_law_7_only_a_portion_of_the_windows_runs_at_a_time(task):
    """With the figures of all at once."""
    model = stitchkit.create_snnet(pico_config(), dense={"task": task, "head": "linear"}, num_classes=4).eval()
    sizes, random = [], torch.Generator().manual_seed(0)
    for module in model.modules():
        module.register_forward_hook(lambda _, given, __: sizes.append(len(given[0])) if given else None)
    images = [torch.rand(3, *sides, generator=random) for sides in ((16, 61), (40, 33))]
    batch = [(image, (image[0] * 3.99).long() if task == "segmentation" else 5 * image[0]) for image in images]
    cfg_ids = [0, 2, model.space.ids[-1]]

    def ways():
        yield cfg_ids, OnePass(model, cfg_ids).outputs
        net = model.extract(cfg_ids[-1])
        yield [cfg_ids[-1]], lambda portions: [(cfg_ids[-1], torch.cat([net(part) for part in portions]))]

    for wanted, run in ways():
        found = {}
        for portion in (3, 1000):
            sizes.clear()
            how = {"module": model, "sides": (16, 16), "portion": portion, "num_classes": 4}
            sums = judged(DenseRecipe(task=task), dict.fromkeys(wanted, "one"), run, batch, **how)
            found[portion] = [sums.figures(cfg_id) for cfg_id in wanted]
            assert (max(sizes) <= 3) == (portion == 3)
        for one, other in zip(*found.values(), strict=True):
            assert one == pytest.approx(other)
