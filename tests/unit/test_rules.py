"""The rule for anchors of one stage, and the space it makes."""

from typing import NamedTuple

import pytest

from stitchkit.errors import InputError
from stitchkit.routes import Joint, SlidingWindow, Stitch, StitchSpace
from stitchkit.routes.rules import paired


class Anchor(NamedTuple):
    label: str
    depths: tuple[int, ...]
    stitched_stages: tuple[int, ...] = (0,)


def anchors(depth: int = 12, count: int = 3) -> list[Anchor]:
    return [Anchor(label, (depth,)) for label in ("ti", "s", "b", "l")[:count]]


def test_windows_take_all_new_pairs_and_share_a_layer():
    assert list(paired(3, kernel_size=2, stride=1)) == [
        *((0, 0, 0), (0, 1, 0), (1, 0, 0), (1, 1, 0)),
        *((1, 2, 1), (2, 1, 1), (2, 2, 1)),
    ]


@pytest.mark.parametrize(
    ("kernel_size", "stride", "count"),
    [(1, 1, 27), (2, 1, 71), (2, 2, 51), (3, 1, 111), (3, 3, 75), (4, 1, 147), (4, 4, 99)],
)
def test_law_3_published_counts_of_kernel_and_stride(kernel_size, stride, count):
    assert len(StitchSpace.build(anchors(), SlidingWindow(kernel_size, stride))) == count


def test_all_pairs_and_routes_through_three_anchors():
    space = StitchSpace.build(anchors(), SlidingWindow(nearest=False))
    assert len(space) == 732
    assert {len(stitch.segments) for stitch in space} == {1, 2, 3}
    for stitch in space:
        for segment in stitch.segments:
            assert 0 <= segment.start < segment.stop <= 12
        assert stitch.segments[0].start == 0
        assert stitch.segments[-1].stop == 12
    assert len(set(space)) == len(space)


def test_the_order_is_anchors_then_pairs():
    space = StitchSpace.build(anchors(depth=2), SlidingWindow())
    assert [stitch.name for stitch in space][:5] == [
        *("ti[0:2]", "s[0:2]", "b[0:2]"),
        *("ti[0:1] > s[0:2]", "ti[0:1] > s[1:2]"),
    ]
    assert space.num_anchors == 3
    assert [stitch.is_anchor for stitch in space] == [True] * 3 + [False] * 8


def test_neighbouring_joints_share_a_layer_and_pairs_of_anchors_do_not():
    layers = StitchSpace.build(anchors(), SlidingWindow()).layers
    assert layers[Joint("ti", 0, "s", 0)] == layers[Joint("ti", 1, "s", 1)] == (0, 0)
    assert layers[Joint("ti", 1, "s", 2)] == (0, 1)
    assert layers[Joint("s", 1, "b", 2)] == (1, 1)
    assert len(set(layers.values())) == 22


def test_naming_the_only_stage_changes_nothing():
    assert StitchSpace.build(anchors(), SlidingWindow(stages=(0,))) == StitchSpace.build(anchors(), SlidingWindow())
    with pytest.raises(InputError, match=r"stages is \[1\], but the anchors have the stages 0 to 0 in common"):
        StitchSpace.build(anchors(), SlidingWindow(stages=(1,)))


def test_a_space_is_a_pure_function():
    assert StitchSpace.build(anchors(), SlidingWindow()) == StitchSpace.build(anchors(), SlidingWindow())


def test_a_stitch_that_does_not_exist_is_refused():
    space = StitchSpace.build(anchors(), SlidingWindow())
    assert space[70] == Stitch.parse("s[0:12] > b[11:12]")
    for cfg_id in (-1, 71):
        with pytest.raises(InputError, match="0 to 70"):
            space[cfg_id]


@pytest.mark.parametrize(
    ("given", "rule", "message"),
    [
        (anchors(count=1), {}, "at least two"),
        (anchors(count=0), {}, "at least two"),
        ([Anchor("a", (3,)), Anchor("a", (3,))], {}, "label"),
        ([Anchor("a", (3,)), Anchor("b", (4,))], {}, "a 3, b 4"),
        (anchors(depth=3), {"kernel_size": 4}, "choose 1 to 3"),
    ],
)
def test_anchors_that_do_not_fit_the_rule_are_refused(given, rule, message):
    with pytest.raises(InputError, match=message):
        StitchSpace.build(given, SlidingWindow(**rule))


@pytest.mark.parametrize("rule", [{"kernel_size": 0}, {"stride": 0}, {"stride": -1}])
def test_a_window_must_move_and_hold_a_block(rule):
    with pytest.raises(InputError, match="at least 1"):
        SlidingWindow(**rule)


def test_a_space_shows_and_finds_its_stitches():
    space = StitchSpace.build(anchors(3, count=2), SlidingWindow())
    assert repr(space) == "<StitchSpace: 9 stitches of ti[0:3], s[0:3]; ti[0:1] > s[0:3] to ti[0:3] > s[2:3]>"
    assert str(space).splitlines()[8] == "8  ti[0:3] > s[2:3]"
    assert [space.find(stitch) for stitch in space] == [*range(9)]
    assert space[space.find("ti[0:2] > s[1:3]")].name == "ti[0:2] > s[1:3]"
    with pytest.raises(InputError, match=r"unknown stitch 'ti\[0:2\] > s\[2:2\]'; did you mean"):
        space.find("ti[0:2] > s[2:2]")
    table = space._repr_html_()
    assert table.count("<tr>") == 10
    assert "ti[0:1] &gt; s[0:3]" in table
    assert "more" not in table
    assert "and 632 more" in StitchSpace.build(anchors(), SlidingWindow(nearest=False))._repr_html_()
