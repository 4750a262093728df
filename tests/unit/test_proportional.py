"""The rule for anchors of any depths: joints at the same relative height, in either direction."""

from typing import NamedTuple

import pytest

from stitchkit.errors import InputError
from stitchkit.routes import Joint, Proportional, SlidingWindow, StitchSpace
from stitchkit.settings.stitch_config import StitchConfig


class Anchor(NamedTuple):
    label: str
    depths: tuple[int, ...]
    stitched_stages: tuple[int, ...] = (0,)


def names(anchors: list[Anchor], **rule: object) -> list[str]:
    return [stitch.name for stitch in StitchSpace.build(anchors, Proportional(**rule))][len(anchors) :]


def plain(*depths: int) -> list[Anchor]:
    return [Anchor(label, (depth,)) for label, depth in zip("sbl", depths, strict=False)]


def staged(*depths: tuple[int, ...]) -> list[Anchor]:
    return [Anchor(label, each, tuple(range(len(each)))) for label, each in zip("sbl", depths, strict=False)]


REGNETY = staged((2, 5, 13, 1), (2, 4, 10, 1))


@pytest.mark.parametrize(
    ("front", "end", "cuts"),
    [
        (12, 12, [*range(1, 12)]),
        (12, 24, [*range(2, 24, 2)]),
        (12, 27, [3, 5, 7, 9, 12, 14, 16, 18, 21, 23, 25]),
        (12, 40, [4, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37]),
        (24, 32, [2, 3, 4, 6, 7, 8, 10, 11, 12, 14, 15, 16, 18, 19, 20, 22, 23, 24, 26, 27, 28, 30, 31]),
    ],
)
def test_cuts_lie_after_the_same_share_of_both_anchors(front, end, cuts):
    up = [f"s[0:{k}] > b[{cut}:{end}]" for k, cut in enumerate(cuts, start=1)]
    assert names(plain(front, end)) == up
    deeper_front = [f"s[0:{cut}] > b[{k}:{front}]" for k, cut in enumerate(cuts, start=1)]
    assert names(plain(end, front)) == deeper_front


def test_routes_down_come_after_those_up():
    up = ["s[0:1] > b[2:6]", "s[0:2] > b[4:6]"]
    down = ["b[0:2] > s[1:3]", "b[0:4] > s[2:3]"]
    assert names(plain(3, 6)) == up
    assert names(plain(3, 6), directions="down") == down
    assert names(plain(3, 6), directions="both") == up + down


def test_law_3_routes_with_one_joint_of_the_published_two_way_rule():
    space = StitchSpace.build(plain(12, 24), Proportional("both"))
    assert len(space) == 24
    assert [stitch.name for stitch in space][2:13] == [f"s[0:{k}] > b[{2 * k}:24]" for k in range(1, 12)]
    assert [stitch.name for stitch in space][13:] == [f"b[0:{2 * k}] > s[{k}:12]" for k in range(1, 12)]


def test_a_stage_is_joined_after_every_block_of_the_shallower_anchor():
    assert names(REGNETY) == [
        *("s[0:1] > b[1:17]", "s[0:2] > b[2:17]"),
        *("s[0:4] > b[3:17]", "s[0:5] > b[4:17]", "s[0:6] > b[5:17]", "s[0:7] > b[6:17]"),
        *("s[0:9] > b[7:17]", "s[0:10] > b[8:17]", "s[0:11] > b[9:17]", "s[0:13] > b[10:17]", "s[0:14] > b[11:17]"),
        *("s[0:15] > b[12:17]", "s[0:17] > b[13:17]", "s[0:18] > b[14:17]", "s[0:19] > b[15:17]", "s[0:20] > b[16:17]"),
    ]
    assert names(REGNETY, stages=(1,)) == names(REGNETY)[2:6]


def test_the_end_of_a_stage_is_a_cut_if_blocks_follow_it():
    assert names(staged((2, 2), (2, 2)), stages=(0,)) == ["s[0:1] > b[1:4]", "s[0:2] > b[2:4]"]
    assert names(staged((2, 2), (2, 2)), stages=(1,)) == ["s[0:3] > b[3:4]"]
    assert names(staged((2, 2, 2), (2, 2)), stages=(1,)) == ["s[0:3] > b[3:4]"]
    assert names(staged((2, 2), (2, 2, 2)), stages=(1,)) == ["s[0:3] > b[3:6]", "s[0:4] > b[4:6]"]


