"""The rule for anchors of several stages, and the spaces that it makes of them."""

from typing import NamedTuple

import pytest
import torch

from stitchkit.errors import InputError
from stitchkit.routes import SlidingWindow, StitchSpace
from stitchkit.routes.rules import paired, unpaired


class Anchor(NamedTuple):
    label: str
    depths: tuple[int, ...]
    stitched_stages: tuple[int, ...] = (0, 1, 2)


SWIN = [Anchor("ti", (2, 2, 6, 2)), Anchor("s", (2, 2, 18, 2)), Anchor("b", (2, 2, 18, 2))]
RESNET = [Anchor("r18", (2, 2, 2, 2), (1, 2)), Anchor("r50", (3, 4, 6, 3), (1, 2))]
RESNET_SWIN = [RESNET[0], SWIN[0]]
LEVIT = [Anchor("192", (4, 4, 4), (0, 1)), Anchor("256", (4, 4, 4), (0, 1))]


@pytest.mark.parametrize(
    ("anchors", "count"),
    [(SWIN, 41), (RESNET, 10), (RESNET_SWIN, 8), (LEVIT, 8)],
    ids=["swin", "r50", "rs", "levit"],
)
def test_law_3_published_counts_of_hierarchical_anchors(anchors, count):
    assert len(StitchSpace.build(anchors, SlidingWindow())) == count


def test_a_stitch_leaves_and_enters_in_one_stage():
    space = StitchSpace.build(SWIN, SlidingWindow())
    assert [stitch.name for stitch in space][:9] == [
        *("ti[0:12]", "s[0:24]", "b[0:24]"),
        *("ti[0:1] > s[1:24]", "s[0:1] > b[1:24]"),
        *("ti[0:3] > s[3:24]", "s[0:3] > b[3:24]"),
        *("ti[0:5] > s[5:24]", "ti[0:5] > s[6:24]"),
    ]
    assert space[40].name == "s[0:21] > b[21:24]"


def test_layers_are_numbered_by_stage_pair_and_layer():
    space = StitchSpace.build(RESNET, SlidingWindow())
    assert [space.layers[space[cfg_id].joints[0]] for cfg_id in range(2, 10)] == [
        *((0, 0, 0), (0, 0, 0), (0, 0, 1)),
        *((1, 0, 0), (1, 0, 0), (1, 0, 0), (1, 0, 1), (1, 0, 1)),
    ]


@pytest.mark.parametrize("front", range(1, 13))
def test_unpaired_heights_are_those_of_nearest_interpolation(front):
    for end in range(front + 1, 25):
        ids = torch.arange(front, dtype=torch.float32)[None, None]
        height = torch.nn.functional.interpolate(ids, end).squeeze().long().tolist()
        pairs = list(unpaired(front, end))
        assert [(i, j) for i, j, _ in pairs] == [
            (i, j) for i in range(front) for j in range(end) if height[j] == i and i < j
        ]
        assert [layer for *_, layer in pairs] == height[: len(pairs)]


def test_a_front_that_is_deeper_than_its_end_has_no_pair():
    assert list(unpaired(4, 2)) == []
    anchors = [Anchor("a", (2, 4, 2)), Anchor("b", (2, 2, 2))]
    with pytest.raises(InputError, match=r"stage 1 of a 2\+4\+2, b 2\+2\+2"):
        StitchSpace.build(anchors, SlidingWindow(stages=(0, 1)))
    assert [stitch.name for stitch in StitchSpace.build(anchors, SlidingWindow(stages=(0,)))][2:] == ["a[0:1] > b[1:6]"]


def test_a_window_that_only_goes_ahead_numbers_the_layers_it_uses():
    assert list(paired(4, kernel_size=2, stride=1, ahead=True)) == [(0, 1, 0), (1, 2, 1), (2, 3, 2)]
    assert list(paired(4, kernel_size=3, stride=3, ahead=True)) == [(0, 1, 0), (0, 2, 0), (1, 2, 0)]
    assert list(paired(5, kernel_size=1, stride=1, ahead=True)) == []


def test_window_and_stages_are_free():
    anchors = [Anchor("a", (2, 4)), Anchor("b", (2, 4))]
    space = StitchSpace.build(anchors, SlidingWindow(kernel_size=3, stages=(1,)))
    assert [stitch.name for stitch in space][2:] == [
        *("a[0:3] > b[3:6]", "a[0:3] > b[4:6]", "a[0:4] > b[4:6]"),
        *("a[0:4] > b[5:6]", "a[0:5] > b[5:6]"),
    ]


@pytest.mark.parametrize(
    ("anchors", "rule", "message"),
    [
        (LEVIT, {"stages": (0, 1, 2, 3)}, "stages 0 to 2 in common"),
        (LEVIT, {"kernel_size": 1}, "nothing can be joined in stage 0"),
        (LEVIT, {"nearest": False}, "nearest_stitching is false"),
        ([LEVIT[0], Anchor("x", (4, 4, 4), (2,))], {}, "no usually stitched stage in common: 192"),
        ([LEVIT[0], Anchor("vit", (12,), (0,))], {"stages": (1,)}, "stages 0 to 0 in common"),
    ],
)
def test_rules_that_do_not_fit_the_anchors_are_refused(anchors, rule, message):
    with pytest.raises(InputError, match=message):
        StitchSpace.build(anchors, SlidingWindow(**rule))


@pytest.mark.parametrize("stages", [(), (1, 0), (0, 0), (-1, 0)])
def test_stages_ascend(stages):
    with pytest.raises(InputError, match="not stages in ascending order"):
        SlidingWindow(stages=stages)
