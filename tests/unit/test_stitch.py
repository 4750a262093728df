"""Stitches: names, joints, bad input."""

import pytest

from stitchkit.errors import InputError
from stitchkit.routes import Joint, Segment, Stitch


def test_a_name_reads_aloud_and_round_trips():
    stitch = Stitch((Segment("deit_tiny", 0, 6), Segment("deit_small", 6, 12)))
    assert stitch.name == "deit_tiny[0:6] > deit_small[6:12]"
    assert Stitch.parse(stitch.name) == stitch


def test_joints_say_where_a_route_leaves_and_enters():
    stitch = Stitch.parse("a[0:3] > b[2:5] > c[5:8]")
    assert stitch.joints == (Joint("a", 2, "b", 2), Joint("b", 4, "c", 5))
    assert not stitch.is_anchor
    assert Stitch.parse("a[0:8]").is_anchor


@pytest.mark.parametrize("name", ["", "a", "a[1]", "a[0:2] b[2:3]", "a[0:2] >", "a b[0:1]"])
def test_what_is_not_a_stitch_is_refused(name):
    with pytest.raises(InputError, match="not a stitch"):
        Stitch.parse(name)


@pytest.mark.parametrize(
    ("label", "start", "stop"), [("a", 2, 2), ("a", 3, 1), ("a", -1, 1), ("a > b", 0, 1), ("", 0, 1)]
)
def test_a_segment_must_run_a_block_of_a_named_anchor(label, start, stop):
    with pytest.raises(InputError):
        Segment(label, start, stop)


def test_an_empty_stitch_is_refused():
    with pytest.raises(InputError):
        Stitch(())