@pytest.mark.parametrize("directions", ["up", "down", "both"])
@pytest.mark.parametrize("anchors", [plain(4, 3, 7), staged((1, 3, 2), (2, 2, 2), (3, 5, 3))], ids=["plain", "staged"])
def test_a_route_leaves_and_enters_at_the_same_height(anchors, directions):
    space = StitchSpace.build(anchors, Proportional(directions, nearest=False))
    depths = {anchor.label: anchor.depths for anchor in anchors}
    assert len(set(space)) == len(space)
    for stitch in space:
        assert stitch.segments[0].start == 0
        assert stitch.segments[-1].stop == sum(depths[stitch.segments[-1].anchor])
        for joint in stitch.joints:
            left, entered = (
                _height(depths[label], block)
                for label, block in ((joint.front, joint.front_block + 1), (joint.end, joint.end_block))
            )
            assert int(left) == int(entered), "it leaves and enters in one stage"
            deeper = max(depths[label][int(left)] for label in (joint.front, joint.end))
            assert abs(left - entered) < 1 / deeper, "only the cut of the deeper anchor is rounded"


def _height(depths: tuple[int, ...], blocks: int) -> float:
    """The stages that some blocks fill, the last of them in part."""
    for stage, depth in enumerate(depths):
        if blocks < depth:
            return stage + blocks / depth
        blocks -= depth
    return float(len(depths))


def test_every_joint_has_its_own_layer_and_longer_routes_add_none():
    couples = StitchSpace.build(plain(3, 6, 4), Proportional("both"))
    layers = {"s": 0, "b": 1}
    assert couples.layers[Joint("s", 0, "b", 2)] == (layers["s"], 0)
    assert couples.layers[Joint("b", 1, "s", 1)] == (layers["b"], 0)
    assert len(set(couples.layers.values())) == len(couples.layers) == len(couples) - 3
    every = StitchSpace.build(plain(3, 6, 4), Proportional("both", nearest=False))
    assert len(set(every.layers.values())) == len(every.layers) == sum(len(s.segments) == 2 for s in every)
    longer = [stitch.name for stitch in every if len(stitch.segments) == 3]
    assert longer == [
        *("s[0:1] > b[2:3] > l[2:4]", "s[0:1] > b[2:5] > l[3:4]", "s[0:2] > b[4:5] > l[3:4]"),
        *("l[0:1] > b[2:4] > s[2:3]", "l[0:2] > b[3:4] > s[2:3]"),
    ]


def test_window_and_proportional_rule_agree_on_routes_straight_ahead():
    window = {stitch.name for stitch in StitchSpace.build(plain(12, 12), SlidingWindow())}
    assert set(names(plain(12, 12))) < window


@pytest.mark.parametrize(
    ("anchors", "rule", "message"),
    [
        (plain(1, 12), {}, r"nothing can be joined in the stages \[0\] of s 1, b 12: .* one block must follow"),
        (REGNETY, {"stages": (3,)}, r"the stages \[3\] of s 2\+5\+13\+1, b 2\+4\+10\+1"),
        (REGNETY, {"stages": (3, 4)}, "stages 0 to 3 in common"),
        ([Anchor("s", (2, 2), (0,)), Anchor("b", (2, 2), (1,))], {}, "no usually stitched stage in common"),
    ],
)
def test_anchors_without_a_cut_are_refused(anchors, rule, message):
    with pytest.raises(InputError, match=message):
        names(anchors, **rule)


@pytest.mark.parametrize(("anchors", "stages"), [(plain(24, 12), None), (REGNETY, (2,))], ids=["plain", "staged"])
def test_where_windows_fail_the_way_out_is_named_and_works(anchors, stages):
    with pytest.raises(InputError, match='set "rule": "proportional"'):
        StitchSpace.build(anchors, SlidingWindow(stages=stages))
    assert names(anchors, stages=stages)


TWO = ["deit_tiny_patch16_224", "deit_small_patch16_224"]


def test_a_configuration_chooses_the_rule():
    config = StitchConfig.parse(
        {"anchors": TWO, "rule": "proportional", "directions": "both", "nearest_stitching": False, "stages": [0]}
    )
    assert config.make_rule() == Proportional("both", nearest=False, stages=(0,))
    assert StitchConfig.parse(config.to_dict()) == config


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"rule": "proportionl"}, "did you mean 'proportional'"),
        ({"rule": "proportional", "directions": "upp"}, "did you mean 'up'"),
        ({"directions": "down"}, "directions is 'down', but windows join only cheaper anchors to costlier ones"),
        ({"rule": "proportional", "stitch_kernel_size": 3}, "belong to windows"),
        ({"rule": "proportional", "stitch_stride": 2}, "belong to windows"),
    ],
)
def test_keys_of_the_other_rule_are_refused(keys, message):
    with pytest.raises(InputError, match=message):
        StitchConfig.parse({"anchors": TWO, **keys})
