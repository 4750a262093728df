"""The joints that a configuration keeps: their text, their routes, their layers."""

import pytest
import torch

import stitchkit
from stitchkit.errors import InputError
from stitchkit.routes import Joint
from stitchkit.settings.stitch_config import StitchConfig
from tests.support import FAMILIES, pico_config, pico_images, pico_snnet

KEPT = ["ti[0] > s[1]", "s[2] > b[2]"]


def test_a_joint_is_read_as_it_is_written():
    joint = Joint("ti-1.a", 5, "s", 6)
    assert Joint.parse(str(joint)) == joint
    with pytest.raises(InputError, match=r"'ti\[5\]' is not a joint; write two blocks, as in 'tiny\[5\] > small\[6\]'"):
        Joint.parse("ti[5]")


def test_only_routes_through_kept_joints_exist():
    space = pico_snnet(joints=KEPT).space
    assert {cfg_id: stitch.name for cfg_id, stitch in space.stitches.items()} == {
        0: "ti[0:3]", 1: "s[0:3]", 2: "b[0:3]", 3: "ti[0:1] > s[1:3]", 4: "s[0:3] > b[2:3]",
    }  # fmt: skip
    assert [*map(str, space.layers)] == KEPT
    chains = pico_snnet(joints=KEPT, nearest_stitching=False).space
    assert [stitch.name for stitch in chains][5:] == ["ti[0:1] > s[1:3] > b[2:3]"]


def test_layers_keep_the_names_and_routes_the_outputs_of_the_whole_space():
    whole, kept = pico_snnet(), pico_snnet(joints=KEPT)
    names = {name for name in kept.state_dict() if name.startswith("stitch_layers")}
    assert names < set(whole.state_dict())
    assert len(kept.stitch_layers.state_dict()) == 4
    kept.load_state_dict({name: whole.state_dict()[name] for name in kept.state_dict()})
    for stitch in kept.space:
        torch.testing.assert_close(kept(pico_images(), stitch), whole(pico_images(), stitch))


def test_the_joints_of_a_two_way_space_may_be_kept():
    config = {**FAMILIES["vit"], "rule": "two_way", "nearest_stitching": True}
    whole = stitchkit.create_snnet(config).space
    joints = {joint for stitch in whole for joint in stitch.joints if {joint.front, joint.end} == {"ti", "s"}}
    kept = stitchkit.create_snnet({**config, "joints": [*map(str, joints)]}).space
    expected = [stitch for stitch in whole if set(stitch.joints) <= joints]
    assert list(kept) == expected
    assert kept.ids == tuple(range(len(expected)))
    assert len(whole) > len(kept) > 3


def test_joints_are_a_part_of_what_defines_a_network():
    config = StitchConfig.parse(pico_config(joints=KEPT))
    assert config.to_dict()["joints"] == KEPT
    assert StitchConfig.parse(config.to_dict()) == config
    assert "joints" not in StitchConfig.parse(pico_config()).to_dict()


@pytest.mark.parametrize(
    ("joints", "message"),
    [
        (["ti[0] > s[9]"], r"unknown joint 'ti\[0\] > s\[9\]'; did you mean"),
        (["ti[0:1] > s[1:3]"], r"joints: 'ti\[0:1\] > s\[1:3\]' is not a joint"),
        ([], "joints is .*; its length must be at least 1"),
        ("ti[0] > s[1]", "joints"),
    ],
)
def test_joints_that_are_none_are_refused(joints, message):
    with pytest.raises(InputError, match=message):
        stitchkit.create_snnet(pico_config(joints=joints))
